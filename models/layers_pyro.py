"""What the Pyro models are made of: linear and hidden layers, and their discrete units."""

import itertools

from pyro.distributions import Bernoulli, TorchDistribution
from torch import Tensor, nn

from gs_ppl.pyro import OneHotCategorical


def make_mlp(*widths: int) -> nn.Sequential:
    """Linear maps with rectifiers between them."""
    pairs = itertools.pairwise(widths)
    first, *rest = (make_linear(m, n) for m, n in pairs)
    return nn.Sequential(first, *(layer for linear in rest for layer in (nn.ReLU(), linear)))


def make_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def count_logits(variables: int, classes: int | None) -> int:
    """How many logits the variables take; classes None: bits."""
    return variables * (classes or 1)


def make_law(logits: Tensor, variables: int, classes: int | None) -> TorchDistribution:
    """Independent variables of one event, from logits of shape (images, variables * classes)."""
    if classes is None:
        return Bernoulli(logits=logits).to_event(1)
    return OneHotCategorical(logits=logits.reshape(-1, variables, classes)).to_event(1)
