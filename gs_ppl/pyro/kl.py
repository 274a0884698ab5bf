"""KL divergences in torch's registry: mass on mass, density on density; mixed pairs refused."""

import math

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    register_kl,
)
from torch.distributions import OneHotCategorical as TorchOneHotCategorical

from gs_ppl._shared.pairings import refuse_mixed, refuse_spaces, refuse_temperatures
from gs_ppl.pyro import functional as F
from gs_ppl.pyro._base import LogitsDistribution, read
from gs_ppl.pyro.distributions import (
    BernoulliScored,
    CategoricalScored,
    DensityScored,
    ExpGumbelSoftmax,
    GumbelSigmoid,
    GumbelSoftmax,
)

Discrete = LogitsDistribution | TorchOneHotCategorical | Bernoulli


def _logits(distribution: Discrete) -> Tensor:
    """Logits in at least float32, of our classes and of torch's."""
    if isinstance(distribution, LogitsDistribution):
        return distribution.a
    return distribution.logits


def _finite(distribution: Discrete) -> Tensor | None:
    """The categories that exist; None: all."""
    if isinstance(distribution, LogitsDistribution):
        return distribution.finite
    return distribution.logits > -math.inf


def _unsure(distribution: Discrete) -> Tensor | None:
    """The bits whose probability is neither 0 nor 1; None: all."""
    if isinstance(distribution, LogitsDistribution):
        return distribution.unsure
    return distribution.logits.isfinite()


# --- mass against mass ----------------------------------------------------------------------------


@register_kl(CategoricalScored, CategoricalScored)
@register_kl(CategoricalScored, TorchOneHotCategorical)
@register_kl(TorchOneHotCategorical, CategoricalScored)
def _kl_categorical(p: Discrete, q: Discrete) -> Tensor:
    return F.categorical_kl(_logits(p), _logits(q), _finite(p), _finite(q))


@register_kl(BernoulliScored, BernoulliScored)
@register_kl(BernoulliScored, Bernoulli)
@register_kl(Bernoulli, BernoulliScored)
def _kl_bernoulli(p: Discrete, q: Discrete) -> Tensor:
    return F.bernoulli_kl(_logits(p), _logits(q), _unsure(p), _unsure(q))


# --- density against density ----------------------------------------------------------------------


def _require_equal_temperature(p: DensityScored, q: DensityScored) -> None:
    if p.temperature is q.temperature:
        return
    differentiable = any(
        isinstance(t, Tensor) and t.requires_grad for t in (p.temperature, q.temperature)
    )
    if not differentiable and not torch.jit.is_tracing():  # a trace would keep the answer
        equal = read((torch.as_tensor(p.tau) == torch.as_tensor(q.tau)).all())
        if equal is not None and equal[0]:
            return
    refuse_temperatures(p, q)


@register_kl(ExpGumbelSoftmax, ExpGumbelSoftmax)
@register_kl(GumbelSoftmax, GumbelSoftmax)
def _kl_relaxed(p: DensityScored, q: DensityScored) -> Tensor:
    _require_equal_temperature(p, q)
    return F.exp_gumbel_softmax_kl(p.a, q.a)


@register_kl(GumbelSigmoid, GumbelSigmoid)
def _kl_relaxed_bit(p: GumbelSigmoid, q: GumbelSigmoid) -> Tensor:
    _require_equal_temperature(p, q)
    return F.gumbel_sigmoid_kl(p.a, q.a)


# --- mixed measures -------------------------------------------------------------------------------

_DENSITIES = (DensityScored, RelaxedOneHotCategorical, RelaxedBernoulli)
_MASSES = (CategoricalScored, BernoulliScored, TorchOneHotCategorical, Bernoulli)
for density in _DENSITIES:
    for mass in _MASSES:
        if issubclass(density, LogitsDistribution) or issubclass(mass, LogitsDistribution):
            register_kl(density, mass)(refuse_mixed)
            register_kl(mass, density)(refuse_mixed)
register_kl(ExpGumbelSoftmax, GumbelSoftmax)(refuse_spaces)
register_kl(GumbelSoftmax, ExpGumbelSoftmax)(refuse_spaces)
