"""A mask removes the terms of a latent from the loss, but not terms that depend on its value."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, softmax

ROWS = 50_000  # estimates in one run
FAILURE_RATE = 1e-3  # of each case; seeds are fixed
X, LOCS = 1.5, np.array([0.0, 2.0, -1.0])

ESTIMATORS = {
    "RLOO": lambda backend: backend.gs.RLOO_ELBO(4, vectorize_particles=True),
    "NVIL": lambda backend: backend.gs.NVIL_ELBO(normalize=False),
    "MuProp": lambda backend: backend.gs.MuProp_ELBO(),
    "REBAR": lambda backend: backend.gs.REBAR_ELBO(),
    "DisARM": lambda backend: backend.gs.DisARM_ELBO(),
}
PAIRS = [
    (name, kind)
    for name in ESTIMATORS
    for kind in ("bit", "one-hot")
    if (name, kind) != ("DisARM", "one-hot")
]


def log_likelihood(loc):
    return -0.5 * (X - loc) ** 2


def exact(kind, a):
    """Gradient in a of the mean of log p(x | z), the only term that the mask leaves."""
    if kind == "bit":
        p = expit(a)
        return np.array([p * (1 - p) * (log_likelihood(LOCS[1]) - log_likelihood(LOCS[0]))])
    pi, f = softmax(a), log_likelihood(LOCS)
    return pi * (f - pi @ f)


def programs(backend, kind, a):
    """Each row of the plate has separate parameters: its gradient is one estimate."""
    ppl, array, native = backend.ppl, backend.array, backend.native
    one_hot = kind == "one-hot"

    def law(logits):
        make = backend.gs.OneHotCategorical if one_hot else native.Bernoulli
        return make(logits=logits).mask(False)

    def model():
        with ppl.plate("rows", ROWS):
            z = ppl.sample("z", law(array(np.zeros_like(a))))
            loc = backend.gs.select(array(LOCS[: 3 if one_hot else 2]), z, binary=not one_hot)
            ppl.sample("x", native.Normal(loc, 1.0), obs=array(np.full(ROWS, X)))

    def guide():
        logits = ppl.param("a", array(np.broadcast_to(a, (ROWS, *np.shape(a)))))
        with ppl.plate("rows", ROWS):
            ppl.sample("z", law(logits))

    return model, guide


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_score_of_a_masked_latent(backend, name, kind):
    a = np.array(0.3) if kind == "bit" else np.array([0.3, -0.2, 0.1])
    elbo, (model, guide) = ESTIMATORS[name](backend), programs(backend, kind, a)
    guide = elbo.wrap(guide) if hasattr(elbo, "wrap") else guide
    ((_, gradient),) = backend.gradients(elbo, model, guide, [0])
    draws = -np.asarray(gradient["a"]).reshape(ROWS, -1)
    error = draws.std(0) / np.sqrt(ROWS)
    wanted = exact(kind, a)
    assert np.abs(wanted).max() > 0.1
    bound = stats.norm.isf(FAILURE_RATE / 2 / len(wanted)) * error
    np.testing.assert_array_less(np.abs(draws.mean(0) - wanted), bound)


def test_baseline_in_a_plate_of_one_row(backend):
    """G = (r - w x) (b - 1/2), for both values of the bit."""
    ppl, array, w, x = backend.ppl, backend.array, 0.7, 1.5

    def bit(logits, **options):
        with ppl.plate("rows", 1):
            return ppl.sample("z", backend.native.Bernoulli(logits=logits), **options)

    def model():
        with ppl.plate("rows", 1):
            z = ppl.sample("z", backend.native.Bernoulli(logits=array([0.0])))
            ppl.sample("x", backend.native.Normal(2 * z, 1.0), obs=array([X]))

    def guide():
        weight, input_ = ppl.param("w", array(w)), array([x])
        nets = {"nn_baseline": lambda x: weight * x, "nn_baseline_input": input_}
        bit(ppl.param("a", array([0.0])), infer={"baseline": nets})

    elbo = backend.gs.NVIL_ELBO(normalize=False)
    ((_, gradient),) = backend.gradients(elbo, model, elbo.wrap(guide), [0])
    r = log_likelihood(np.array([0.0, 2.0])) - 0.5 * np.log(2 * np.pi)
    wanted = (r - w * x) * np.array([-0.5, 0.5])
    assert np.abs(wanted + gradient["a"]).min() < 1e-9


@pytest.mark.parametrize("given", [{"use_decaying_avg_baseline": True}, {"nn_baseline": abs}, abs])
def test_another_baseline_is_refused(backend, given):
    """Only Pyro's TraceGraph_ELBO takes these."""

    def program(**options):
        p = backend.array(0.5)
        backend.ppl.sample("z", backend.native.Bernoulli(probs=p), **options)

    elbo = backend.gs.NVIL_ELBO()
    guide = elbo.wrap(lambda: program(infer={"baseline": given}))
    with pytest.raises(
        ValueError, match=r"site 'z': NVIL_ELBO takes only infer=.* keeps a running"
    ):
        backend.gradients(elbo, program, guide, [0])


UNMASKED = np.array([True, False, True])
MASKS = {  # nested masks, and the rows whose score is left
    "none, then rows": ([False, UNMASKED], np.zeros(3, bool)),
    "rows, then none": ([UNMASKED, False], np.zeros(3, bool)),
    "two": ([UNMASKED, np.arange(3) > 0], np.arange(3) == 2),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_a_law(backend, name):
    """The divergence has the rows that are left; a masked latent that is summed out still has a
    law."""
    ppl, gs, native, array = backend.ppl, backend.gs, backend.native, backend.array
    masks, left = MASKS[name]
    q, p = np.array([0.2, 0.5, 0.3]), np.array([0.5, 0.3, 0.2])

    def model(observed=True):
        law = gs.OneHotCategorical(probs=array(p))
        with ppl.plate("rows", 3):
            for mask in masks:
                law = law.expand([3]).mask(mask if isinstance(mask, bool) else array(mask, "bool"))
            z = ppl.sample("z", law)
            if observed:
                x = native.Normal(gs.select(array(LOCS), z), 1.0)
                ppl.sample("x", x, obs=array([X] * 3))

    auto = gs.AutoGumbelSoftmax(lambda: model(False), 0.5, init_logits=array(np.log([q] * 3)))
    relaxed, elbo = gs.relax(lambda: model(False), 0.5), backend.infer.TraceMeanField_ELBO()
    gs.check(relaxed, auto, elbo)
    ((loss, _),) = backend.gradients(elbo, relaxed, auto, [0])
    kl = (q * np.log(q / p)).sum()
    assert loss == pytest.approx(left.sum() * kl, rel=1e-6)
    enumerated, fit = gs.config_enumerate, stats.norm(LOCS).logpdf(X)
    loss = backend.enumerated_loss(enumerated(model), lambda: None, 1)
    assert -loss == pytest.approx(3 * np.log(p @ np.exp(fit)), rel=1e-6)
    loss = backend.enumerated_loss(enumerated(model), enumerated(auto), 1)
    assert -loss == pytest.approx(3 * q @ fit - left.sum() * kl, rel=1e-6)
