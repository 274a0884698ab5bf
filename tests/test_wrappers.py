"""Laws with other laws inside: to_event, mask and expand are looked through; others are new
laws."""

import numpy as np
import pytest

PRIOR = np.array([0.5, 0.3, 0.2])


def zero_inflated(backend, inner):
    return backend.native.ZeroInflatedDistribution(inner, gate=backend.array(0.8))


HANDLERS = ["relax", "discretize", "config_enumerate"]


def handled(backend, name, model):
    handler = getattr(backend.gs, name)
    return handler(model, 0.5) if name == "relax" else handler(model)


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_zero_inflated_bit_is_refused(backend, handler):
    def model():
        law = zero_inflated(backend, backend.native.Bernoulli(probs=backend.array(0.9)))
        backend.ppl.sample("z", law)

    with pytest.raises(ValueError, match=r"site 'z': ZeroInflated\w+ over Bernoulli"):
        backend.trace(handled(backend, handler, model), 0)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("handler", HANDLERS)
def test_a_censored_bit_is_refused(backend, handler):
    def model():
        bit = backend.native.Bernoulli(probs=backend.array(0.9))
        law = backend.native.LeftCensoredDistribution(bit, backend.array(0.0))
        backend.ppl.sample("z", law.mask(True))

    with pytest.raises(ValueError, match=r"site 'z': LeftCensored\w+ over Bernoulli"):
        backend.trace(handled(backend, handler, model), 0)


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_law_over_another_law_stays(backend, handler):
    def model():
        law = zero_inflated(backend, backend.native.Poisson(backend.array(3.0)))
        backend.ppl.sample("n", law)

    fn, _ = backend.sites(handled(backend, handler, model), 0)["n"]
    assert type(fn).__name__.startswith("ZeroInflated")


# --- the PPLs' own relaxed laws -------------------------------------------------------------------


def own_relaxed(backend, kind):
    """The laws by kind; NumPyro has only the bit."""
    tau = backend.array(0.5)
    if kind == "bit":
        return backend.native.RelaxedBernoulli(tau, probs=backend.array(0.3))
    return backend.native.RelaxedOneHotCategorical(tau, probs=backend.array(PRIOR))


def test_relaxed_bit_of_the_ppl(backend):
    check_own_relaxed(backend, "bit", np.array([0.7, 0.3]))


@pytest.mark.only("pyro")
def test_relaxed_vector_of_the_ppl(backend):
    check_own_relaxed(backend, "vector", PRIOR)


def check_own_relaxed(backend, kind, probs):
    """They are discretized and enumerated like ours; they are relaxed already, and stay."""
    locs = np.arange(len(probs))

    def model():
        z = backend.ppl.sample("z", own_relaxed(backend, kind))
        loc = z if kind == "bit" else (z * backend.array(locs)).sum(-1)
        backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(0.3))

    before, _ = backend.sites(model, 0)["z"]
    after, _ = backend.sites(backend.gs.relax(model, 0.5), 0)["z"]
    assert type(before) is type(after)
    _, value = backend.sites(backend.gs.discretize(model), 0)["z"]
    assert np.isin(backend.numpy(value), (0, 1)).all()
    density = np.exp(-0.5 * (0.3 - locs) ** 2) / np.sqrt(2 * np.pi)
    loss = backend.enumerated_loss(backend.gs.config_enumerate(model), lambda: None, 0)
    assert -loss == pytest.approx(np.log((probs * density).sum()), rel=1e-6)


@pytest.mark.only("pyro")
@pytest.mark.parametrize("kind", ["RelaxedOneHotCategorical", "RelaxedBernoulli"])
def test_pyros_straight_through_laws_are_refused(backend, kind):
    def model():
        law = getattr(backend.native, f"{kind}StraightThrough")
        backend.ppl.sample("z", law(backend.array(0.5), probs=backend.array(PRIOR)))

    with pytest.raises(ValueError, match=rf"site 'z': {kind}StraightThrough .* STGumbelSoftmax"):
        backend.trace(backend.gs.relax(model, 0.5), 0)
