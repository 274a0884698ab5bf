"""Classes that are impossible or certain: bits of probability 0 and 1, masked categories."""

import numpy as np
import pytest

from gs_ppl import temperature

FAMILIES = [
    "GumbelSoftmax",
    "STGumbelSoftmax",
    "StraightThrough",
    "ReinMax",
    "GumbelRao",
    "GappedST",
]
P = np.array([0.0, 1.0, 0.3])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sure_bit_is_its_value(backend, family):
    """Relaxed too, and scored by its mass: the log of 1."""

    def model():
        with backend.ppl.plate("data", 3):
            backend.ppl.sample("z", backend.native.Bernoulli(probs=backend.array(P)))

    relaxed = backend.gs.relax(model, 0.5, family=getattr(backend.gs, family))
    fn, value = backend.sites(relaxed, 0)["z"]
    assert backend.numpy(value)[:2].tolist() == [0.0, 1.0]
    score = backend.numpy(fn.log_prob(value))
    assert score[:2].tolist() == [0.0, 0.0]
    y = backend.numpy(value)[2]
    assert score[2] == pytest.approx(y * np.log(0.3) + (1 - y) * np.log(0.7), rel=1e-6)
    wrong = backend.numpy(fn.log_prob(1 - value))
    assert wrong[:2].tolist() == [-np.inf, -np.inf]


@pytest.mark.parametrize("law", ["SoftBernoulli", "STGumbelSigmoid", "ReinMaxBernoulli"])
@pytest.mark.parametrize("what", ["probs", "logits"])
def test_a_sure_bit_has_no_gradient(backend, law, what):
    make = getattr(backend.gs, law)
    given = P if what == "probs" else np.array([-np.inf, np.inf, -0.4])

    def total(x):
        d = make(0.5, **{what: x})
        value = backend.sample(d, 0, ())
        return (value + d.log_prob(value) + d.entropy()).sum()

    (gradient,) = backend.grad(total, backend.array(given))
    assert gradient[:2].tolist() == [0.0, 0.0]
    assert np.isfinite(gradient[2])
    assert gradient[2] != 0


def test_divergence_of_sure_bits(backend):
    """0 from itself, -log p where the other allows the value, inf where it does not."""
    make = backend.gs.SoftBernoulli
    sure = make(0.5, probs=backend.array(np.array([0.0, 1.0, 1.0, 0.5])))
    other = make(0.5, probs=backend.array(np.array([0.0, 0.25, 0.0, 1.0])))
    found = backend.numpy(backend.kl(sure, other))
    np.testing.assert_allclose(found, [0.0, -np.log(0.25), np.inf, np.inf], rtol=1e-6)


# --- the automatic guide --------------------------------------------------------------------------


def masked(backend):
    """A vector whose second category and a bit whose first value are impossible."""

    def model():
        z = backend.ppl.sample(
            "z", backend.gs.OneHotCategorical(probs=backend.array([0.5, 0.0, 0.5]))
        )
        b = backend.ppl.sample("b", backend.native.Bernoulli(probs=backend.array(1.0)))
        loc = backend.gs.select(backend.array([-1.0, 9.0, 1.0]), z) + b
        backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(1.0))

    return model


def test_guide_starts_without_impossible_classes(backend):
    """Exact at the start: q is uniform over the two categories that exist."""
    model = masked(backend)
    guide = backend.gs.AutoGumbelSoftmax(model)
    relaxed = backend.gs.relax(model)
    loss = backend.infer.TraceMeanField_ELBO()
    losses, params = backend.anneal(relaxed, guide, loss, temperature.constant(0.5), 5)
    assert np.isfinite(losses).all()
    probs = backend.guide_probs(guide, params)
    assert probs["z"][1] == 0
    assert probs["b"] == 1


def test_what_depends_on_a_latent_stays_free(backend):
    """A category that the prototype's draw of its parent forbids may be possible in the next."""

    def model():
        ppl, array = backend.ppl, backend.array
        z = ppl.sample("z", backend.gs.OneHotCategorical(probs=array([0.5, 0.5])))
        p = backend.gs.select(array(np.eye(2)), z, axis=0)
        ppl.sample("y", backend.gs.OneHotCategorical(probs=p))

    guide = backend.gs.AutoGumbelSoftmax(model, temperature=0.5)
    fn, _ = backend.sites(guide, 0)["y"]
    np.testing.assert_allclose(backend.numpy(fn.probs), [0.5, 0.5])


def test_rows_that_differ_under_subsampling_are_refused(backend):
    def model():
        probs = backend.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
        with backend.ppl.plate("data", 4, subsample_size=2):
            backend.ppl.sample("z", backend.gs.OneHotCategorical(probs=probs))

    with pytest.raises(ValueError, match=r"site 'z': the rows .*'data' .* init_logits"):
        backend.sites(backend.gs.AutoGumbelSoftmax(model, temperature=0.5), 0)
