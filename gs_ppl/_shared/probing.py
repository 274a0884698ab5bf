"""Whether a program's terms change with a relaxed value as their gradient predicts.

A program that uses a relaxed value as a class (by long(), argmax, ==, if) has a finite loss, but
the gradient lacks the effect of the value. The probe moves the value along an edge between two
vertices of the simplex. There the change of the program's terms must equal the integral of their
derivative. It differs if a term jumps, or changes without gradient. A term that does not change at
all passes.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, count, islice
from math import comb, log
from typing import Any, NamedTuple

import numpy as np

TOLERANCE = 0.02  # relative to the variation along an edge
MAX_SPLITS = 120
MIDDLE = 0.46  # not 1/2: by symmetry two jumps could cancel
ENDS = 1e-2  # distance from the vertices, if a term such as log(z) is infinite there
STEEP = 4  # an interval with a larger ratio of its ends has a logarithmic scale
SMALLEST = 1e-300  # smallest distance from an end: logs of clipped probabilities change until there
GAUSS = (0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5)  # the two nodes of the rule


class Reading(NamedTuple):
    """The weighted terms at a point of an edge, and the derivative of their sum along it."""

    terms: np.ndarray
    slope: float
    sites: frozenset[str]


class SitesChange(Exception):
    """The program has different sites at different values."""


class NoDerivative(Exception):
    """The backend cannot differentiate a function in the program; the message names it."""


@dataclass(order=True)
class Interval:
    """A part of an edge, with the change of the terms and the integral of their derivative.

    `start` and `end` are distances from the end of the edge on its side: near t = 1, floats are too
    coarse for t itself.
    """

    priority: float
    side: int
    start: float
    end: float
    change: float
    integral: float

    @property
    def mismatch(self) -> float:
        return abs(self.change - self.integral)


class Edge:
    """The terms along one edge, read at t in [0, 1] from its start, or at 1 - t from its end.

    An interval is split if change and integral differ. At a kink, or where the terms are steep, the
    difference becomes small; at a jump, or without a gradient, it remains. Towards an end of the
    edge, intervals shrink by orders of magnitude and the integral is over log t: it is exact for a
    log.
    """

    def __init__(
        self, read: Callable[[float], Reading], back: Callable[[float], Reading] | None = None
    ) -> None:
        self._reads = read, back or (lambda t: reversed_(read(1 - t)))
        self._seen: dict[tuple[int, float], Reading] = {}

    def read(self, side: int, t: float) -> Reading:
        at = side, t
        if at not in self._seen:
            reading = self._seen[at] = self._reads[side](t)
            if reading.sites != self._seen[next(iter(self._seen))].sites:
                raise SitesChange
        return self._seen[at]

    def interval(self, side: int, start: float, end: float) -> Interval:
        a, b = self.read(side, start).terms, self.read(side, end).terms
        if a.shape != b.shape and a.ndim and b.ndim:  # without axes: the program fails there
            raise SitesChange
        with np.errstate(invalid="ignore"):  # infinite at both ends: the change is unknown
            change = float((b - a).sum())
        if _is_steep(start, end):
            points, size = [start * (end / start) ** node for node in GAUSS], log(end / start)
            slopes = [t * self.read(side, t).slope for t in points]
        else:
            points, size = [start + (end - start) * node for node in GAUSS], end - start
            slopes = [self.read(side, t).slope for t in points]
        integral = size * sum(slopes) / len(slopes)
        return Interval(-abs(change - integral), side, start, end, change, integral)

    def mismatch(self) -> tuple[float, float] | None:
        """Change and integral if they differ; None if they agree or are unknown."""
        end = 0.0
        if not all(np.isfinite(self.read(side, end).terms).all() for side in (0, 1)):
            end = ENDS
        cut = end + MIDDLE * (1 - 2 * end)
        self._seen[1, 1 - cut] = self.read(0, cut)
        intervals = [self.interval(0, end, cut), self.interval(1, end, 1 - cut)]
        heapq.heapify(intervals)
        scale = max(np.abs(self.read(side, end).terms).sum() for side in (0, 1))
        rounding = 64 * np.finfo(np.float32).eps * scale  # in each interval
        for _ in range(MAX_SPLITS):
            used = [self._seen[x.side, t] for x in intervals for t in (x.start, x.end)]
            if not all(np.isfinite(x.terms).all() for x in used):
                return None
            left = sum(max(0.0, x.mismatch - rounding) for x in intervals)
            variation = sum(max(abs(x.change), abs(x.integral)) for x in intervals)
            if not np.isfinite(left) or left <= TOLERANCE * variation:
                return None
            worst = heapq.heappop(intervals)
            middle = _middle(worst.start, worst.end)
            for part in ((worst.start, middle), (middle, worst.end)):
                heapq.heappush(intervals, self.interval(worst.side, *part))
        return sum(abs(x.change) for x in intervals), sum(abs(x.integral) for x in intervals)


def reversed_(x: Reading) -> Reading:
    return x._replace(slope=-x.slope)


def _is_steep(start: float, end: float) -> bool:
    return 0 < start * STEEP < end


def _middle(start: float, end: float) -> float:
    """Where an interval is split."""
    if _is_steep(start, end):
        return float(start * (end / start) ** MIDDLE)
    if start == 0 and SMALLEST < end < ENDS:
        return max(end**2, SMALLEST)
    return start + MIDDLE * (end - start)


def groups(names: Sequence[str]) -> list[list[str]]:
    """Groups of sites that move together; for any two sites, each is in a group without the other.

    The sites are in different subsets of the groups, all of equal size: few groups for many sites.
    """
    size = next(n for n in count(1) if comb(n, n // 2 or 1) >= len(names))
    codes = islice(combinations(range(size), size // 2 or 1), len(names))
    members: list[list[str]] = [[] for _ in range(size)]
    for name, code in zip(names, codes, strict=True):
        for group in code:
            members[group].append(name)
    return [group for group in members if group]


def vertices(finite: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Two or three vertices of the simplex for each row, at random among the possible classes.

    In a row of two classes the third vertex is the first one; a row of one class does not move.
    """
    rank = np.where(finite, rng.random(finite.shape), -1.0).argsort(-1)[..., ::-1]
    classes = finite.sum(-1)
    for corner in range(min(3, max(2, finite.shape[-1]))):
        k = np.minimum(corner, classes - 1) if corner < 2 else np.where(classes > 2, 2, 0)
        k = np.take_along_axis(rank, np.maximum(k, 0)[..., None], -1)
        yield (np.arange(finite.shape[-1]) == k).astype(float)


def weights(shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Random weights of the terms, so that the jumps of several rows do not cancel in the sum."""
    rng = np.random.default_rng(0)
    return [rng.uniform(0.5, 1.5, shape) for shape in shapes]


def probe(
    side: str,
    masses: Sequence[str],
    densities: Sequence[str],
    corners: Callable[[str], list[Any]],
    read: Callable[[dict[str, tuple[Any, Any]], float], Reading],
) -> None:
    """Moves relaxed values along edges; refuses terms that change other than their gradient says.

    Args:
        side: "model" or "guide", for the message.
        masses: relaxed sites scored by a mass. Their own score is read too, and all move together.
        densities: relaxed sites scored by a density. Their own score is not read: it is not finite
            on the edges.
        corners: the values of a site at successive corners of a path of edges.
        read: the other terms, with sites at t between two of their values.

    Raises:
        ValueError: naming the site and the cure.
    """
    paths = {name: corners(name) for name in (*masses, *densities)}
    moving = [*([list(masses)] if masses else []), *(groups(densities) if densities else [])]
    for group in moving:
        for moved in _edges(paths, group):
            if (found := _mismatch(moved, read)) is None:
                continue
            for name in group:
                alone = _mismatch({name: moved[name]}, read)
                if alone is not None:
                    _refuse(side, name, alone)
            _refuse(side, group[0], found)


def _edges(paths: dict[str, list[Any]], group: list[str]) -> Iterator[dict[str, tuple[Any, Any]]]:
    length = max(len(paths[name]) for name in group)
    for step in range(length - 1):
        edge = {}
        for name in group:
            path = paths[name]
            i = step % (len(path) - 1)
            edge[name] = (path[i], path[i + 1])
        yield edge


def _mismatch(
    moved: dict[str, tuple[Any, Any]],
    read: Callable[[dict[str, tuple[Any, Any]], float], Reading],
) -> str | None:
    try:
        back = {name: (end, start) for name, (start, end) in moved.items()}
        found = Edge(lambda t: read(moved, t), lambda t: read(back, t)).mismatch()
    except SitesChange:
        return "the program has other sites in one class than in another"
    except NoDerivative as error:
        return str(error).rstrip(".")
    if found is None:
        return None
    change, integral = found
    return (
        f"between two classes the other terms change by {change:.3g}, but their gradient predicts"
        f" {integral:.3g}"
    )


def _refuse(side: str, name: str, found: str) -> None:
    raise ValueError(
        f"site {name!r}: the {side} reads its relaxed value in a way that has no gradient, such as"
        f" long(), argmax, ==, bool, round or if: {found}. Multiply by the weights instead, as in"
        " select(table, z), or in (1 - z) * a + z * b for a bit; or apply config_enumerate to the"
        " program and use TraceEnum_ELBO"
    )
