"""A hidden Markov model of letters, one categorical latent each: model in NumPyro.

    z_0 ~ OneHotCategorical(pi),  z_t ~ OneHotCategorical(z_{t-1} A),  x_t ~ Categorical(z_t B)

An ordinary program with discrete latents. Handlers decide how z is treated: relax for SVI
with soft or straight-through samples, config_enumerate to sum the chain out exactly.
"""

import jax.numpy as jnp
import numpyro
from jax import Array
from jax.nn import softmax
from numpyro.contrib.funsor import markov
from numpyro.distributions import Categorical

from gs_ppl.numpyro import OneHotCategorical, select


def model(text: Array, start: Array) -> None:
    """The chain; its logits "initial", "transition" and "emission" are fitted as point estimates.

    It starts out with states that change more often than not, as sounds in a word do.

    Args:
        text: letters as integers, shape (sequences, length).
        start: where "emission" starts, shape (states, symbols).
    """
    states = len(start)
    p = softmax(numpyro.param("initial", jnp.zeros(states)))
    transition = softmax(numpyro.param("transition", -jnp.eye(states)))
    emission = softmax(numpyro.param("emission", start))
    with numpyro.plate("sequences", len(text)):
        for t in markov(range(text.shape[1])):
            z = numpyro.sample(f"z_{t}", OneHotCategorical(probs=p))
            letter = Categorical(probs=select(emission.T, z[..., None, :]))
            numpyro.sample(f"x_{t}", letter, obs=text[:, t])
            p = select(transition.T, z[..., None, :])


def empty_guide(text: Array, start: Array) -> None:
    """The guide for exact enumeration in the model: it is empty, since the chain is summed out."""
