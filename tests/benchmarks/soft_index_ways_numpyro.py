"""Programs in NumPyro, with integers and with one-hot vectors: their ELBO and its gradient."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.funsor import markov
from numpyro.infer import TraceMeanField_ELBO
from numpyro.ops.indexing import Vindex

from gs_ppl.numpyro import AutoGumbelSoftmax, OneHotCategorical, relax, select
from gs_ppl.numpyro.soft_index import interpret, soft_index

TAU = 0.5


def read(tables: dict[str, np.ndarray]) -> SimpleNamespace:
    return SimpleNamespace(**{name: jnp.asarray(x) for name, x in tables.items()})


def law(hot: bool, probs: Any) -> Any:
    return OneHotCategorical(probs=probs) if hot else dist.Categorical(probs)


def mixture(t: SimpleNamespace, hot: bool) -> None:
    with numpyro.plate("data", len(t.x)):
        z = numpyro.sample("z", law(hot, t.weights))
        loc = z @ t.locs if hot else t.locs[z]
        numpyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=t.x)


def hidden_markov(t: SimpleNamespace, hot: bool) -> None:
    probs = t.weights
    for i in markov(range(len(t.series))):
        z = numpyro.sample(f"z{i}", law(hot, probs))
        loc = z @ t.locs if hot else t.locs[z]
        numpyro.sample(f"x{i}", dist.Normal(loc, 1.0).to_event(1), obs=t.series[i])
        probs = z @ t.transition if hot else t.transition[z]


def annotation(t: SimpleNamespace, hot: bool) -> None:
    raters, rows = t.labels.shape
    with numpyro.plate("items", rows, dim=-1):
        c = numpyro.sample("c", law(hot, t.weights))
        with numpyro.plate("raters", raters, dim=-2):
            all_raters = jnp.arange(raters)[:, None]
            probs = c @ t.confusion if hot else Vindex(t.confusion)[all_raters, c, :]
            numpyro.sample("y", dist.Categorical(probs), obs=t.labels)


def prepare(
    name: str, tables: dict[str, np.ndarray], hot: bool, parents: str = "none"
) -> tuple[Callable, tuple]:
    """The compiled ELBO with its gradient, and its arguments."""
    model = partial(globals()[name], read(tables), hot)
    guide = AutoGumbelSoftmax(model, TAU, parents=parents)
    seeded = numpyro.handlers.seed(guide, jax.random.key(0))
    sites = numpyro.handlers.trace(seeded).get_trace().values()
    params = {site["name"]: site["value"] for site in sites if site["type"] == "param"}
    elbo, relaxed = TraceMeanField_ELBO(), relax(model, TAU)
    loss = jax.value_and_grad(lambda params, key: elbo.loss(key, params, relaxed, guide))
    return jax.jit(loss), (params, jax.random.key(1))


def step(
    name: str, tables: dict[str, np.ndarray], hot: bool, parents: str = "none"
) -> Callable[[], object]:
    loss, arguments = prepare(name, tables, hot, parents)
    return lambda: jax.block_until_ready(loss(*arguments))


def compile_step(name: str, tables: dict[str, np.ndarray], hot: bool) -> None:
    """Traces and compiles it again."""
    loss, arguments = prepare(name, tables, hot)
    loss.lower(*arguments).compile()


def call(f: Callable, *arguments: jax.Array) -> None:
    jax.block_until_ready(f(*arguments))


def look_ups(rows: int, classes: int, width: int) -> dict[str, partial]:
    """A row of the table for each class of the weights, and the gradient in weights and table."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (rows, classes), (classes, width), (rows, width)
    arrays = [jax.random.uniform(*drawn) for drawn in zip(keys, shapes, strict=True)]
    ways = {
        "integers": interpret(lambda y, table: table[soft_index("z", y)]),
        "select": lambda y, table: select(table, y, axis=0),
        "product": lambda y, table: y @ table,
    }

    def gradient(way: Callable, y: jax.Array, table: jax.Array, slope: jax.Array) -> tuple:
        return jax.vjp(way, y, table)[1](slope)

    return {
        name: partial(call, jax.jit(partial(gradient, way)), *arrays) for name, way in ways.items()
    }
