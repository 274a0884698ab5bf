"""Data that do not fit their plates, and NaN, are refused by every function that scores them."""

import numpy as np
import pytest
from programs import LOCS, PRIOR

ROWS = 6
X = np.linspace(-1.0, 2.0, ROWS)
DOORS = ("check", "compare", "assign", "to_inference_data")


def mixture(backend):
    """The data come from outside: the number of rows of the plate does not follow from them."""
    ppl, array = backend.ppl, backend.array

    def model(x, is_known=None):
        with ppl.plate("rows", ROWS):
            z = ppl.sample("z", backend.gs.OneHotCategorical(probs=array(PRIOR)))
            fn = backend.native.Normal(backend.gs.select(array(LOCS), z), 1.0)
            ppl.sample("x", fn if is_known is None else fn.mask(is_known), obs=x)

    return model


def score(backend, door, *data):
    getattr(backend.ppl, "clear_param_store", lambda: None)()  # NumPyro has no store
    gs, model = backend.gs, mixture(backend)
    guide = gs.AutoGumbelSoftmax(model, 0.5)
    if door == "check":
        loss = backend.infer.TraceMeanField_ELBO()
        return gs.check(gs.relax(model, 0.5), guide, loss, *data)
    if door == "compare":
        return backend.compare(model, guide, *data, families=(), num_samples=2)
    if door == "assign":
        return backend.assign(model, guide, None, *data)
    return backend.to_inference_data(model, guide, *data, num_samples=2)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[:5], "site 'x': its data have 5 rows along plate 'rows', which has 6: "),
        (X[:, None], r"site 'x': its data of shape \(6, 1\) have 1 row along plate 'rows', which"),
        (np.where(X > 1, np.nan, X), "site 'x': NaN in its data, 2 of 6: "),
    ],
    ids=["five rows", "a column", "NaN"],
)
def test_data_are_refused(backend, door, x, message):
    with pytest.raises(ValueError, match=message):
        score(backend, door, backend.array(x))


@pytest.mark.parametrize("door", DOORS)
def test_data_that_are_scored(backend, door):
    """As they are; one row for all; behind a mask, with a number in place of the missing ones."""
    known = backend.array(X < 1) > 0
    for data in ((backend.array(X),), (backend.array(X[:1]),), (backend.array(X), known)):
        score(backend, door, *data)


NAN = np.where(X > 1, np.nan, X)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("door", DOORS)
def test_nan_behind_a_mask(backend, door):
    score(backend, door, backend.array(NAN), backend.array(X <= 1) > 0)


@pytest.mark.only("pyro")
@pytest.mark.parametrize("door", DOORS)
def test_a_mask_is_no_help_against_nan(backend, door):
    """The gradient of torch would be 0 times NaN."""
    with pytest.raises(ValueError, match="site 'x': NaN in its data, 2 of 6: "):
        score(backend, door, backend.array(NAN), backend.array(X <= 1) > 0)


# --- obs_mask -------------------------------------------------------------------------------------


def imputed(backend, continuous, known):
    """With obs_mask the rows that are not known are latents, which the model masks elsewhere."""
    ppl, gs, native, array = backend.ppl, backend.gs, backend.native, backend.array

    def model():
        with ppl.plate("rows", ROWS):
            z = ppl.sample("z", native.Categorical(probs=array(PRIOR)))
            law = native.Normal(array(LOCS)[z], 1.0)
            ppl.sample("x", law, obs=array(X), obs_mask=array(known) > 0)

    getattr(ppl, "clear_param_store", lambda: None)()
    part = getattr(backend.infer.autoguide, continuous)
    return model, gs.auto_relaxed(model, part, temperature=0.5)


@pytest.mark.parametrize("continuous", ["AutoNormal", "AutoMultivariateNormal"])
def test_obs_mask_of_a_continuous_site(backend, continuous):
    """The guide has terms for all rows, the model only for those that are not known."""
    model, guide = imputed(backend, continuous, X < 1)
    message = "site 'x_unobserved': .* is masked only in the model: .* write fn.mask"
    with pytest.raises(ValueError, match=message):
        backend.gs.check(backend.gs.relax(model, 0.5), guide, backend.infer.TraceMeanField_ELBO())
    with pytest.raises(ValueError, match=message):
        backend.compare(model, guide, families=(), num_samples=2)
    with pytest.raises(ValueError, match=message):
        backend.to_inference_data(model, guide, num_samples=2)


def test_obs_mask_beside_a_guide_of_discrete_latents(backend):
    model, _ = imputed(backend, "AutoNormal", X < 1)
    guide, elbo = backend.gs.AutoGumbelSoftmax(model, 0.5), backend.infer.TraceMeanField_ELBO()
    message = "site 'x_unobserved': Normal in .* neither in the guide .* write fn.mask"
    with pytest.raises(ValueError, match=message):
        backend.gs.check(backend.gs.relax(model, 0.5), guide, elbo)


def test_the_cure_of_obs_mask(backend):
    known = X < 1
    found = score(backend, "compare", backend.array(X), backend.array(known) > 0)
    terms = np.log(PRIOR) - 0.5 * (X[known, None] - LOCS) ** 2 - 0.5 * np.log(2 * np.pi)
    assert found.evidence.mean == pytest.approx(np.logaddexp.reduce(terms, -1).sum())


def test_a_certain_value_has_no_term(backend):
    """AutoDelta beside a mask of the model: the guide has nothing to count."""
    model, guide = imputed(backend, "AutoDelta", X < 1)
    draws = backend.to_inference_data(model, guide, num_samples=2)["posterior"]
    assert draws["x_unobserved"].shape == (1, 2, ROWS)


# --- classes --------------------------------------------------------------------------------------


@pytest.mark.only("numpyro")
@pytest.mark.parametrize(
    ("law", "x", "error", "message"),
    [
        ("Categorical", 2, ValueError, "Categorical.* has the classes 0 to 1, but .* 2 to 2"),
        ("Bernoulli", 2, ValueError, "Bernoulli.* has the classes 0 to 1, but .* 2 to 2"),
        ("Categorical", 1.0, TypeError, r".* takes integers for obs, got float\d+: write"),
        ("Categorical", [1], TypeError, "NumPyro takes an array for obs, got list"),
    ],
    ids=["class", "bit", "float", "list"],
)
def test_data_of_classes(backend, law, x, error, message):
    """NumPyro does not validate them; Pyro names the site by itself."""
    ppl, gs, native = backend.ppl, backend.gs, backend.native

    def model():
        z = ppl.sample("z", native.Bernoulli(probs=0.5))
        p = 0.3 + 0.4 * z
        probs = backend.jnp.stack([1 - p, p]) if law == "Categorical" else p
        ppl.sample("x", getattr(native, law)(probs=probs), obs=x)

    guide, elbo = gs.AutoGumbelSoftmax(model), backend.infer.TraceMeanField_ELBO()
    with pytest.raises(error, match=f"site 'x': {message}"):
        backend.anneal(gs.relax(model), guide, elbo, lambda t: 0.5, 2)
