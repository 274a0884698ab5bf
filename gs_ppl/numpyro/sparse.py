"""Rows of logits with an optimizer each: the cost of a step does not depend on their number."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.optim import _NumPyroOptim

from gs_ppl._shared.sparse import refuse_optimizer
from gs_ppl.numpyro.follow import Follows, SameRows, rows_of

__all__: list[str] = []

PAST_THE_END = np.iinfo(np.int32).max  # an index outside of every table
_rows: ContextVar[Mapping[str, Array] | None] = ContextVar("rows", default=None)  # by table


def is_in_step() -> bool:
    """Within a step of ByRow a table has only the rows of its plate; elsewhere it has all rows."""
    return _rows.get() is not None


def rows_of_table(table: Array, rows: Array) -> Array:
    return table if is_in_step() else jnp.asarray(table)[rows]


def automatic(guide: Any) -> Follows | None:
    """The automatic guide inside of handlers, if it has sparse rows, or a part that has."""
    while not isinstance(guide, Follows):
        guide = getattr(guide, "fn", None)
        if guide is None:
            return None
    return guide if any(getattr(part, "sparse", False) for part in parts_of(guide)) else None


def parts_of(guide: Any) -> list[Any]:
    return getattr(guide, "_guides", [guide])


def tables_of(guide: Any) -> dict[str, str]:
    """The plate of each parameter that is a table with sparse rows."""
    return {t: p for part in parts_of(guide) for t, p in getattr(part, "tables", {}).items()}


@contextmanager
def rows_of_step(guide: Follows, key: Array, args: tuple, kwargs: dict) -> Iterator[None]:
    """Within it guide, model and all particles use the same rows."""
    with handlers.block(), handlers.seed(rng_seed=key):
        rows = rows_of(guide._create_plates(*args, **kwargs))
    token = _rows.set({table: rows[plate] for table, plate in tables_of(guide).items()})
    try:
        with SameRows(None, rows):
            yield
    finally:
        _rows.reset(token)


class ByRow(_NumPyroOptim):
    """Each row of a table has its own state of the optimizer; a step changes only the rows in it.

    The loss is differentiated only by the rows of a step. Their states are written in place if the
    state is donated, as by jax.jit(svi.update, donate_argnums=0), and in scan.

    Args:
        optim: for the rows, and for all other parameters together.
        tables: names of the parameters that are tables.
    """

    def __init__(self, optim: _NumPyroOptim, tables: Callable[[], Mapping[str, str]]) -> None:
        if type(optim).eval_and_update is not _NumPyroOptim.eval_and_update:
            refuse_optimizer(type(optim).__name__, "it evaluates the loss more than once")
        self.optim, self.tables = optim, tables
        super().__init__(lambda: (self._init, self._update, self._params), update_with_value=True)

    def _init(self, params: dict[str, Array]) -> tuple[Any, dict[str, Any]]:
        rows = {name: jax.vmap(self.optim.init)(params[name]) for name in self.tables()}
        return self.optim.init({n: p for n, p in params.items() if n not in rows}), rows

    def _update(self, i: Array, grads: dict[str, Array], state: tuple, value: Array) -> tuple:
        rest, rows = state
        update = partial(self.optim.update, value=value)
        rows = {name: jax.vmap(update)(grads[name], state) for name, state in rows.items()}
        return update({n: g for n, g in grads.items() if n not in rows}, rest), rows

    def _params(self, state: tuple) -> dict[str, Array]:
        rest, rows = state
        tables = {name: jax.vmap(self.optim.get_params)(state) for name, state in rows.items()}
        return self.optim.get_params(rest) | tables

    def eval_and_update(self, fn: Callable, state: tuple, *args: Any, **kwargs: Any) -> tuple:
        return self._at_rows(super().eval_and_update, fn, state, *args, **kwargs)

    def eval_and_stable_update(
        self, fn: Callable, state: tuple, *args: Any, **kwargs: Any
    ) -> tuple:
        return self._at_rows(super().eval_and_stable_update, fn, state, *args, **kwargs)

    def _at_rows(
        self, step: Callable, fn: Callable, state: tuple, *args: Any, **kwargs: Any
    ) -> tuple:
        """The same step on a small state with the rows of the batch; a repeated row is one row."""
        i, (rest, tables) = state
        at = {
            name: jnp.unique(rows, return_inverse=True, size=len(rows), fill_value=PAST_THE_END)
            for name, rows in (_rows.get() or {}).items()
        }
        few = {n: jax.tree.map(partial(_get, rows), tables[n]) for n, (rows, _) in at.items()}

        def of_rows(params: dict[str, Array]) -> tuple:
            return fn({n: p[at[n][1]] if n in at else p for n, p in params.items()})

        result, (i, (rest, few)) = step(of_rows, (i, (rest, few)), *args, **kwargs)
        put = {
            n: jax.tree.map(partial(_put, rows), tables[n], few[n]) for n, (rows, _) in at.items()
        }
        return result, (i, (rest, put))


def _get(at: Array, table: Array) -> Array:
    return table.at[at].get(mode="clip")


def _put(at: Array, table: Array, rows: Array) -> Array:
    return table.at[at].set(rows, mode="drop")
