"""The README's program in NumPyro, and compare on it."""

from collections.abc import Callable

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import gs_ppl.numpyro as gs


def prepare() -> Callable[[int], object]:
    x = jnp.array([-2.1, -1.9, -2.0, 1.8, 2.0, 2.3])

    def model() -> None:
        locs = numpyro.param("locs", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", 6):
            z = numpyro.sample("z", dist.Categorical(logits=jnp.array([0.0, 0.0])))
            numpyro.sample("x", dist.Normal(locs[z], 0.5), obs=x)

    guide = gs.AutoGumbelSoftmax(model)
    return lambda draws: gs.compare(
        model, guide, temperatures=[0.3], num_samples=draws, progress_bar=False
    )
