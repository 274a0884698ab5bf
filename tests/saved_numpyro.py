"""A guide that is trained, saved, and loaded in another process.

`python saved_numpyro.py FILE...` reads a file for each of PARENTS.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import Bernoulli, Normal, constraints
from numpyro.infer import Predictive, TraceMeanField_ELBO

from gs_ppl import temperature
from gs_ppl.numpyro import (
    AnnealedSVI,
    AutoGumbelSoftmax,
    OneHotCategorical,
    discretize,
    relax,
    select,
)

X = jnp.array([-2.1, -1.9, 2.2])
TABLE = jnp.array([[0.6, 0.3], [0.4, 0.7]])  # class of a row, bit of all
PARENTS = "none", "model"


def model(x, rows):
    locs = numpyro.param("locs", jnp.array([-1.0, 1.0]))
    scale = numpyro.param("scale", jnp.array(1.0), constraint=constraints.positive)
    bit = numpyro.sample("bit", Bernoulli(0.5))
    with numpyro.plate("data", rows):
        z = numpyro.sample("z", OneHotCategorical(probs=select(TABLE, bit, binary=True)))
        numpyro.sample("x", Normal(select(locs, z), scale), obs=x)


def train(path, parents):
    guide = AutoGumbelSoftmax(model, parents=parents)
    schedule = temperature.exponential(rate=1e-2, minimum=0.3)
    optim, elbo = numpyro.optim.Adam(0.1), TraceMeanField_ELBO()
    svi = AnnealedSVI(relax(model), guide, optim, elbo, schedule)
    params = svi.run(jax.random.key(0), 200, X, 3, progress_bar=False).params
    with open(path, "wb") as file:
        np.savez(file, **params)
    return shown(guide, params)


def load(path, parents):
    guide = AutoGumbelSoftmax(model, parents=parents)
    with np.load(path) as saved:
        return guide, dict(saved)


def shown(guide, params):
    return {
        "probs": guide.probs(params)["z"].tolist(),
        "mode": guide.mode(params)["z"].tolist(),
        "loc": [*params["locs"].tolist(), float(params["scale"])],
    }


if __name__ == "__main__":
    found = []
    for path, parents in zip(sys.argv[1:], PARENTS, strict=True):
        guide, params = load(path, parents)
        predictive = Predictive(model, guide=discretize(guide), params=params, num_samples=200)
        draws = predictive(jax.random.key(0), None, 3)
        found.append(shown(guide, params) | {"predicted": draws["x"].mean(0).tolist()})
    print(json.dumps(found))
