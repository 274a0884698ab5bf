"""Soft indices in JAX's control flow: cond computes all branches, scan carries weights."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gs_ppl.numpyro._versions import scan_parts, set_current_trace, take_current_trace
from gs_ppl.numpyro.soft_rules import as_soft, spec_of
from gs_ppl.numpyro.soft_value import Axis, Soft, counter, fresh, full, mean, refuse

__all__: list[str] = []


def _eval(trace: Any, closed: Any, args: Sequence[Any]) -> list[Any]:
    with set_current_trace(trace):
        return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *args)


def cond(trace: Any, primitive: Any, params: dict[str, Any], args: list[Any]) -> list[Any]:
    """Computes all branches, and then chooses among their results."""
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
    """A soft value in the carry of a scan: the carry holds its weights."""

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
        return cls(x.table, draws, axis.sites, spec_of(x), axis.weights.dtype)

    def join(self, other: "Slot") -> "Slot":
        """A slot that can hold the values of both."""
        if not np.array_equal(self.table, other.table):
            cure = "carry values of one set of classes"
            refuse(self.sites | other.sites, "a carry whose classes change", cure)
        draws = np.broadcast_shapes(self.draws, other.draws)
        return self._replace(draws=draws, sites=self.sites | other.sites)

    def stacked(self, length: int) -> "Slot":
        """The slot for all steps."""
        spec = self.spec.update(shape=(length, *self.spec.shape))
        return self._replace(table=self.table[:, None], draws=(length, *self.draws), spec=spec)

    def row(self) -> "Slot":
        """The slot for one step."""
        if self.table.shape[1] > 1:
            refuse(self.sites, "scan over an array of integers and draws", "index it in the body")
        spec = self.spec.update(shape=self.spec.shape[1:])
        return self._replace(table=self.table[:, 0], draws=self.draws[1:], spec=spec)

    def weights(self, trace: Any, x: Any) -> Any:
        """The weights of a value; those of a plain value are 1 at its class."""
        if not isinstance(x, Soft):
            w = np.zeros((len(self.table), *self.draws), self.dtype)
            like = trace.make(self.table, [Axis(w, fresh(self.draws), self.sites)], self.spec)
            x = as_soft(trace, x, like)
            if not np.array_equal(x.table, self.table):
                cure = "begin with a number, as in jnp.zeros(n, int), or with a soft index"
                refuse(self.sites, "a carry that begins with an array of integers", cure)
        return full(jnp.asarray(x.axes[0].weights, self.dtype), 1, self.draws)

    def value(self, trace: Any, weights: Any, token: int) -> Soft:
        """The value, as new draws."""
        axis = Axis(weights, fresh(self.draws), self.sites, token)
        return trace.make(self.table, [axis], self.spec)


Slots = Sequence[Slot | None]


def _weights(trace: Any, slots: Slots, xs: Sequence[Any]) -> list[Any]:
    """The weights of soft values; for a float in a plain slot, the mean."""
    return [s.weights(trace, x) if s else _as_mean(x) for s, x in zip(slots, xs, strict=True)]


def _as_mean(x: Any) -> Any:
    return mean(x) if isinstance(x, Soft) else x


def _is_plain_float(x: Any) -> bool:
    return not isinstance(x, Soft) and jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _values(trace: Any, slots: Slots, xs: Sequence[Any], token: int | None) -> list[Any]:
    """Values, as new draws; without a token, they may be equal to other draws of their sites."""
    return [
        s.value(trace, x, next(counter) if token is None else token) if s else x
        for s, x in zip(slots, xs, strict=True)
    ]


def _swapped(slots: Slots, arrays: Sequence[Any]) -> list[Any]:
    """Swaps the first two axes of weights: steps before classes, or classes before steps."""
    return [jnp.moveaxis(a, 1, 0) if s else a for s, a in zip(slots, arrays, strict=True)]


def scan(trace: Any, primitive: Any, params: dict[str, Any], args: list[Any]) -> list[Any]:
    """Runs a scan with weights in its carry; the body is traced again.

    Inside, a soft carry counts as new draws, different from each other and from all that the
    body gets from outside; this is checked at the first carry and after each step.
    """
    consts, init, xs = (list(map(_carried, part)) for part in scan_parts(params, args))
    slots, rows = list(map(Slot.of, init)), list(map(Slot.of, xs))
    apart = _are_apart([*consts, *init, *xs])
    plain_floats = list(map(_is_plain_float, init))
    seen: Any = None

    def body(carry: list[Any], arrays: list[Any]) -> tuple[list[Any], list[Any]]:
        nonlocal seen
        with take_current_trace() as below:
            inner = trace.within(below)
        if seen is None:  # a guess: a carry that starts as a constant integer is one
            facts = [trace.constant(x) for x in init]
            guess = [isinstance(f, np.ndarray) and f.dtype.kind != "f" for f in facts]
            known = itertools.compress(zip(carry, facts, strict=True), guess)
            inner.known |= {id(x): (x, fact) for x, fact in known}
        values = _values(inner, slots, carry, 0)
        values += _values(inner, [s and s.row() for s in rows], arrays, 0 if apart else None)
        outs = _eval(inner, params["jaxpr"], [*map(inner.adopt, consts), *values])
        with set_current_trace(below):
            outs = list(map(_carried, outs))
            after, ys = outs[: len(init)], outs[len(init) :]
            found = list(map(Slot.of, outs))
            # a carry that starts as a plain float, such as a one-hot vector, is a mean
            found[: len(init)] = [
                None if plain else s for s, plain in zip(found, plain_floats, strict=False)
            ]
            seen = found, [a._replace(weights=None) for a in _axes(after)]
            if any(t and not s for s, t in zip(slots, found, strict=False)):
                return carry, []  # not used yet
            return _weights(inner, slots, after), _weights(inner, found[len(init) :], ys)

    rolled = _swapped(rows, _weights(trace, rows, xs))
    first = [jax.eval_shape(lambda x: x[0], x) for x in rolled]
    for _ in range(len(init) + 2):  # until the slots hold the results of the body
        jax.eval_shape(body, _weights(trace, slots, init), first)
        before, slots = (
            slots,
            [s.join(t) if s and t else s or t for s, t in zip(slots, seen[0], strict=False)],
        )
        if _same(before, slots):
            break
    for axes in (_axes(init), seen[1]):
        _check_lags(axes, _axes(consts))
    options = {key: params[key] for key in ("length", "reverse", "unroll")}
    final, ys = lax.scan(body, _weights(trace, slots, init), rolled, **options)
    stacked = [s and s.stacked(params["length"]) for s in seen[0][len(init) :]]
    outs = _values(trace, slots, final, next(counter))
    return outs + _values(trace, stacked, _swapped(stacked, ys), None)


def _carried(x: Any) -> Any:
    """Floats of several draws, or of an array, become their means."""
    single = isinstance(x, Soft) and len(x.axes) == 1 and isinstance(x.table, np.ndarray)
    return mean(x) if isinstance(x, Soft) and x.is_float and not single else x


def _axes(xs: Sequence[Any]) -> list[Axis]:
    return [a for x in xs if isinstance(x, Soft) for a in x.axes]


def _same(slots: Slots, others: Slots) -> bool:
    """Whether no slot has changed, so that the tables are the same."""
    return all(
        (a is None) == (b is None) and (not (a and b) or (a.draws, a.sites) == (b.draws, b.sites))
        for a, b in zip(slots, others, strict=True)
    )


def _are_apart(values: Sequence[Any]) -> bool:
    """Whether all of them hold different draws."""
    axes = _axes(values)
    ids = np.concatenate([np.zeros(0, int), *(a.ids.ravel() for a in axes)])
    return len(np.unique(ids)) == len(ids) and not any(a.token for a in axes)


def _check_lags(axes: list[Axis], outside: list[Axis]) -> None:
    cure = "use a Python loop"
    for i, a in enumerate(axes):
        if len(np.unique(a.ids)) < a.ids.size:
            refuse(a.sites, "a carry that holds one draw several times", cure)
        for b in [*axes[:i], *outside]:
            if np.intersect1d(a.ids, b.ids).size or (a.token != b.token and a.sites & b.sites):
                what = "a carry that holds one draw twice, or a draw that the body also uses"
                refuse(a.sites, what, cure)
