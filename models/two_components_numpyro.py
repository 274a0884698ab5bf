"""A Gaussian mixture of two components, one bit for each point: model and guides in NumPyro.

    z_n ~ Bernoulli(sigmoid(weight)),  x_n ~ Normal(locs[z_n], exp(log_scale))

An ordinary program with a discrete latent. Handlers decide how z is treated: relax for SVI
with soft or straight-through samples, config_enumerate to sum it out.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro.distributions import Bernoulli, Normal

from gs_ppl.numpyro import select


def model(x: Array, bit: Callable = Bernoulli) -> None:
    """The mixture; its parameters are fitted as point estimates.

    It starts out with equal components, one standard deviation apart to either side of the mean.

    Args:
        x: shape (points,).
        bit: the law of z, called with logits.
    """
    weight = numpyro.param("weight", jnp.array(0.0))
    locs = numpyro.param("locs", x.mean() + x.std() * jnp.array([-1.0, 1.0]))
    log_scale = numpyro.param("log_scale", jnp.log(x.std()))
    with numpyro.plate("points", len(x)):
        z = numpyro.sample("z", bit(logits=weight))
        numpyro.sample("x", Normal(select(locs, z, binary=True), jnp.exp(log_scale)), obs=x)


def guide(x: Array, bit: Callable = Bernoulli) -> None:
    """Mean field, one logit for each point; what AutoGumbelSoftmax makes. Args: as model."""
    logits = numpyro.param("logits", 2 * (x - x.mean()) / x.std())
    with numpyro.plate("points", len(x)):
        numpyro.sample("z", bit(logits=logits))


def empty_guide(x: Array) -> None:
    """The guide for exact enumeration in the model: it is empty, since z is summed out."""
