"""AutoGumbelSoftmax(parents=...): tables compared with summation over all assignments."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from enumerable import by_name, plain
from programs import PRIOR, TRANSITION
from scipy.special import log_expit, log_softmax

from gs_ppl._shared.structure import Law, maximum

RNG = np.random.default_rng(11)

# by program: option, parents of each site, shape of each table (for a bit without the last axis)
TABLES = {
    "hidden_markov": (
        "model",
        {"z_0": (), "z_1": ("z_0",), "z_2": ("z_1",), "z_3": ("z_2",)},
        {"z_0": (3,), "z_1": (3, 3), "z_2": (3, 3), "z_3": (3, 3)},
    ),
    "factorial": (
        {"b": ["a"], "c": ["b", "a"]},
        {"a": (), "b": ("a",), "c": ("a", "b")},
        {"a": (3,), "b": (3, 2), "c": (3, 2)},
    ),
    "bernoulli_net": ("model", {"top": (), "h": ("top",)}, {"top": (), "h": (2, 2)}),
    "nested": ("model", {"z": (), "h": ("z",)}, {"z": (2, 3), "h": (2, 2, 3)}),
    "crossed": (
        "model",
        {"top": (), "z": (), "w": ("top",)},
        {"top": (), "z": (2, 3), "w": (3, 1, 2)},
    ),
}
BITS = {"c", "top", "h", "w"}
LOGITS = {
    name: {site: np.round(2 * RNG.normal(size=shape), 3) for site, shape in shapes.items()}
    for name, (_, _, shapes) in TABLES.items()
}


def guide_of(backend, name, model=None, **options):
    init = {site: backend.array(a) for site, a in LOGITS[name].items()}
    model = plain(backend, name) if model is None else model
    options = {"init_logits": init, "parents": TABLES[name][0]} | options
    return backend.gs.AutoGumbelSoftmax(model, **options)


def log_rows(site, table):
    if site in BITS:
        return np.stack([log_expit(-table), log_expit(table)], -1)
    return log_softmax(table, -1)


def log_q(name):
    """Log q of each assignment; variables are in the order of the program's log joint."""
    _, parents, _ = TABLES[name]
    program = by_name(name)
    tables = {site: log_rows(site, a) for site, a in LOGITS[name].items()}
    batch = {site: t.shape[: t.ndim - 1 - len(parents[site])] for site, t in tables.items()}
    cells = [(site, row) for site in program.sites for row in np.ndindex(*batch[site])]
    result = np.zeros(tuple(program.sizes.values()))
    for assignment in itertools.product(*map(range, result.shape)):
        value = dict(zip(cells, assignment, strict=True))
        for site, row in cells:
            at = [value[parent, row[len(row) - len(batch[parent]) :]] for parent in parents[site]]
            result[assignment] += tables[site][(*row, *at, value[site, row])]
    return cells, result


QUICK = "factorial", "nested"  # two parents; a parent outside of the child's plate, of another kind
SOME = [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in TABLES]


@pytest.mark.parametrize("name", SOME)
def test_enumerated_elbo_marginals_and_maximum(backend, name):
    """The discrete guide is the law of its tables, by summation over all assignments."""
    gs, program = backend.gs, by_name(name)
    guide, (cells, table) = guide_of(backend, name), log_q(name)
    pair = gs.config_enumerate(plain(backend, name)), gs.config_enumerate(guide)
    elbo = (np.exp(table) * (program.log_joints() - table)).sum()
    assert backend.enumerated_loss(*pair, program.plates) == pytest.approx(-elbo, rel=1e-5)
    assert guide._parents == TABLES[name][1]
    params = backend.params_of(guide)
    probs, mode = backend.guide_probs(guide, params), backend.guide_mode(guide, params)
    best = np.unravel_index(table.argmax(), table.shape)
    for i, (site, row) in enumerate(cells):
        p = np.exp(table).sum(tuple(j for j in range(table.ndim) if j != i))
        bit = site in BITS
        np.testing.assert_allclose(probs[site][row], p[1] if bit else p, rtol=1e-5)
        assert best[i] == (mode[site][row] if bit else mode[site][row].argmax())


@pytest.mark.parametrize("name", ["hidden_markov", "nested"])
def test_draws(backend, name):
    """sample_posterior draws ancestors first."""
    guide, (cells, table) = guide_of(backend, name), log_q(name)
    draws = backend.draws_of(guide, backend.params_of(guide), 20_000)
    rows = [draws[site][(slice(None), *row)] for site, row in cells]
    index = [x if site in BITS else x.argmax(-1) for x, (site, _) in zip(rows, cells, strict=True)]
    counts = np.zeros(table.shape)
    np.add.at(counts, tuple(i.astype(int) for i in index), 1)
    p = np.exp(table)
    large = p > 0.01
    z = (counts - 20_000 * p)[large] / np.sqrt(20_000 * p[large])
    assert np.abs(z).max() < 5


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("bernoulli_net", "STGumbelSoftmax"),
        pytest.param("hidden_markov", "STGumbelSoftmax", marks=pytest.mark.long),
        pytest.param("hidden_markov", "ReinMax", marks=pytest.mark.long),
    ],
)
def test_loss_of_hard_samples_is_unbiased(backend, name, family):
    """TraceMeanField_ELBO: at a vertex each divergence is that of the row."""
    gs, table = backend.gs, log_q(name)[1]
    family = getattr(gs, family)
    model = plain(backend, name)
    guide = guide_of(backend, name, temperature=0.5, family=family)
    relaxed = gs.relax(model, 0.5, family=family)
    losses = backend.losses(backend.infer.TraceMeanField_ELBO(), relaxed, guide, 200)
    elbo = (np.exp(table) * (by_name(name).log_joints() - table)).sum()
    assert abs(losses.mean() + elbo) < 4 * losses.std() / np.sqrt(len(losses))


def test_in_compare_and_read_from_parameters(backend):
    """Exact ELBO, evidence and marginals; a new guide reads the same from saved tables."""
    gs, name = backend.gs, "factorial"
    program, model, (cells, table) = by_name(name), plain(backend, name), log_q(name)
    options = {"temperatures": [0.5], "num_samples": 4}
    report = backend.compare(
        model, guide_of(backend, name), families=[gs.STGumbelSoftmax], **options
    )
    elbo = (np.exp(table) * (program.log_joints() - table)).sum()
    assert report.elbo.mean == pytest.approx(elbo, rel=1e-5)
    assert report.evidence.mean == pytest.approx(program.evidence(), rel=1e-5)
    fresh = gs.AutoGumbelSoftmax(model, parents=TABLES[name][0])
    probs = backend.guide_probs(fresh, backend.saved_logits(LOGITS[name]))
    for i, (site, row) in enumerate(cells):
        p = np.exp(table).sum(tuple(j for j in range(table.ndim) if j != i))
        np.testing.assert_allclose(report.marginals[site].approximate[row], p, rtol=1e-4)
        np.testing.assert_allclose(probs[site][row], p[1] if site in BITS else p, rtol=1e-5)


def test_what_is_recorded():
    """KL to the posterior is at most 5 % of the best mean field's, by RLOO and by enumeration."""
    path = Path(__file__).parents[1] / "examples" / "results" / "structured_guides" / "report.json"
    rows = json.loads(path.read_text())["rows"]
    shares = {
        (row["backend"], row["program"], row["method"]): row["kl"] / row["kl_of_mean_field"]
        for row in rows
        if row["method"] in ("RLOO_ELBO(16)", "TraceEnum_ELBO")
    }
    assert len(shares) == 2 * 4 * 2
    assert all(-1e-4 < share <= 0.05 for share in shares.values())


# --- integers in a plate, rows, a fresh process ---------------------------------------------------


def integers(backend, rows=None):
    """A chain of two integers and a bit in each row of a plate, with a class shared by all rows."""
    ppl, array, native = backend.ppl, backend.array, backend.native

    def model(rows=rows):
        top = ppl.sample("top", native.Categorical(probs=array(PRIOR)))
        plate = ppl.plate("data", 4) if rows is None else backend.plate_of_rows("data", 4, rows)
        with plate:
            a = ppl.sample("a", native.Categorical(probs=array(TRANSITION)[top]))
            b = ppl.sample("b", native.Categorical(probs=array(TRANSITION)[a]))
            ppl.sample("bit", native.Bernoulli(probs=array(np.array([0.2, 0.5, 0.9]))[b]))

    return model


PARENTS = {"top": (), "a": ("top",), "b": ("a",), "bit": ("b",)}


def follows(row, parent):
    """The class that the almost certain guide gives a row."""
    return (row + 2 * parent) % 3


def sure(backend, **options):
    """A guide that gives each row, for each class of its parent, one class with probability almost
    1."""
    at = np.arange(4)[:, None], np.arange(3)
    rows = 60 * np.eye(3)[follows(*at)]
    logits = {"top": 60 * np.eye(3)[1], "a": rows, "b": rows, "bit": 60.0 * (follows(*at) - 0.5)}
    init = {site: backend.array(a) for site, a in logits.items()}
    return backend.gs.AutoGumbelSoftmax(
        integers(backend), init_logits=init, parents="model", **options
    )


def expected(rows):
    a = follows(rows, 1)
    b = follows(rows, a)
    return {"top": 1, "a": a, "b": b, "bit": (follows(rows, b) > 0.5).astype(int)}


@pytest.mark.parametrize("family", ["GumbelSoftmax", "STGumbelSoftmax"])
def test_rows_of_tables(backend, family):
    """All rows and given rows; soft or hard, discretized or read."""
    guide = sure(backend, temperature=0.1, family=getattr(backend.gs, family))
    params = backend.params_of(guide)
    assert guide._parents == PARENTS
    for site, wanted in expected(np.arange(4)).items():
        np.testing.assert_array_equal(backend.guide_mode(guide, params)[site], wanted)
    rows = np.array([3, 1])
    given = lambda: guide(backend.array(rows, "int64"))  # noqa: E731
    for program in (backend.gs.discretize(given), given):
        drawn = backend.trace(program, 0)
        for site, wanted in expected(rows).items():
            value = backend.numpy(drawn[site])
            if value.shape[-1:] == (3,):  # weights
                value = value.argmax(-1)
            np.testing.assert_array_equal(np.round(value), wanted)


# --- what is refused ------------------------------------------------------------------------------


def beside(backend):
    """A latent in each row, and one shared latent that depends on them."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array

    def model():
        with ppl.plate("data", 2):
            z = ppl.sample("z", gs.OneHotCategorical(probs=array(PRIOR)))
        p = (z * array(PRIOR)).sum()
        ppl.sample("below", backend.native.Bernoulli(probs=p))

    return model


def joined(backend):
    ppl, gs, array = backend.ppl, backend.gs, backend.array

    def model():
        z = ppl.sample("z", gs.OneHotCategorical(probs=array(TRANSITION)).to_event(1))
        ppl.sample("w", gs.OneHotCategorical(probs=z.mean(-2)))

    return model


REFUSED = {
    "word": ("factorial", "all", ValueError, "'none', 'model' or a dict by site, got 'all'"),
    "name": ("factorial", {"b": "a"}, TypeError, "'b' wants a list of the names.*got 'a'"),
    "unknown site": ("factorial", {"d": ["a"]}, ValueError, "no discrete latent.*'d'"),
    "unknown parent": ("factorial", {"b": ["d"]}, ValueError, "no discrete latent.*'d'"),
    "later": ("factorial", {"a": ["b"]}, ValueError, "site 'a'.*'b' comes later"),
    "itself": ("factorial", {"a": ["a"]}, ValueError, "site 'a'.*'a' is the site itself"),
    "plate": (beside, "model", ValueError, "site 'below': .* not be in a plate.*'z' is in 'data'"),
    "to_event": (joined, "model", ValueError, "site 'w'.*to_event joins several in 'z'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(backend, case):
    program, parents, error, match = REFUSED[case]
    model = plain(backend, program) if isinstance(program, str) else program(backend)
    with pytest.raises(error, match=match):
        backend.params_of(backend.gs.AutoGumbelSoftmax(model, parents=parents))


@pytest.mark.only("numpyro")
def test_scan_is_refused(backend):
    from numpyro.contrib.control_flow import scan

    def model():
        def step(z, _):
            z = backend.ppl.sample("z", backend.native.Categorical(backend.array(TRANSITION)[z]))
            return z, None

        scan(step, 0, None, length=3)

    with pytest.raises(NotImplementedError, match=r"site 'z' is drawn inside of scan.*markov"):
        backend.params_of(backend.gs.AutoGumbelSoftmax(model, parents="model"))


def test_impossible_classes_are_those_of_the_row(backend):
    """A logit of minus infinity in one row: gradients are finite, and that row never draws the
    class."""
    gs, program = backend.gs, plain(backend, "nested")
    init = dict(LOGITS["nested"], h=np.where(np.arange(3) == 1, -np.inf, LOGITS["nested"]["h"]))
    init = {site: backend.array(a) for site, a in init.items()}
    options = {"family": gs.STGumbelSoftmax}
    guide = gs.AutoGumbelSoftmax(program, 0.5, init_logits=init, parents="model", **options)
    elbo = backend.infer.TraceMeanField_ELBO()
    _, gradient = backend.loss_and_gradient(elbo, gs.relax(program, 0.5, **options), guide, 0)
    assert all(np.isfinite(g).all() for g in gradient.values())
    probs = backend.guide_probs(guide, backend.params_of(guide))
    z = log_rows("z", LOGITS["nested"]["z"])
    h = np.exp(log_rows("h", LOGITS["nested"]["h"])[..., 1]) * (np.arange(3) != 1)
    np.testing.assert_allclose(probs["h"], (np.exp(z) * h).sum(-1), rtol=1e-5)


def test_rows_count_together_in_the_joint_maximum():
    """Three rows are almost certain given one class, and uniform given the other: the first one
    wins.

    One row alone would prefer the other class: .7 / 2 to .3.
    """
    rows = np.stack([[20.0, 0.0], [0.0, 0.0]])[None].repeat(3, 0)
    laws = {"top": Law(np.log([0.3, 0.7]), (), 1, False), "z": Law(rows, ("top",), 1, False)}
    found = maximum(laws)
    assert found["top"] == 0
    np.testing.assert_array_equal(found["z"], [0, 0, 0])
