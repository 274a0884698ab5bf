"""A mixture of binomials over images, one categorical latent per image: model, guides in NumPyro.

    z_n ~ Categorical(softmax(weights)),  counts_nd ~ Binomial(16, sigmoid(z_n @ means)_d)

`family` chooses what z is: a class of gs_ppl.numpyro puts a soft or straight-through vector there;
None puts an integer that TraceEnum_ELBO sums out. Everything else stays as it is.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.nn import one_hot

TOTAL = 16  # points per pixel of the bundled digits

Family = Callable[..., dist.Distribution] | None


def model(
    counts: Array,
    initial_means: Array,
    *,
    family: Family = None,
    temperature: float | Array | None = None,
) -> None:
    """The mixture; its parameters "weights" and "means" are fitted as point estimates.

    Args:
        counts: ink per pixel, 0 to 16, floating-point, shape (images, pixels).
        initial_means: where "means" starts: log-odds of ink, shape (components, pixels).
        family: law of z, called as family(temperature, logits=...); None: enumerate.
        temperature: tau > 0; not used when enumerating.
    """
    weights = numpyro.param("weights", jnp.zeros(len(initial_means)))
    means = numpyro.param("means", initial_means)
    with numpyro.plate("images", len(counts)):
        z = _sample_component(weights, family, temperature)
        numpyro.sample("counts", dist.Binomial(TOTAL, logits=z @ means).to_event(1), obs=counts)


def guide(
    counts: Array,
    initial_means: Array,
    *,
    family: Family = None,
    temperature: float | Array | None = None,
) -> None:
    """Amortised q(z | counts) with linear logits, which the exact posterior of this model has too.

    It starts out uniform. Args: as model.
    """
    components, pixels = initial_means.shape
    slopes = numpyro.param("slopes", jnp.zeros((pixels, components)))
    offsets = numpyro.param("offsets", jnp.zeros(components))
    with numpyro.plate("images", len(counts)):
        _sample_component(counts / TOTAL @ slopes + offsets, family, temperature)


def empty_guide(counts: Array, initial_means: Array, **kwargs: object) -> None:
    """For exact enumeration in the model: z is summed out and nothing is left to guess."""


def _sample_component(logits: Array, family: Family, temperature: float | Array | None) -> Array:
    if family is not None:
        return numpyro.sample("z", family(temperature, logits=logits))
    index = numpyro.sample("z", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
    return one_hot(index, logits.shape[-1])
