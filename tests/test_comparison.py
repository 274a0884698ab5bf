"""Parts of compare without a backend: tables of an enumeration, numbers of a report."""

from dataclasses import astuple
from types import SimpleNamespace

import numpy as np
import pytest

from gs_ppl._shared import comparison
from gs_ppl._shared.comparison import Program
from gs_ppl._shared.elimination import Factor, largest_table
from gs_ppl._shared.laws import refuse_undefined
from gs_ppl.report import Comparison, Estimate, Gradient, Marginal, Value


def factor(site, latents, plates="", entries=1):
    return Factor(site, frozenset(latents.split()), frozenset(plates.split()), entries)


SIZES = {"a": 2, "b": 3, "c": 5, "p": 7, "q": 11}
TABLES = {
    "none": ([factor("x", "", "p", 4)], {}, (28, [])),
    "chain": (
        [factor("a", "a"), factor("b", "a b"), factor("c", "b c"), factor("x", "c", entries=2)],
        {"a": "", "b": "", "c": ""},
        (15, ["b", "c"]),
    ),
    # the centre is never joined with two leaves
    "star": (
        [factor("a", "a"), factor("b", "a b"), factor("c", "a c")],
        {"a": "", "b": "", "c": ""},
        (10, ["a", "c"]),
    ),
    # the data depend on all causes at once
    "factorial": (
        [factor("a", "a"), factor("b", "b"), factor("c", "c"), factor("x", "a b c", "p")],
        {"a": "", "b": "", "c": ""},
        (210, ["a", "b", "c"]),
    ),
    # the data that remain in the plate have no event
    "event": ([factor("a", "a", "p"), factor("x", "a", "p", 100)], {"a": "p"}, (1400, ["a"])),
    # b is summed out within its plates, then a along p
    "nested": (
        [factor("a", "a", "p"), factor("b", "a b", "p q"), factor("x", "b", "p q")],
        {"a": "p", "b": "p q"},
        (2 * 3 * 77, ["a", "b"]),
    ),
    "crossed": (
        [
            factor("a", "a"),
            factor("b", "a b", "p"),
            factor("c", "a c", "q"),
            factor("x", "b", "p q"),
            factor("y", "c", "p q"),
        ],
        {"a": "", "b": "p", "c": "q"},
        (5 * 77, ["c"]),
    ),
    # a triangle is joined as a whole, although no score has all three
    "triangle": (
        [factor("x", "a b"), factor("y", "b c"), factor("z", "a c")],
        {"a": "", "b": "", "c": ""},
        (30, ["a", "b", "c"]),
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_largest_table(name):
    factors, latents, expected = TABLES[name]
    assert largest_table(factors, {z: p.split() for z, p in latents.items()}, SIZES) == expected


def test_rows_that_depend_on_each_other():
    """600 bits in one score: the size exceeds floating point, but there is a message."""
    bits = [factor("h", "h", "units"), factor("x", "h")]
    with pytest.raises(ValueError, match=r"'x' depends on all rows of 'h'.* 4\.1e180 entries"):
        largest_table(bits, {"h": ["units"]}, {"h": 2, "units": 600})


def test_value():
    assert Value.of(np.array([1.0, 3.0])) == Value(2.0, 1.0)
    assert str(Value.of(np.array([1.0, 3.0]))) == "2.000 ± 1.000"
    assert str(Value.of(np.array([1.0]))) == "1.000"


def test_gradient():
    draws = np.array([[1.0, 0.0], [3.0, 0.0]])
    half = np.sqrt(0.5)
    same = Gradient.of(draws, np.array([1.0, 0.0]))
    assert astuple(same) == pytest.approx((2, 1.0, 1.0, 1.0, 2.0, 2 * half, 1.0))
    diagonal = Gradient.of(draws, np.array([1.0, 1.0]))
    assert diagonal.exact == pytest.approx(2 * half)
    assert diagonal.bias == pytest.approx(1.0)
    assert diagonal.floor == pytest.approx(half)
    assert diagonal.cosine == pytest.approx(half)
    paired = Gradient.of(draws, np.array([[0.0, 0.0], [2.0, 0.0]]))
    assert (paired.bias, paired.floor, paired.variance) == (1.0, 0.0, 2.0)
    alone = Gradient.of(draws, None)
    assert (alone.variance, alone.snr) == pytest.approx((2.0, 2 * half))
    assert np.isnan([alone.exact, alone.bias, alone.floor, alone.cosine]).all()
    vanishing = Gradient.of(draws, np.zeros(2))
    assert vanishing.exact == 0.0
    assert np.isnan([vanishing.bias, vanishing.floor, vanishing.cosine]).all()


@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_squared_error(bias):
    """Mean and standard error over many repetitions; the exact gradient shares its draws.

    Without bias the error is 18 % too large, because its first-order term is clamped at 0.
    """
    rng, n, share = np.random.default_rng(0), 30, 0.1
    root, exact = np.array([[1.0, 0.0], [0.8, 0.5]]), np.array([1.0, 2.0])
    found = []
    for _ in range(3000):
        noise = rng.normal(size=(n, 2)) @ root.T
        common = rng.normal(size=(n, 2))
        # relative to |exact|^2, which the common noise changes slightly in each repetition
        norm = ((exact + common).mean(0) ** 2).sum()
        error = comparison.squared_error(exact + common + bias + noise, exact + common, share)
        found.append((error.mean * norm, error.error * norm))
    means, errors = np.array(found).T
    expected = 2 * bias**2 + share * (np.trace(root @ root.T) + 2)
    assert abs(means.mean() - expected) < 5 * means.std() / np.sqrt(3000)
    assert 0.95 < np.sqrt((errors**2).mean()) / means.std() < 1.25
    assert comparison.squared_error(common, 0 * exact[None], share) is None


COSTS = {
    "of ST": ({"STGumbelSoftmax": [2.0, 1.0], "A": [1.1], "B": [5.5]}, {}, (1, 1, 2**2.5)),
    "of the cheapest": ({"A": [3.0], "B": [1.0]}, {}, (2**1.5, 1)),
    "given": ({"STGumbelSoftmax": [1.0], "A": [1.0]}, {"A": 7.0}, (1, 7.0)),
}


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_relative(name):
    """Costs are rounded to half an octave of the lowest time of a family; 5.5 = 2^2.46."""
    seconds, given, expected = COSTS[name]
    labels = [label for label, times in seconds.items() for _ in times]
    times = [s for each in seconds.values() for s in each]
    unit, costs = comparison.relative_costs(labels, times, given)
    assert unit == ("B" if name == "of the cheapest" else "STGumbelSoftmax")
    assert tuple(costs.values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"budget": 0.0}, "budget must be positive and finite, got 0"),
        ({"cost": {"A": -1.0}}, "cost of A must be positive and finite, got -1"),
    ],
)
def test_options_that_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        comparison.Options([], [], [], 2, 1, [], 10, False, **option)
    with pytest.raises(ValueError, match="cost: no family is called 'C'; there are 'A'"):
        comparison.relative_costs(["A", "A"], [1.0, 1.0], {"C": 1.0})


def judged(**errors):
    """A comparison with these squared errors, by family."""
    one = Gradient(1, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    rows = [
        Estimate(name, "discrete", np.nan, Value(0.0), None, {}, {"logits": one}, 1.0, error)
        for name, error in errors.items()
    ]
    return Comparison(None, Value(0.0), tuple(rows), {}, 10)


def test_the_best_and_what_ties_with_it():
    """Ties are within two standard errors of the difference: 0.3 is 1.9 of them, 0.4 is 2.5."""
    far, near, least = Value(0.5, 0.1), Value(0.4, 0.12), Value(0.1, 0.1)
    report = judged(far=far, near=near, least=least)
    assert [row.family for row in report.best] == ["least", "near"]
    assert report.verdict == (
        "Best for the logits at the cost of 100 estimates by STGumbelSoftmax: least, error"
        " 0.100 ± 0.100. A tie, within two standard errors: near."
    )
    assert str(report).split()[-1] == "near."
    assert [row.family for row in judged(far=far, least=least).best] == ["least"]
    wide = Value(900.0, 600.0)  # within two of its own standard errors, but worse than no step
    assert [row.family for row in judged(wide=wide, least=least).best] == ["least"]
    assert "tie" not in judged(far=far, least=least).verdict
    assert "no family is of use" not in judged(far=Value(0.99, 0.1)).verdict
    assert judged(far=Value(1.0, 0.1)).verdict.endswith("at this cost no family is of use here.")
    unknown = judged(a=None)
    assert unknown.best == ()
    assert unknown.verdict.endswith("the exact gradient of the logits is zero.")
    assert judged().verdict == ""


def test_marginal():
    exact, approximate = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]]), np.eye(3)[[1, 1]]
    marginal = Marginal(exact, approximate, ("data",))
    np.testing.assert_allclose(marginal.distance, [0.8, 0.7])
    matched = marginal.match()
    np.testing.assert_allclose(matched.distance, [0.3, 0.4])
    assert matched.relabelled[0] == 1
    assert Marginal(exact, None, ("data",)).match().relabelled is None
    assert np.isnan(Marginal(None, approximate, ("data",)).distance)


@pytest.mark.parametrize(
    ("shape", "event_dims", "count"), [((), 0, 2), ((3,), 0, 8), ((3,), 1, 3), ((2, 3), 1, 9)]
)
def test_joined_variables_multiply_their_values(shape, event_dims, count):
    class One(Program):
        upstream = dict  # no site depends on another one

    program = One()
    program.sites = {"z": {"fn": SimpleNamespace(event_shape=shape)}}
    program.discrete = {"z": event_dims}
    assert program.classes("z") == count


@pytest.mark.parametrize(
    ("elbo", "noted"),
    [(Value(-3.0, 0.0), True), (Value(-3.0, 0.1), False), (Value(-2.0, 0.0), False)],
    ids=["all draws equal", "draws differ", "exact"],
)
def test_draws_without_spread(elbo, noted):
    """The ELBO of hard draws that are all equal is not exact, although its error is 0."""
    rows = [Estimate("STGumbelSoftmax", "discrete", 0.3, elbo, None, {})]
    notes = comparison.without_spread(rows, Value(-2.0), 100)
    assert [note.split(":")[0] for note in notes] == ["STGumbelSoftmax at τ = 0.3"] * noted
    assert comparison.without_spread(rows, None, 100) == []


def test_a_fault_of_ours_is_no_note():
    """What a PPL does not implement is a note; a fault of this library is raised."""

    class Theirs(comparison.Session):
        stochastic, sizes = False, {}
        logits = relaxed = discrete = None  # not used here

        def table(self, side):
            return 1, []

        def marginals(self, side, draws):
            raise NotImplementedError("theirs")

        def elbo(self, draws):
            raise NotImplementedError("theirs")

    class Ours(Theirs):
        def marginals(self, side, draws):
            refuse_undefined(self, "surrogate")

    options = comparison.Options([], [], [], 2, 1, [], 10, False)
    notes = comparison.run(Theirs(), options).notes
    assert [note.endswith(": not enumerated: theirs") for note in notes] == [True, True]
    with pytest.raises(NotImplementedError, match="Ours must define surrogate"):
        comparison.run(Ours(), options)
    Ours.marginals = eval("lambda *_: {}['z']", {"__name__": "gs_ppl.somewhere"})
    with pytest.raises(KeyError, match="z"):
        comparison.run(Ours(), options)
