"""The laws of the Gumbel-Softmax family in float64 NumPy: the tests compare with them.

Both backends implement these formulas again, for speed, gradients and low precision. Here they
are written for readers. The symbols are those of the whole library::

    a = logits (unnormalised)   pi = softmax(a)    tau = temperature    K = number of categories
    E ~ Exp(1)                  g = -log E         l = log_softmax((a + g) / tau)     y = exp(l)

Arrays broadcast. The last axis of categorical arguments holds the categories; a temperature is
broadcast against the axes before it. A logit of -inf masks its category: masked categories do not
count in K, and their coordinates are l = -inf, y = 0. Densities, entropies and
divergences are in nats.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

__all__ = [
    "categorical_entropy",
    "categorical_kl",
    "categorical_log_prob",
    "exp_gumbel_softmax_entropy",
    "exp_gumbel_softmax_kl",
    "exp_gumbel_softmax_log_prob",
    "exp_gumbel_softmax_sample",
    "gumbel_sigmoid_log_prob",
    "gumbel_softmax_log_prob",
    "logistic_log_prob",
    "logistic_sample",
]


# From noise to samples


def exp_gumbel_softmax_sample(temperature: ArrayLike, logits: ArrayLike, noise: ArrayLike) -> Array:
    """The sample of the log-space law that belongs to given exponential noise.

    l = log_softmax((a - log E) / tau)

    Args:
        temperature: tau > 0, shape broadcastable to the batch shape.
        logits: a, shape (..., K), in nats; -inf masks a category.
        noise: E > 0, shape (..., K), draws of Exp(1).

    Returns:
        l, shape (..., K), in nats; exp(l) is the sample on the simplex.

    Raises:
        ValueError: if a parameter is out of its range, the noise is not positive and finite, or
            shapes do not broadcast.

    Source:
        Jang, Gu, Poole (arXiv 1611.01144); in log-space, Maddison, Mnih, Teh (arXiv 1611.00712).

    Example:
        >>> exp_gumbel_softmax_sample(0.5, [0.0, 0.0, -np.inf], [1.0, np.e, 1.0]).round(4)
        array([-0.1269, -2.1269,    -inf])
    """
    noise = np.asarray(noise, np.float64)
    if not (np.isfinite(noise) & (noise > 0)).all():
        raise ValueError(f"noise must be positive and finite, got {noise}")
    tau, a, noise, _ = _align(temperature, logits, noise, "noise")
    return _log_softmax((a - np.log(noise)) / tau)


def logistic_sample(temperature: ArrayLike, logits: ArrayLike, noise: ArrayLike) -> Array:
    """The sample of the binary logit-space law that belongs to given logistic noise.

    x = (a + L) / tau

    Args:
        temperature: tau > 0.
        logits: a, finite, in nats.
        noise: L, finite, draws of Logistic(0, 1).

    Returns:
        x, in nats, of the shape that the arguments broadcast to; sigmoid(x) is the soft bit.

    Raises:
        ValueError: if an argument is out of its range or shapes do not broadcast.

    Source:
        Maddison, Mnih, Teh (arXiv 1611.00712), the binary Concrete law.

    Example:
        >>> float(logistic_sample(0.5, 1.0, -0.25))
        1.5
    """
    tau, a = _temperature(temperature), _finite("logits", logits)
    return (a + _finite("noise", noise)) / tau


# Relaxed laws


def exp_gumbel_softmax_log_prob(
    temperature: ArrayLike, logits: ArrayLike, log_value: ArrayLike
) -> Array:
    """Log-density of l = log_softmax((a + g) / tau), the Gumbel-Softmax law in log-space.

    log p(l) = lgamma(K) + (K - 1) log tau + sum(a - tau l) - K logsumexp(a - tau l)

    with respect to the symmetric measure dl_1 ... dl_{K-1} / y_K of the log-simplex.

    Args:
        temperature: tau > 0, shape broadcastable to the batch shape.
        logits: a, shape (..., K), in nats; -inf masks a category.
        log_value: l, shape (..., K), in nats, logsumexp(l) = 0 up to rounding.

    Returns:
        Shape (...), in nats; -inf outside of the support, which is open: l is finite exactly
        where the logit is.

    Raises:
        ValueError: if a parameter is out of its range, `log_value` is NaN, or shapes do not
            broadcast.

    Source:
        Maddison, Mnih, Teh (arXiv 1611.00712), the ExpConcrete law, there with respect to
        dl_1 ... dl_{K-1}: less by log y_K.

    Example:
        >>> log_value = np.log([0.2, 0.3, 0.5])
        >>> round(float(exp_gumbel_softmax_log_prob(0.5, [1.0, 0.0, -1.0], log_value)), 6)
        -5.333217
    """
    tau, a, l, allowed = _align(temperature, logits, log_value, "log_value")
    K = allowed.sum(-1)
    score = np.where(allowed, a, -np.inf) - tau * np.where(np.isfinite(l), l, 0.0)
    log_density = (
        _lgamma(K)
        + (K - 1) * np.log(tau[..., 0])
        + score.sum(-1, where=allowed)
        - K * _logsumexp(score)
    )
    inside = np.where(allowed, np.isfinite(l), np.isneginf(l)).all(-1)
    return np.where(inside, log_density, -np.inf)[()]


def gumbel_softmax_log_prob(
    temperature: ArrayLike, logits: ArrayLike, log_value: ArrayLike
) -> Array:
    """Log-density of y = softmax((a + g) / tau) on the simplex, scored from l = log y.

    log p(y) = log p(l) - sum(l)

    with respect to the Lebesgue measure dy_1 ... dy_{K-1}. The vertices are outside of the open
    simplex. They represent the categories: there the value is the log mass log pi_k.

    Args:
        temperature: tau > 0, shape broadcastable to the batch shape.
        logits: a, shape (..., K), in nats; -inf masks a category.
        log_value: l, shape (..., K), in nats, logsumexp(l) = 0 up to rounding; a vertex is 0 in
            one coordinate and -inf in the others.

    Returns:
        Shape (...), in nats; -inf outside of the support.

    Raises:
        ValueError: if a parameter is out of its range, `log_value` is NaN, or shapes do not
            broadcast.

    Source:
        Jang, Gu, Poole (arXiv 1611.01144), appendix on the density; Maddison, Mnih, Teh
        (arXiv 1611.00712), the Concrete law.

    Example:
        >>> log_value = np.log([0.2, 0.3, 0.5])
        >>> round(float(gumbel_softmax_log_prob(0.5, [1.0, 0.0, -1.0], log_value)), 6)
        -1.826659
    """
    _, a, l, allowed = _align(temperature, logits, log_value, "log_value")
    log_jacobian = l.sum(-1, where=allowed & np.isfinite(l))
    log_density = exp_gumbel_softmax_log_prob(temperature, logits, log_value) - log_jacobian
    vertex = l == 0
    on_vertex = (vertex | np.isneginf(l)).all(-1) & (vertex.sum(-1) == 1)
    return np.where(on_vertex, categorical_log_prob(a, vertex), log_density)[()]


def logistic_log_prob(temperature: ArrayLike, logits: ArrayLike, logit_value: ArrayLike) -> Array:
    """Log-density of x = (a + L) / tau, L ~ Logistic(0, 1): the binary law in logit-space.

    log p(x) = log tau - |z| - 2 log(1 + exp(-|z|)),   z = tau x - a,

    the law Logistic(a / tau, 1 / tau), with respect to dx.

    Args:
        temperature: tau > 0.
        logits: a, finite, in nats.
        logit_value: x, in nats.

    Returns:
        Log-densities in nats, of the shape that the arguments broadcast to.

    Raises:
        ValueError: if an argument is out of its range or shapes do not broadcast.

    Source:
        Maddison, Mnih, Teh (arXiv 1611.00712), the binary Concrete law.

    Example:
        >>> round(float(logistic_log_prob(0.5, 1.0, 2.0)), 6)  # the mode: log(tau / 4)
        -2.079442
    """
    tau, a = _temperature(temperature), _finite("logits", logits)
    return np.log(tau) + _log_sigmoid_slope(tau * _finite("logit_value", logit_value) - a)


def gumbel_sigmoid_log_prob(
    temperature: ArrayLike, logits: ArrayLike, logit_value: ArrayLike
) -> Array:
    """Log-density of the soft bit y = sigmoid(x), x ~ Logistic(a / tau, 1 / tau), scored from x.

    log p(y) = log p(x) - log y - log(1 - y)

    with respect to dy on the open unit interval.

    Args:
        temperature: tau > 0.
        logits: a, finite, in nats.
        logit_value: x = log y - log(1 - y), finite, in nats.

    Returns:
        Log-densities in nats, of the shape that the arguments broadcast to.

    Raises:
        ValueError: if an argument is out of its range or shapes do not broadcast.

    Source:
        Maddison, Mnih, Teh (arXiv 1611.00712), the binary Concrete law.

    Example:
        >>> round(float(gumbel_sigmoid_log_prob(1.0, 0.0, 3.0)), 6)  # uniform
        0.0
    """
    log_jacobian = _log_sigmoid_slope(_finite("logit_value", logit_value))
    return logistic_log_prob(temperature, logits, logit_value) - log_jacobian


def exp_gumbel_softmax_entropy(temperature: ArrayLike, num_categories: ArrayLike) -> Array:
    """Entropy of the log-space law, the same for all logits.

    H = -lgamma(K) - (K - 1) log tau + K (1 + 1/2 + ... + 1/(K-1))

    with respect to the symmetric measure. The sum is euler_gamma + digamma(K).

    Args:
        temperature: tau > 0.
        num_categories: K >= 1, integer; with masked categories, the number of finite logits.

    Returns:
        Entropies in nats, of the shape that the arguments broadcast to.

    Raises:
        ValueError: if an argument is out of its range or shapes do not broadcast.

    Source:
        -E log p(l), where log p(l) = lgamma(K) + (K-1) log tau + sum log E - K log sum E for a
        sample made of E, E log E = -euler_gamma and E log sum E = digamma(K).

    Example:
        >>> float(exp_gumbel_softmax_entropy(1.0, 2))
        2.0
    """
    tau, K = _temperature(temperature), np.asarray(num_categories)
    if not (np.issubdtype(K.dtype, np.integer) and (K >= 1).all()):
        raise ValueError(f"num_categories must be integers >= 1, got {num_categories!r}")
    return -_lgamma(K) - (K - 1) * np.log(tau) + K * _harmonic(K - 1)


def exp_gumbel_softmax_kl(p_logits: ArrayLike, q_logits: ArrayLike) -> Array:
    """KL(p || q) of two Gumbel-Softmax laws of equal temperature; the value has no effect.

    KL = sum(log p_i - log q_i) - K [digamma(K) - E log sum w_i E_i],    w = q_probs / p_probs,

    for the law in log-space and for that on the simplex. As E log S is the integral of
    (exp(-t) - E exp(-t S)) / t over t > 0, and E exp(-t w E) = 1 / (1 + w t), this is

    KL = -sum log v_i + K int_0^inf [prod 1/(1 + t) - prod 1/(1 + v_i t)] dt / t,    v = w / max w.

    Args:
        p_logits: logits of p, shape (..., K), in nats; -inf masks a category.
        q_logits: logits of q, shape (..., K), in nats.

    Returns:
        Shape (...), in nats; inf where the two mask different categories. It does not converge
        to `categorical_kl` as the temperature falls.

    Raises:
        ValueError: if logits are out of their range or shapes do not broadcast.

    Source:
        Derived from the densities above; with u = log t the integrand is smooth and decays
        exponentially, so that the trapezoidal rule on u is exact to rounding.

    Example:
        >>> round(float(exp_gumbel_softmax_kl([3.0, -2.0, 0.5], [0.0, 0.0, 0.0])), 4)
        3.7216
    """
    a, b = _align_logits(p_logits, q_logits)
    allowed = np.isfinite(a)
    comparable = (allowed == np.isfinite(b)).all(-1)
    b = np.where(comparable[..., None], b, a)  # a placeholder: the divergence is inf there
    log_w = np.where(allowed, b, -np.inf) - np.where(allowed, a, 0.0)
    log_v = np.where(allowed, log_w - log_w.max(-1, keepdims=True), 0.0)
    K = allowed.sum(-1)

    # Counted in whole steps: an arange of fractional steps rounds the step itself.
    step = 0.2
    u = step * np.arange(-200 - math.ceil(math.log(a.shape[-1]) / step), 200)

    def product(log_rate: Array) -> Array:
        """prod 1 / (1 + rate t) over the categories, at the nodes t = exp(u)."""
        return np.exp(-_softplus(u + log_rate[..., None]).sum(-2, where=allowed[..., None]))

    integral = step * (product(np.zeros_like(log_v)) - product(log_v)).sum(-1)
    return np.where(comparable, K * integral - log_v.sum(-1), np.inf)[()]


# Categorical laws


def categorical_log_prob(logits: ArrayLike, value: ArrayLike) -> Array:
    """Log mass of a one-hot value, continued linearly to soft ones.

    log p(value) = sum value_k log pi_k

    Args:
        logits: a, shape (..., K), in nats; -inf masks a category.
        value: one-hot or any other weights, shape (..., K).

    Returns:
        Shape (...), in nats; -inf where a masked category has a value other than 0.

    Raises:
        ValueError: if logits are out of their range, the value is NaN, or shapes do not broadcast.

    Source:
        The exponential family form of the categorical law.

    Example:
        >>> round(float(categorical_log_prob([0.0, 0.0], [0.5, 0.5])), 6)
        -0.693147
    """
    _, a, value, allowed = _align(1.0, logits, value, "value")
    log_pi = _log_softmax(a)
    linear = (value * np.where(allowed, log_pi, 0.0)).sum(-1)
    return np.where((value == 0).all(-1, where=~allowed), linear, -np.inf)[()]


def categorical_entropy(logits: ArrayLike) -> Array:
    """Entropy of the categorical law.

    H = -sum pi_k log pi_k

    Args:
        logits: a, shape (..., K), in nats; -inf masks a category.

    Returns:
        Shape (...), in nats.

    Raises:
        ValueError: if logits are out of their range.

    Source:
        Shannon.

    Example:
        >>> round(float(categorical_entropy([0.0, 0.0, -np.inf])), 6)
        0.693147
    """
    log_pi = _log_softmax(_logits(logits))
    return -(np.exp(log_pi) * np.where(np.isfinite(log_pi), log_pi, 0.0)).sum(-1)


def categorical_kl(p_logits: ArrayLike, q_logits: ArrayLike) -> Array:
    """KL(p || q) of two categorical laws.

    KL = sum p_k (log p_k - log q_k)

    Args:
        p_logits: logits of p, shape (..., K), in nats; -inf masks a category.
        q_logits: logits of q, shape (..., K), in nats.

    Returns:
        Shape (...), in nats; inf where p allows a category that q masks.

    Raises:
        ValueError: if logits are out of their range or shapes do not broadcast.

    Source:
        Kullback and Leibler.

    Example:
        >>> round(float(categorical_kl([0.0, -np.inf], [0.0, 0.0])), 6)
        0.693147
    """
    log_p, log_q = map(_log_softmax, _align_logits(p_logits, q_logits))
    in_p, in_q = np.isfinite(log_p), np.isfinite(log_q)
    difference = np.where(in_p, log_p, 0.0) - np.where(in_q, log_q, 0.0)
    return np.where((in_q | ~in_p).all(-1), (np.exp(log_p) * difference).sum(-1), np.inf)[()]


# Elementary functions


_lgamma = np.vectorize(math.lgamma, otypes=[np.float64])
_harmonic = np.vectorize(lambda n: math.fsum(1 / k for k in range(1, n + 1)), otypes=[np.float64])


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _log_sigmoid_slope(x: Array) -> Array:
    """log sigmoid'(x) = log sigmoid(x) + log sigmoid(-x)."""
    return -np.abs(x) - 2 * np.log1p(np.exp(-np.abs(x)))


def _logsumexp(x: Array) -> Array:
    shift = x.max(-1, keepdims=True)
    return np.log(np.exp(x - shift).sum(-1)) + shift[..., 0]


def _log_softmax(x: Array) -> Array:
    return x - _logsumexp(x)[..., None]


# Arguments


def _temperature(temperature: ArrayLike) -> Array:
    tau = np.asarray(temperature, np.float64)
    if not (np.isfinite(tau) & (tau > 0)).all():
        raise ValueError(f"temperature must be positive and finite, got {temperature!r}")
    return tau


def _finite(name: str, array: ArrayLike) -> Array:
    array = np.asarray(array, np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array}")
    return array


def _logits(logits: ArrayLike) -> Array:
    a = np.asarray(logits, np.float64)
    if a.ndim == 0 or a.shape[-1] == 0:
        raise ValueError(f"logits must have a last axis of categories, got shape {a.shape}")
    if not (a < np.inf).all() or np.isneginf(a).all(-1).any():
        raise ValueError(f"logits must be finite or -inf, not all of them -inf, got {logits!r}")
    return a


def _align_logits(p_logits: ArrayLike, q_logits: ArrayLike) -> list[Array]:
    a, b = _logits(p_logits), _logits(q_logits)
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"p and q must have equally many categories, got {a.shape}, {b.shape}")
    return list(np.broadcast_arrays(a, b))


def _align(
    temperature: ArrayLike, logits: ArrayLike, value: ArrayLike, name: str
) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """Temperature, logits and value in one shape (..., K), and which categories are not masked."""
    tau, a, value = _temperature(temperature), _logits(logits), np.asarray(value, np.float64)
    if np.isnan(value).any():
        raise ValueError(f"{name} must not be NaN, got {value}")
    if value.shape[-1:] != a.shape[-1:]:
        raise ValueError(
            f"logits and {name} must have equally many categories, got {a.shape}, {value.shape}"
        )
    tau, a, value = np.broadcast_arrays(tau[..., None], a, value)
    return tau, a, value, np.isfinite(a)
