"""A hidden Markov model of letters, one categorical latent each: model and guides in NumPyro.

    z_0 ~ OneHotCategorical(pi),  z_t ~ OneHotCategorical(z_{t-1} A),  x_t ~ Categorical(z_t B)

An ordinary program with discrete latents. How z is treated is the handlers' affair: relax for SVI
with soft or straight-through samples, config_enumerate to sum the chain out exactly.
"""

import jax.numpy as jnp
import numpyro
from jax import Array
from jax.nn import softmax
from numpyro.contrib.funsor import markov
from numpyro.distributions import Categorical

from gs_ppl.numpyro import OneHotCategorical, select

WINDOW = 2  # letters that the guides see on either side


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


def read_window(text: Array, start: Array) -> Array:
    """Logits that are a sum over the letters around each, shape (sequences, length, states).

    They start out at the posterior of a letter by itself.
    """
    states, symbols = start.shape
    slopes = jnp.zeros((2 * WINDOW + 1, symbols + 1, states))
    slopes = numpyro.param("slopes", slopes.at[WINDOW, :symbols].set(start.T))
    padded = jnp.pad(text, ((0, 0), (WINDOW, WINDOW)), constant_values=symbols)
    length = text.shape[1]
    return sum(table[padded[:, i : i + length]] for i, table in enumerate(slopes))


def guide(text: Array, start: Array) -> None:
    """Amortised chain q(z_t | z_{t-1}, letters around t), as the exact posterior is one.

    Args: as model.
    """
    logits = read_window(text, start)
    memory = numpyro.param("memory", jnp.zeros((len(start), len(start))))
    with numpyro.plate("sequences", len(text)):
        a = logits[:, 0]
        for t in markov(range(text.shape[1])):
            z = numpyro.sample(f"z_{t}", OneHotCategorical(logits=a))
            if t + 1 < text.shape[1]:
                a = logits[:, t + 1] + select(memory.T, z[..., None, :])


def mean_field(text: Array, start: Array) -> None:
    """Amortised q(z_t | letters around t), without the state before. Args: as model."""
    logits = read_window(text, start)
    with numpyro.plate("sequences", len(text)):
        for t in markov(range(text.shape[1])):
            numpyro.sample(f"z_{t}", OneHotCategorical(logits=logits[:, t]))


def empty_guide(text: Array, start: Array) -> None:
    """For exact enumeration in the model: the chain is summed out and nothing is left to guess."""
