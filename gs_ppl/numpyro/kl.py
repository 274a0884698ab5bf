"""KL divergences in NumPyro's registry: mass on mass, density on density; mixed pairs refused."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import (
    BernoulliLogits,
    BernoulliProbs,
    Distribution,
    RelaxedBernoulliLogits,
    kl_divergence,
)

from gs_ppl._shared.pairings import refuse_mixed, refuse_spaces, refuse_temperatures
from gs_ppl.numpyro import functional as F
from gs_ppl.numpyro._base import LogitsDistribution, read
from gs_ppl.numpyro.distributions import (
    BernoulliScored,
    CategoricalScored,
    DensityScored,
    ExpGumbelSoftmax,
    GumbelSigmoid,
    GumbelSoftmax,
)

Bernoulli = (BernoulliLogits, BernoulliProbs)


def _logits(distribution: Distribution) -> Array:
    """Logits in at least float32, of our classes and of NumPyro's."""
    own = isinstance(distribution, LogitsDistribution)
    return distribution.a if own else jnp.asarray(distribution.logits)


def _finite(distribution: Distribution) -> Array | None:
    """The categories that exist; None: all."""
    own = isinstance(distribution, LogitsDistribution)
    return distribution.finite if own else distribution.logits > -jnp.inf


def _unsure(distribution: Distribution) -> Array | None:
    """The bits whose probability is neither 0 nor 1; None: all."""
    own = isinstance(distribution, LogitsDistribution)
    return distribution.unsure if own else jnp.isfinite(jnp.asarray(distribution.logits))


# --- mass against mass ----------------------------------------------------------------------------


@kl_divergence.register(CategoricalScored, CategoricalScored)
def _kl_categorical(p: Distribution, q: Distribution) -> Array:
    return F.categorical_kl(_logits(p), _logits(q), _finite(p), _finite(q))


@kl_divergence.register(BernoulliScored, BernoulliScored)
@kl_divergence.register(BernoulliScored, Bernoulli)
@kl_divergence.register(Bernoulli, BernoulliScored)
def _kl_bernoulli(p: Distribution, q: Distribution) -> Array:
    return F.bernoulli_kl(_logits(p), _logits(q), _unsure(p), _unsure(q))


# --- density against density ----------------------------------------------------------------------


def _require_equal_temperature(p: DensityScored, q: DensityScored) -> None:
    if p.temperature is q.temperature:
        return
    p_tau, q_tau = read(p.temperature), read(q.temperature)
    if p_tau is not None and q_tau is not None and np.all(p_tau == q_tau.astype(p_tau.dtype)):
        return
    refuse_temperatures(p, q)


@kl_divergence.register(ExpGumbelSoftmax, ExpGumbelSoftmax)
@kl_divergence.register(GumbelSoftmax, GumbelSoftmax)
def _kl_relaxed(p: DensityScored, q: DensityScored) -> Array:
    _require_equal_temperature(p, q)
    return F.exp_gumbel_softmax_kl(p.a, q.a)


@kl_divergence.register(GumbelSigmoid, GumbelSigmoid)
def _kl_relaxed_bit(p: GumbelSigmoid, q: GumbelSigmoid) -> Array:
    _require_equal_temperature(p, q)
    return F.gumbel_sigmoid_kl(p.a, q.a)


# --- mixed measures -------------------------------------------------------------------------------

_DENSITIES = (DensityScored, RelaxedBernoulliLogits)
_MASSES = (CategoricalScored, BernoulliScored, *Bernoulli)
for density in _DENSITIES:
    for mass in _MASSES:
        if issubclass(density, LogitsDistribution) or issubclass(mass, LogitsDistribution):
            kl_divergence.register(density, mass)(refuse_mixed)
            kl_divergence.register(mass, density)(refuse_mixed)
kl_divergence.register(ExpGumbelSoftmax, GumbelSoftmax)(refuse_spaces)
kl_divergence.register(GumbelSoftmax, ExpGumbelSoftmax)(refuse_spaces)
