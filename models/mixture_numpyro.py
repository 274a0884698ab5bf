"""A mixture of binomials over images, one categorical latent each: model and guides in NumPyro.

    z_n ~ OneHotCategorical(softmax(weights)),  counts_nd ~ Binomial(16, sigmoid(z_n @ means)_d)

An ordinary program with a discrete latent. Handlers decide how z is treated: relax for SVI
with soft or straight-through samples, config_enumerate to sum it out.
"""

import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro.distributions import Binomial

from gs_ppl.numpyro import OneHotCategorical

TOTAL = 16  # points per pixel of the bundled digits


def model(counts: Array, initial_means: Array) -> None:
    """The mixture; its parameters "weights" and "means" are fitted as point estimates.

    Args:
        counts: ink per pixel, 0 to 16, floating-point, shape (images, pixels).
        initial_means: where "means" starts: log-odds of ink, shape (components, pixels).
    """
    weights = numpyro.param("weights", jnp.zeros(len(initial_means)))
    means = numpyro.param("means", initial_means)
    with numpyro.plate("images", len(counts)):
        z = numpyro.sample("z", OneHotCategorical(logits=weights))
        numpyro.sample("counts", Binomial(TOTAL, logits=z @ means).to_event(1), obs=counts)


def guide(counts: Array, initial_means: Array) -> None:
    """Amortised q(z | counts) with linear logits, which the exact posterior of this model has too.

    It starts out uniform. Args: as model.
    """
    components, pixels = initial_means.shape
    slopes = numpyro.param("slopes", jnp.zeros((pixels, components)))
    offsets = numpyro.param("offsets", jnp.zeros(components))
    with numpyro.plate("images", len(counts)):
        numpyro.sample("z", OneHotCategorical(logits=counts / TOTAL @ slopes + offsets))


def empty_guide(counts: Array, initial_means: Array) -> None:
    """The guide for exact enumeration in the model: it is empty, since z is summed out."""
