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
    """A class for each row; `data` of one number has no plate."""
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
def test_evidence(backend, K, data):
    report = compared(backend, mixture(backend, K, data), families=[backend.gs.STGumbelSoftmax])
    assert not report.notes
    assert report.evidence.mean == pytest.approx(evidence(K, data), rel=1e-6)
    assert report.marginals["z"].exact.shape[-1] == K
    assert str(report)


@pytest.mark.only("numpyro")
def test_a_python_number_is_observed(backend):
    report = compared(backend, mixture(backend, data=0.5, plain_number=True))
    assert report.evidence.mean == pytest.approx(evidence(data=0.5), rel=1e-6)


def test_a_subsampled_guide(backend):
    """The rows of its logits are those of the plate; the evidence is averaged over them."""
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
    """The PPLs' enumeration raises a bare KeyError here and there."""
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
def test_axes_of_exact_draws(backend, K, rows, bits):
    if bits and K == 1:
        pytest.skip("a bit has two classes")
    data = 0.5 if rows is None else DATA[:rows]
    tree = backend.to_inference_data(mixture(backend, K, data, bits=bits), num_samples=4)
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
    assert "posterior" not in tree.groups()
    np.testing.assert_allclose(tree["sample_stats"]["lp"], norm.logpdf(0.5), rtol=1e-6)


# --- signatures -----------------------------------------------------------------------------------


def scaled(backend, a, b, x):
    z = backend.ppl.sample("z", backend.gs.OneHotCategorical(logits=backend.array(a * b * PRIOR)))
    loc = backend.gs.select(backend.array(LOCS), z)
    backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)


def test_a_partial_with_positional_arguments(backend):
    """Pyro's own unwrap takes the second of them for a program."""
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
    """It is handed over where the program has it."""
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
    run = annealing.annealed(programs[place])
    backend.trace(lambda: run(0.25, backend.array(0.5)), 0)
    assert seen == [0.25]
