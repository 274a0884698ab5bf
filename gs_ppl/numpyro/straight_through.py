"""Straight-through families: one-hot and categorical in law; they differ in the gradient alone."""

import jax
import jax.numpy as jnp
from jax import Array

from gs_ppl.numpyro import constraints
from gs_ppl.numpyro import functional as F
from gs_ppl.numpyro.distributions import BernoulliScored, CategoricalScored, Relaxed, Shape

__all__ = ["STGumbelSigmoid", "STGumbelSoftmax"]


class STGumbelSigmoid(BernoulliScored, Relaxed):
    """Straight-through bit: 1 where a + L > 0, with the gradient of sigmoid((a + L) / tau).

    Args, Shapes, Raises: as GumbelSigmoid.

    Example:
        >>> d = STGumbelSigmoid(0.5, logits=jnp.array(0.0))
        >>> round(float(d.log_prob(d.rsample(jax.random.key(0)))), 4)
        -0.6931
    """

    is_hard = True
    support = constraints.differentiable_boolean

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        x, _ = self._draw(key, sample_shape)
        hard = (x > 0).astype(x.dtype)
        return F.straight_through(hard, jax.nn.sigmoid(x)).astype(self.logits.dtype)


class STGumbelSoftmax(CategoricalScored, Relaxed):
    """Straight-through Gumbel-Softmax: one_hot(argmax(a + g)) with the gradient of the soft sample.

    Categorical in law, exactly, at every temperature, which only shapes the gradient:
    d sample / d a = d softmax((a + g) / tau) / d a. Scored as the categorical, sum(value log pi),
    for any copy of the value, differentiable in it.

    Args, Shapes, Raises: as ExpGumbelSoftmax.

    Source: Jang, Gu, Poole 2016, section 2.2.

    Example:
        >>> d = STGumbelSoftmax(0.5, logits=jnp.zeros(4))
        >>> y = d.rsample(jax.random.key(0))
        >>> float(y.sum()), round(float(d.log_prob(y + 0)), 4)
        (1.0, -1.3863)
    """

    is_hard = True
    binary = STGumbelSigmoid
    support = constraints.differentiable_one_hot

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        l, _ = self._draw(key, sample_shape)
        return F.straight_through(F.one_hot_argmax(l), jnp.exp(l)).astype(self.logits.dtype)
