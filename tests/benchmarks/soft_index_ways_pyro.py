"""Programs in Pyro, with integers and with one-hot vectors: their ELBO and its gradient."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.ops.indexing import Vindex

from gs_ppl.pyro import AutoGumbelSoftmax, OneHotCategorical, relax, select
from gs_ppl.pyro.soft_index import interpret, soft_index

TAU = 0.5


def read(tables: dict[str, np.ndarray]) -> SimpleNamespace:
    return SimpleNamespace(**{name: torch.as_tensor(x) for name, x in tables.items()})


def law(hot: bool, probs: Any) -> Any:
    return OneHotCategorical(probs=probs) if hot else dist.Categorical(probs)


def mixture(t: SimpleNamespace, hot: bool) -> None:
    with pyro.plate("data", len(t.x)):
        z = pyro.sample("z", law(hot, t.weights))
        loc = z @ t.locs if hot else t.locs[z]
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=t.x)


def hidden_markov(t: SimpleNamespace, hot: bool) -> None:
    probs = t.weights
    for i in pyro.markov(range(len(t.series))):
        z = pyro.sample(f"z{i}", law(hot, probs))
        loc = z @ t.locs if hot else t.locs[z]
        pyro.sample(f"x{i}", dist.Normal(loc, 1.0).to_event(1), obs=t.series[i])
        probs = z @ t.transition if hot else t.transition[z]


def annotation(t: SimpleNamespace, hot: bool) -> None:
    raters, rows = t.labels.shape
    with pyro.plate("items", rows, dim=-1):
        c = pyro.sample("c", law(hot, t.weights))
        with pyro.plate("raters", raters, dim=-2):
            all_raters = torch.arange(raters)[:, None]
            probs = c @ t.confusion if hot else Vindex(t.confusion)[all_raters, c, :]
            pyro.sample("y", dist.Categorical(probs), obs=t.labels)


def step(
    name: str, tables: dict[str, np.ndarray], hot: bool, parents: str = "none"
) -> Callable[[], object]:
    model = partial(globals()[name], read(tables), hot)
    # each guide keeps separate parameters: their names are equal
    own_parameters = partial(pyro.settings.context, module_local_params=True)
    with own_parameters():
        guide = AutoGumbelSoftmax(model, TAU, parents=parents)
    relaxed, elbo = relax(model, TAU), TraceMeanField_ELBO()

    def call() -> None:
        with pyro.validation_enabled(False), own_parameters():
            elbo.loss_and_grads(relaxed, guide)

    return call


def look_ups(rows: int, classes: int, width: int) -> dict[str, Callable[[], object]]:
    """A row of the table for each class of the weights, and the gradient in weights and table."""
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, classes), (classes, width), (rows, width)
    y, table, slope = (torch.rand(shape, generator=generator) for shape in shapes)
    leaves = y.requires_grad_(), table.requires_grad_()
    ways = {
        "integers": interpret(lambda: table[soft_index("z", y)]),
        "select": lambda: select(table, y, axis=0),
        "product": lambda: y @ table,
    }
    return {
        name: lambda way=way: torch.autograd.grad(way(), leaves, slope)
        for name, way in ways.items()
    }
