"""The Gumbel-Softmax family as pure functions of temperature, logits and noise.

Letters: a = logits, tau = temperature, E = standard exponential noise (-log E is standard Gumbel),
l = log of the relaxed sample, y = exp(l), K = number of categories, which is the last axis. A
logit of -inf masks its category. `finite` marks the categories that are not masked; None: all.
Everything is in nats.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from gs_ppl._shared import quadrature

Temperature = float | Tensor

# --- noise ----------------------------------------------------------------------------------------


def uniform_noise(
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """Uniform noise that is never 0 and never 1.

    u = max(k 2^-p, 2^-(p + 1)) with k uniform on {0, ..., 2^p - 1}; p = 24 in float32, 53 in
    float64. The distance from the uniform law is at most 2^-p.
    """
    bits = 53 if dtype == torch.float64 else 24
    return torch.rand(shape, dtype=dtype, device=device).clamp_min_(2.0 ** -(bits + 1))


def exponential_noise(
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """Standard exponential noise E = -log u, finite and never 0.

    In float32 E lies in [2^-24, 17.33], so the Gumbel noise -log E lies in [-2.853, 16.636]; in
    float64 E lies in [2^-53, 37.43], -log E in [-3.623, 36.737].

    Args:
        shape: shape of the result.
        dtype: torch.float32 or torch.float64.
        device: device of the result.

    Example:
        >>> noise = exponential_noise((1000,))
        >>> bool((noise >= 2.0**-24).all() and (noise < 17.33).all())
        True
    """
    return uniform_noise(shape, dtype=dtype, device=device).log_().neg_()


def logistic_noise(
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """Standard logistic noise L = log u - log(1 - u), finite: in float32 in [-17.33, 16.636]."""
    u = uniform_noise(shape, dtype=dtype, device=device)
    return u.log() - (-u).log1p()


# Sums over a short axis are several times faster if the axis is the outermost in memory.
SHORT = 64


def _axis_in_memory(shape: tuple[int, ...]) -> int:
    """The position of the class axis in the memory of draws: outermost if it is short."""
    return 0 if shape[-1] <= SHORT else -1


def noise_to_draw_from(
    shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | None
) -> Tensor:
    """Exponential noise with the memory layout that gumbel_softmax_draw_ needs."""
    if _axis_in_memory(shape) == -1:
        return exponential_noise(shape, dtype=dtype, device=device)
    shape = shape[-1:] + shape[:-1]
    return exponential_noise(shape, dtype=dtype, device=device).movedim(0, -1)


# --- categories -----------------------------------------------------------------------------------


def log_softmax(a: Tensor) -> Tensor:
    """log_softmax over the last axis."""
    if _axis_in_memory(a.shape) == 0:
        return a.movedim(-1, 0).contiguous().log_softmax(0).movedim(0, -1)
    # torch's kernel sums one term after the other, and loses digits on a long axis
    a = a - a.detach().amax(-1, keepdim=True)
    return a - a.exp().sum(-1, keepdim=True).log()


def sum_finite(x: Tensor, finite: Tensor | None) -> Tensor:
    """Sum over the categories that exist."""
    return (x if finite is None else x.where(finite, 0.0)).sum(-1)


def _category_term(temperature: Temperature, like: Tensor, finite: Tensor | None) -> tuple:
    """K, and lgamma(K) - K log K + (K - 1) log tau: the terms of the density without sums."""
    if finite is None:
        K = like.shape[-1]
        return K, math.lgamma(K) - K * math.log(K) + (K - 1) * _log(temperature)
    count = finite.sum(-1).double()
    constant = (torch.lgamma(count) - count * count.log()).to(like.dtype)
    count = count.to(like.dtype)
    return count, constant + (count - 1) * _log(temperature)


def _log(temperature: Temperature) -> Tensor | float:
    return temperature.log() if isinstance(temperature, Tensor) else math.log(temperature)


def _column(temperature: Temperature) -> Temperature:
    if isinstance(temperature, Tensor) and temperature.dim():
        return temperature.unsqueeze(-1)
    return temperature


# --- the relaxed law ------------------------------------------------------------------------------


def exp_gumbel_softmax_sample(
    temperature: Temperature, logits: Tensor, noise: Tensor, finite: Tensor | None = None
) -> Tensor:
    """Log of a relaxed sample, l = log_softmax((a - log E) / tau).

    Args:
        temperature: tau > 0, shape broadcastable to the batch shape.
        logits: a, shape batch + (K,), nats.
        noise: E, standard exponential, shape sample + batch + (K,).
        finite: the categories that exist; None: all.

    Source: Jang, Gu, Poole 2016, eq. 2; in log-space Maddison, Mnih, Teh 2016.

    Example:
        >>> l = exp_gumbel_softmax_sample(0.5, torch.zeros(2), torch.tensor([1.0, 2.0]))
        >>> l.exp()
        tensor([0.8000, 0.2000])
    """
    if finite is None:
        return log_softmax((logits - noise.log()) / _column(temperature))
    # -inf enters after the division, whose gradient would be NaN there
    z = (logits.where(finite, 0.0) - noise.log()) / _column(temperature)
    return log_softmax(z.where(finite, -math.inf))


def gumbel_softmax_draw_(
    temperature: Temperature, logits: Tensor, noise: Tensor, finite: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """y inside the open simplex, its log l, and the residue of the noise; overwrites the noise.

    The results are those of exp_gumbel_softmax_sample, to_simplex and noise_residue. They are
    computed in one step, which takes the noise as a constant, has a derivative written by hand, and
    needs no memory except y and l. Under a compiler, a tracer or torch.func those three functions
    run instead, and the noise is not overwritten.

    Example:
        >>> y, l, residue = gumbel_softmax_draw_(0.5, torch.zeros(2), torch.tensor([1.0, 2.0]))
        >>> y
        tensor([0.8000, 0.2000])
    """
    if finite is None and not torch.jit.is_tracing() and not torch.compiler.is_compiling():
        try:
            return _Draw.apply(torch.as_tensor(temperature, dtype=logits.dtype), logits, noise)
        except RuntimeError as error:
            # the form for torch.func would cost as much as some of the sums
            if "setup_context" not in str(error):
                raise
    l = exp_gumbel_softmax_sample(temperature, logits, noise, finite)
    return to_simplex(l, l.dtype, finite), l, noise_residue(noise, finite)


class _Draw(torch.autograd.Function):
    """y, l and the residue for constant noise E; y uses the memory of E.

    With G = G_l + y G_y the gradient is H = (G - y sum G) / tau for a, and -sum H l for tau.
    """

    @staticmethod
    def forward(
        ctx: Any, tau: Tensor, logits: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        K, first = noise.shape[-1], _axis_in_memory(noise.shape)
        memory = noise.movedim(-1, first).contiguous()
        x = memory.movedim(first, -1)
        log_mean = x.mean(-1).log_()
        residue = x.log_().sum(-1).sub_(log_mean, alpha=K)
        torch.sub(logits, x, out=x).div_(_column(tau))
        if first == 0:
            l = memory.log_softmax(0).movedim(0, -1)
            y = memory.view(noise.shape).copy_(l).exp_()
        else:  # as in log_softmax
            l = x - x.amax(-1, keepdim=True)
            total = torch.exp(l, out=x).sum(-1, keepdim=True)
            l -= total.log()
            y = x.div_(total)
        # detached: as a view of the noise, it could not be changed in place
        y = y.clamp_(*open_unit_interval(l.dtype)).detach()
        ctx.shape = logits.shape
        ctx.save_for_backward(tau, y, l)
        ctx.save_for_forward(tau, y, l)
        ctx.mark_non_differentiable(residue)
        ctx.set_materialize_grads(False)
        return y, l, residue

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_l: Tensor | None, _: None) -> tuple:
        tau, y, l = ctx.saved_tensors
        if grad_y is not None:
            G = y * grad_y if grad_l is None else torch.addcmul(grad_l, y, grad_y)
        elif grad_l is not None:
            G = grad_l.clone()
        else:
            return None, None, None
        H = G.addcmul_(y, G.sum(-1, keepdim=True), value=-1).div_(_column(tau))
        by_tau = -(H * l).sum(-1).sum_to_size(tau.shape) if ctx.needs_input_grad[0] else None
        return by_tau, H.sum_to_size(ctx.shape) if ctx.needs_input_grad[1] else None, None

    @staticmethod
    def jvp(ctx: Any, tau_tangent: Tensor | None, tangent: Tensor | None, _: None) -> tuple:
        tau, y, l = ctx.saved_tensors
        z = torch.zeros_like(l) if tangent is None else tangent
        z = (z if tau_tangent is None else z - l * _column(tau_tangent)) / _column(tau)
        z = z - (y * z).sum(-1, keepdim=True)
        return y * z, z, None


def exp_gumbel_softmax_log_prob(
    temperature: Temperature, logits: Tensor, log_value: Tensor, finite: Tensor | None = None
) -> Tensor:
    """Log density of l with respect to dl_1 ... dl_{K-1} / y_K.

    log p(l) = lgamma(K) + (K - 1) log tau + sum(a - tau l) - K logsumexp(a - tau l).

    It is -inf where a masked category has weight and where an existing one has none.

    Example:
        >>> exp_gumbel_softmax_log_prob(1.0, torch.zeros(2), torch.tensor([0.5, 0.5]).log())
        tensor(-1.3863)
    """
    tau = _column(temperature)
    if finite is None:
        r = logits - tau * log_value
        inside = None
    else:
        r = logits.where(finite, 0.0) - tau * log_value.where(finite, 0.0)
        inside = (finite | log_value.isneginf()).all(-1)
        finite = finite.expand(r.shape)
    K, constant = _category_term(temperature, r, finite)
    log_mean = (r if finite is None else r.where(finite, -math.inf)).logsumexp(-1) - (
        math.log(K) if finite is None else K.log()
    )
    log_prob = constant + sum_finite(r, finite) - K * log_mean
    outside = log_mean.isposinf() if inside is None else log_mean.isposinf() | ~inside
    return log_prob.masked_fill(outside, -math.inf)


def exp_gumbel_softmax_noise_log_prob(
    temperature: Temperature, noise: Tensor, finite: Tensor | None = None
) -> Tensor:
    """Log density of the sample that this noise gives; it does not depend on the logits.

    log p(l) = lgamma(K) + (K - 1) log tau + sum log E - K log sum E.

    Example:
        >>> exp_gumbel_softmax_noise_log_prob(1.0, torch.tensor([1.0, 1.0]))
        tensor(-1.3863)
    """
    residue = noise_residue(noise, finite)
    return exp_gumbel_softmax_own_log_prob(temperature, noise, residue, finite)


def noise_residue(noise: Tensor, finite: Tensor | None = None) -> Tensor:
    """The part of the log density that depends on the noise: sum log E - K log(mean E)."""
    K = noise.shape[-1] if finite is None else finite.sum(-1)
    return sum_finite(noise.log(), finite) - K * (sum_finite(noise, finite) / K).log()


def exp_gumbel_softmax_own_log_prob(
    temperature: Temperature, log_value: Tensor, residue: Tensor, finite: Tensor | None = None
) -> Tensor:
    """Log density of an own sample l from the residue of its noise; only the shape of l is used.

    log p(l) = lgamma(K) - K log K + (K - 1) log tau + residue.
    """
    return _category_term(temperature, log_value, finite)[1] + residue


def tempered_log_softmax(temperature: Temperature, logits: Tensor) -> Tensor:
    """log_softmax(a / tau): the mode of the log-space density; with a + g for a, a sample."""
    finite = logits > -math.inf  # -inf / tau has no gradient in tau
    z = logits.where(finite, 0.0) / _column(temperature)
    return log_softmax(z.where(finite, -math.inf))


def gumbel_noise_of(
    temperature: Temperature, logits: Tensor, log_value: Tensor, finite: Tensor | None = None
) -> Tensor:
    """Gumbel noise g = tau l - a + c that gives the sample l, with c such that sum exp(-g) = K.

    c has no effect on l. The law of sum exp(-g) is Gamma(K), independent of l. The noise of masked
    categories is 0.

    Example:
        >>> g = gumbel_noise_of(0.5, torch.zeros(2), torch.tensor([0.8, 0.2]).log())
        >>> tempered_log_softmax(0.5, g).exp()
        tensor([0.8000, 0.2000])
    """
    if finite is None:
        g = _column(temperature) * log_value - logits
        return g + (-g).logsumexp(-1, keepdim=True) - math.log(g.shape[-1])
    g = _column(temperature) * log_value.where(finite, 0.0) - logits.where(finite, 0.0)
    c = (-g).where(finite, -math.inf).logsumexp(-1, keepdim=True)
    return (g + c - finite.sum(-1, keepdim=True).log()).where(finite, 0.0)


def exp_gumbel_softmax_entropy(
    temperature: Temperature, logits: Tensor, finite: Tensor | None = None
) -> Tensor:
    """Entropy -lgamma(K) - (K - 1) log tau + K euler_gamma + K digamma(K), whatever the logits.

    Example:
        >>> exp_gumbel_softmax_entropy(0.1, torch.zeros(2))
        tensor(4.3026)
    """
    K = torch.tensor(logits.shape[-1]) if finite is None else finite.sum(-1)
    K = K.to(logits.device, torch.float64)
    constant = (K * (np.euler_gamma + K.digamma()) - K.lgamma()).to(logits.dtype)
    entropy = constant - (K.to(logits.dtype) - 1) * _log(temperature)
    return entropy.expand(torch.broadcast_shapes(entropy.shape, logits.shape[:-1]))


def exp_gumbel_softmax_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) of two relaxed laws at the same temperature, on which it does not depend.

    KL = sum(lp - lq) - K (digamma(K) - E log sum_i w_i E_i), with lp, lq the log_softmax of the
    logits and w_i = exp(lq_i - lp_i). With v = w / max(w) and t = exp(s), the integrals of
    digamma(K) and of E log sum_i v_i E_i become one integral:

    KL = -sum log v + K integral ((1 + t)^-K - prod_i 1 / (1 + v_i t)) ds.

    Infinite where the masks differ.

    Example:
        >>> exp_gumbel_softmax_kl(torch.tensor([3.0, -2.0, 0.5]), torch.zeros(3))
        tensor(3.7216)
    """
    p_logits, q_logits = torch.broadcast_tensors(p_logits, q_logits)
    p_finite, q_finite = p_logits > -math.inf, q_logits > -math.inf
    both = p_finite & q_finite
    log_v = q_logits.where(both, 0.0) - p_logits.where(both, 0.0)
    # an empty intersection has no maximum; its divergence is infinite with any value here
    highest = log_v.where(both, -math.inf).amax(-1, keepdim=True)
    log_v = log_v - highest.where(both.any(-1, keepdim=True), 0.0)
    v, K = log_v.where(both, -math.inf).exp().unsqueeze(-2), both.sum(-1)
    nodes, step = quadrature.log_nodes(p_logits.shape[-1], double=log_v.dtype == torch.float64)
    t = torch.as_tensor(nodes, dtype=log_v.dtype, device=log_v.device)
    equal, product = -K.unsqueeze(-1) * t.log1p(), -(v * t.unsqueeze(-1)).log1p().sum(-1)
    integral = step * (equal.expm1() - product.expm1()).sum(-1)
    kl = K * integral - log_v.where(both, 0.0).sum(-1)
    return kl.masked_fill((p_finite ^ q_finite).any(-1), math.inf)


def to_simplex(log_value: Tensor, dtype: torch.dtype, finite: Tensor | None = None) -> Tensor:
    """y = exp(l), clamped to the open simplex if it rounds to the boundary.

    The gradient is that of exp. Masked categories stay 0.
    """
    y = log_value.exp()
    low, high = open_unit_interval(dtype)
    inner = y.detach().clamp(low, high)
    if finite is not None:
        inner = inner.where(finite, 0.0)
    return (y + (inner - y.detach())).to(dtype)


def from_simplex(value: Tensor, finite: Tensor | None = None) -> Tensor:
    """l = log(y) of the nearest point inside the open simplex; -inf for masked categories at 0."""
    l = _log_inside(value)
    return l if finite is None else l.where(finite | (value != 0), -math.inf)


def open_unit_interval(dtype: torch.dtype) -> tuple[float, float]:
    """The smallest and the largest float inside (0, 1); in float16 the smallest is subnormal."""
    info = torch.finfo(dtype)
    return (2.0**-24 if dtype == torch.float16 else info.tiny), 1.0 - info.eps / 2


def _log_inside(y: Tensor) -> Tensor:
    """log(y) of the nearest y inside (0, 1), with a derivative that never overflows.

    At a y near 0 the derivative 1 / y is multiplied by the derivative y of the sample. By
    itself it would overflow before that, to inf or to inf * 0. Below 2^26 times the smallest float
    it is therefore held constant.
    """
    low, high = open_unit_interval(y.dtype)
    steepest = torch.finfo(y.dtype).tiny * 2.0**26
    log = y.clamp(steepest, high).log()
    slope = ((y >= low) & (y < steepest)).to(y.dtype) / steepest
    line = y.detach().clamp(low, steepest).log() + (y - y.detach()) * slope
    return log.where(y >= steepest, line)


# --- the categorical law --------------------------------------------------------------------------


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, bit for bit, with the gradient of `soft`."""
    return hard + (soft - soft.detach())


def one_hot_argmax(log_value: Tensor) -> Tensor:
    """One-hot vector of the largest coordinate."""
    index = log_value.argmax(-1, keepdim=True)
    return torch.zeros_like(log_value).scatter(-1, index, 1.0)


def categorical_log_prob(logits: Tensor, value: Tensor, finite: Tensor | None = None) -> Tensor:
    """Log mass, linear in the value: sum_i value_i log pi_i; -inf if a masked one has weight.

    With logits of -inf pass `finite`; without it the sum contains 0 times -inf.

    Example:
        >>> categorical_log_prob(torch.zeros(2), torch.tensor([0.25, 0.75]))
        tensor(-0.6931)
    """
    log_pi = log_softmax(logits)
    if finite is None:
        return (value * log_pi).sum(-1)
    log_prob = (value * log_pi.where(finite, 0.0)).sum(-1)
    return log_prob.masked_fill((~finite & (value != 0)).any(-1), -math.inf)


def categorical_entropy(logits: Tensor, finite: Tensor | None = None) -> Tensor:
    """Entropy -sum pi log pi; with logits of -inf pass `finite`, as in categorical_log_prob."""
    log_pi = log_softmax(logits)
    existing = log_pi if finite is None else log_pi.where(finite, 0.0)
    return -(log_pi.exp() * existing).sum(-1)


def categorical_kl(
    p_logits: Tensor,
    q_logits: Tensor,
    p_finite: Tensor | None = None,
    q_finite: Tensor | None = None,
) -> Tensor:
    """KL sum pi_p (log pi_p - log pi_q); infinite if q masks a category that p has.

    With logits of -inf pass `p_finite` and `q_finite`, as in categorical_log_prob.
    """
    lp, lq = log_softmax(p_logits), log_softmax(q_logits)
    pi = lp.exp()
    lp = lp if p_finite is None else lp.where(p_finite, 0.0)
    if q_finite is None:
        return (pi * (lp - lq)).sum(-1)
    kl = (pi * (lp - lq.where(q_finite, 0.0))).sum(-1)
    missing = ~q_finite if p_finite is None else p_finite & ~q_finite
    return kl.masked_fill(missing.any(-1), math.inf)


# --- the binary laws ------------------------------------------------------------------------------


def log_odds_term(x: Tensor) -> Tensor:
    """softplus(x) + softplus(-x) = -log(y (1 - y)) for y = sigmoid(x)."""
    return 2 * torch.logaddexp(x / 2, -x / 2)  # smooth at 0


def gumbel_sigmoid_sample(temperature: Temperature, logits: Tensor, noise: Tensor) -> Tensor:
    """Logit of a relaxed bit, x = (a + L) / tau, L standard logistic noise.

    Example:
        >>> gumbel_sigmoid_sample(0.5, torch.tensor(1.0), torch.tensor(0.5))
        tensor(3.)
    """
    return (logits + noise) / temperature


def gumbel_sigmoid_log_prob(
    temperature: Temperature, logits: Tensor, logit_value: Tensor, noise: Tensor | None = None
) -> Tensor:
    """Log density of y = sigmoid(x) on (0, 1), from x.

    log p(y) = log tau - c(tau x - a) + c(x) with c(x) = softplus(x) + softplus(-x). For an own
    sample tau x - a is its noise, and the logits cancel.

    Example:
        >>> gumbel_sigmoid_log_prob(1.0, torch.tensor(0.0), torch.tensor(2.0))
        tensor(0.)
    """
    residual = temperature * logit_value - logits if noise is None else noise
    return _log(temperature) - log_odds_term(residual) + log_odds_term(logit_value)


def gumbel_sigmoid_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL of two relaxed bits at the same temperature: the two-category law with logits (a, 0).

    It is 0 if both bits have the same probability 0 or 1, and inf if only one has it.
    """

    def pair(a: Tensor) -> Tensor:
        one = a == math.inf
        zero = torch.zeros_like(a)
        return torch.stack([a.where(~one, zero), zero.masked_fill(one, -math.inf)], -1)

    return exp_gumbel_softmax_kl(pair(p_logits), pair(q_logits))


def to_unit_interval(logit_value: Tensor, dtype: torch.dtype) -> Tensor:
    """y = sigmoid(x), clamped to (0, 1) if it rounds to 0 or 1; the gradient of sigmoid."""
    y = logit_value.sigmoid()
    inner = y.detach().clamp(*open_unit_interval(dtype))
    return (y + (inner - y.detach())).to(dtype)


def from_unit_interval(value: Tensor) -> Tensor:
    """x = log y - log(1 - y), with a derivative that never overflows."""
    return _log_inside(value) - (-value).log1p()


def bernoulli_log_prob(logits: Tensor, value: Tensor, unsure: Tensor | None = None) -> Tensor:
    """Log mass, linear in the value: value log p + (1 - value) log(1 - p).

    `unsure` marks the probabilities that are neither 0 nor 1 (None: all). The other bits have the
    log mass 0 at their value and -inf elsewhere, without gradient.

    Example:
        >>> bernoulli_log_prob(torch.tensor(0.0), torch.tensor(0.3))
        tensor(-0.6931)
    """
    if unsure is None:
        return value * logits - torch.logaddexp(logits, torch.zeros_like(logits))
    log_prob = bernoulli_log_prob(without_sure(logits, unsure), value)
    return score_sure(log_prob, value, logits, unsure)


def bernoulli_entropy(logits: Tensor, unsure: Tensor | None = None) -> Tensor:
    """Entropy -p log p - (1 - p) log(1 - p)."""
    return -bernoulli_log_prob(logits, logits.sigmoid(), unsure)


def bernoulli_kl(
    p_logits: Tensor,
    q_logits: Tensor,
    p_unsure: Tensor | None = None,
    q_unsure: Tensor | None = None,
) -> Tensor:
    """KL p (log p - log q) + (1 - p) (log(1 - p) - log(1 - q))."""
    p = p_logits.sigmoid()
    return bernoulli_log_prob(p_logits, p, p_unsure) - bernoulli_log_prob(q_logits, p, q_unsure)


# --- bits of probability 0 and 1 ------------------------------------------------------------------
# `unsure` marks the other bits; None: all.


def without_sure(x: Tensor, unsure: Tensor | None, instead: float = 0.0) -> Tensor:
    """Logits or values, with another number for those bits."""
    return x if unsure is None else x.where(unsure, instead)


def put_sure(y: Tensor, logits: Tensor, unsure: Tensor | None) -> Tensor:
    """Bits of probability 0 and 1 have that value, without gradient."""
    return y if unsure is None else y.where(unsure, (logits > 0).to(y.dtype))


def score_sure(log_prob: Tensor, value: Tensor, logits: Tensor, unsure: Tensor | None) -> Tensor:
    """Such bits have log mass 0 at their value, -inf elsewhere, without gradient."""
    if unsure is None:
        return log_prob
    elsewhere = torch.zeros_like(log_prob).masked_fill(value != (logits > 0), -math.inf)
    return log_prob.where(unsure, elsewhere)


# --- surrogates of the straight-through families --------------------------------------------------
# Each gives a soft value for a one-hot sample D; straight_through uses the gradient of that value.
# A bit is the first of two classes with logits (a, 0).


def tempered_softmax(
    temperature: Temperature, logits: Tensor, finite: Tensor | None = None
) -> Tensor:
    """softmax(a / tau): the surrogate of StraightThrough; with a + g for a, of STGumbelSoftmax.

    Example:
        >>> tempered_softmax(0.5, torch.tensor([4.0, 1.0]).log() / 2)
        tensor([0.8000, 0.2000])
    """
    if finite is None:
        return log_softmax(logits / _column(temperature)).exp()
    z = logits.where(finite, 0.0) / _column(temperature)
    return log_softmax(z.where(finite, -math.inf)).exp()


def softmax_at(
    temperature: Temperature, value: Tensor, logits: Tensor, finite: Tensor | None = None
) -> Tensor:
    """softmax(v / tau); its gradient with respect to v is used for the logits.

    Example:
        >>> softmax_at(1.0, torch.tensor([4.0, 1.0]).log(), torch.zeros(2))
        tensor([0.8000, 0.2000])
    """
    a = logits if finite is None else logits.where(finite, 0.0)
    return tempered_softmax(temperature, straight_through(value.detach(), a), finite)


def reinmax_surrogate(
    temperature: Temperature, logits: Tensor, hard: Tensor, finite: Tensor | None = None
) -> Tensor:
    """2 p - pi / 2; p = (softmax(a / tau) + D) / 2 is differentiated as a softmax of the logits.

    Its gradient is 2 J(p) - J(pi) / 2 with J(p) = diag(p) - p p^T.

    Source: Liu, Dong, Liu, Yu, Gao 2023 (arXiv 2304.08612), algorithm 3.

    Example:
        >>> reinmax_surrogate(1.0, torch.zeros(2), torch.tensor([1.0, 0.0]))
        tensor([1.2500, 0.2500])
    """
    # without the gradient of the logarithm, which is infinite where p has underflowed
    p = (tempered_softmax(temperature, logits, finite) + hard).detach() / 2
    pi = tempered_softmax(1.0, logits, finite)
    return 2 * softmax_at(1.0, p.log(), logits, finite) - pi / 2


def gumbel_rao_surrogate(
    temperature: Temperature,
    logits: Tensor,
    hard: Tensor,
    noise: Tensor,
    finite: Tensor | None = None,
) -> Tensor:
    """Mean of softmax(z / tau) over draws of z = a + g given its argmax k.

    z_k - log sum exp(a) = -log E_k, z_j - log sum exp(a) = -log(E_j / pi_j + E_k). The gradient is
    that of z = a + g for fixed Gumbel noise g, although the noise given k depends on the logits.

    Args:
        temperature: tau > 0, shape broadcastable to the batch shape.
        logits: a, shape batch + (K,), nats.
        hard: D = one_hot(k), shape sample + batch + (K,).
        noise: E, standard exponential, shape (draws,) + sample + batch + (K,).
        finite: the categories that exist; None: all.

    Source: Paulus, Maddison, Krause 2020 (arXiv 2010.04838).

    Example:
        >>> noise = torch.tensor([[1.0, 1.0], [1.0, 3.0]])
        >>> gumbel_rao_surrogate(1.0, torch.zeros(2), torch.tensor([1.0, 0.0]), noise)
        tensor([0.8125, 0.1875])
    """
    largest = (noise * hard).sum(-1, keepdim=True).log()
    others = torch.logaddexp(noise.log() - log_softmax(logits.detach()), largest)
    z = -largest.where(hard == 1, others)
    return softmax_at(temperature, z, logits, finite).mean(0)


def gumbel_rao_bit_surrogate(
    temperature: Temperature, logits: Tensor, hard: Tensor, noise: Tensor
) -> Tensor:
    """Mean of sigmoid(x / tau) over draws of x = a + L given its sign s = 2 bit - 1.

    x = s softplus(L' + softplus(s a)) with L' logistic; differentiated as in gumbel_rao_surrogate.

    Args:
        temperature: tau > 0, shape broadcastable to the batch shape.
        logits: a, shape batch, nats.
        hard: the bit, shape sample + batch.
        noise: L', standard logistic, shape (draws,) + sample + batch.

    Example:
        >>> gumbel_rao_bit_surrogate(1.0, torch.tensor(0.0), torch.tensor(1.0), torch.zeros(1))
        tensor(0.7500)
    """
    sign = 2 * hard - 1
    smallest = softplus(sign * logits.detach(), threshold=50)  # the default is for float32
    size = softplus(noise + smallest, threshold=50)
    return (straight_through(sign * size, logits) / temperature).sigmoid().mean(0)


def gapped_surrogate(
    temperature: Temperature,
    logits: Tensor,
    hard: Tensor,
    gap: float,
    finite: Tensor | None = None,
) -> Tensor:
    """softmax(v / tau), v_k = max(a), v_j = min(a_j, max(a) - gap); gradient as in softmax_at.

    Source: Fan, Chi, Rudnicky, Ramadge 2022 (arXiv 2206.07235).

    Example:
        >>> gapped_surrogate(1.0, torch.zeros(2), torch.tensor([1.0, 0.0]), math.log(4.0))
        tensor([0.8000, 0.2000])
    """
    a = logits.detach()
    highest = a.amax(-1, keepdim=True)
    v = highest.where(hard == 1, torch.minimum(a, highest - gap))
    return softmax_at(temperature, v, logits, finite)
