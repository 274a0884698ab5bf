"""Which data of an observed site are refused: their rows, their axes, and NaN."""

from collections.abc import Mapping
from math import prod
from typing import Any


def check_data(site: str, node: Mapping[str, Any], missing: int) -> None:
    """Refuses data with another number of rows than their plate, and data without a value.

    One row stands for all, unless the rows are on another axis, which lies in no plate.
    `missing`: the number of entries that are NaN.
    """
    fn, shape = node["fn"], tuple(getattr(node["value"], "shape", ()))
    frames = [f for f in node["cond_indep_stack"] if getattr(f, "vectorized", True)]
    batch = _by_axis(shape[: len(shape) - fn.event_dim])
    own, in_plate = _by_axis(tuple(fn.batch_shape)), {frame.dim for frame in frames}
    loose = {d: n for d, n in batch.items() if n > 1 and own.get(d, 1) == 1 and d not in in_plate}
    for frame in frames:
        rows = batch.get(frame.dim, 1)
        if rows not in (1, frame.size):
            raise ValueError(
                f"site {site!r}: its data have {rows} rows along plate {frame.name!r}, which has"
                f" {frame.size}: use one size for both, as in plate({frame.name!r}, len(x)); in a"
                " subsampled plate, give the data of its rows, as in obs=x[rows]"
            )
        if loose and rows < frame.size:
            axis, size = next(iter(loose.items()))
            raise ValueError(
                f"site {site!r}: its data of shape {shape} have 1 row along plate {frame.name!r},"
                f" which has {frame.size}, but {size} along axis {axis}, which lies in no plate:"
                " each row of the plate would be scored with all of them. Give the data one axis"
                " for each plate, as in x.reshape(-1)"
            )
    if missing:
        raise ValueError(
            f"site {site!r}: NaN in its data, {missing} of {prod(shape)}: leave these out, or put"
            " numbers in their places and mask them, as in fn.mask(is_known)"
        )


def _by_axis(shape: tuple[int, ...]) -> dict[int, int]:
    return {i - len(shape): size for i, size in enumerate(shape)}
