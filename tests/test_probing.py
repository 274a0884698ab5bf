"""The probe along edges, for functions of one number with known changes and slopes."""

import math

import numpy as np
import pytest

from gs_ppl._shared.probing import Edge, Reading, groups, probe, vertices

SITES = frozenset("z")
TINY = float(np.finfo(np.float64).tiny)  # where NumPyro clips


def log(t):
    return math.log(t) if t > 0 else -np.inf


# its value at t, and the slope that the gradient gives
FOLLOWS = {
    "constant": (lambda t: 5.0, lambda t: 0.0),
    "cubic": (lambda t: t**3 - 2 * t, lambda t: 3 * t**2 - 2),
    "kink": (lambda t: max(t, 0.3), lambda t: float(t > 0.3)),
    "steep": (lambda t: math.tanh(40 * (t - 0.3)), lambda t: 40 / math.cosh(40 * (t - 0.3)) ** 2),
    "infinite at one end": (log, lambda t: 1 / t if t > 0 else np.inf),
    "log that is clipped": (lambda t: log(max(t, TINY)), lambda t: (t > TINY) / max(t, TINY)),
    "the same at the other end": (
        lambda t: 2 * log(max(1 - t, 1e-16)),
        lambda t: -2 * (1 - t > 1e-16) / max(1 - t, 1e-16),
    ),
    "infinite everywhere": (lambda t: -np.inf, lambda t: 0.0),
    "a slope within one percent": (lambda t: t, lambda t: 1.01),
    "a jump of one millionth": (lambda t: 1 + 1e-6 * (t > 0.3), lambda t: 0.0),
}
JUMPS = {
    "no slope": (lambda t: t, lambda t: 0.0),
    "half of the slope": (lambda t: t, lambda t: 0.5),
    "the other way": (lambda t: t, lambda t: -1.0),
    "a slope that is not there": (lambda t: 0.0, lambda t: 1.0),
    "three percent of the slope": (lambda t: t, lambda t: 1.03),
    "jump": (lambda t: float(t > 0.5), lambda t: 0.0),
    "jump on a slope": (lambda t: t + (t > 0.8), lambda t: 1.0),
    "jump at an end": (lambda t: t + (t > 0), lambda t: 1.0),
    "jump at the other end": (lambda t: t + (t == 1), lambda t: 1.0),
    "jump beside a clipped log": (
        lambda t: log(max(t, TINY)) + 100 * (t > 0.2),
        lambda t: (t > TINY) / max(t, TINY),
    ),
    "half of a clipped log": (
        lambda t: log(max(t, TINY)),
        lambda t: (t > TINY) / max(t, TINY) / 2,
    ),
    "a small jump": (lambda t: 1 + 1e-4 * (t > 0.3), lambda t: 0.0),
    "alike at both ends and in the middle": (lambda t: 4 * t // 1 % 2, lambda t: 0.0),
    "infinite at one end": (lambda t: log(t) + 8 * (t > 0.5), lambda t: 1 / t if t > 0 else np.inf),
}


def mismatch(value, slope):
    with np.errstate(invalid="ignore"):  # between two infinities
        return Edge(lambda t: Reading(np.array([value(t)]), slope(t), SITES)).mismatch()


@pytest.mark.parametrize("name", FOLLOWS)
def test_what_follows_its_slope(name):
    assert mismatch(*FOLLOWS[name]) is None


@pytest.mark.parametrize("name", JUMPS)
def test_what_does_not(name):
    assert mismatch(*JUMPS[name]) is not None


@pytest.mark.parametrize("finite", [[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1], [1, 1, 1, 1, 1]])
def test_corners(finite):
    """All possible classes, up to three, in turn; with two, the first one again."""
    finite = np.array([finite] * 40, bool)
    rows = np.stack(list(vertices(finite, np.random.default_rng(0))), 1)
    classes = finite[0].sum()
    for row in rows:
        assert ((row == 0) | (row == 1)).all()
        assert (row.sum(-1) == 1).all()
        assert row[:, finite[0]].sum() == len(row)
        met = row.argmax(-1)
        assert len(set(met)) == min(classes, 3)
        assert len(met) < 3 or classes != 2 or met[2] == met[0]
    assert set(rows[:, 0].argmax(-1)) == set(np.flatnonzero(finite[0]))  # at random


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 20, 21])
def test_each_site_moves_while_each_other_is_at_rest(n):
    found = groups([str(i) for i in range(n)])
    pairs = {(a, b) for group in found for a in group for b in map(str, range(n)) if b not in group}
    assert len(pairs) == n * (n - 1)
    assert len(found) <= {1: 1, 2: 2, 3: 3, 6: 4, 7: 5, 20: 6, 21: 7}[n]


def run(read, masses=(), densities=()):
    probe("model", masses, densities, lambda name: [0.0, 1.0, 0.0], read)


def reading(moved, t, value, sites=SITES):
    """The reading of `value`, a function of the sites' values, without a gradient."""
    at = {name: start + t * (end - start) for name, (start, end) in moved.items()}
    terms = np.atleast_1d(value(**{"a": 0.0, "b": 0.0, **at})).astype(float)
    return Reading(terms, 0.0, sites)


@pytest.mark.parametrize("kinds", [("masses",), ("densities",), ("masses", "densities")])
@pytest.mark.parametrize("site", ["a", "b"])
def test_the_site_is_named(kinds, site):
    names = dict.fromkeys(kinds, "ab") if len(kinds) == 1 else {"masses": "a", "densities": "b"}
    run(lambda moved, t: reading(moved, t, lambda a, b: 1.0), **names)
    jump = lambda moved, t: reading(moved, t, lambda a, b: {"a": a, "b": b}[site] > 0.3)  # noqa: E731
    with pytest.raises(ValueError, match=f"site '{site}': the model .* change by 1, .* predicts 0"):
        run(jump, **names)


def test_sites_that_come_and_go():
    def other(moved, t):
        start, end = moved["a"]
        sites = SITES if start + t * (end - start) < 0.5 else SITES | {"w"}
        return reading(moved, t, lambda a, b: 1.0, sites)

    def longer(moved, t):
        return reading(moved, t, lambda a, b: [1.0] if a < 0.5 else [0.5, 0.5])

    for read in (other, longer):
        with pytest.raises(ValueError, match=r"site 'a': .* has other sites in one class than in"):
            run(read, masses="a")


def test_where_the_program_fails():
    """A reading without axes: there is no value there, which is no change of the sites."""

    def read(t):
        return Reading(np.array(np.nan) if t < 0.2 else np.array([0.0, t]), float(t >= 0.2), SITES)

    assert Edge(read).mismatch() is None


def test_the_end_is_approached_from_itself():
    """A clipped log falls towards the end, where 1 - t would be rounded."""

    def value(moved, t):
        start, end = moved["a"]
        a = start + t * (end - start)
        slope = (end - start) / a if a > TINY else 0.0
        return Reading(np.array([log(max(a, TINY))]), slope, SITES)

    probe("model", "a", (), lambda name: [1.0, 0.0], value)


def test_an_edge_is_read_once_at_a_point():
    points = []

    def read(t):
        points.append(t)
        return Reading(np.array([t**3]), 3 * t**2, SITES)

    Edge(read).mismatch()
    assert len(points) == len(set(points)) < 20
