"""Checks of guides with rows that are trained one by one, for both sides."""

from collections.abc import Collection, Mapping
from typing import NoReturn


def plate_of_rows(site: str, plates: Mapping[int, str], partial: Collection[str], axes: int) -> str:
    """The plate on the first axis of a site: its rows are the rows of the table.

    Args:
        site: name.
        plates: the plates around it, by axis from the right.
        partial: the plates of which the program gets only some rows.
        axes: number of batch axes of the logits.
    """
    first = plates.get(-axes)
    others = sorted({*partial} - {first})
    if first is None or others:
        named = others[0] if others else "data"
        raise ValueError(
            f"site {site!r}: with sparse=True the plate of the rows must be the first axis, and"
            " other plates must have all their rows: write"
            f" plate({named!r}, ..., dim={-axes})"
        )
    return first


def refuse_without_rows() -> NoReturn:
    raise ValueError(
        "AutoGumbelSoftmax: sparse=True is for rows of a plate, but no discrete latent is in a"
        " plate: put one into a plate, or leave sparse out"
    )


def refuse_optimizer(name: str, why: str) -> NoReturn:
    """Refuses an optimizer that cannot be used for each row separately."""
    raise ValueError(f"AnnealedSVI: sparse=True cannot use {name} for each row separately: {why}")
