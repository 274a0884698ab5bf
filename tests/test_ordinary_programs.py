"""Programs as users write them: one class, one row, plain numbers, partials, subsampled guides."""

import functools

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import norm

from gs_ppl._shared import annealing, comparison

LOCS = np.array([-1.0, 0.2, 1.5])
PRIOR = np.array([0.3, -0.2, 0.9])
DATA = np.array([0.5, 0.1, -1.0, 2.0])


def mixture(
    backend, K=3, data=DATA, *, subsample_size=None, plate="rows", bits=False, plain_number=False
):
    """A class for each row; if `data` is one number, there is no plate."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array

    def row(x):
        if bits:
            z = ppl.sample("z", backend.native.Bernoulli(probs=array(0.3)))
            loc = 2 * z
        else:
            z = ppl.sample("z", gs.OneHotCategorical(logits=array(PRIOR[:K])))
            loc = gs.select(array(LOCS[:K]), z)
        ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)

    def model():
        if np.ndim(data) == 0:
            row(data if plain_number else array(data))
            return
        with ppl.plate(plate, len(data), subsample_size=subsample_size) as rows:
            row(array(data)[rows])

    return model


def evidence(K=3, data=DATA):
    x = np.atleast_1d(data)[:, None]
    joint = log_softmax(PRIOR[:K]) + norm.logpdf(x, LOCS[:K])
    return logsumexp(joint, -1).sum()


def compared(backend, model, *args, **options):
    guide = backend.gs.AutoGumbelSoftmax(model)
    options = {"num_samples": 4, "temperatures": [0.5], "objectives": ["categorical"], **options}
    return backend.compare(model, guide, *args, **options)


# --- compare --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("K", "data"),
    [(3, DATA), (3, 0.5), (1, DATA[:2]), (1, 0.5), (3, DATA[:1])],
    ids=["rows", "number", "one class", "one class, one number", "one row"],
)
@pytest.mark.quick("rows", "one class")
def test_evidence(backend, K, data):
    report = compared(backend, mixture(backend, K, data), families=[backend.gs.STGumbelSoftmax])
    assert not report.notes
    assert report.evidence.mean == pytest.approx(evidence(K, data), rel=1e-6)
    assert report.marginals["z"].exact.shape[-1] == K
    assert str(report)


@pytest.mark.only("numpyro")
def test_a_python_number_is_observed(backend):
    model = mixture(backend, data=0.5, plain_number=True)
    assert compared(backend, model).evidence.mean == pytest.approx(evidence(data=0.5), rel=1e-6)
    weights = backend.to_inference_data(model, num_samples=3)["sample_stats"]["log_weight"]
    np.testing.assert_allclose(weights, evidence(data=0.5), rtol=1e-6)


@pytest.mark.only("pyro")
def test_a_python_number_is_no_observation(backend):
    """Pyro's laws cannot score a Python number."""
    model = mixture(backend, data=0.5, plain_number=True)
    for report in (compared, lambda backend, model: backend.to_inference_data(model)):
        with pytest.raises(TypeError, match=r"site 'x.*': Pyro takes a tensor for obs, got float"):
            report(backend, model)


NUMBERS = {
    "probs": ({"probs": 0.3}, 0.3),
    "logits": ({"logits": 0.0}, 0.5),
    "a NumPy scalar": ({"probs": np.float64(0.3)}, 0.3),
}


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.quick("probs", "a NumPy scalar")
@pytest.mark.quick("False")
def test_a_bit_of_a_plain_number(backend, name, expanded):
    """Evidence and marginal by hand; relaxed, it has the same probability and trains."""
    options, p = NUMBERS[name]

    def model():
        with backend.ppl.plate("rows", 1):
            law = backend.native.Bernoulli(**options)
            z = backend.ppl.sample("z", law.expand([1]) if expanded else law)
            backend.ppl.sample(
                "x", backend.native.Normal(2 * z, 1.0), obs=backend.array([0.5], "float32")
            )

    joint = np.array([1 - p, p]) * norm.pdf(0.5, [0.0, 2.0])
    report = compared(backend, model, families=[])
    assert report.evidence.mean == pytest.approx(np.log(joint.sum()), rel=1e-5)
    exact = np.ravel(report.marginals["z"].exact)[-1]
    assert exact == pytest.approx(joint[1] / joint.sum(), rel=1e-5)
    relaxed, guide = backend.gs.relax(model), backend.gs.AutoGumbelSoftmax(model)
    fn, _ = backend.sites(backend.gs.relax(model, 0.5), 0)["z"]
    np.testing.assert_allclose(backend.numpy(fn.probs), p, rtol=1e-6)
    elbo = backend.infer.TraceMeanField_ELBO()
    assert np.isfinite(backend.anneal(relaxed, guide, elbo, lambda step: 0.5, 2)[0]).all()


@pytest.mark.parametrize("what", ["probs", "logits"])
def test_a_category_that_is_impossible(backend, what):
    """Enumerated with validation, and drawn: its class never occurs."""
    p = np.array([0.0, 0.5, 0.5])
    given = {"probs": p, "logits": np.array([-np.inf, 0.0, 0.0])}[what]

    def model():
        z = backend.ppl.sample("z", backend.gs.OneHotCategorical(**{what: backend.array(given)}))
        loc = backend.gs.select(backend.array([9.0, 0.0, 1.0]), z)
        backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(0.0))

    expected = np.log(p @ norm.pdf(0.0, [9.0, 0.0, 1.0]))
    with backend.ppl.validation_enabled():
        loss = backend.enumerated_loss(backend.gs.config_enumerate(model), lambda: None, 0)
        tree = backend.to_inference_data(model, num_samples=20)
    assert -loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(tree["sample_stats"]["log_weight"], expected, rtol=1e-6)
    assert set(np.unique(tree["posterior"]["z"])) == {1, 2}


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")  # of the PPLs
@pytest.mark.filterwarnings("ignore:Currently, SVI with Trace_ELBO loss does not support")
def test_a_count_that_nobody_takes_care_of(backend):
    """Programs that measure or train refuse it, like check."""
    ppl, native = backend.ppl, backend.native

    def model():
        n = ppl.sample("n", native.Poisson(backend.array(2.0)))
        z = ppl.sample("z", native.Bernoulli(probs=backend.array(0.5)))
        ppl.sample("x", native.Normal(n + z, 0.5), obs=backend.array(3.0))

    refused = pytest.raises(ValueError, match=r"site 'n': Poisson .* neither .*truncate={'n': LA")
    with refused:
        compared(backend, model)
    guide, elbo = backend.gs.AutoGumbelSoftmax(model), backend.infer.Trace_ELBO()
    with refused:
        backend.anneal(backend.gs.relax(model), guide, elbo, lambda step: 0.5, 1)


@pytest.mark.long
def test_a_subsampled_guide(backend):
    """Its logits have the rows of the plate; the evidence is averaged over them."""
    model = mixture(backend, subsample_size=2)
    report = compared(backend, model, families=[backend.gs.STGumbelSoftmax], num_samples=400)
    assert not report.notes
    x = DATA[:, None]
    by_row = logsumexp(log_softmax(PRIOR) + norm.logpdf(x, LOCS), -1)
    pairs = [2 * (by_row[i] + by_row[j]) for i in range(4) for j in range(i)]
    error = np.std(pairs) / 20
    assert abs(report.evidence.mean - evidence()) < 4.5 * error
    assert report.marginals["z"].exact.shape == (4, 3)


def test_a_missing_name_becomes_a_note(backend):
    """The PPLs' enumeration sometimes raises a bare KeyError."""
    session = backend.session(mixture(backend), lambda: None)

    def lost(side, draws):
        raise KeyError("z")

    session.marginals = lost
    options = comparison.Options([], [], [0.5], 2, 1, [], 100, progress_bar=False)
    report = comparison.run(session, options)
    assert any("enumeration found no 'z'" in note for note in report.notes)


# --- to_inference_data ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [False, True], ids=["one-hot", "bit"])
@pytest.mark.parametrize("rows", [1, 2, None])
@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("guided", [False, True], ids=["exact", "guide"])
@pytest.mark.quick("2-2")
def test_axes_of_draws(backend, guided, K, rows, bits):
    if bits and K == 1:
        pytest.skip("a bit has two classes")
    model = mixture(backend, K, 0.5 if rows is None else DATA[:rows], bits=bits)
    guide = backend.gs.AutoGumbelSoftmax(model) if guided else None
    tree = backend.to_inference_data(model, guide, num_samples=4)
    z = tree["posterior"]["z"]
    assert z.dims == ("chain", "draw", "rows")[: 2 + (rows is not None)]
    assert z.shape == (1, 4, rows)[: 2 + (rows is not None)]
    assert set(np.unique(z)) <= set(range(2 if bits else K))


@pytest.mark.parametrize("plate", ["chain", "draw"])
def test_a_plate_by_the_name_of_arviz(backend, plate):
    model = mixture(backend, plate=plate)
    with pytest.raises(ValueError, match=f"dims: '{plate}' is ArviZ's own dimension"):
        backend.to_inference_data(model, num_samples=2)
    names = {"z": ["rows"], "x": ["rows"]}
    tree = backend.to_inference_data(model, num_samples=2, dims=names)
    assert tree["posterior"]["z"].dims == ("chain", "draw", "rows")


def test_no_latents(backend):
    def model():
        law = backend.native.Normal(backend.array(0.0), 1.0)
        backend.ppl.sample("x", law, obs=backend.array(0.5))

    tree = backend.to_inference_data(model, num_samples=3)
    assert "posterior" not in tree
    np.testing.assert_allclose(tree["sample_stats"]["lp"], norm.logpdf(0.5), rtol=1e-6)


# --- signatures -----------------------------------------------------------------------------------


def scaled(backend, a, b, x):
    z = backend.ppl.sample("z", backend.gs.OneHotCategorical(logits=backend.array(a * b * PRIOR)))
    loc = backend.gs.select(backend.array(LOCS), z)
    backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)


def test_a_partial_with_positional_arguments(backend):
    """Pyro's unwrap would take the second argument as a program."""
    model = functools.partial(scaled, backend, 0.5, 2.0)
    x = backend.array(DATA[0])
    report = compared(backend, model, x, families=[])
    assert report.evidence.mean == pytest.approx(evidence(data=DATA[0]), rel=1e-6)
    tree = backend.to_inference_data(model, None, x, num_samples=2)
    assert tree["posterior"]["z"].shape == (1, 2)
    guide = backend.gs.AutoGumbelSoftmax(model)
    elbo, args = backend.infer.TraceMeanField_ELBO(), (lambda step: 0.5, 1)
    trained = functools.partial(backend.gs.relax(model), x), functools.partial(guide, x)
    assert np.isfinite(backend.anneal(*trained, elbo, *args)[0]).all()


@pytest.mark.parametrize("place", ["first", "last", "keyword"])
def test_a_declared_temperature(backend, place):
    """The program gets the temperature at its place."""
    seen = []

    def body(temperature, x):
        seen.append(float(temperature))
        law = backend.gs.GumbelSoftmax(float(temperature), logits=backend.array(PRIOR))
        loc = backend.gs.select(backend.array(LOCS), backend.ppl.sample("z", law))
        backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)

    programs = {
        "first": lambda temperature, x: body(temperature, x),
        "last": lambda x, temperature: body(temperature, x),
        "keyword": lambda x, *, temperature: body(temperature, x),
    }
    run = annealing.Annealed(programs[place])
    backend.trace(lambda: run(0.25, backend.array(0.5)), 0)
    assert seen == [0.25]


# --- numbers of ones ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plate", "stacked"])
def test_a_number_of_ones_is_a_location(backend, form):
    """The sum of bits is a location as it is; with validation or without, its mean counts."""
    weights = np.array([0.25, 0.5, 1.0, 0.0])

    def model():
        bit, normal = backend.native.Bernoulli(probs=backend.array(0.4)), backend.native.Normal
        if form == "plate":
            with backend.ppl.plate("rows", 4):
                z = backend.ppl.sample("z", bit)
        else:
            z = backend.stack([backend.ppl.sample(f"z_{i}", bit) for i in range(4)])
        backend.ppl.sample("x", normal(z.sum(), 1.0), obs=backend.array(2.0))

    names = ["z"] if form == "plate" else [f"z_{i}" for i in range(4)]
    values = dict(zip(names, [weights] if form == "plate" else weights, strict=True))
    relaxed = backend.gs.relax(model, temperature=0.5)
    score = float(backend.log_joint(relaxed, {n: backend.array(y) for n, y in values.items()}))
    bits = weights @ np.log([0.4] * 4) + (1 - weights) @ np.log([0.6] * 4)
    assert score == pytest.approx(bits + norm.logpdf(2.0, weights.sum()), abs=1e-5)


MOVES = {
    "column": lambda s: s[:, None] + s[None, :],
    "slice": lambda s: s[1:],
    "element": lambda s: s[0],
    "elements": lambda s: s[np.array([0, 2])],
    "reshape": lambda s: s.reshape(2, 2).T,
    "total": lambda s: s.sum(),
    "difference": lambda s: 3 * s - s[np.array([3, 2, 1, 0])],
}


@pytest.mark.parametrize("move", MOVES)
def test_numbers_of_ones_are_moved(backend, move):
    """A linear function of bits has its value at the weights; a recorded value is an integer."""
    weights = np.array([[0.25, 0.5, 1.0], [0.0, 0.75, 0.25], [1.0, 1.0, 0.0], [0.1, 0.2, 0.3]])

    def model():
        with backend.ppl.plate("rows", 4):
            probs = backend.array(np.full((4, 3), 0.4))
            z = backend.ppl.sample("z", backend.native.Bernoulli(probs=probs).to_event(1))
        moved = MOVES[move](z.sum(-1))
        backend.ppl.deterministic("moved", moved)
        backend.ppl.factor("f", (2.5 * moved).sum())

    relaxed = backend.given(backend.gs.relax(model, temperature=0.5), {"z": backend.array(weights)})
    score = float(backend.seeded_log_joint(relaxed, 0))
    bits = (weights * np.log(0.4) + (1 - weights) * np.log(0.6)).sum()
    want = MOVES[move](weights.sum(-1))
    assert score == pytest.approx(bits + (2.5 * want).sum(), abs=1e-5)
    recorded = backend.numpy(backend.recorded(relaxed, 0)["moved"])
    np.testing.assert_allclose(recorded, want, atol=0.5 + 1e-6)
