"""Straight-through families: one-hot and categorical in law; they differ in the gradient alone."""

from torch import Size, Tensor

from gs_ppl.pyro import functional as F
from gs_ppl.pyro.distributions import BernoulliScored, CategoricalScored, Relaxed

__all__ = ["STGumbelSigmoid", "STGumbelSoftmax"]


class STGumbelSigmoid(BernoulliScored, Relaxed):
    """Straight-through bit: 1 where a + L > 0, with the gradient of sigmoid((a + L) / tau).

    Args, Shapes, Raises: as GumbelSigmoid.

    Example:
        >>> import torch
        >>> d = STGumbelSigmoid(0.5, logits=torch.tensor(0.0))
        >>> d.log_prob(d.rsample())
        tensor(-0.6931)
    """

    is_hard = True

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        x, _ = self._draw(sample_shape)
        return F.straight_through((x > 0).to(x.dtype), x.sigmoid()).to(self.logits.dtype)


class STGumbelSoftmax(CategoricalScored, Relaxed):
    """Straight-through Gumbel-Softmax: one_hot(argmax(a + g)) with the gradient of the soft sample.

    Categorical in law, exactly, at every temperature, which only shapes the gradient:
    d sample / d a = d softmax((a + g) / tau) / d a. Scored as the categorical, sum(value log pi),
    for any copy of the value, differentiable in it.

    Args, Shapes, Raises: as ExpGumbelSoftmax.

    Source: Jang, Gu, Poole 2016, section 2.2.

    Example:
        >>> import torch
        >>> d = STGumbelSoftmax(0.5, logits=torch.zeros(4))
        >>> d.rsample().sum(), d.log_prob(d.rsample().clone())
        (tensor(1.), tensor(-1.3863))
    """

    is_hard = True
    binary = STGumbelSigmoid

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        l, _ = self._draw(sample_shape)
        return F.straight_through(F.one_hot_argmax(l), l.exp()).to(self.logits.dtype)
