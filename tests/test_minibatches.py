"""A guide of all rows with a program of some rows: each row has separate logits for any request."""

import numpy as np
import pytest
from scipy.special import softmax

from gs_ppl import temperature

CLASSES = np.array([0, 2, 1, 1, 0, 2, 2, 1])
SURE = 40.0 * np.eye(3)[CLASSES]  # the draw of a row shows which row it is
LOCS = np.array([-1.0, 0.0, 2.0])
DATA = np.linspace(-1, 2, 8)


def of_size(backend):
    """The program draws this number of rows; None: all rows."""

    def model(size):
        with backend.ppl.plate("data", 8, subsample_size=size) as rows:
            observe(backend, rows)

    return model


def of_rows(backend):
    """The program gets its rows as an argument."""

    def model(rows):
        with backend.plate_of_rows("data", 8, rows) as rows:
            observe(backend, rows)

    return model


def observe(backend, rows):
    gs = backend.gs
    z = backend.ppl.sample("z", gs.OneHotCategorical(logits=backend.array(np.zeros(3))))
    x = backend.native.Normal(gs.select(backend.array(LOCS), z), 1.0)
    backend.ppl.sample("x", x, obs=backend.array(DATA)[rows])


def auto(backend, model, logits=SURE):
    return backend.gs.AutoGumbelSoftmax(model, init_logits={"z": backend.array(logits)})


PARTS = {"4 drawn": 4, "6 drawn": 6, "all": None}
GIVEN = {"given": [5, 1, 2, 7], "given in another order": [7, 6, 3, 0], "one given": [3]}


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in a list"])
def test_each_row_has_its_logits(backend, alone):
    """One guide, asked for parts of several sizes, in turn."""

    def guide_of(model):
        if alone:
            return backend.gs.discretize(auto(backend, model))
        guide = backend.gs.AutoGuideList(model)
        guide.append(auto(backend, backend.bare_block(model, expose=["z"])))
        return backend.gs.discretize(guide)

    model = of_size(backend)
    guide = guide_of(model)
    for seed, size in enumerate(PARTS.values()):
        rows, z = backend.rows_and_value(lambda size=size: guide(size), "data", "z", seed)
        assert len(rows) == (size or 8)
        np.testing.assert_array_equal(z.argmax(-1), CLASSES[rows])
    guide = guide_of(of_rows(backend))
    for seed, given in enumerate(GIVEN.values()):
        asked = backend.array(given, "int64")
        rows, z = backend.rows_and_value(lambda asked=asked: guide(asked), "data", "z", seed)
        np.testing.assert_array_equal(rows, given)
        np.testing.assert_array_equal(z.argmax(-1), CLASSES[given])


def test_all_rows_in_another_order_are_refused(backend):
    """PPLs select rows of a parameter only if a plate has a part of them."""

    def drawn(rows):
        guide = backend.gs.discretize(auto(backend, of_rows(backend)))
        return backend.trace(lambda: guide(backend.array(rows, "int64")), 0)["z"]

    np.testing.assert_array_equal(drawn(range(8)).argmax(-1), CLASSES)
    with pytest.raises(ValueError, match="plate 'data' is given all its rows in another order"):
        drawn([1, 0, *range(2, 8)])


def test_a_mask_is_no_rows(backend):
    guide = backend.gs.discretize(auto(backend, of_rows(backend)))
    mask = backend.array([True] * 4 + [False] * 4, "bool")
    with pytest.raises(TypeError, match=r"plate 'data': its rows must be integers, got .*nonzero"):
        backend.trace(lambda: guide(mask), 0)


def test_plates_that_the_user_creates(backend):
    """Plates with the program's rows are right; plates with other rows are refused."""

    def guide_of(rows_of):
        create = lambda rows: backend.plate_of_rows("data", 8, rows_of(rows))  # noqa: E731
        logits = {"z": backend.array(SURE)}
        return backend.gs.AutoGumbelSoftmax(model, 0.5, init_logits=logits, create_plates=create)

    model, elbo = of_rows(backend), backend.infer.TraceMeanField_ELBO()
    relaxed, guide = backend.gs.relax(model, 0.5), guide_of(lambda rows: rows)
    for seed, given in enumerate(GIVEN.values()):
        asked = backend.array(given, "int64")
        backend.gs.check(relaxed, guide, elbo, asked)
        rows, z = backend.rows_and_value(lambda asked=asked: guide(asked), "data", "z", seed)
        np.testing.assert_array_equal(rows, given)
        np.testing.assert_array_equal(z.argmax(-1), CLASSES[given])
    with pytest.raises(ValueError, match="plate 'data': the model is given its rows, but the gui"):
        backend.gs.check(relaxed, guide_of(lambda rows: 7 - rows), elbo, asked)


def test_other_data_are_refused(backend):
    def model(x):
        with backend.ppl.plate("data", len(x)):
            z = backend.ppl.sample("z", backend.gs.OneHotCategorical(probs=backend.array(LOCS**2)))
            backend.ppl.sample("x", backend.native.Normal(z @ backend.array(LOCS), 1.0), obs=x)

    guide = backend.gs.discretize(backend.gs.AutoGumbelSoftmax(model))
    backend.trace(lambda: guide(backend.array(DATA)), 0)
    for n in (1, 3):
        with pytest.raises(ValueError, match=f"plate 'data' has {n} rows, .* logits for 8"):
            backend.trace(lambda n=n: guide(backend.array(DATA[:n])), 0)


@pytest.mark.parametrize("shape", [(5, 3), (8, 2), (2, 8, 3)], ids=str)
def test_starts_that_do_not_fit(backend, shape):
    guide = backend.gs.discretize(auto(backend, of_size(backend), np.zeros(shape)))
    with pytest.raises(ValueError, match="site 'z': init_logits of shape"):
        backend.trace(lambda: guide(4), 0)


@pytest.mark.parametrize("size", [4, None], ids=["minibatch", "all"])
@pytest.mark.quick("minibatch")
def test_compare(backend, size):
    """After a first call with 4 rows: marginals of all rows; over all rows the exact evidence."""
    logits = np.random.default_rng(0).normal(size=(8, 3))
    model, guide = of_size(backend), auto(backend, of_size(backend), logits)
    backend.trace(lambda: backend.gs.discretize(guide)(4), 0)
    report = backend.compare(model, guide, size, temperatures=[0.5], num_samples=60)
    np.testing.assert_allclose(report.marginals["z"].approximate, softmax(logits, -1), atol=1e-5)
    fit = -0.5 * (DATA[:, None] - LOCS) ** 2 - 0.5 * np.log(2 * np.pi) - np.log(3)
    evidence = np.logaddexp.reduce(fit, -1).sum()
    if size is None:
        assert report.evidence.mean == pytest.approx(evidence, rel=1e-5)
    else:
        assert abs(report.evidence.mean - evidence) < 5 * report.evidence.error


def test_inference_data_of_all_rows(backend):
    """For a guide that minibatches have trained; for a minibatch it is refused."""
    model, schedule = of_rows(backend), temperature.constant(0.5)
    guide, gs = backend.gs.AutoGumbelSoftmax(model), backend.gs
    rng, elbo = np.random.default_rng(0), backend.infer.TraceMeanField_ELBO()
    batches = [backend.array(rng.permutation(8)[:4], "int64") for _ in range(300)]
    params = backend.trained_on(gs.relax(model), guide, elbo, schedule, batches)
    expected = softmax(-0.5 * (DATA[:, None] - LOCS) ** 2, -1)
    probs = backend.guide_probs(guide, params)["z"]
    assert np.abs(probs - expected).max() < 0.25
    everything = backend.array(np.arange(8), "int64")
    data = backend.gs.to_inference_data(
        model, guide, everything, num_samples=400, **params_of(params)
    )
    drawn = np.asarray(data["posterior"]["z"])[0]
    shares = np.stack([(drawn == k).mean(0) for k in range(3)], -1)
    assert np.abs(shares - probs).max() < 0.125  # at most five standard errors
    with pytest.raises(ValueError, match="plate 'data' is subsampled, 4 of 8 rows"):
        gs.to_inference_data(model, guide, batches[0], num_samples=4, **params_of(params))


def params_of(params):
    return {} if params is None else {"params": params}


def test_enumeration_has_the_rows_of_the_guide(backend):
    """Each row of the guide fits only the data of that row; NumPyro's ELBO mixes rows."""
    ppl, gs, native = backend.ppl, backend.gs, backend.native
    places = backend.array(10.0 * np.arange(8))

    def model():
        with ppl.plate("data", 8, subsample_size=3) as rows:
            w = ppl.sample("w", native.Normal(places[rows], 1.0))
            z = ppl.sample("z", gs.OneHotCategorical(logits=backend.array(np.zeros(3))))
            x = native.Normal(w + gs.select(backend.array(LOCS), z), 1.0)
            ppl.sample("x", x, obs=places[rows])

    def guide():
        with ppl.plate("data", 8, subsample_size=3) as rows:
            ppl.sample("w", native.Normal(places[rows], 0.1))

    model = gs.config_enumerate(model)
    elbo = gs.TraceEnum_ELBO(max_plate_nesting=1, num_particles=3)
    gs.check(model, guide, elbo)
    assert (
        0 < backend.elbo_loss(elbo, model, guide) < 40
    )  # 130 or more if a row is at the place of another


@pytest.mark.only("numpyro")
def test_numpyros_own_enumeration_is_refused(backend):
    """Its model draws other rows than the guide."""

    def program():
        with backend.ppl.plate("data", 8, subsample_size=3):
            backend.ppl.sample("w", backend.native.Normal(0.0, 1.0))

    elbo = backend.infer.TraceEnum_ELBO(max_plate_nesting=1)
    with pytest.raises(ValueError, match="plate 'data': NumPyro's TraceEnum_ELBO draws other rows"):
        backend.gs.check(program, program, elbo)
    given = backend.ppl.handlers.substitute(program, data={"data": backend.array([0, 1, 2])})
    backend.gs.check(given, given, elbo)
