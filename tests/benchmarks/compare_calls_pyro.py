"""The README's program in Pyro, and compare on it."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch

import gs_ppl.pyro as gs


def prepare() -> Callable[[int], object]:
    x = torch.tensor([-2.1, -1.9, -2.0, 1.8, 2.0, 2.3])

    def model() -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Categorical(logits=torch.tensor([0.0, 0.0])))
            pyro.sample("x", dist.Normal(locs[z], 0.5), obs=x)

    guide = gs.AutoGumbelSoftmax(model)
    return lambda draws: gs.compare(
        model, guide, temperatures=[0.3], num_samples=draws, progress_bar=False
    )
