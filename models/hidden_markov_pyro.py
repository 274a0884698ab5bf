"""A hidden Markov model of letters, one categorical latent each: model in Pyro.

    z_0 ~ OneHotCategorical(pi),  z_t ~ OneHotCategorical(z_{t-1} A),  x_t ~ Categorical(z_t B)

An ordinary program with discrete latents. Handlers decide how z is treated: relax for SVI
with soft or straight-through samples, config_enumerate to sum the chain out exactly.
"""

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor

from gs_ppl.pyro import OneHotCategorical, select


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


def empty_guide(text: Tensor, start: Tensor) -> None:
    """The guide for exact enumeration in the model: it is empty, since the chain is summed out."""
