"""The Gumbel-Softmax family as pure functions of temperature, logits and noise.

Letters: a = logits, tau = temperature, E = standard exponential noise (-log E is standard Gumbel),
l = log of the relaxed sample, y = exp(l), K = number of categories, which is the last axis. A
logit of -inf masks its category. `finite` marks the categories that are not masked; None: all.
Everything is in nats.
"""

import functools
import math
from collections.abc import Callable
from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import logsumexp
from scipy import special

from gs_ppl._shared import quadrature

Temperature = float | Array

# Outside of jit these are compiled as a whole, in less time than their operations one by one.
whole = functools.partial(jax.jit, inline=True)
whole_of_shape = functools.partial(whole, static_argnames=("shape", "dtype"))

# --- noise ----------------------------------------------------------------------------------------


@whole_of_shape
def uniform_noise(key: Array, shape: tuple[int, ...], *, dtype: np.dtype = jnp.float32) -> Array:
    """Uniform noise that is never 0 and never 1.

    u = max(k 2^-p, 2^-(p + 1)) with k uniform on {0, ..., 2^p - 1}; p = 24 in float32, 53 in
    float64. The distance from the uniform law is at most 2^-p.
    """
    size = math.prod(shape)  # drawn flat, which is several times faster when the last axis is short
    if jax.dtypes.canonicalize_dtype(dtype) == jnp.float64:
        p, bits = 53, jax.random.bits(key, (size,), jnp.uint64) >> 11
    else:
        p, bits = 24, random_words(key, size) >> 8
    u = bits.astype(dtype) * 2.0**-p
    return jnp.maximum(u, 2.0 ** -(p + 1)).reshape(shape)


# On CPUs XLA fuses a short concatenation with its consumer, which then runs element by element.
FEW = 2**12


def random_words(key: Array, size: int) -> Array:
    """Words of 32 random bits.

    Threefry makes words in pairs; random.bits joins a pair into one word, split returns both.
    """
    if jax.random.key_impl(key) != "threefry2x32":
        return jax.random.bits(key, (size,), jnp.uint32)
    half = (size + 1) // 2
    pairs = jax.random.key_data(jax.random.split(key, half))
    if size > FEW:
        return jnp.concatenate([pairs[:, 0], pairs[:, 1]])[:size]
    words = jnp.zeros(2 * half, jnp.uint32)
    return words.at[:half].set(pairs[:, 0]).at[half:].set(pairs[:, 1])[:size]


@whole_of_shape
def exponential_noise(
    key: Array, shape: tuple[int, ...], *, dtype: np.dtype = jnp.float32
) -> Array:
    """Standard exponential noise E = -log u, finite and never 0.

    In float32 E lies in [2^-24, 17.33], so the Gumbel noise -log E lies in [-2.853, 16.636]; in
    float64 E lies in [2^-53, 37.43], -log E in [-3.623, 36.737].

    Args:
        key: key of the random number generator.
        shape: shape of the result.
        dtype: jnp.float32 or jnp.float64.

    Example:
        >>> noise = exponential_noise(jax.random.key(0), (1000,))
        >>> bool((noise >= 2.0**-24).all() and (noise < 17.33).all())
        True
    """
    return -jnp.log(uniform_noise(key, shape, dtype=dtype))


@whole_of_shape
def logistic_noise(key: Array, shape: tuple[int, ...], *, dtype: np.dtype = jnp.float32) -> Array:
    """Standard logistic noise L = log u - log(1 - u), finite: in float32 in [-17.33, 16.636]."""
    u = uniform_noise(key, shape, dtype=dtype)
    return jnp.log(u) - jnp.log1p(-u)


# --- categories -----------------------------------------------------------------------------------


def log_softmax(a: Array) -> Array:
    """log_softmax over the last axis; masked categories stay -inf, with gradient 0."""
    a = a - lax.stop_gradient(a).max(-1, keepdims=True)
    return a - jnp.log(jnp.exp(a).sum(-1, keepdims=True))


# XLA sums many rows faster as a product with ones; for few rows that costs more than it saves.
MANY = 3000


def sum_last(x: Array) -> Array:
    """Sum over the last axis, in full precision on every device."""
    if x.size < MANY * x.shape[-1]:
        return x.sum(-1)
    return jnp.dot(x, jnp.ones(x.shape[-1], x.dtype), precision=lax.Precision.HIGHEST)


def sum_finite(x: Array, finite: Array | None) -> Array:
    """Sum over the categories that exist."""
    return sum_last(x if finite is None else jnp.where(finite, x, 0.0))


def is_array(x: object) -> TypeGuard[Array]:
    """A JAX or a NumPy array; tracers are JAX arrays."""
    return isinstance(x, Array | np.ndarray)


def _log(temperature: Temperature) -> Array | float:
    return jnp.log(temperature) if is_array(temperature) else math.log(temperature)


def _column(temperature: Temperature) -> Temperature:
    return temperature[..., None] if is_array(temperature) else temperature


def _log_volume(K: np.ndarray) -> np.ndarray:
    """lgamma(K) - K log K."""
    return special.gammaln(K) - K * np.log(K)


def _entropy_constant(K: np.ndarray) -> np.ndarray:
    """K euler_gamma + K digamma(K) - lgamma(K)."""
    return K * (np.euler_gamma + special.digamma(K)) - special.gammaln(K)


@functools.cache
def _table(function: Callable[[np.ndarray], np.ndarray], size: int) -> np.ndarray:
    """function(K) for K = 1, ..., size, in double; NaN for K = 0."""
    return np.concatenate([[np.nan], function(np.arange(1.0, size + 1))])


def _count(
    function: Callable[[np.ndarray], np.ndarray], like: Array, finite: Array | None
) -> tuple[int | Array, float | Array]:
    """K and function(K), computed in double; from a table if K differs between batch elements."""
    size = like.shape[-1]
    if finite is None:
        return size, float(function(np.array(size, float)))
    K = finite.sum(-1)
    value = jnp.take(jnp.asarray(_table(function, size), like.dtype), K, mode="clip")
    return K.astype(like.dtype), value


# --- the relaxed law ------------------------------------------------------------------------------


def exp_gumbel_softmax_sample(
    temperature: Temperature, logits: Array, noise: Array, finite: Array | None = None
) -> Array:
    """Log of a relaxed sample, l = log_softmax((a - log E) / tau).

    Args:
        temperature: tau > 0, shape broadcastable to the batch shape.
        logits: a, shape batch + (K,), nats.
        noise: E, standard exponential, shape sample + batch + (K,).
        finite: the categories that exist; None: all.

    Source: Jang, Gu, Poole 2016, eq. 2; in log-space Maddison, Mnih, Teh 2016.

    Example:
        >>> l = exp_gumbel_softmax_sample(0.5, jnp.zeros(2), jnp.array([1.0, 2.0]))
        >>> [round(float(y), 4) for y in jnp.exp(l)]
        [0.8, 0.2]
    """
    if finite is None:
        return log_softmax((logits - jnp.log(noise)) / _column(temperature))
    # -inf enters after the division, whose gradient would be NaN there
    z = (jnp.where(finite, logits, 0.0) - jnp.log(noise)) / _column(temperature)
    return log_softmax(jnp.where(finite, z, -jnp.inf))


def gumbel_softmax_draw(
    temperature: Temperature, logits: Array, noise: Array, finite: Array | None = None
) -> tuple[Array, Array, Array, Array]:
    """y inside the open simplex, its log l, the residue of the noise (a constant), and sum l.

    The results are those of exp_gumbel_softmax_sample, to_simplex, noise_residue and sum_finite.
    They are computed in one step, which has a derivative written by hand.

    Example:
        >>> y, *_ = gumbel_softmax_draw(0.5, jnp.zeros(2), jnp.array([1.0, 2.0]))
        >>> [round(float(p), 4) for p in y]
        [0.8, 0.2]
    """
    noise = lax.stop_gradient(noise)
    y, l, log_product = _draw(temperature, logits, noise, finite)
    return y, l, noise_residue(noise, finite), log_product


@jax.custom_jvp
def _draw(
    temperature: Temperature, logits: Array, noise: Array, finite: Array | None
) -> tuple[Array, Array, Array]:
    """y, l and sum l of constant noise; masked categories are 0 and -inf, and are not in the sum.

    sum l = sum z - K log sum exp(z) needs no second pass over l, so that l need not be stored.
    """
    z = (logits - jnp.log(noise)) / _column(temperature)
    z = z - z.max(-1, keepdims=True)
    e = jnp.exp(z)
    total = sum_last(e)[..., None]
    log_total = jnp.log(total)
    K = z.shape[-1] if finite is None else finite.sum(-1).astype(z.dtype)
    y = jnp.clip(e / total, *open_unit_interval(e.dtype))
    y = y if finite is None else jnp.where(finite, y, 0.0)
    return y, z - log_total, sum_finite(z, finite) - K * log_total[..., 0]


@_draw.defjvp
def _draw_jvp(primals: tuple, tangents: tuple) -> tuple:
    """dl = dz - sum(y dz) and dy = y dl, with dz = (da - l dtau) / tau."""
    tau, _, _, finite = primals
    dtau, da, _, _ = tangents
    y, l, log_product = _draw(*primals)
    # for a masked category neither the logit nor -inf counts
    slope = l if finite is None else jnp.where(finite, l, 0.0)
    dz = (da - slope * _column(dtau)) / _column(tau)
    dl = dz - sum_last(y * dz)[..., None]
    dl = dl if finite is None else jnp.where(finite, dl, 0.0)
    return (y, l, log_product), (y * dl, dl, sum_last(dl))


def exp_gumbel_softmax_log_prob(
    temperature: Temperature, logits: Array, log_value: Array, finite: Array | None = None
) -> Array:
    """Log density of l with respect to dl_1 ... dl_{K-1} / y_K.

    log p(l) = lgamma(K) + (K - 1) log tau + sum(a - tau l) - K logsumexp(a - tau l).

    It is -inf where a masked category has weight and where an existing one has none.

    Example:
        >>> l = jnp.log(jnp.array([0.5, 0.5]))
        >>> round(float(exp_gumbel_softmax_log_prob(1.0, jnp.zeros(2), l)), 4)
        -1.3863
    """
    gone = log_value == -jnp.inf
    outside = (gone if finite is None else gone == finite).any(-1)
    # values outside are replaced before the formula, so that its gradient has no NaN
    r = -_column(temperature) * jnp.where(gone, 0.0, log_value)
    r = logits + r if finite is None else jnp.where(finite, logits, 0.0) + r
    weighted = r if finite is None else jnp.where(finite, r, -jnp.inf)
    shift = lax.stop_gradient(weighted).max(-1, keepdims=True)
    K, constant = _count(_log_volume, r, finite)
    log_mean = jnp.log(jnp.exp(weighted - shift).sum(-1) / K)
    # shifted like log_mean: K times the shift cancels, and is never added
    log_prob = sum_finite(r - shift, finite) - K * log_mean
    log_prob = constant + (K - 1) * _log(temperature) + log_prob
    return jnp.where(outside, -jnp.inf, log_prob)


def exp_gumbel_softmax_noise_log_prob(
    temperature: Temperature, noise: Array, finite: Array | None = None
) -> Array:
    """Log density of the sample that this noise gives; it does not depend on the logits.

    log p(l) = lgamma(K) + (K - 1) log tau + sum log E - K log sum E.

    Example:
        >>> round(float(exp_gumbel_softmax_noise_log_prob(1.0, jnp.ones(2))), 4)
        -1.3863
    """
    residue = noise_residue(noise, finite)
    return exp_gumbel_softmax_own_log_prob(temperature, noise, residue, finite)


@whole
def noise_residue(noise: Array, finite: Array | None = None) -> Array:
    """The part of the log density that depends on the noise: sum log E - K log(mean E)."""
    K = noise.shape[-1] if finite is None else finite.sum(-1).astype(noise.dtype)
    return sum_finite(jnp.log(noise), finite) - K * jnp.log(sum_finite(noise, finite) / K)


def exp_gumbel_softmax_own_log_prob(
    temperature: Temperature, log_value: Array, residue: Array, finite: Array | None = None
) -> Array:
    """Log density of an own sample l from the residue of its noise; only the shape of l is used.

    log p(l) = lgamma(K) - K log K + (K - 1) log tau + residue.
    """
    K, constant = _count(_log_volume, log_value, finite)
    return constant + (K - 1) * _log(temperature) + residue


def tempered_log_softmax(temperature: Temperature, logits: Array) -> Array:
    """log_softmax(a / tau): the mode of the log-space density; with a + g for a, a sample."""
    finite = logits > -jnp.inf  # -inf / tau has no gradient in tau
    z = jnp.where(finite, logits, 0.0) / _column(temperature)
    return log_softmax(jnp.where(finite, z, -jnp.inf))


def gumbel_noise_of(
    temperature: Temperature, logits: Array, log_value: Array, finite: Array | None = None
) -> Array:
    """Gumbel noise g = tau l - a + c that gives the sample l, with c such that sum exp(-g) = K.

    c has no effect on l. The law of sum exp(-g) is Gamma(K), independent of l. The noise of masked
    categories is 0.

    Example:
        >>> g = gumbel_noise_of(0.5, jnp.zeros(2), jnp.log(jnp.array([0.8, 0.2])))
        >>> [round(float(y), 4) for y in jnp.exp(tempered_log_softmax(0.5, g))]
        [0.8, 0.2]
    """
    if finite is None:
        g = _column(temperature) * log_value - logits
        return g + logsumexp(-g, -1, keepdims=True) - math.log(g.shape[-1])
    g = _column(temperature) * jnp.where(finite, log_value, 0.0) - jnp.where(finite, logits, 0.0)
    c = logsumexp(jnp.where(finite, -g, -jnp.inf), -1, keepdims=True)
    return jnp.where(finite, g + c - jnp.log(finite.sum(-1, keepdims=True)), 0.0)


def exp_gumbel_softmax_entropy(
    temperature: Temperature, logits: Array, finite: Array | None = None
) -> Array:
    """Entropy -lgamma(K) - (K - 1) log tau + K euler_gamma + K digamma(K), whatever the logits.

    Example:
        >>> round(float(exp_gumbel_softmax_entropy(0.1, jnp.zeros(2))), 4)
        4.3026
    """
    K, constant = _count(_entropy_constant, logits, finite)
    entropy = jnp.asarray(constant - (K - 1) * _log(temperature), logits.dtype)
    return jnp.broadcast_to(entropy, jnp.broadcast_shapes(entropy.shape, logits.shape[:-1]))


def exp_gumbel_softmax_kl(p_logits: Array, q_logits: Array) -> Array:
    """KL(p || q) of two relaxed laws at the same temperature, on which it does not depend.

    KL = sum(lp - lq) - K (digamma(K) - E log sum_i w_i E_i), with lp, lq the log_softmax of the
    logits and w_i = exp(lq_i - lp_i). With v = w / max(w) and t = exp(s), the integrals of
    digamma(K) and of E log sum_i v_i E_i become one integral:

    KL = -sum log v + K integral ((1 + t)^-K - prod_i 1 / (1 + v_i t)) ds.

    Infinite where the masks differ.

    Example:
        >>> round(float(exp_gumbel_softmax_kl(jnp.array([3.0, -2.0, 0.5]), jnp.zeros(3))), 4)
        3.7216
    """
    p_logits, q_logits = jnp.broadcast_arrays(p_logits, q_logits)
    p_finite, q_finite = p_logits > -jnp.inf, q_logits > -jnp.inf
    both = p_finite & q_finite
    log_v = jnp.where(both, q_logits, 0.0) - jnp.where(both, p_logits, 0.0)
    # an empty intersection has no maximum; its divergence is infinite with any value here
    highest = jnp.where(both, log_v, -jnp.inf).max(-1, keepdims=True)
    log_v = log_v - jnp.where(both.any(-1, keepdims=True), highest, 0.0)
    v, K = jnp.exp(jnp.where(both, log_v, -jnp.inf))[..., None, :], both.sum(-1)
    nodes, step = quadrature.log_nodes(p_logits.shape[-1], double=log_v.dtype == jnp.float64)
    t = jnp.asarray(nodes, log_v.dtype)
    equal, product = -K[..., None] * jnp.log1p(t), -jnp.log1p(v * t[:, None]).sum(-1)
    integral = step * (jnp.expm1(equal) - jnp.expm1(product)).sum(-1)
    kl = K * integral - jnp.where(both, log_v, 0.0).sum(-1)
    return jnp.where((p_finite == q_finite).all(-1), kl, jnp.inf)


def to_simplex(log_value: Array, dtype: np.dtype, finite: Array | None = None) -> Array:
    """y = exp(l), clamped to the open simplex if it rounds to the boundary.

    The gradient is that of exp. Masked categories stay 0.
    """
    y = jnp.exp(log_value)
    inner = jnp.clip(lax.stop_gradient(y), *open_unit_interval(dtype))
    if finite is not None:
        inner = jnp.where(finite, inner, 0.0)
    return straight_through(inner, y).astype(dtype)


def from_simplex(value: Array, finite: Array | None = None) -> Array:
    """l = log(y) of the nearest point inside the open simplex; -inf for masked categories at 0."""
    l = _log_inside(value)
    return l if finite is None else jnp.where(finite | (value != 0), l, -jnp.inf)


def open_unit_interval(dtype: np.dtype) -> tuple[float, float]:
    """The smallest and the largest float inside (0, 1); in float16 the smallest is subnormal."""
    info = jnp.finfo(dtype)
    return (2.0**-24 if dtype == jnp.float16 else float(info.tiny)), 1.0 - float(info.eps) / 2


def _steepest(dtype: np.dtype) -> float:
    """The smallest divisor in the derivatives of log and logit: 2^26 times the smallest float.

    At a y near 0 the derivative 1 / y is multiplied by the derivative y of the sample. By
    itself it would overflow before that, to inf or to inf * 0.
    """
    return float(jnp.finfo(dtype).tiny) * 2.0**26


@jax.custom_jvp
def _log_inside(y: Array) -> Array:
    """log(y) of the nearest y inside (0, 1), with a derivative that never overflows."""
    return jnp.log(jnp.clip(y, *open_unit_interval(y.dtype)))


@_log_inside.defjvp
def _log_inside_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (y,), (t,) = primals, tangents
    low, high = open_unit_interval(y.dtype)
    slope = jnp.where((y >= low) & (y <= high), 1 / jnp.maximum(y, _steepest(y.dtype)), 0.0)
    return _log_inside(y), t * slope


# --- the categorical law --------------------------------------------------------------------------


def straight_through(hard: Array, soft: Array) -> Array:
    """The value of `hard`, bit for bit, with the gradient of `soft`."""
    return hard + (soft - lax.stop_gradient(soft))


def one_hot_argmax(log_value: Array) -> Array:
    """One-hot vector of the largest coordinate."""
    return jax.nn.one_hot(log_value.argmax(-1), log_value.shape[-1], dtype=log_value.dtype)


@whole
def categorical_log_prob(logits: Array, value: Array, finite: Array | None = None) -> Array:
    """Log mass, linear in the value: sum_i value_i log pi_i; -inf if a masked one has weight.

    With logits of -inf pass `finite`; without it the sum contains 0 times -inf.

    Example:
        >>> round(float(categorical_log_prob(jnp.zeros(2), jnp.array([0.25, 0.75]))), 4)
        -0.6931
    """
    log_pi = log_softmax(logits)
    if finite is None:
        return (value * log_pi).sum(-1)
    log_prob = (value * jnp.where(finite, log_pi, 0.0)).sum(-1)
    return jnp.where((~finite & (value != 0)).any(-1), -jnp.inf, log_prob)


@whole
def categorical_entropy(logits: Array, finite: Array | None = None) -> Array:
    """Entropy -sum pi log pi; with logits of -inf pass `finite`, as in categorical_log_prob."""
    log_pi = log_softmax(logits)
    existing = log_pi if finite is None else jnp.where(finite, log_pi, 0.0)
    return -(jnp.exp(log_pi) * existing).sum(-1)


@whole
def categorical_kl(
    p_logits: Array,
    q_logits: Array,
    p_finite: Array | None = None,
    q_finite: Array | None = None,
) -> Array:
    """KL sum pi_p (log pi_p - log pi_q); infinite if q masks a category that p has.

    With logits of -inf pass `p_finite` and `q_finite`, as in categorical_log_prob.
    """
    lp, lq = log_softmax(p_logits), log_softmax(q_logits)
    pi = jnp.exp(lp)
    lp = lp if p_finite is None else jnp.where(p_finite, lp, 0.0)
    if q_finite is None:
        return (pi * (lp - lq)).sum(-1)
    kl = (pi * (lp - jnp.where(q_finite, lq, 0.0))).sum(-1)
    missing = ~q_finite if p_finite is None else p_finite & ~q_finite
    return jnp.where(missing.any(-1), jnp.inf, kl)


# --- the binary laws ------------------------------------------------------------------------------


@jax.custom_jvp
def log_odds_term(x: Array) -> Array:
    """softplus(x) + softplus(-x) = -log(y (1 - y)) for y = sigmoid(x)."""
    magnitude = jnp.abs(x)
    return magnitude + 2 * jnp.log1p(jnp.exp(-magnitude))


@log_odds_term.defjvp
def _log_odds_term_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    return log_odds_term(x), t * jnp.tanh(0.5 * x)  # smooth at 0, where abs is not


def gumbel_sigmoid_sample(temperature: Temperature, logits: Array, noise: Array) -> Array:
    """Logit of a relaxed bit, x = (a + L) / tau, L standard logistic noise.

    Example:
        >>> gumbel_sigmoid_sample(0.5, jnp.ones(()), jnp.full((), 0.5))
        Array(3., dtype=float32)
    """
    return (logits + noise) / temperature


def gumbel_sigmoid_log_prob(
    temperature: Temperature, logits: Array, logit_value: Array, noise: Array | None = None
) -> Array:
    """Log density of y = sigmoid(x) on (0, 1), from x.

    log p(y) = log tau - c(tau x - a) + c(x) with c(x) = softplus(x) + softplus(-x). For an own
    sample tau x - a is its noise, and the logits cancel.

    Example:
        >>> gumbel_sigmoid_log_prob(1.0, jnp.zeros(()), jnp.full((), 2.0))
        Array(0., dtype=float32)
    """
    residual = temperature * logit_value - logits if noise is None else noise
    return _log(temperature) - log_odds_term(residual) + log_odds_term(logit_value)


def gumbel_sigmoid_kl(p_logits: Array, q_logits: Array) -> Array:
    """KL of two relaxed bits at the same temperature: the two-category law with logits (a, 0).

    It is 0 if both bits have the same probability 0 or 1, and inf if only one has it.
    """

    def pair(a: Array) -> Array:
        one = a == jnp.inf
        return jnp.stack([jnp.where(one, 0.0, a), jnp.where(one, -jnp.inf, 0.0)], -1)

    return exp_gumbel_softmax_kl(pair(p_logits), pair(q_logits))


def to_unit_interval(logit_value: Array, dtype: np.dtype) -> Array:
    """y = sigmoid(x), clamped to (0, 1) if it rounds to 0 or 1; the gradient of sigmoid."""
    y = jax.nn.sigmoid(logit_value)
    inner = jnp.clip(lax.stop_gradient(y), *open_unit_interval(dtype))
    return straight_through(inner, y).astype(dtype)


@jax.custom_jvp
def from_unit_interval(value: Array) -> Array:
    """x = log y - log(1 - y), with a derivative that never overflows."""
    return jnp.log(value) - jnp.log1p(-value)


@from_unit_interval.defjvp
def _from_unit_interval_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (y,), (t,) = primals, tangents
    return from_unit_interval(y), t / jnp.maximum(y * (1 - y), _steepest(y.dtype))


@whole
def bernoulli_log_prob(logits: Array, value: Array, unsure: Array | None = None) -> Array:
    """Log mass, linear in the value: value log p + (1 - value) log(1 - p).

    `unsure` marks the probabilities that are neither 0 nor 1 (None: all). The other bits have the
    log mass 0 at their value and -inf elsewhere, without gradient.

    Example:
        >>> round(float(bernoulli_log_prob(jnp.zeros(()), jnp.full((), 0.3))), 4)
        -0.6931
    """
    if unsure is None:
        return value * logits - jax.nn.softplus(logits)
    log_prob = bernoulli_log_prob(without_sure(logits, unsure), value)
    return score_sure(log_prob, value, logits, unsure)


@whole
def bernoulli_entropy(logits: Array, unsure: Array | None = None) -> Array:
    """Entropy -p log p - (1 - p) log(1 - p)."""
    return -bernoulli_log_prob(logits, jax.nn.sigmoid(logits), unsure)


@whole
def bernoulli_kl(
    p_logits: Array,
    q_logits: Array,
    p_unsure: Array | None = None,
    q_unsure: Array | None = None,
) -> Array:
    """KL p (log p - log q) + (1 - p) (log(1 - p) - log(1 - q))."""
    p = jax.nn.sigmoid(p_logits)
    return bernoulli_log_prob(p_logits, p, p_unsure) - bernoulli_log_prob(q_logits, p, q_unsure)


# --- bits of probability 0 and 1 ------------------------------------------------------------------
# `unsure` marks the other bits; None: all.


def without_sure(x: Array, unsure: Array | None, instead: float = 0.0) -> Array:
    """Logits or values, with another number for those bits."""
    return x if unsure is None else jnp.where(unsure, x, instead)


def put_sure(y: Array, logits: Array, unsure: Array | None) -> Array:
    """Bits of probability 0 and 1 have that value, without gradient."""
    return y if unsure is None else jnp.where(unsure, y, (logits > 0).astype(y.dtype))


def score_sure(log_prob: Array, value: Array, logits: Array, unsure: Array | None) -> Array:
    """Such bits have log mass 0 at their value, -inf elsewhere, without gradient."""
    if unsure is None:
        return log_prob
    return jnp.where(unsure, log_prob, jnp.where(value == (logits > 0), 0.0, -jnp.inf))


# --- surrogates of the straight-through families --------------------------------------------------
# Each gives a soft value for a one-hot sample D; straight_through uses the gradient of that value.
# A bit is the first of two classes with logits (a, 0).


def tempered_softmax(temperature: Temperature, logits: Array, finite: Array | None = None) -> Array:
    """softmax(a / tau): the surrogate of StraightThrough; with a + g for a, of STGumbelSoftmax.

    Example:
        >>> y = tempered_softmax(0.5, jnp.log(jnp.array([4.0, 1.0])) / 2)
        >>> [round(float(p), 4) for p in y]
        [0.8, 0.2]
    """
    if finite is None:
        return jnp.exp(log_softmax(logits / _column(temperature)))
    z = jnp.where(finite, logits, 0.0) / _column(temperature)
    # masked here and not in z: XLA would then compute z more than once
    largest = lax.stop_gradient(z).max(-1, keepdims=True, where=finite, initial=-jnp.inf)
    e = jnp.exp(jnp.where(finite, z - largest, -jnp.inf))
    return e / e.sum(-1, keepdims=True)


def softmax_at(
    temperature: Temperature, value: Array, logits: Array, finite: Array | None = None
) -> Array:
    """softmax(v / tau); its gradient with respect to v is used for the logits.

    Example:
        >>> y = softmax_at(1.0, jnp.log(jnp.array([4.0, 1.0])), jnp.zeros(2))
        >>> [round(float(p), 4) for p in y]
        [0.8, 0.2]
    """
    a = logits if finite is None else jnp.where(finite, logits, 0.0)
    return tempered_softmax(temperature, straight_through(lax.stop_gradient(value), a), finite)


def reinmax_surrogate(
    temperature: Temperature, logits: Array, hard: Array, finite: Array | None = None
) -> Array:
    """2 p - pi / 2; p = (softmax(a / tau) + D) / 2 is differentiated as a softmax of the logits.

    Its gradient is 2 J(p) - J(pi) / 2 with J(p) = diag(p) - p p^T.

    Source: Liu, Dong, Liu, Yu, Gao 2023 (arXiv 2304.08612), algorithm 3.

    Example:
        >>> y = reinmax_surrogate(1.0, jnp.zeros(2), jnp.array([1.0, 0.0]))
        >>> [round(float(p), 4) for p in y]
        [1.25, 0.25]
    """
    # without the gradient of the logarithm, which is infinite where p has underflowed
    p = lax.stop_gradient(tempered_softmax(temperature, logits, finite) + hard) / 2
    pi = tempered_softmax(1.0, logits, finite)
    return 2 * softmax_at(1.0, jnp.log(p), logits, finite) - pi / 2


def gumbel_rao_surrogate(
    temperature: Temperature,
    logits: Array,
    hard: Array,
    noise: Array,
    finite: Array | None = None,
) -> Array:
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
        >>> noise = jnp.array([[1.0, 1.0], [1.0, 3.0]])
        >>> y = gumbel_rao_surrogate(1.0, jnp.zeros(2), jnp.array([1.0, 0.0]), noise)
        >>> [round(float(p), 4) for p in y]
        [0.8125, 0.1875]
    """
    largest = jnp.log((noise * hard).sum(-1, keepdims=True))
    log_pi = log_softmax(lax.stop_gradient(logits))
    others = jnp.logaddexp(jnp.log(noise) - log_pi, largest)
    z = -jnp.where(hard == 1, largest, others)
    return softmax_at(temperature, z, logits, finite).mean(0)


def gumbel_rao_bit_surrogate(
    temperature: Temperature, logits: Array, hard: Array, noise: Array
) -> Array:
    """Mean of sigmoid(x / tau) over draws of x = a + L given its sign s = 2 bit - 1.

    x = s softplus(L' + softplus(s a)) with L' logistic; differentiated as in gumbel_rao_surrogate.

    Args:
        temperature: tau > 0, shape broadcastable to the batch shape.
        logits: a, shape batch, nats.
        hard: the bit, shape sample + batch.
        noise: L', standard logistic, shape (draws,) + sample + batch.

    Example:
        >>> y = gumbel_rao_bit_surrogate(1.0, jnp.array(0.0), jnp.array(1.0), jnp.zeros(1))
        >>> round(float(y), 4)
        0.75
    """
    sign = 2 * hard - 1
    size = jax.nn.softplus(noise + jax.nn.softplus(sign * lax.stop_gradient(logits)))
    return jax.nn.sigmoid(straight_through(sign * size, logits) / temperature).mean(0)


def gapped_surrogate(
    temperature: Temperature,
    logits: Array,
    hard: Array,
    gap: float,
    finite: Array | None = None,
) -> Array:
    """softmax(v / tau), v_k = max(a), v_j = min(a_j, max(a) - gap); gradient as in softmax_at.

    Source: Fan, Chi, Rudnicky, Ramadge 2022 (arXiv 2206.07235).

    Example:
        >>> y = gapped_surrogate(1.0, jnp.zeros(2), jnp.array([1.0, 0.0]), math.log(4.0))
        >>> [round(float(p), 4) for p in y]
        [0.8, 0.2]
    """
    a = lax.stop_gradient(logits)
    highest = a.max(-1, keepdims=True)
    v = jnp.where(hard == 1, highest, jnp.minimum(a, highest - gap))
    return softmax_at(temperature, v, logits, finite)
