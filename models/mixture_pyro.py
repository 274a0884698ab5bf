"""A mixture of binomials over images, one categorical latent each: model and guides in Pyro.

    z_n ~ OneHotCategorical(softmax(weights)),  counts_nd ~ Binomial(16, sigmoid(z_n @ means)_d)

An ordinary program with a discrete latent. Handlers decide how z is treated: relax for SVI
with soft or straight-through samples, config_enumerate to sum it out.
"""

import pyro
from pyro.distributions import Binomial
from torch import Tensor

from gs_ppl.pyro import OneHotCategorical

TOTAL = 16  # points per pixel of the bundled digits


def model(counts: Tensor, initial_means: Tensor) -> None:
    """The mixture; its parameters "weights" and "means" are fitted as point estimates.

    Args:
        counts: ink per pixel, 0 to 16, floating-point, shape (images, pixels).
        initial_means: where "means" starts: log-odds of ink, shape (components, pixels).
    """
    weights = pyro.param("weights", initial_means.new_zeros(len(initial_means)))
    means = pyro.param("means", initial_means)
    with pyro.plate("images", len(counts)):
        z = pyro.sample("z", OneHotCategorical(logits=weights))
        pyro.sample("counts", Binomial(TOTAL, logits=z @ means).to_event(1), obs=counts)


def guide(counts: Tensor, initial_means: Tensor) -> None:
    """Amortised q(z | counts) with linear logits, which the exact posterior of this model has too.

    It starts out uniform. Args: as model.
    """
    components, pixels = initial_means.shape
    slopes = pyro.param("slopes", initial_means.new_zeros(pixels, components))
    offsets = pyro.param("offsets", initial_means.new_zeros(components))
    with pyro.plate("images", len(counts)):
        pyro.sample("z", OneHotCategorical(logits=counts / TOTAL @ slopes + offsets))


def empty_guide(counts: Tensor, initial_means: Tensor) -> None:
    """The guide for exact enumeration in the model: it is empty, since z is summed out."""
