"""The classes inside of programs: plates, subsampling, ELBOs."""

import math

import numpy as np
import pytest
from laws import KINDS, LAWS, name, select
from scipy import stats

from gs_ppl import reference


@pytest.mark.parametrize("law", LAWS, ids=name)
@pytest.mark.quick(*KINDS)
def test_plates(backend, law):
    """Nested plates expand the site; a subsampled plate has as many draws as its subsample."""
    a = backend.array(law.logits(np.random.default_rng(0)), "float32")
    ppl = backend.ppl

    def program():
        with ppl.plate("rows", 5, dim=-2), ppl.plate("columns", 8, subsample_size=4, dim=-1):
            ppl.sample("z", law(backend, 0.5, a))

    z = backend.trace(program, 0)["z"]
    assert z.shape == (5, 4) + (3,) * law.event_dims


# other laws have no reparameterized sample, so that a pathwise ELBO does not apply
@pytest.mark.parametrize("law", select(tempered=True), ids=name)
@pytest.mark.quick(*KINDS)
def test_own_elbo_is_zero(backend, law):
    """If guide and model are equal, log q - log p is 0 for each draw, also with plates and
    to_event."""
    a = backend.array(law.logits(np.random.default_rng(0), (4, 2)), "float32")
    ppl = backend.ppl

    def program():
        with ppl.plate("data", 4):
            ppl.sample("z", law(backend, 0.7, a).to_event(1))

    for elbo in ("Trace_ELBO", "TraceMeanField_ELBO"):
        assert abs(backend.loss(elbo, program, program, 10, seed=0)) < 2e-4


@pytest.mark.parametrize("elbo", ["Trace_ELBO", "TraceMeanField_ELBO"])
@pytest.mark.parametrize("law", select(tempered=True, event_dims=1), ids=name)
@pytest.mark.quick(*KINDS)
def test_elbo_is_the_kl(backend, law, elbo):
    """The mean-field ELBO uses the registered KL, the other one estimates it."""
    a = backend.array([3.0, -2.0, 0.5])
    zeros = backend.array(np.zeros(3))
    tau = 1.0
    guide = lambda: backend.ppl.sample("z", law(backend, tau, a))  # noqa: E731
    model = lambda: backend.ppl.sample("z", law(backend, tau, zeros))  # noqa: E731
    kl = reference.exp_gumbel_softmax_kl if law.scored_as == "density" else reference.categorical_kl
    expected = kl([3.0, -2.0, 0.5], np.zeros(3))
    exact = elbo == "TraceMeanField_ELBO"
    loss = backend.loss(elbo, model, guide, 1 if exact else 20_000, seed=0)
    soft_mass = law.name == "SoftOneHotCategorical"
    if exact:
        assert loss == pytest.approx(expected, rel=1e-5)
    elif not soft_mass:  # its score at a soft value is not a log density
        assert loss == pytest.approx(expected, abs=0.1)


def mixture(backend, family):
    """Two observations that depend on one categorical; returns the program and its log evidence."""
    log_prior, locs, data = (
        np.log([0.5, 0.3, 0.2]),
        np.array([-2.0, 0.0, 3.0]),
        np.array([0.4, 0.9]),
    )
    prior, centers, x = map(backend.array, (log_prior, locs, data))
    ppl = backend.ppl

    def model():
        z = ppl.sample("z", family(prior))
        with ppl.plate("data", 2):
            ppl.sample("x", backend.native.Normal((z * centers).sum(-1), 1.0), obs=x)

    joint = log_prior + stats.norm(locs[:, None]).logpdf(data).sum(-1)
    return model, joint


@pytest.mark.parametrize("elbo", ["Trace_ELBO", "TraceMeanField_ELBO"])
def test_straight_through_elbo_at_the_posterior_is_the_evidence(backend, elbo):
    """At any temperature: it is hard in law, and scored as a mass."""
    for tau in (0.2, 1.0):
        make = lambda a: backend.gs.STGumbelSoftmax(tau, logits=a)  # noqa: B023, E731
        model, joint = mixture(backend, make)
        evidence = np.logaddexp.reduce(joint)
        posterior = backend.array(joint - evidence)
        guide = lambda: backend.ppl.sample("z", make(posterior))  # noqa: B023, E731
        if elbo == "Trace_ELBO":  # each draw separately
            losses = [backend.loss(elbo, model, guide, 1, seed) for seed in range(3)]
            np.testing.assert_allclose(losses, -evidence, rtol=1e-6)
        else:  # the mean over the draws, because the KL is not estimated
            loss = backend.loss(elbo, model, guide, 1_000, seed=0)
            assert loss == pytest.approx(-evidence, rel=0.05)


@pytest.mark.parametrize("law", ["STGumbelSoftmax", "SoftOneHotCategorical", "GumbelSoftmax"])
def test_svi_trains(backend, law):
    """A flat guide comes within a nat of the evidence, and the right category is the largest."""
    make = lambda a: getattr(backend.gs, law)(0.5, logits=a)  # noqa: E731
    model, joint = mixture(backend, make)

    def guide():
        a = backend.ppl.param("a", backend.array(np.zeros(3), "float32"))
        return backend.ppl.sample("z", make(a))

    losses, params = backend.fit("TraceMeanField_ELBO", model, guide, 300, seed=0)
    assert np.isfinite(losses).all()
    assert losses[-50:].mean() < losses[:10].mean()
    assert params["a"].argmax() == joint.argmax()


def test_evidence_of_the_mixture():
    """The tests above compare with this number, by hand."""
    lik = [math.exp(-((0.4 - m) ** 2 + (0.9 - m) ** 2) / 2) / (2 * math.pi) for m in (-2, 0, 3)]
    by_hand = math.log(sum(w * x for w, x in zip([0.5, 0.3, 0.2], lik, strict=True)))

    class Plain:  # only the arithmetic, without a PPL
        ppl = native = None
        array = staticmethod(np.asarray)

    _, joint = mixture(Plain, None)
    assert np.logaddexp.reduce(joint) == pytest.approx(by_hand)
