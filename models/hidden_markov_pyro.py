"""A hidden Markov model of letters, one categorical latent each: model and guides in Pyro.

    z_0 ~ OneHotCategorical(pi),  z_t ~ OneHotCategorical(z_{t-1} A),  x_t ~ Categorical(z_t B)

An ordinary program with discrete latents. How z is treated is the handlers' affair: relax for SVI
with soft or straight-through samples, config_enumerate to sum the chain out exactly.
"""

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor
from torch.nn.functional import pad

from gs_ppl.pyro import OneHotCategorical, select

WINDOW = 2  # letters that the guides see on either side


def model(text: Tensor, start: Tensor) -> None:
    """The chain; its logits "initial", "transition" and "emission" are fitted as point estimates.

    It starts out with states that change more often than not, as sounds in a word do.

    Args:
        text: letters as integers, shape (sequences, length).
        start: where "emission" starts, shape (states, symbols).
    """
    states = len(start)
    p = pyro.param("initial", start.new_zeros(states)).softmax(-1)
    transition = pyro.param("transition", -torch.eye(states)).softmax(-1)
    emission = pyro.param("emission", start).softmax(-1)
    with pyro.plate("sequences", len(text)):
        for t in pyro.markov(range(text.shape[1])):
            z = pyro.sample(f"z_{t}", OneHotCategorical(probs=p))
            letter = Categorical(probs=select(emission.T, z.unsqueeze(-2)))
            pyro.sample(f"x_{t}", letter, obs=text[:, t])
            p = select(transition.T, z.unsqueeze(-2))


def read_window(text: Tensor, start: Tensor) -> Tensor:
    """Logits that are a sum over the letters around each, shape (sequences, length, states).

    They start out at the posterior of a letter by itself.
    """
    states, symbols = start.shape
    slopes = start.new_zeros(2 * WINDOW + 1, symbols + 1, states)
    slopes[WINDOW, :symbols] = start.T
    slopes = pyro.param("slopes", slopes)
    padded = pad(text, (WINDOW, WINDOW), value=symbols)
    windows = padded.unfold(-1, 2 * WINDOW + 1, 1)
    return slopes[torch.arange(2 * WINDOW + 1), windows].sum(-2)


def guide(text: Tensor, start: Tensor) -> None:
    """Amortised chain q(z_t | z_{t-1}, letters around t), as the exact posterior is one.

    Args: as model.
    """
    logits = read_window(text, start)
    memory = pyro.param("memory", start.new_zeros(len(start), len(start)))
    with pyro.plate("sequences", len(text)):
        a = logits[:, 0]
        for t in pyro.markov(range(text.shape[1])):
            z = pyro.sample(f"z_{t}", OneHotCategorical(logits=a))
            if t + 1 < text.shape[1]:
                a = logits[:, t + 1] + select(memory.T, z.unsqueeze(-2))


def mean_field(text: Tensor, start: Tensor) -> None:
    """Amortised q(z_t | letters around t), without the state before. Args: as model."""
    logits = read_window(text, start)
    with pyro.plate("sequences", len(text)):
        for t in pyro.markov(range(text.shape[1])):
            pyro.sample(f"z_{t}", OneHotCategorical(logits=logits[:, t]))


def empty_guide(text: Tensor, start: Tensor) -> None:
    """For exact enumeration in the model: the chain is summed out and nothing is left to guess."""
