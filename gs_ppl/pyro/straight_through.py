"""Straight-through families: one-hot and categorical in law; they differ only in the gradient."""

import math
from numbers import Integral, Real

import torch
from torch import Size, Tensor

from gs_ppl._shared.laws import refuse_undefined
from gs_ppl.pyro import functional as F
from gs_ppl.pyro.distributions import BernoulliScored, CategoricalScored, Relaxed
from gs_ppl.pyro.functional import Temperature

__all__ = [
    "GappedST",
    "GappedSTBernoulli",
    "GumbelRao",
    "GumbelRaoBernoulli",
    "ReinMax",
    "ReinMaxBernoulli",
    "STBernoulli",
    "STGumbelSigmoid",
    "STGumbelSoftmax",
    "StraightThrough",
]


class OneHotEstimator(CategoricalScored, Relaxed):
    """D = one_hot(argmax(z)), z = a + g, with the gradient of a surrogate.

    The law is exactly categorical at every temperature, which only changes the gradient. log_prob
    is sum(value log pi), for any copy of the value, and is differentiable in it.
    """

    is_hard = True

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        a, shape = self.a, self._extended_shape(sample_shape)
        z = a - F.noise_to_draw_from(shape, dtype=a.dtype, device=a.device).log()
        hard = F.one_hot_argmax(z)
        return F.straight_through(hard, self.surrogate(a, z, hard)).to(self.logits.dtype)

    def surrogate(self, a: Tensor, z: Tensor, hard: Tensor) -> Tensor:
        """The soft value whose gradient the sample gets; each subclass defines its own."""
        refuse_undefined(self, "surrogate")


class BitEstimator(BernoulliScored, Relaxed):
    """A bit, 1 where x = a + L > 0: the first of two classes (a, 0), with their surrogate."""

    is_hard = True

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        a, shape = self.a, self._extended_shape(sample_shape)
        logits, a = a, F.without_sure(a, self.unsure)
        x = a + F.logistic_noise(shape, dtype=a.dtype, device=a.device)
        hard = (x > 0).to(x.dtype)
        y = F.straight_through(hard, self._soft_bit(a, x, hard))
        return F.put_sure(y, logits, self.unsure).to(self.logits.dtype)

    def _soft_bit(self, a: Tensor, x: Tensor, hard: Tensor) -> Tensor:
        pairs = (a, torch.zeros_like(a)), (x, torch.zeros_like(x)), (hard, 1 - hard)
        a, z, hard = (torch.stack(pair, -1) for pair in pairs)
        return self.surrogate(a, z, hard)[..., 0]

    def surrogate(self, a: Tensor, z: Tensor, hard: Tensor) -> Tensor:
        """The soft value whose gradient the sample gets; each subclass defines its own."""
        refuse_undefined(self, "surrogate")


# --- straight-through Gumbel-Softmax --------------------------------------------------------------


class STGumbelSigmoid(BitEstimator):
    """Straight-through bit: 1 where a + L > 0, with the gradient of sigmoid((a + L) / tau).

    Args, Shapes, Raises: as GumbelSigmoid.

    Example:
        >>> import torch
        >>> d = STGumbelSigmoid(0.5, logits=torch.tensor(0.0))
        >>> d.log_prob(d.rsample())
        tensor(-0.6931)
    """

    def _soft_bit(self, a: Tensor, x: Tensor, hard: Tensor) -> Tensor:
        return (x / self.tau).sigmoid()


class STGumbelSoftmax(OneHotEstimator):
    """Straight-through Gumbel-Softmax: one_hot(argmax(a + g)) with the gradient of the soft sample.

    Its law is exactly categorical at every temperature. The temperature only changes the gradient:
    d sample / d a = d softmax((a + g) / tau) / d a. log_prob is that of the categorical,
    sum(value log pi). It takes any copy of the value, and is differentiable in it.

    Args, Shapes, Raises: as GumbelSoftmax.

    Source: Jang, Gu, Poole 2016, section 2.2.

    Example:
        >>> import torch
        >>> d = STGumbelSoftmax(0.5, logits=torch.zeros(4))
        >>> d.rsample().sum(), d.log_prob(d.rsample().clone())
        (tensor(1.), tensor(-1.3863))
    """

    binary = STGumbelSigmoid

    def surrogate(self, a: Tensor, z: Tensor, hard: Tensor) -> Tensor:
        return F.tempered_softmax(self.tau, z, self.finite)


# --- straight-through -----------------------------------------------------------------------------


class STBernoulli(BitEstimator):
    """Straight-through bit with the gradient of sigmoid(a / tau), which contains no noise.

    With an annealed temperature it is the slope-annealed straight-through bit, of slope 1 / tau.

    Args, Shapes, Raises: as GumbelSigmoid.

    Source: Bengio, Leonard, Courville 2013 (arXiv 1308.3432); slope annealing: Chung, Ahn, Bengio
    2016 (arXiv 1609.01704).

    Example:
        >>> import torch
        >>> a = torch.tensor(0.0, requires_grad=True)
        >>> torch.autograd.grad(STBernoulli(0.5, logits=a).rsample(), a)
        (tensor(0.5000),)
    """

    def _soft_bit(self, a: Tensor, x: Tensor, hard: Tensor) -> Tensor:
        return (a / self.tau).sigmoid()


class StraightThrough(OneHotEstimator):
    """Straight-through: one_hot(k), k from pi, with the gradient of softmax(a / tau).

    At tau = 1 it is the plain straight-through estimator: the surrogate is the mean of the sample.
    Slope annealing lowers tau, and the slope is 1 / tau. It was made for step functions; for random
    draws it adds bias. Law and log_prob are those of STGumbelSoftmax. The only noise in the
    gradient is that of the sample.

    Args, Shapes, Raises: as GumbelSoftmax.

    Source: Bengio, Leonard, Courville 2013 (arXiv 1308.3432); slope annealing: Chung, Ahn, Bengio
    2016 (arXiv 1609.01704).

    Example:
        >>> import torch
        >>> a = torch.zeros(2, requires_grad=True)
        >>> z = StraightThrough(1.0, logits=a).rsample()
        >>> torch.autograd.grad(z[0], a)
        (tensor([ 0.2500, -0.2500]),)
    """

    binary = STBernoulli

    def surrogate(self, a: Tensor, z: Tensor, hard: Tensor) -> Tensor:
        return F.tempered_softmax(self.tau, a, self.finite)


# --- ReinMax --------------------------------------------------------------------------------------


class ReinMaxBernoulli(BitEstimator):
    """ReinMax of a bit.

    Args, Shapes, Raises: as GumbelSigmoid.

    Example:
        >>> import torch
        >>> d = ReinMaxBernoulli(1.0, logits=torch.tensor(0.0))
        >>> d.log_prob(d.rsample())
        tensor(-0.6931)
    """

    def surrogate(self, a: Tensor, z: Tensor, hard: Tensor) -> Tensor:
        return F.reinmax_surrogate(self.tau, a, hard, self.finite)


class ReinMax(OneHotEstimator):
    """ReinMax: one_hot(k), k from pi, with a gradient of second order, by Heun's method.

    With D the sample, p = (softmax(a / tau) + D) / 2 and J(p) = diag(p) - p p^T, the gradient is
    2 J(p) - J(pi) / 2. At tau = 1 it equals the limit of Gumbel-Rao at temperature 0 (ZGR) for
    each sample, and has no bias if the loss is quadratic in D. Its authors use tau >= 1. It has no
    gradient with respect to tau.

    Args, Shapes, Raises: as GumbelSoftmax.

    Source: Liu, Dong, Liu, Yu, Gao 2023 (arXiv 2304.08612); ZGR: Shekhovtsov 2021 (arXiv
    2110.03549).

    Example:
        >>> import torch
        >>> a = torch.zeros(2, requires_grad=True)
        >>> z = ReinMax(1.0, logits=a).rsample()
        >>> torch.autograd.grad(z[0], a)
        (tensor([ 0.2500, -0.2500]),)
    """

    binary = ReinMaxBernoulli

    def surrogate(self, a: Tensor, z: Tensor, hard: Tensor) -> Tensor:
        return F.reinmax_surrogate(self.tau, a, hard, self.finite)


# --- Gumbel-Rao -----------------------------------------------------------------------------------


class ConditionalGumbels(Relaxed):
    """What Gumbel-Rao has in common for vectors and bits."""

    fields = (*Relaxed.fields, "num_samples")
    num_samples: int

    def __init__(
        self,
        temperature: Temperature,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        *,
        num_samples: int = 10,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(temperature, probs, logits, validate_args=validate_args)
        if not isinstance(num_samples, Integral) or num_samples < 1:
            name = type(self).__name__
            raise ValueError(f"{name}: num_samples must be a positive integer, got {num_samples!r}")
        self.num_samples = num_samples

    def surrogate(self, a: Tensor, z: Tensor, hard: Tensor) -> Tensor:
        shape = (self.num_samples, *z.shape)
        noise = F.exponential_noise(shape, dtype=z.dtype, device=z.device)
        return F.gumbel_rao_surrogate(self.tau, a, hard, noise, self.finite)


class GumbelRaoBernoulli(ConditionalGumbels, BitEstimator):
    """Gumbel-Rao of a bit.

    Args, Shapes, Raises: as GumbelSigmoid; num_samples as GumbelRao.

    Example:
        >>> import torch
        >>> d = GumbelRaoBernoulli(0.5, logits=torch.tensor(0.0))
        >>> d.log_prob(d.rsample())
        tensor(-0.6931)
    """

    def _soft_bit(self, a: Tensor, x: Tensor, hard: Tensor) -> Tensor:
        shape = (self.num_samples, *x.shape)
        noise = F.logistic_noise(shape, dtype=x.dtype, device=x.device)
        return F.gumbel_rao_bit_surrogate(self.tau, a, hard, noise)


class GumbelRao(ConditionalGumbels, OneHotEstimator):
    """Gumbel-Rao: STGumbelSoftmax with its gradient averaged over the noise that gives the sample.

    With D = one_hot(k) the sample, the Gumbel noise g is drawn several times given
    argmax(a + g) = k. The gradient is that of the mean of softmax((a + g) / tau) over these draws,
    with g held fixed. It has the expectation of STGumbelSoftmax, and at most its variance.

    Args:
        temperature, probs, logits, validate_args: as GumbelSoftmax.
        num_samples: draws of the noise. Time and memory grow with it; the program runs once.

    Shapes, Raises: as GumbelSoftmax.

    Source: Paulus, Maddison, Krause 2020 (arXiv 2010.04838).

    Example:
        >>> import torch
        >>> d = GumbelRao(0.5, logits=torch.zeros(4), num_samples=100)
        >>> d.rsample().sum(), d.log_prob(d.rsample())
        (tensor(1.), tensor(-1.3863))
    """

    binary = GumbelRaoBernoulli


# --- gapped straight-through ----------------------------------------------------------------------


class Gapped(Relaxed):
    """What the gapped estimator has in common for vectors and bits."""

    fields = (*Relaxed.fields, "gap")
    gap: float

    def __init__(
        self,
        temperature: Temperature,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        *,
        gap: float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(temperature, probs, logits, validate_args=validate_args)
        if not isinstance(gap, Real) or not 0 <= gap < math.inf:
            name = type(self).__name__
            raise ValueError(f"{name}: gap must be a finite number of at least 0, got {gap!r}")
        self.gap = gap

    def surrogate(self, a: Tensor, z: Tensor, hard: Tensor) -> Tensor:
        return F.gapped_surrogate(self.tau, a, hard, self.gap, self.finite)


class GappedSTBernoulli(Gapped, BitEstimator):
    """Gapped straight-through bit.

    Args, Shapes, Raises: as GumbelSigmoid; gap as GappedST.

    Example:
        >>> import torch
        >>> d = GappedSTBernoulli(0.5, logits=torch.tensor(0.0))
        >>> d.log_prob(d.rsample())
        tensor(-0.6931)
    """


class GappedST(Gapped, OneHotEstimator):
    """Gapped straight-through: the gradient of softmax(v / tau), where v puts the sample on top.

    With k the sample, v_k = max(a) and v_j = min(a_j, max(a) - gap). The derivative with respect to
    v is used as that with respect to a. The only noise in the gradient is that of the sample.

    Args:
        temperature, probs, logits, validate_args: as GumbelSoftmax.
        gap: smallest difference between the logit of the sample and the others, nats.

    Shapes, Raises: as GumbelSoftmax.

    Source: Fan, Chi, Rudnicky, Ramadge 2022 (arXiv 2206.07235).

    Example:
        >>> import torch
        >>> d = GappedST(0.5, logits=torch.zeros(4), gap=2.0)
        >>> d.rsample().sum(), d.log_prob(d.rsample())
        (tensor(1.), tensor(-1.3863))
    """

    binary = GappedSTBernoulli
