"""Starts at rows of the data, and the best of several starts."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gs_ppl._shared.starting import check_scores

ROOT = Path(__file__).parents[1]
LINE = np.array([0.0, 1.0, 10.0])


def standard(backend, *shape):
    return backend.native.Normal(backend.array(np.zeros(shape)), 1.0)


def test_rows_are_drawn_by_squared_distance(backend):
    """The frequencies of 2000 starts are those of k-means++ by hand, within four deviations."""
    init = backend.gs.init_to_rows(rows={"locs": backend.array(LINE)})
    found = np.sort(backend.starts(init, "locs", standard(backend, 2), 2000), -1)
    assert (found[:, 0] < found[:, 1]).all()
    near = (1 / 101 + 1 / 82) / 3  # the pair (0, 1): from either end
    far = (100 / 101 + 100 / 181) / 3  # the pair (0, 10)
    for pair, p in (((0, 1), near), ((0, 10), far), ((1, 10), 1 - near - far)):
        share = (found == pair).all(-1).mean()
        assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / 2000)


def test_rows_of_several_columns(backend):
    """With as many rows as components, all rows are drawn; equal rows also give an answer."""
    data = np.array([[0.0, 1.0], [5.0, 1.0], [5.0, 1.0]])
    init = backend.gs.init_to_rows(rows={"locs": backend.array(data)})
    (found,) = backend.starts(init, "locs", standard(backend, 3, 2), 1)
    assert {tuple(row) for row in found} == {(0.0, 1.0), (5.0, 1.0)}


def test_other_sites_start_by_fallback(backend):
    rows = {"locs": backend.array(LINE)}
    init = backend.gs.init_to_rows(rows=rows, fallback=lambda site: backend.array(7.0))
    assert backend.starts(init, "scale", standard(backend), 1) == 7.0


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((4,), LINE), ((2, 3), LINE), ((), LINE), ((2,), np.zeros((3, 2))), ((1,), np.zeros(()))],
    ids=["too few", "no columns", "one component", "columns", "no rows"],
)
def test_rows_that_do_not_fit(backend, shape, rows):
    init = backend.gs.init_to_rows(rows={"locs": backend.array(rows)})
    with pytest.raises(ValueError, match=r"init_to_rows: site 'locs' of shape .* needs"):
        backend.starts(init, "locs", standard(backend, *shape), 1)


@pytest.mark.parametrize(
    ("law", "rows", "bad"),
    [
        ("positive", [0.5, 0.0, 2.0], r"row 1 of the data, 0\.0, is not inside of the support of"),
        ("positive", [0.5, 1.0, -2.0], r"row 2 of the data, -2\.0"),
        ("half normal", [0.5, 1.0, 0.0], r"row 2 of the data, 0\.0"),  # 0 is in torch's support
        ("simplex", [[0.5, 0.5], [0.25, 0.75], [0.5, 1.0]], r"row 2 of the data, \[0\.5, 1\.0\]"),
        ("simplex", [[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]], None),
        ("positive", [0.5, 1.0, 2.0], None),
    ],
    ids=["boundary", "outside", "boundary inside", "not a point", "points", "inside"],
)
def test_rows_outside_of_the_support(backend, law, rows, bad):
    ones = backend.array(np.ones(2))
    d = backend.native
    laws = {"positive": d.Gamma(ones, 1.0), "half normal": d.HalfNormal(ones)}
    law = laws[law] if law in laws else d.Dirichlet(ones).expand((2,))
    init = backend.gs.init_to_rows(rows={"rates": backend.array(np.array(rows))})
    if bad is None:
        backend.starts(init, "rates", law, 1)
        return
    with pytest.raises(ValueError, match=f"init_to_rows: site 'rates': {bad}"):
        backend.starts(init, "rates", law, 1)


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's warning
def test_the_best_start_wins(backend):
    """Of starts at 0, 50, 100 and one with loss NaN, the nearest to 100 wins; steps are made."""
    ppl, values = backend.ppl, np.array([-1.0, 0.0, 50.0, 100.0])

    def program():
        loc = backend.random_param("loc", values)
        ppl.factor("x", -((loc - 104.0) ** 2) + 0.0 * (loc + 0.5) ** 0.5)

    def make():
        elbo = backend.infer.Trace_ELBO()
        return backend.infer.SVI(program, lambda: None, backend.optimizer(), elbo)

    found = backend.best_start(make, "loc", 0, num_starts=12, num_steps=4)
    assert found == pytest.approx(100.2, abs=0.02)  # four steps of Adam


@pytest.mark.parametrize("option", ["num_starts", "num_steps"])
def test_counts_are_checked(backend, option):
    with pytest.raises(ValueError, match=f"best_start: {option} must be at least 1, got 0"):
        backend.best_start(None, "loc", 0, **{option: 0})


def test_no_start_is_finite():
    with pytest.raises(ValueError, match=r"after 5 steps the loss of all 2 starts is NaN or inf"):
        check_scores([np.nan, np.inf], 5)


def mixture(backend):
    native, ppl = backend.native, backend.ppl
    x = backend.array(np.array([0.0, 1.0, 10.0]))

    def model():
        with ppl.plate("components", 2):
            locs = ppl.sample("locs", native.Normal(backend.array(0.0), 10.0))
        with ppl.plate("data", 3):
            z = ppl.sample("z", native.Categorical(backend.array([0.4, 0.6])))
            ppl.sample("x", native.Normal(locs[z], 1.0), obs=x)

    return model


def check_start(backend, continuous, locs, family):
    gs, model = backend.gs, mixture(backend)
    start = backend.init_to(locs=backend.array(np.array(locs)))
    part = partial(getattr(backend.infer.autoguide, continuous), init_loc_fn=start)
    family = getattr(gs, family)
    guide = gs.auto_relaxed(model, part, temperature=0.5, family=family)
    relaxed = gs.relax(model, temperature=0.5, family=family)
    elbo = backend.infer.TraceMeanField_ELBO()
    gs.check(relaxed, guide, elbo)


@pytest.mark.parametrize(
    ("continuous", "family"),
    [
        ("AutoDelta", "GumbelSoftmax"),
        pytest.param("AutoNormal", "STGumbelSoftmax", marks=pytest.mark.long),
    ],
)
def test_equal_components_are_warned_of(backend, continuous, family):
    with pytest.warns(UserWarning, match="site 'z': all its classes are equal at the initial"):
        check_start(backend, continuous, [1.0, 1.0], family)


def test_components_apart_are_not(backend):
    check_start(backend, "AutoDelta", [1.0, 1.1], "GumbelSoftmax")


RECORDS = ROOT / "examples" / "results" / "starting"


@pytest.mark.parametrize("record", sorted(path.stem for path in RECORDS.glob("*.json")))
def test_recorded_starts(record):
    """If enumeration is right, relaxed classes are right in at least 95 %."""
    rows = json.loads((RECORDS / f"{record}.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"Enumeration", "GumbelSoftmax", "STGumbelSoftmax"}
    for row in rows:
        assert row["seeds"] == 20
        assert row["right_where_enumeration_is"] >= 0.95 * row["enumeration_right"] > 0
