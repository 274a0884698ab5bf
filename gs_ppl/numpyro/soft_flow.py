"""What JAX's control flow does to soft indices: cond takes all branches, scan carries weights."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gs_ppl.numpyro._versions import scan_parts, set_current_trace, take_current_trace
from gs_ppl.numpyro.soft_rules import as_soft
from gs_ppl.numpyro.soft_value import Axis, Soft, counter, fresh, full, mean, refuse

__all__: list[str] = []


def _eval(trace: Any, closed: Any, args: Sequence[Any]) -> list[Any]:
    with set_current_trace(trace):
        return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *args)


def cond(trace: Any, primitive: Any, params: dict[str, Any], args: list[Any]) -> list[Any]:
    """All branches, and then a choice among their results."""
    which, *operands = args
    cases = [_eval(trace, branch, operands) for branch in params["branches"]]

    def chosen(out: Sequence[Any]) -> Any:
        if all(x is out[0] for x in out):
            return out[0]
        with set_current_trace(trace):
            index = jnp.broadcast_to(which, np.shape(out[0])).astype(jnp.int32)
            return lax.select_n(index, *out)

    return list(map(chosen, zip(*cases, strict=True)))


class Slot(NamedTuple):
    """What a soft value is in the carry of a scan, which holds its weights."""

    table: np.ndarray
    draws: tuple[int, ...]  # their shape
    sites: frozenset[str]
    spec: Any  # of the value: shape, dtype and weak type
    dtype: Any  # of the weights

    @classmethod
    def of(cls, x: Any) -> "Slot | None":
        if not isinstance(x, Soft):
            return None
        if len(x.axes) > 1 or not isinstance(x.table, np.ndarray):
            cure = "carry the draws themselves, or a float that is computed from them"
            refuse(x.sites, "a carry that is computed from several draws or from an array", cure)
        (axis,) = x.axes
        draws = np.broadcast_shapes(axis.ids.shape, axis.weights.shape[1:])
        return cls(x.table, draws, axis.sites, x.aval, axis.weights.dtype)

    def join(self, other: "Slot") -> "Slot":
        """The slot that holds the values of both."""
        if not np.array_equal(self.table, other.table):
            cure = "carry values of one set of classes"
            refuse(self.sites | other.sites, "a carry whose classes change", cure)
        draws = np.broadcast_shapes(self.draws, other.draws)
        return self._replace(draws=draws, sites=self.sites | other.sites)

    def weights(self, trace: Any, x: Any) -> Any:
        """Those of a value; of a plain one, which is sure."""
        if not isinstance(x, Soft):
            w = np.zeros((len(self.table), *self.draws), self.dtype)
            like = trace.make(self.table, [Axis(w, fresh(self.draws), self.sites)], self.spec)
            x = as_soft(trace, x, like)
            if not np.array_equal(x.table, self.table):
                cure = "begin with a number, as in jnp.zeros(n, int), or with a soft index"
                refuse(self.sites, "a carry that begins with an array of integers", cure)
        return full(jnp.asarray(x.axes[0].weights, self.dtype), 1, self.draws)

    def value(self, trace: Any, weights: Any, token: int = 0) -> Soft:
        """As new draws."""
        axis = Axis(weights, fresh(self.draws), self.sites, token)
        return trace.make(self.table, [axis], self.spec)


def scan(trace: Any, primitive: Any, params: dict[str, Any], args: list[Any]) -> list[Any]:
    """Weights in the carry; the body is read anew.

    Inside, a soft carry is taken for new draws, which differ from each other and from all that the
    body gets from outside; this is checked where the carry begins and where it goes on.
    """
    consts, init, xs = scan_parts(params, args)
    slots, rows = [Slot.of(as_carried(x)) for x in init], [Slot.of(x) for x in xs]
    outside = [a for x in consts if isinstance(x, Soft) for a in x.axes]
    apart = _are_apart([x for x in args if isinstance(x, Soft)])
    seen: Any = None

    def body(carry: list[Any], arrays: list[Any]) -> tuple[list[Any], list[Any]]:
        nonlocal seen
        with take_current_trace() as below:
            inner = trace.within(below)
        if seen is None:  # a guess: what begins as a constant is one
            facts = zip(carry, map(trace.constant, init), strict=True)
            inner.known |= {id(x): (x, fact) for x, fact in facts if isinstance(fact, np.ndarray)}
        values = [s.value(inner, w) if s else w for s, w in zip(slots, carry, strict=True)]
        values += [
            _row(inner, slot, a, apart) if slot else a for slot, a in zip(rows, arrays, strict=True)
        ]
        outs = _eval(inner, params["jaxpr"], [*map(inner.adopt, consts), *values])
        with set_current_trace(below):
            after, ys = list(map(as_carried, outs[: len(init)])), outs[len(init) :]
            axes = [_bare(a) for x in after if isinstance(x, Soft) for a in x.axes]
            seen = list(map(Slot.of, after)), axes, list(map(_recipe, ys))
            if any(isinstance(x, Soft) and not s for s, x in zip(slots, after, strict=True)):
                return carry, []  # of no use yet
            carry = [s.weights(inner, x) if s else x for s, x in zip(slots, after, strict=True)]
            return carry, [a for y in ys for a in _flat(y)]

    def begin() -> list[Any]:
        return [
            s.weights(trace, as_carried(x)) if s else x for s, x in zip(slots, init, strict=True)
        ]

    rolled = [_rolled(x) for x in xs]
    for _ in range(len(init) + 2):  # until the slots hold what the body hands on
        jax.eval_shape(body, begin(), [jax.eval_shape(lambda x: x[0], x) for x in rolled])
        joined = [s.join(t) if s and t else s or t for s, t in zip(slots, seen[0], strict=True)]
        if _same(slots, joined):
            break
        slots = joined
    _check_lags([a for x in init if isinstance(x, Soft) for a in x.axes], outside)
    _check_lags(seen[1], outside)
    options = {key: params[key] for key in ("length", "reverse", "unroll")}
    final, stacked = lax.scan(body, begin(), rolled, **options)
    token = next(counter)
    outs = [s.value(trace, w, token) if s else w for s, w in zip(slots, final, strict=True)]
    return outs + _stacked(trace, seen[2], iter(stacked), params["length"])


def as_carried(x: Any) -> Any:
    """Floats of several draws are their means."""
    floats = isinstance(x, Soft) and x.is_float
    return mean(x) if floats and (len(x.axes) > 1 or not isinstance(x.table, np.ndarray)) else x


def _same(slots: list[Any], joined: list[Any]) -> bool:
    """Whether no slot has changed; the tables are those of before."""
    return all(
        (a is None) == (b is None) and (a is None or (a.draws, a.sites) == (b.draws, b.sites))
        for a, b in zip(slots, joined, strict=True)
    )


def _are_apart(values: list[Soft]) -> bool:
    """Whether no two of them hold the same draw."""
    axes = [a for x in values for a in x.axes]
    ids = np.concatenate([np.zeros(0, int), *(a.ids.ravel() for a in axes)])
    return len(np.unique(ids)) == len(ids) and not any(a.token for a in axes)


def _check_lags(axes: list[Axis], outside: list[Axis]) -> None:
    cure = "use a Python loop"
    for i, a in enumerate(axes):
        if len(np.unique(a.ids)) < a.ids.size:
            refuse(a.sites, "a carry that holds one draw several times", cure)
        for b in [*axes[:i], *outside]:
            if np.intersect1d(a.ids, b.ids).size or (a.token != b.token and a.sites & b.sites):
                what = "a carry that holds one draw twice, or one that the body uses besides"
                refuse(a.sites, what, cure)


def _rolled(x: Any) -> Any:
    """What scan goes through, first dimension first."""
    if not isinstance(x, Soft):
        return x
    w = x.axes[0].weights
    return jnp.moveaxis(full(w, 1, x.aval.shape[:1] + w.shape[2:]), 1, 0)


def _row(trace: Any, slot: Slot, weights: Any, apart: bool) -> Soft:
    """One step's slice; draws of its own if no other soft value of the scan holds them."""
    if slot.table.size > len(slot.table) and slot.table.shape[1] > 1:
        refuse(slot.sites, "scan over an array of integers and draws", "index in the body")
    s = slot.spec
    spec = jax.ShapeDtypeStruct(s.shape[1:], s.dtype, weak_type=s.weak_type)
    axis = Axis(weights, fresh(weights.shape[1:]), slot.sites, 0 if apart else next(counter))
    return trace.make(slot.table[:, 0], [axis], spec)


def _bare(axis: Axis) -> Axis:
    """Without arrays of the body, which must not leave it."""
    return axis._replace(weights=None)


def _recipe(y: Any) -> Any:
    """What a step returns, without its arrays: axes, table if it is a constant, and type."""
    if not isinstance(y, Soft):
        return None
    table = y.table if isinstance(y.table, np.ndarray) else None
    return list(map(_bare, y.axes)), table, y.aval


def _flat(y: Any) -> list[Any]:
    """The arrays of what a step returns."""
    if not isinstance(y, Soft):
        return [y]
    table = [] if isinstance(y.table, np.ndarray) else [y.table]
    return [*(jnp.asarray(a.weights) for a in y.axes), *table]


def _stacked(trace: Any, recipes: list[Any], arrays: Iterator[Any], length: int) -> list[Any]:
    """What the steps return, as draws of their own: those of other steps are not known apart."""
    tokens: dict[bytes, tuple[int, np.ndarray]] = {}

    def stacked(axis: Axis) -> Axis:
        ids = axis.ids
        if ids.tobytes() not in tokens:
            tokens[ids.tobytes()] = next(counter), fresh((length, *ids.shape))
        token, new = tokens[ids.tobytes()]
        return Axis(jnp.moveaxis(next(arrays), 0, 1), new, axis.sites, token)

    def value(recipe: Any) -> Any:
        if recipe is None:
            return next(arrays)
        axes, m = list(map(stacked, recipe[0])), len(recipe[0])
        _, table, s = recipe
        table = jnp.moveaxis(next(arrays), 0, m) if table is None else np.expand_dims(table, m)
        spec = jax.ShapeDtypeStruct((length, *s.shape), s.dtype, weak_type=s.weak_type)
        return trace.make(table, axes, spec)

    return list(map(value, recipes))
