"""A Gaussian mixture of two components, one bit for each point: model and guides in Pyro.

    z_n ~ Bernoulli(sigmoid(weight)),  x_n ~ Normal(locs[z_n], exp(log_scale))

An ordinary program with a discrete latent. Handlers decide how z is treated: relax for SVI
with soft or straight-through samples, config_enumerate to sum it out.
"""

from collections.abc import Callable

import pyro
from pyro.distributions import Bernoulli, Normal
from torch import Tensor

from gs_ppl.pyro import select


def model(x: Tensor, bit: Callable = Bernoulli) -> None:
    """The mixture; its parameters are fitted as point estimates.

    It starts out with equal components, one standard deviation apart to either side of the mean.

    Args:
        x: shape (points,).
        bit: the law of z, called with logits.
    """
    weight = pyro.param("weight", x.new_zeros(()))
    locs = pyro.param("locs", x.mean() + x.std() * x.new_tensor([-1.0, 1.0]))
    log_scale = pyro.param("log_scale", x.std().log())
    with pyro.plate("points", len(x)):
        z = pyro.sample("z", bit(logits=weight))
        pyro.sample("x", Normal(select(locs, z, binary=True), log_scale.exp()), obs=x)


def guide(x: Tensor, bit: Callable = Bernoulli) -> None:
    """Mean field, one logit for each point; what AutoGumbelSoftmax makes. Args: as model."""
    logits = pyro.param("logits", 2 * (x - x.mean()) / x.std())
    with pyro.plate("points", len(x)):
        pyro.sample("z", bit(logits=logits))


def empty_guide(x: Tensor) -> None:
    """The guide for exact enumeration in the model: it is empty, since z is summed out."""
