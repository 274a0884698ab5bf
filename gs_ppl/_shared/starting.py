"""What both sides ask of a start: rows for a site, and how often it is tried."""

import math
from collections.abc import Sequence


def check_rows_for(site: str, shape: Sequence[int], rows: Sequence[int]) -> None:
    """Refuses rows that a site of this shape cannot start from: its first axis is filled by them.

    `rows` is the shape of the data.
    """
    if not rows or not shape or tuple(rows[1:]) != tuple(shape[1:]) or rows[0] < shape[0]:
        wanted = ("at least as many rows", *shape[1:]) if shape else "a first axis of components"
        raise ValueError(
            f"init_to_rows: site {site!r} of shape {tuple(shape)} starts from rows of shape"
            f" {tuple(rows)}: wanted {wanted}; give such rows, or leave the site to fallback="
        )


def check_tries(num_starts: int, num_steps: int) -> None:
    for name, count in (("num_starts", num_starts), ("num_steps", num_steps)):
        if count < 1:
            raise ValueError(f"best_start: {name} must be at least 1, got {count}")


def check_scores(scores: Sequence[float], num_steps: int) -> None:
    """Refuses starts none of which has a finite loss."""
    if not any(map(math.isfinite, scores)):
        raise ValueError(
            f"best_start: after {num_steps} steps the loss of all {len(scores)} starts is NaN or"
            " infinite: try a smaller learning rate, and check the scales that the program computes"
        )
