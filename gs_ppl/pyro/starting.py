"""Where a run starts: different components, and the best of several starts."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import pyro
import torch
from pyro import validation_enabled
from pyro.infer import SVI
from pyro.infer.autoguide.initialization import init_to_median
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.distributions import biject_to

from gs_ppl._shared.starting import check_inside, check_rows_for, check_scores, check_tries
from gs_ppl._shared.wrappers import innermost

__all__ = ["best_start", "init_to_rows"]

Run = TypeVar("Run", bound=SVI)


def init_to_rows(
    site: Any = None,
    rows: Mapping[str, Any] | None = None,
    *,
    fallback: Callable = init_to_median,
) -> Any:
    """An init_loc_fn that starts components at rows of the data that are far from each other.

    The first row is drawn uniformly. The probability of each next row is proportional to its
    squared distance to the nearest row that was already drawn.

    Args:
        site: leave it out; the automatic guide passes it.
        rows: data of shape (N, ...) by the name of a site of shape (K, ...), N >= K.
        fallback: the init_loc_fn of all other sites.

    Raises:
        ValueError: naming the site, if its rows do not fit, or are not inside of its support.

    Source: k-means++, Arthur and Vassilvitskii 2007.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoDelta
        >>> x = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])
        >>> def model():
        ...     with pyro.plate("components", 2):
        ...         pyro.sample("locs", dist.Normal(0.0, 10.0))
        >>> pyro.clear_param_store()
        >>> guide = AutoDelta(model, init_loc_fn=init_to_rows(rows={"locs": x}))
        >>> start = guide()["locs"]
        >>> all(loc in x for loc in start), bool(start[0] == start[1])
        (True, False)
    """
    given = rows or {}
    if site is None:
        return partial(init_to_rows, rows=given, fallback=fallback)
    if site["name"] not in given:
        return fallback(site)
    data = torch.as_tensor(given[site["name"]])
    shape = site["fn"].shape()
    check_rows_for(site["name"], shape, data.shape)
    law = type(innermost(site["fn"])).__name__
    inside = _are_inside(site["fn"].support, data)
    check_inside(site["name"], law, data.numpy(force=True), inside.numpy(force=True))
    flat = data.reshape(len(data), -1).to(torch.get_default_dtype())
    found, weight = [], torch.ones(len(data), device=data.device)
    nearest = torch.full_like(weight, torch.inf)
    for _ in range(shape[0]):
        row = torch.multinomial(weight, 1)
        found.append(row)
        nearest = torch.minimum(nearest, (flat - flat[row]).square().sum(-1))
        weight = nearest if nearest.any() else torch.ones_like(nearest)
    return data[torch.cat(found)].to(flat.dtype)


def _are_inside(support: Any, rows: Tensor) -> Tensor:
    """Whether each row is in the support, and finite without constraints."""
    rows = rows.to(torch.get_default_dtype())[:, None]  # a second axis for those of the site
    free = biject_to(support).inv(rows)
    found = support.check(rows).flatten(1).all(-1)
    return found & free.isfinite().flatten(1).all(-1)


def best_start(
    make: Callable[[], Run], *args: Any, num_starts: int = 10, num_steps: int = 20, **kwargs: Any
) -> Run:
    """The best of several starts: the one with the least mean loss in the second half of its steps.

    It clears the parameter store at each start. At the end the store has the parameters of the best
    start.

    Args:
        make: makes a new model, guide and optimizer, and returns SVI or AnnealedSVI. The guide
            should start at random, for example by init_to_rows.
        *args: what the programs take.
        num_starts: number of starts.
        num_steps: number of steps of each start.
        **kwargs: what the programs take.

    Returns:
        The SVI of the best start, after its first steps.

    Raises:
        ValueError: if the loss of all starts is NaN or infinite.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.infer.autoguide import AutoDelta
        >>> x = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])
        >>> def model():
        ...     with pyro.plate("components", 2):
        ...         locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        ...     parts = dist.Normal(locs, 1.0)
        ...     mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.5, 0.5])), parts)
        ...     with pyro.plate("data", 5):
        ...         pyro.sample("x", mixture, obs=x)
        >>> def make():
        ...     guide = AutoDelta(model, init_loc_fn=init_to_rows(rows={"locs": x}))
        ...     return SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        >>> svi = best_start(make, num_starts=3, num_steps=4)
        >>> losses = [svi.step() for _ in range(10)]
    """
    check_tries(num_starts, num_steps)

    def run() -> tuple[Run, list[float]]:
        pyro.clear_param_store()
        svi = make()
        return svi, [svi.step(*args, **kwargs) for _ in range(num_steps)]

    states, scores = [], []
    for _ in range(num_starts):
        states.append(get_rng_state())
        with validation_enabled(False):  # validation ends the run if a law's parameter is NaN
            _, losses = run()
        late = losses[num_steps // 2 :]
        scores.append(sum(late) / len(late))
    check_scores(scores, num_steps)
    after = get_rng_state()
    finite = [i for i in range(num_starts) if math.isfinite(scores[i])]
    set_rng_state(states[min(finite, key=scores.__getitem__)])
    svi, _ = run()  # run again, since the store holds the parameters of only one start
    set_rng_state(after)
    return svi
