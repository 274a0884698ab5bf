"""Supports of the relaxed laws and the bijections from R^(K-1), registered with NumPyro's registry.

The bijection is the isometric log-ratio: x in R^(K-1) becomes a zero-sum vector z of the same
length |z| = |x|, and l = log_softmax(z). Unlike stick breaking it treats all categories in the same
way.

NumPyro has no one-hot constraint, and its SVI warns of every latent site with a discrete support.
A straight-through sample takes discrete values but has a gradient: its support says so.
"""

import math
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import ParameterFreeTransform, Transform

from gs_ppl.numpyro import functional as F


def _wide(x: Array) -> tuple[ModuleType, Array]:
    """numpy or jax.numpy, as in NumPyro's constraints, and x in at least float32."""
    xp = jnp if isinstance(x, jax.Array) else np
    x = xp.asarray(x)
    return xp, x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _tolerance(value: Array, factor: int) -> float:
    """A few roundings in the dtype of the value; the error of exp(l) is eps (1 + sum y |log y|)."""
    dtype = value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.float32
    return factor * float(jnp.finfo(dtype).eps) * (1 + math.log(value.shape[-1]))


class _Simplex(constraints.ParameterFreeConstraint):
    """y >= 0 with sum 1, up to a tolerance that depends on the dtype."""

    event_dim = 1

    def __call__(self, x: Array) -> Array:
        xp, wide = _wide(x)
        return (wide.min(-1) >= 0) & (xp.abs(wide.sum(-1) - 1) <= _tolerance(x, 8))

    def feasible_like(self, prototype: Array) -> Array:
        return jnp.full_like(prototype, 1 / prototype.shape[-1])


class _LogSimplex(constraints.ParameterFreeConstraint):
    """l with logsumexp 0, up to a tolerance that depends on the dtype."""

    event_dim = 1

    def __call__(self, x: Array) -> Array:
        xp, wide = _wide(x)
        with np.errstate(all="ignore"):
            # z - logsumexp(z) has the absolute rounding error of z
            return xp.abs(xp.log(xp.exp(wide).sum(-1))) <= _tolerance(x, 64)

    def feasible_like(self, prototype: Array) -> Array:
        return jnp.full_like(prototype, -math.log(prototype.shape[-1]))


class _OpenUnitInterval(constraints.ParameterFreeConstraint):
    """0 < y < 1."""

    def __call__(self, x: Array) -> Array:
        return (x > 0) & (x < 1)

    def feasible_like(self, prototype: Array) -> Array:
        return jnp.full_like(prototype, 0.5)


class _OneHot(constraints.ParameterFreeConstraint):
    """One coordinate is 1, the others are 0."""

    is_discrete = True
    event_dim = 1

    def __call__(self, x: Array) -> Array:
        return ((x == 0) | (x == 1)).all(-1) & ((x == 1).sum(-1) == 1)

    def feasible_like(self, prototype: Array) -> Array:
        return jnp.zeros_like(prototype).at[..., 0].set(1)


class _DifferentiableOneHot(_OneHot):
    """One-hot vectors that have a gradient."""

    is_discrete = False


# NumPyro does not name the class of `boolean`, and mypy does not accept a computed base class.
class _DifferentiableBoolean(type(constraints.boolean)):  # type: ignore[misc]
    """0 or 1, with a gradient."""

    is_discrete = False


simplex = _Simplex()
log_simplex = _LogSimplex()
open_unit_interval = _OpenUnitInterval()
one_hot = _OneHot()
differentiable_one_hot = _DifferentiableOneHot()
differentiable_boolean = _DifferentiableBoolean()


def _zero_sum(x: Array) -> Array:
    """Isometry from R^(K-1) onto the zero-sum vectors of R^K."""
    K = x.shape[-1] + 1
    total = x.sum(-1, keepdims=True)
    shift = total / (math.sqrt(K) + K)
    return jnp.concatenate([x - shift, -total / math.sqrt(K)], -1)


def _zero_sum_inverse(z: Array) -> Array:
    K = z.shape[-1]
    return z[..., :-1] - z[..., -1:] / (1 + math.sqrt(K))


class LogSimplexTransform(ParameterFreeTransform):
    """Bijection x -> l = log_softmax(zero_sum(x)) from R^(K-1) to the log-simplex.

    Its log Jacobian log(K) / 2 is with respect to dl_1 ... dl_{K-1} / y_K, the measure in which
    ExpGumbelSoftmax has its density.
    """

    domain = constraints.real_vector
    codomain = log_simplex

    def eq(self, other: object, static: bool = False) -> bool:
        return type(self) is type(other)

    def __call__(self, x: Array) -> Array:
        return F.log_softmax(_zero_sum(x))

    def _inverse(self, y: Array) -> Array:
        return _zero_sum_inverse(y - y.mean(-1, keepdims=True))

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: object = None) -> Array:
        return jnp.full(x.shape[:-1], 0.5 * math.log(y.shape[-1]), x.dtype)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] - 1)


class SimplexTransform(LogSimplexTransform):
    """Bijection x -> y = softmax(zero_sum(x)) from R^(K-1) to the open simplex.

    Its log Jacobian sum(l) + log(K) / 2 is with respect to Lebesgue measure on the first K - 1
    coordinates.
    """

    codomain = simplex

    def __call__(self, x: Array) -> Array:
        return F.to_simplex(super().__call__(x), x.dtype)

    def _inverse(self, y: Array) -> Array:
        return super()._inverse(F.from_simplex(y))

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: object = None) -> Array:
        log_value = LogSimplexTransform.__call__(self, x)
        return super().log_abs_det_jacobian(x, y) + log_value.sum(-1)


class ExpTransform(Transform):
    """Bijection l -> y = exp(l) from the log-simplex to the open simplex.

    Its log Jacobian sum(l) takes dl_1 ... dl_{K-1} / y_K to dy_1 ... dy_{K-1}. `finite` marks the
    categories that exist; None: all.
    """

    domain = log_simplex
    codomain = simplex

    def __init__(self, finite: Array | None = None) -> None:
        self.finite = finite

    def __call__(self, x: Array) -> Array:
        return F.to_simplex(x, x.dtype, self.finite)

    def _inverse(self, y: Array) -> Array:
        return F.from_simplex(y, self.finite)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: object = None) -> Array:
        return F.sum_finite(x, self.finite)

    def tree_flatten(self) -> tuple[tuple, tuple]:
        return (self.finite,), (("finite",), {})


class SigmoidTransform(Transform):
    """Bijection x -> y = sigmoid(x), moved inside (0, 1) where it rounds to 0 or 1.

    If logits are given, bits of probability 0 and 1 (not `unsure`) have exactly that value.
    """

    domain = constraints.real
    codomain = open_unit_interval
    sign = 1

    def __init__(self, logits: Array | None = None, unsure: Array | None = None) -> None:
        self.logits, self.unsure = logits, unsure

    def eq(self, other: object, static: bool = False) -> bool:
        return type(self) is type(other) and self.unsure is other.unsure

    def __call__(self, x: Array) -> Array:
        y = F.to_unit_interval(x, x.dtype)
        return y if self.logits is None else F.put_sure(y, self.logits, self.unsure)

    def _inverse(self, y: Array) -> Array:
        return F.from_unit_interval(F.without_sure(y, self.unsure, 0.5))

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: object = None) -> Array:
        return -F.log_odds_term(x)

    def tree_flatten(self) -> tuple[tuple, tuple]:
        return (self.logits, self.unsure), (("logits", "unsure"), {})


biject_to.register(log_simplex, lambda constraint: LogSimplexTransform())
biject_to.register(simplex, lambda constraint: SimplexTransform())
biject_to.register(open_unit_interval, lambda constraint: SigmoidTransform())
