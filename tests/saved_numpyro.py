"""A guide that is trained, saved, and read in another process: `python saved_numpyro.py FILE`."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import Normal, constraints
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


def model(x, rows):
    locs = numpyro.param("locs", jnp.array([-1.0, 1.0]))
    scale = numpyro.param("scale", jnp.array(1.0), constraint=constraints.positive)
    with numpyro.plate("data", rows):
        z = numpyro.sample("z", OneHotCategorical(logits=jnp.zeros(2)))
        numpyro.sample("x", Normal(select(locs, z), scale), obs=x)


def train(path):
    guide = AutoGumbelSoftmax(model)
    schedule = temperature.exponential(rate=1e-2, minimum=0.3)
    optim, elbo = numpyro.optim.Adam(0.1), TraceMeanField_ELBO()
    svi = AnnealedSVI(relax(model), guide, optim, elbo, schedule)
    params = svi.run(jax.random.key(0), 200, X, 3, progress_bar=False).params
    with open(path, "wb") as file:
        np.savez(file, **params)
    return shown(guide, params)


def load(path):
    guide = AutoGumbelSoftmax(model)
    with np.load(path) as saved:
        return guide, dict(saved)


def shown(guide, params):
    return {
        "probs": guide.probs(params)["z"].tolist(),
        "mode": guide.mode(params)["z"].tolist(),
        "loc": [*params["locs"].tolist(), float(params["scale"])],
    }


if __name__ == "__main__":
    guide, params = load(sys.argv[1])
    predictive = Predictive(model, guide=discretize(guide), params=params, num_samples=200)
    draws = predictive(jax.random.key(0), None, 3)
    print(json.dumps(shown(guide, params) | {"predicted": draws["x"].mean(0).tolist()}))
