"""What the NumPyro models are made of: linear and hidden layers, and their discrete units."""

import itertools

import jax
from flax import nnx
from jax import Array
from numpyro.distributions import Bernoulli, Distribution

from gs_ppl.numpyro import OneHotCategorical


def make_mlp(*widths: int, rngs: nnx.Rngs) -> nnx.Sequential:
    """Linear maps with rectifiers between them."""
    pairs = itertools.pairwise(widths)
    first, *rest = (nnx.Linear(m, n, kernel_init=glorot, rngs=rngs) for m, n in pairs)
    return nnx.Sequential(first, *(layer for linear in rest for layer in (jax.nn.relu, linear)))


glorot = nnx.initializers.glorot_uniform()


def count_logits(variables: int, classes: int | None) -> int:
    """How many logits the variables take; classes None: bits."""
    return variables * (classes or 1)


def make_law(logits: Array, variables: int, classes: int | None) -> Distribution:
    """Independent variables of one event, from logits of shape (images, variables * classes)."""
    if classes is None:
        return Bernoulli(logits=logits).to_event(1)
    return OneHotCategorical(logits=logits.reshape(-1, variables, classes)).to_event(1)
