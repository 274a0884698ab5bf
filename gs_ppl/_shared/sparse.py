"""What guides of both sides say of rows that are trained one by one."""

from collections.abc import Collection, Mapping
from typing import NoReturn


def plate_of_rows(site: str, plates: Mapping[int, str], partial: Collection[str], axes: int) -> str:
    """The plate on the first of so many axes of a site: its rows are those of the table.

    Args:
        site: name.
        plates: around it, by axis from the right.
        partial: those of which some rows alone are seen.
        axes: of the logits' batch.
    """
    first = plates.get(-axes)
    others = sorted({*partial} - {first})
    if first is None or others:
        named = others[0] if others else "data"
        raise ValueError(
            f"site {site!r}: with sparse=True the plate of the rows must be the first axis, and the"
            f" other plates whole: give it that axis, plate({named!r}, ..., dim={-axes})"
        )
    return first


def refuse_without_rows() -> NoReturn:
    raise ValueError(
        "AutoGumbelSoftmax: sparse=True is for rows of a plate, and no discrete latent is in one"
    )


def refuse_optimizer(name: str, why: str) -> NoReturn:
    """One that has no meaning for a row alone, or that we cannot take row by row."""
    raise ValueError(f"AnnealedSVI: sparse=True cannot take {name} for each row alone: {why}")
