"""A guide that is trained, saved, and loaded in another process.

`python saved_pyro.py FILE...` reads a file for each of PARENTS.
"""

import json
import sys

import pyro
import torch
from pyro.distributions import Bernoulli, Normal
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
TABLE = torch.tensor([[0.6, 0.3], [0.4, 0.7]])  # class of a row, bit of all
PARENTS = "none", "model"


def model(x, rows):
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    scale = pyro.param(
        "scale", torch.tensor(1.0), constraint=pyro.distributions.constraints.positive
    )
    bit = pyro.sample("bit", Bernoulli(0.5))
    with pyro.plate("data", rows):
        z = pyro.sample("z", OneHotCategorical(probs=select(TABLE, bit, binary=True)))
        pyro.sample("x", Normal(select(locs, z), scale), obs=x)


def train(path, parents):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoGumbelSoftmax(model, parents=parents)
    schedule = temperature.exponential(rate=1e-2, minimum=0.3)
    optim, elbo = pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO()
    svi = AnnealedSVI(relax(model), guide, optim, elbo, schedule)
    for _ in range(200):
        svi.step(X, 3)
    store = pyro.get_param_store()
    torch.save({name: value.detach() for name, value in store.named_parameters()}, path)
    return shown(guide)


def load(path, parents):
    pyro.clear_param_store()
    guide = AutoGumbelSoftmax(model, parents=parents)
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
    found = []
    for path, parents in zip(sys.argv[1:], PARENTS, strict=True):
        guide = load(path, parents)
        draws = Predictive(model, guide=discretize(guide), num_samples=200)(None, 3)
        found.append(shown(guide) | {"predicted": draws["x"].mean(0).tolist()})
    print(json.dumps(found))
