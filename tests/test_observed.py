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
    known = backend.array(X < 1)
    for data in ((backend.array(X),), (backend.array(X[:1]),), (backend.array(X), known)):
        score(backend, door, *data)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("door", DOORS)
def test_nan_behind_a_mask(backend, door):
    """NumPyro does not score it; Pyro's own validation refuses it."""
    x = np.where(X > 1, np.nan, X)
    score(backend, door, backend.array(x), backend.array(X <= 1))
