"""A hidden Markov model in NumPyro's scan, and its log joints by hand."""

import itertools

import numpy as np
from scipy import stats

RNG = np.random.default_rng(3)
DATA, LOCS = RNG.normal(size=4), np.array([-1.0, 0.0, 2.0])
TRANSITION = RNG.dirichlet(np.ones(3), 3)
LAWS = ["bit", "Categorical", "OneHotCategorical", "GumbelSoftmax", "STGumbelSoftmax"]


def chain(backend, kind, history=1, guide=None):
    """A hidden Markov model in scan that starts from state 0, and its number of states."""
    import jax.numpy as jnp
    from numpyro.contrib.control_flow import scan

    K = 2 if kind == "bit" else 3
    table = TRANSITION[:K, :K] / TRANSITION[:K, :K].sum(-1, keepdims=True)
    vectors = kind not in ("bit", "Categorical")

    def law(p):
        if kind == "bit":
            return backend.native.Bernoulli(probs=p[..., 1])
        if kind == "Categorical":
            return backend.native.Categorical(probs=p)
        make = getattr(backend.gs, kind)
        return make(probs=p) if kind == "OneHotCategorical" else make(0.5, probs=p)

    def body(before, x):
        z = backend.ppl.sample("z", law(backend.gs.select(jnp.asarray(table), before, axis=0)))
        loc = backend.gs.select(jnp.asarray(LOCS[:K]), z)
        backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)
        return z, z

    def model():
        first = jnp.eye(K)[0] if vectors else 0
        return scan(body, first, jnp.asarray(DATA), history=history)

    return model, table


def log_joints(table):
    """Log joint of each path."""
    K, values = len(table), []
    for path in itertools.product(range(len(table)), repeat=len(DATA)):
        steps = zip((0, *path), path, strict=False)
        prior = sum(np.log(table[i, j]) for i, j in steps)
        values.append(prior + stats.norm(LOCS[:K][list(path)]).logpdf(DATA).sum())
    return np.array(values)


def enumerated(backend, model, guide=lambda: None, plates=0):
    return -backend.enumerated_loss(backend.gs.config_enumerate(model), guide, plates)
