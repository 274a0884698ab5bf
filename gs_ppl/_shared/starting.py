"""Checks of a start, for both sides: rows for a site, several starts, different components."""

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np


def check_rows_for(site: str, shape: Sequence[int], rows: Sequence[int]) -> None:
    """Refuses rows that do not fit a site: each entry of its first axis starts at one row.

    `shape` is that of the site, `rows` is that of the data.
    """
    if not rows or not shape or tuple(rows[1:]) != tuple(shape[1:]) or rows[0] < shape[0]:
        fits = f"at least {shape[0]} rows of shape {tuple(shape[1:])}" if shape else "a first axis"
        raise ValueError(
            f"init_to_rows: site {site!r} of shape {tuple(shape)} needs {fits}, got data of shape"
            f" {tuple(rows)}: give such rows, or leave the site to fallback="
        )


def check_inside(site: str, law: str, rows: np.ndarray, inside: np.ndarray) -> None:
    """Refuses rows at which a guide cannot start: outside of the support, or on its boundary."""
    bad = np.flatnonzero(~inside)
    if bad.size:
        raise ValueError(
            f"init_to_rows: site {site!r}: row {bad[0]} of the data, {rows[bad[0]].tolist()}, is"
            f" not inside of the support of {law}; its unconstrained value is not finite: give"
            " other rows, such as rows + 0.5 for counts that include 0"
        )


def check_tries(num_starts: int, num_steps: int) -> None:
    for name, count in (("num_starts", num_starts), ("num_steps", num_steps)):
        if count < 1:
            raise ValueError(f"best_start: {name} must be at least 1, got {count}")


def check_scores(scores: Sequence[float], num_steps: int) -> None:
    """Raises an error if no start has a finite loss."""
    if not any(map(math.isfinite, scores)):
        raise ValueError(
            f"best_start: after {num_steps} steps the loss of all {len(scores)} starts is NaN or"
            " infinite: try a smaller learning rate, and check the scales that the program computes"
        )


def are_equal(value: Any) -> bool:
    """Whether there are several components, and all are equal."""
    return value.size > 1 and bool((value == value.flat[0]).all())


def warn_of_equal(
    site: str, components: Collection[str], terms: Callable[[bool, int], list[np.ndarray]]
) -> None:
    """Warns if all classes of a relaxed site are equal because the components are.

    `terms(moved, i)` are the terms of all other sites, with the relaxed site at class i of two, and
    the components at their initial values, or at different ones if `moved`.
    """

    def alike(moved: bool) -> bool:
        pairs = zip(terms(moved, 0), terms(moved, 1), strict=True)
        return all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)

    if alike(False) and not alike(True):
        names = ", ".join(map(repr, components))
        warnings.warn(
            f"site {site!r}: all its classes are equal at the initial values of {names}, and get"
            " the same gradient: all data may end in one class. Use different initial values, for"
            " example by init_loc_fn=init_to_rows(rows=...) or init_to_sample, or try several"
            " starts by best_start",
            stacklevel=2,
        )
