"""Estimators of integer programs, compared with the gradient by hand and the one-hot program."""

import numpy as np
import pytest
from enumerable import slopes
from programs import PRIOR
from scipy.special import log_expit, log_softmax
from test_estimators import ESTIMATORS, ROWS, moments

T = np.array([-1.5, 0.2, 1.4])
LOGITS = {"z": np.array([0.4, -0.3, 0.8]), "b": np.array(0.6), "c": np.array(-0.2)}
P = {"b": 0.4, "c": 0.7}


def program(backend, size, *, classes=True, hot=False):
    """A class and a bit, or two bits; the observation is linear in each."""
    ppl, array, native, gs = backend.ppl, backend.array, backend.native, backend.gs
    where = lambda bit: backend.lib.where(bit == 1, array(1.0), array(2.0))  # noqa: E731

    def model():
        with ppl.plate("rows", size):
            b = ppl.sample("b", native.Bernoulli(probs=array(P["b"])))
            factor = 2.0 - b if hot else where(b)
            if classes:
                law = gs.OneHotCategorical if hot else native.Categorical
                z = ppl.sample("z", law(probs=array(PRIOR)))
                brings = gs.select(array(T), z) if hot else array(T)[z]
            else:
                c = ppl.sample("c", native.Bernoulli(probs=array(P["c"])))
                brings = (
                    0.7 - 2.2 * c if hot else backend.lib.where(c == 1, array(-1.5), array(0.7))
                )
            ppl.factor("x", brings * factor)

    return model


def elbo(parameters):
    """The ELBO of one row, summed over its values."""
    logs, joint = [], 0.0
    brings = T if "z" in parameters else np.array([0.7, -1.5])
    for i, (site, a) in enumerate(parameters.items()):
        bit = site != "z"
        log_q = log_expit(np.array([-1, 1]) * a) if bit else log_softmax(a)
        log_p = np.log([1 - P[site], P[site]] if bit else PRIOR)
        shape = (-1, 1) if i == 0 else (1, -1)
        logs.append(log_q.reshape(shape))
        joint = joint + log_p.reshape(shape)
    log_q = sum(logs)
    joint = joint + np.array([2.0, 1.0])[:, None] * brings
    return (np.exp(log_q) * (joint - log_q)).sum()


def guide_of(backend, model, sites):
    init = {site: backend.array(LOGITS[site]) for site in sites}
    return backend.gs.discretize(backend.gs.AutoGumbelSoftmax(model, init_logits=init))


@pytest.mark.parametrize("name", ["NVIL", "DARN", "DisARM"])
@pytest.mark.quick("DARN")
def test_mean_gradient(backend, name):
    """z-tests at one in a thousand. DARN has no bias if a class enters linearly."""
    estimator = ESTIMATORS[name](backend)
    sites = ("b", "c") if name == "DisARM" else ("b", "z")
    model = program(backend, ROWS, classes="z" in sites)
    guide = guide_of(backend, model, sites)
    guide = estimator.wrap(guide) if name == "NVIL" else guide
    ((loss, gradient),) = backend.gradients(estimator, model, guide, [0])
    parameters = {site: LOGITS[site] for site in sites}
    by_row = [-gradient[backend.auto_logits(site)].reshape(ROWS, -1) for site in sites]
    exact = slopes(elbo, parameters)
    expected = np.concatenate([exact[site].ravel() for site in sites])
    moments(-loss / ROWS, np.concatenate(by_row, -1)).check_unbiased(expected)
    assert -loss / ROWS == pytest.approx(elbo(parameters), abs=0.05)


@pytest.mark.parametrize("name", ["MuProp", "REBAR", "DARN", "DisARM"])
@pytest.mark.quick("MuProp")
def test_equal_to_the_one_hot_program(backend, name):
    """Compared with the same seed."""
    sites = ("b", "c") if name == "DisARM" else ("b", "z")
    runs = []
    for hot in (False, True):
        model = program(backend, 5, classes="z" in sites, hot=hot)
        guide = guide_of(backend, model, sites)
        backend.params_of(guide)  # its first run draws more
        runs.append(backend.loss_and_gradient(ESTIMATORS[name](backend), model, guide, 0))
    (loss, gradient), (expected, known) = runs
    assert loss == pytest.approx(expected, rel=1e-12)
    for site in sites:
        key = backend.auto_logits(site)
        np.testing.assert_allclose(gradient[key], known[key], atol=1e-12)
        assert np.abs(gradient[key]).max() > 0
