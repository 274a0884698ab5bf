"""A guide that is trained, saved, and read in another process: `python saved_pyro.py FILE`."""

import json
import sys

import pyro
import torch
from pyro.distributions import Normal
from pyro.infer import Predictive, TraceMeanField_ELBO

from gs_ppl import temperature
from gs_ppl.pyro import (
    AnnealedSVI,
    AutoGumbelSoftmax,
    OneHotCategorical,
    discretize,
    relax,
    select,
)

X = torch.tensor([-2.1, -1.9, 2.2])


def model(x, rows):
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    scale = pyro.param(
        "scale", torch.tensor(1.0), constraint=pyro.distributions.constraints.positive
    )
    with pyro.plate("data", rows):
        z = pyro.sample("z", OneHotCategorical(logits=torch.zeros(2)))
        pyro.sample("x", Normal(select(locs, z), scale), obs=x)


def train(path):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoGumbelSoftmax(model)
    schedule = temperature.exponential(rate=1e-2, minimum=0.3)
    optim, elbo = pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO()
    svi = AnnealedSVI(relax(model), guide, optim, elbo, schedule)
    for _ in range(200):
        svi.step(X, 3)
    store = pyro.get_param_store()
    torch.save({name: value.detach() for name, value in store.named_parameters()}, path)
    return shown(guide)


def load(path):
    guide = AutoGumbelSoftmax(model)
    Predictive(model, guide=discretize(guide), num_samples=1)(X, 3)  # makes the parameters
    saved = torch.load(path, weights_only=True)
    for name, parameter in pyro.get_param_store().named_parameters():
        parameter.data.copy_(saved[name])
    return guide


def shown(guide):
    store = pyro.get_param_store()
    return {
        "probs": guide.probs()["z"].tolist(),
        "mode": guide.mode()["z"].tolist(),
        "loc": [*store["locs"].tolist(), store["scale"].item()],
    }


if __name__ == "__main__":
    guide = load(sys.argv[1])
    draws = Predictive(model, guide=discretize(guide), num_samples=200)(None, 3)
    print(json.dumps(shown(guide) | {"predicted": draws["x"].mean(0).tolist()}))
