"""Supports of the relaxed laws and the bijections from R^(K-1), registered with torch's registry.

The bijection is the isometric log-ratio: x in R^(K-1) becomes a zero-sum vector z of the same
length |z| = |x|, and l = log_softmax(z). Unlike stick breaking it treats all categories in the same
way.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to

from gs_ppl.pyro import functional as F


def _tolerance(value: Tensor, factor: int) -> float:
    """A few roundings in the dtype of the value; the error of exp(l) is eps (1 + sum y |log y|)."""
    return factor * torch.finfo(value.dtype).eps * (1 + math.log(value.shape[-1]))


class _Simplex(constraints.Constraint):
    """y >= 0 with sum 1, up to a tolerance that depends on the dtype."""

    is_discrete = False
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        total = value.sum(-1, dtype=torch.promote_types(value.dtype, torch.float32))
        return (value.amin(-1) >= 0) & ((total - 1).abs() <= _tolerance(value, 8))


class _LogSimplex(constraints.Constraint):
    """l with logsumexp 0, up to a tolerance that depends on the dtype."""

    is_discrete = False
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        # z - logsumexp(z) has the absolute rounding error of z
        return wide.logsumexp(-1).abs() <= _tolerance(value, 64)


class _OpenUnitInterval(constraints.Constraint):
    """0 < y < 1."""

    is_discrete = False
    event_dim = 0

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


simplex = _Simplex()
log_simplex = _LogSimplex()
open_unit_interval = _OpenUnitInterval()


def _zero_sum(x: Tensor) -> Tensor:
    """Isometry from R^(K-1) onto the zero-sum vectors of R^K."""
    K = x.shape[-1] + 1
    total = x.sum(-1, keepdim=True)
    shift = total / (math.sqrt(K) + K)
    return torch.cat([x - shift, -total / math.sqrt(K)], -1)


def _zero_sum_inverse(z: Tensor) -> Tensor:
    K = z.shape[-1]
    return z[..., :-1] - z[..., -1:] / (1 + math.sqrt(K))


class LogSimplexTransform(Transform):
    """Bijection x -> l = log_softmax(zero_sum(x)) from R^(K-1) to the log-simplex.

    Its log Jacobian log(K) / 2 is with respect to dl_1 ... dl_{K-1} / y_K, the measure in which
    ExpGumbelSoftmax has its density.
    """

    domain = constraints.real_vector
    codomain: constraints.Constraint = log_simplex
    bijective = True

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return F.log_softmax(_zero_sum(x))

    def _inverse(self, y: Tensor) -> Tensor:
        return _zero_sum_inverse(y - y.mean(-1, keepdim=True))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_full((), 0.5 * math.log(y.shape[-1])).expand(x.shape[:-1])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] - 1))


class SimplexTransform(LogSimplexTransform):
    """Bijection x -> y = softmax(zero_sum(x)) from R^(K-1) to the open simplex.

    Its log Jacobian sum(l) + log(K) / 2 is with respect to Lebesgue measure on the first K - 1
    coordinates.
    """

    codomain = simplex

    def _call(self, x: Tensor) -> Tensor:
        return F.to_simplex(super()._call(x), x.dtype)

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(F.from_simplex(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return super().log_abs_det_jacobian(x, y) + LogSimplexTransform._call(self, x).sum(-1)


class ExpTransform(Transform):
    """Bijection l -> y = exp(l) from the log-simplex to the open simplex.

    Its log Jacobian sum(l) takes dl_1 ... dl_{K-1} / y_K to dy_1 ... dy_{K-1}. `finite` marks the
    categories that exist; None: all.
    """

    domain = log_simplex
    codomain = simplex
    bijective = True

    def __init__(self, finite: Tensor | None = None, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        self.finite = finite

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.finite is other.finite

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return F.to_simplex(x, x.dtype, self.finite)

    def _inverse(self, y: Tensor) -> Tensor:
        return F.from_simplex(y, self.finite)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return F.sum_finite(x, self.finite)


class SigmoidTransform(torch.distributions.SigmoidTransform):
    """Bijection x -> y = sigmoid(x), moved inside (0, 1) where it rounds to 0 or 1.

    If logits are given, bits of probability 0 and 1 (not `unsure`) have exactly that value.
    """

    codomain = open_unit_interval  # type: ignore[assignment] # torch declares another class

    def __init__(self, logits: Tensor | None = None, unsure: Tensor | None = None) -> None:
        super().__init__()
        self.logits, self.unsure = logits, unsure

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.unsure is other.unsure

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        y = F.to_unit_interval(x, x.dtype)
        return y if self.logits is None else F.put_sure(y, self.logits, self.unsure)

    def _inverse(self, y: Tensor) -> Tensor:
        return F.from_unit_interval(F.without_sure(y, self.unsure, 0.5))


for registry in (biject_to, transform_to):
    registry.register(_LogSimplex, lambda constraint: LogSimplexTransform())
    registry.register(_Simplex, lambda constraint: SimplexTransform())
    registry.register(_OpenUnitInterval, lambda constraint: SigmoidTransform())
