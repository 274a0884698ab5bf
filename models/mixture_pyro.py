"""A mixture of binomials over images, one categorical latent per image: model and guides in Pyro.

    z_n ~ Categorical(softmax(weights)),  counts_nd ~ Binomial(16, sigmoid(z_n @ means)_d)

`family` chooses what z is: a class of gs_ppl.pyro puts a soft or straight-through vector there;
None puts an integer that TraceEnum_ELBO sums out. Everything else stays as it is.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import one_hot

TOTAL = 16  # points per pixel of the bundled digits

Family = Callable[..., dist.Distribution] | None


def model(
    counts: Tensor,
    initial_means: Tensor,
    *,
    family: Family = None,
    temperature: float | Tensor | None = None,
) -> None:
    """The mixture; its parameters "weights" and "means" are fitted as point estimates.

    Args:
        counts: ink per pixel, 0 to 16, floating-point, shape (images, pixels).
        initial_means: where "means" starts: log-odds of ink, shape (components, pixels).
        family: law of z, called as family(temperature, logits=...); None: enumerate.
        temperature: tau > 0; not used when enumerating.
    """
    weights = pyro.param("weights", initial_means.new_zeros(len(initial_means)))
    means = pyro.param("means", initial_means)
    with pyro.plate("images", len(counts)):
        z = _sample_component(weights, family, temperature)
        pyro.sample("counts", dist.Binomial(TOTAL, logits=z @ means).to_event(1), obs=counts)


def guide(
    counts: Tensor,
    initial_means: Tensor,
    *,
    family: Family = None,
    temperature: float | Tensor | None = None,
) -> None:
    """Amortised q(z | counts) with linear logits, which the exact posterior of this model has too.

    It starts out uniform. Args: as model.
    """
    components, pixels = initial_means.shape
    slopes = pyro.param("slopes", initial_means.new_zeros(pixels, components))
    offsets = pyro.param("offsets", initial_means.new_zeros(components))
    with pyro.plate("images", len(counts)):
        _sample_component(counts / TOTAL @ slopes + offsets, family, temperature)


def empty_guide(counts: Tensor, initial_means: Tensor, **kwargs: object) -> None:
    """For exact enumeration in the model: z is summed out and nothing is left to guess."""


def _sample_component(
    logits: Tensor, family: Family, temperature: float | Tensor | None
) -> Tensor:
    if family is not None:
        return pyro.sample("z", family(temperature, logits=logits))
    index = pyro.sample("z", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
    return one_hot(index, logits.shape[-1]).to(logits.dtype)
