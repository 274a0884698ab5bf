"""Where a run starts: different components, and the best of several starts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import biject_to
from numpyro.infer import SVI, init_to_median

from gs_ppl._shared.starting import check_inside, check_rows_for, check_scores, check_tries
from gs_ppl._shared.wrappers import innermost
from gs_ppl.numpyro._base import read

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
        >>> import jax.numpy as jnp, numpyro
        >>> import numpyro.distributions as dist
        >>> from numpyro.infer.autoguide import AutoDelta
        >>> x = jnp.array([0.0, 1.0, 10.0, 11.0, 12.0])
        >>> def model():
        ...     with numpyro.plate("components", 2):
        ...         numpyro.sample("locs", dist.Normal(0.0, 10.0))
        >>> guide = AutoDelta(model, init_loc_fn=init_to_rows(rows={"locs": x}))
        >>> with numpyro.handlers.seed(rng_seed=0):
        ...     start = guide()["locs"]
        >>> all(loc in x for loc in start), bool(start[0] == start[1])
        (True, False)
    """
    given = rows or {}
    if site is None:
        return partial(init_to_rows, rows=given, fallback=fallback)
    if site["name"] not in given:
        return fallback(site)
    data = jnp.asarray(given[site["name"]])
    shape = site["fn"].shape(site["kwargs"].get("sample_shape", ()))
    check_rows_for(site["name"], shape, data.shape)
    with jax.ensure_compile_time_eval():  # best_start is compiled; the rows are known before
        inside = _are_inside(site["fn"].support, data)
    if (values := read(inside)) is not None:
        law = type(innermost(site["fn"])).__name__
        check_inside(site["name"], law, np.asarray(data), values.astype(bool))
    flat = data.reshape(len(data), -1).astype(jnp.result_type(data, float))
    found, weight = [], jnp.zeros(len(data))
    nearest = jnp.full_like(weight, jnp.inf)
    for key in jax.random.split(site["kwargs"]["rng_key"], shape[0]):
        row = jax.random.categorical(key, weight)
        found.append(row)
        nearest = jnp.minimum(nearest, jnp.square(flat - flat[row]).sum(-1))
        weight = jnp.where(nearest.any(), jnp.log(nearest), 0.0)
    return data[jnp.stack(found)].astype(flat.dtype)


def _are_inside(support: Any, rows: Array) -> Array:
    """Whether each row is in the support, and finite without constraints."""
    rows = rows.astype(jnp.result_type(rows, float))[:, None]  # a second axis for those of the site
    free = biject_to(support).inv(rows)
    found, finite = (x.reshape(len(rows), -1).all(-1) for x in (support(rows), jnp.isfinite(free)))
    return found & finite


def best_start(
    make: Callable[[], Run],
    *args: Any,
    rng_key: Array,
    num_starts: int = 10,
    num_steps: int = 20,
    **kwargs: Any,
) -> tuple[Run, Any]:
    """The best of several starts: the one with the least mean loss in the second half of its steps.

    All starts run in parallel, in one compiled scan.

    Args:
        make: makes a new model, guide and optimizer, and returns SVI or AnnealedSVI. The guide
            should start at random, for example by init_to_rows.
        *args: what the programs take.
        rng_key: of all starts.
        num_starts: number of starts.
        num_steps: number of steps of each start.
        **kwargs: what the programs take.

    Returns:
        An SVI, and its state after the first steps of the best start: for run(init_state=...).

    Raises:
        ValueError: if the loss of all starts is NaN or infinite.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro
        >>> import numpyro.distributions as dist
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from numpyro.infer.autoguide import AutoDelta
        >>> x = jnp.array([0.0, 1.0, 10.0, 11.0, 12.0])
        >>> def model():
        ...     with numpyro.plate("components", 2):
        ...         locs = numpyro.sample("locs", dist.Normal(0.0, 10.0))
        ...     parts = dist.Normal(locs, 1.0)
        ...     mixture = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), parts)
        ...     with numpyro.plate("data", 5):
        ...         numpyro.sample("x", mixture, obs=x)
        >>> def make():
        ...     guide = AutoDelta(model, init_loc_fn=init_to_rows(rows={"locs": x}))
        ...     return SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
        >>> svi, state = best_start(make, rng_key=jax.random.key(0), num_starts=3, num_steps=4)
        >>> sorted(svi.get_params(state))
        ['locs_auto_loc']
    """
    check_tries(num_starts, num_steps)
    svi = make()
    svi.init(rng_key, *args, **kwargs)  # checks the programs outside of vmap: they keep no tracer

    def start(key: Array) -> tuple[Any, Array]:
        state = make().init(key, *args, **kwargs)  # a guide keeps its first starting point
        update = partial(_update, svi, args, kwargs)
        losses: Array
        state, losses = jax.lax.scan(update, state, None, length=num_steps)
        return state, losses[num_steps // 2 :].mean()

    states, scores = jax.jit(jax.vmap(start))(jax.random.split(rng_key, num_starts))
    if (values := read(scores)) is not None:  # the check does not run within jit
        check_scores(values.tolist(), num_steps)
    found = jnp.where(jnp.isfinite(scores), scores, jnp.inf).argmin()
    return svi, jax.tree.map(lambda leaf: leaf[found], states)


def _update(svi: SVI, args: tuple, kwargs: dict, state: Any, _: None) -> tuple:
    return svi.update(state, *args, **kwargs)
