"""The soft index: what a program computes from a relaxed class, as tables over the classes.

A relaxed site holds weights y over the classes 0..K-1. The program gets a soft index z, which is an
integer for JAX. An integer or boolean that it computes from z is kept as a table over the classes,
with the weights y. The value becomes the mean of the table if a float array of the program takes
part, or if the operation is more than arithmetic. So locs[z] is y @ locs, one_hot(z) is y, and at a
vertex every result is that of the integer program.

A JAX trace evaluates these operations while the program runs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, NoReturn

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching

from gs_ppl.numpyro import soft_flow, soft_indexing, soft_rules
from gs_ppl.numpyro._versions import bind_custom, set_current_trace, take_current_trace
from gs_ppl.numpyro.soft_rules import jaxprs
from gs_ppl.numpyro.soft_value import (
    Axis,
    Law,
    Soft,
    SoftIndexError,
    fresh,
    full,
    lift,
    mean,
    refusal,
    refuse,
)

__all__ = [
    "SoftIndexError",
    "as_float",
    "hardened",
    "interpret",
    "leave",
    "soft_bit",
    "soft_index",
    "soft_one_hot",
]

KNOWN = 4096  # largest number of elements of a constant that is kept


# --- the primitive: weights -> an integer, which traces of JAX can stage --------------------------

soft_index_p = jex.Primitive("soft_index")


@soft_index_p.def_impl
def _outside(y: Any, *, law: Law) -> NoReturn:
    raise SoftIndexError(f"site {law.site!r}: a soft index is made inside of interpret(program)")


@soft_index_p.def_abstract_eval
def _abstract(y: Any, *, law: Law) -> Any:
    return jax.core.ShapedArray(y.shape[:-1] if law.kind == "index" else y.shape, law.dtype)


def _batch(args: Any, dims: Any, *, law: Law) -> tuple[Any, int]:
    return soft_index_p.bind(jnp.moveaxis(args[0], dims[0], 0), law=law), 0


batching.primitive_batchers[soft_index_p] = _batch


@partial(ad.primitive_jvps.__setitem__, soft_index_p)
def _jvp(primals: Any, tangents: Any, *, law: Law) -> NoReturn:
    what = "a derivative taken inside the program"
    refuse(frozenset([law.site]), what, "take it outside of relax")


def soft_index(site: str, weights: Any, values: Any = None) -> jax.Array:
    """The soft index of a site, an integer to the program.

    Args:
        site: name of the site, for the errors.
        weights: y, shape batch + (K,).
        values: the integers of the K classes; None: 0..K-1.

    Shapes:
        the batch of the weights.

    Raises:
        SoftIndexError: outside of interpret.
        ValueError: if the values are not K integers.
    """
    weights = jnp.asarray(weights)
    k = weights.shape[-1]
    values = np.arange(k) if values is None else np.asarray(values)
    if values.shape != (k,) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"site {site!r}: values must be {k} integers, got {values.dtype}, shape {values.shape};"
            f" if the guide has {k} classes and the model others, make the guide from this model"
        )
    law = Law(site, "index", tuple(values.tolist()), jnp.arange(1).dtype)
    return soft_index_p.bind(weights, law=law)


def soft_bit(site: str, y: Any) -> jax.Array:
    """A relaxed bit: an integer in NumPyro's programs, with weights 1 - y and y."""
    return soft_index_p.bind(jnp.asarray(y), law=Law(site, "bit", (0, 1), jnp.arange(1).dtype))


def soft_one_hot(site: str, y: Any) -> jax.Array:
    """A relaxed one-hot vector: a float, whose table is the identity."""
    y = jnp.asarray(y)
    return soft_index_p.bind(y, law=Law(site, "one_hot", (), y.dtype))


# --- the trace ------------------------------------------------------------------------------------


CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
RULES: dict[str, Callable] = {
    **dict.fromkeys(soft_rules.ELEMENTWISE, soft_rules.elementwise),
    **dict.fromkeys(soft_rules.MOVES, soft_rules.structural),
    **dict.fromkeys(soft_rules.REDUCE, soft_rules.reduction),
    **dict.fromkeys(("scatter-add", "scatter_add"), soft_indexing.scatter_add),
    "concatenate": soft_rules.join,
    "gather": soft_indexing.gather,
    "dynamic_slice": soft_indexing.dynamic_slice,
    "cond": soft_flow.cond,
    "scan": soft_flow.scan,
}


def _bind(primitive: Any, params: dict[str, Any], args: Any) -> Any:
    return primitive.bind(*args, **params)


class SoftTrace(jax.core.Trace):
    """Evaluates operations on soft indices; passes all others to the trace below."""

    def __init__(self, below: Any, outer: "SoftTrace | None" = None) -> None:
        super().__init__()
        self.below = below
        self.known: dict[int, tuple[Any, np.ndarray]] = dict(outer.known) if outer else {}
        self.contains: dict[int, tuple[Any, bool]] = {}
        self.asked: list[Soft] = outer.asked if outer else []

    def stage_value(self, val: Any) -> Any:
        return val if isinstance(val, Soft) else self.below.stage_value(val)

    def make(self, table: Any, axes: Any, spec: Any) -> Soft:
        aval = jax.core.ShapedArray(tuple(spec.shape), spec.dtype, weak_type=spec.weak_type)
        return Soft(self, aval, (table, tuple(axes)))

    def adopt(self, x: Any) -> Any:
        """The same value in this trace."""
        return Soft(self, x.aval, lambda: x.form, x.parts, x.total) if isinstance(x, Soft) else x

    def within(self, below: Any) -> "SoftTrace":
        return SoftTrace(below, self)

    def process_primitive(self, primitive: Any, args: Any, params: Any, /) -> Any:
        soft, name = any(isinstance(x, Soft) for x in args), primitive.name
        known = not soft and all(self.value(x) is not None for x in args)
        sites = any(map(self.has_sites, jaxprs(params)))
        if name in CALLS and soft and soft_rules.is_whole(self, params, args):
            with set_current_trace(self.below):
                call = partial(_bind, primitive, params)
                return soft_rules.by_cells(self, call, list(args), whole=True)
        if name in CALLS and (soft or known or sites):
            closed = params.get("jaxpr", params.get("call_jaxpr"))
            jaxpr: Any = getattr(closed, "jaxpr", closed)
            with set_current_trace(self):
                return jax.core.eval_jaxpr(jaxpr, getattr(closed, "consts", ()), *args)
        with set_current_trace(self.below):
            if primitive is soft_index_p:
                return self.draw(args[0], params["law"])
            if soft or sites:
                return RULES.get(name, soft_rules.others)(self, primitive, params, list(args))
            out = primitive.bind(*args, **params)
            if known and not primitive.multiple_results:
                self.learn(name, params, args, out)
            return out

    def draw(self, y: Any, law: Law) -> Soft:
        """The soft index itself: its weights have the classes first; each element is a draw."""
        k = y.shape[-1] if law.kind != "bit" else 2
        shape = y.shape if law.kind == "bit" else y.shape[:-1]
        weights = jnp.stack([1 - y, y]) if law.kind == "bit" else jnp.moveaxis(y, -1, 0)
        table, ids = np.array(law.values, law.dtype), fresh(shape)
        if law.kind == "one_hot":
            table, weights, ids = np.eye(k, dtype=law.dtype), weights[..., None], ids[..., None]
        axis = Axis(weights, ids, frozenset([law.site]), bit=law.kind == "bit")
        table = lift(table, 1, ids.ndim)
        spec = jax.ShapeDtypeStruct(y.shape if law.kind == "one_hot" else shape, law.dtype)
        return self.make(table, [axis], spec)

    def process_custom_jvp_call(
        self, primitive: Any, fun: Any, jvp: Any, args: Any, /, **kw: Any
    ) -> Any:
        return self.custom(primitive, (fun, jvp), args, kw)

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, args: Any, /, **kw: Any
    ) -> Any:
        return self.custom(primitive, (fun, fwd, bwd), args, kw)

    def custom(self, primitive: Any, funs: tuple, args: Any, kw: dict[str, Any]) -> Any:
        """A function with a derivative of its own."""
        with set_current_trace(self.below):
            call = partial(bind_custom, primitive, funs, kw=kw)
            if any(isinstance(x, Soft) and not x.is_float for x in args):
                return soft_rules.by_cells(self, call, list(args))
            return call(list(map(soft_rules.as_mean, args)))

    # known from the program's text: numbers, arange, and values computed from them

    def value(self, x: Any) -> np.ndarray | None:
        """A constant, of size 1 along which it is equal; for floats, only single numbers."""
        if id(x) in self.known:
            return self.known[id(x)][1]
        exact = any(jnp.issubdtype(jnp.result_type(x), kind) for kind in (jnp.integer, bool))
        if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not exact):
            return None
        x = np.asarray(x, soft_rules.spec_of(x).dtype)
        return x if x.ndim == 0 or (exact and x.size <= KNOWN) else None

    def constant(self, x: Any) -> Any:
        """A value, as a NumPy array if it is known."""
        found = None if isinstance(x, Soft) else self.value(x)
        return x if found is None else found

    def learn(self, name: str, params: Any, args: Any, out: Any) -> None:
        facts: Any = [self.value(x) for x in args]
        if name == "iota":
            shape, d = params["shape"], params["dimension"]
            value = np.arange(shape[d]).reshape([-1 if i == d else 1 for i in range(len(shape))])
        elif name in soft_rules.CONSTANT:
            facts = [lift(fact, 0, out.ndim) for fact in facts]
            with np.errstate(all="ignore"):
                value = np.asarray(soft_rules.CONSTANT[name](params, *facts))
        elif name in soft_rules.MOVES and len(args) == 1:
            shape = np.shape(args[0])
            found = np.arange(np.size(args[0])).reshape(shape)
            found = np.asarray(soft_rules.MOVES[name](params, found))
            value = soft_rules.take(lift(facts[0], 0, len(shape)), 0, shape, found)
        else:
            return
        # only single floats, and integers that became floats
        exact = not jnp.issubdtype(out.dtype, jnp.inexact)
        exact = exact or name in soft_rules.MOVES or name == "convert_element_type"
        if (value.size == 1 or (exact and value.size <= KNOWN)) and isinstance(out, jax.Array):
            self.known[id(out)] = (out, value.astype(out.dtype))

    def has_sites(self, jaxpr: Any) -> bool:
        """Whether a jaxpr makes soft indices."""
        if id(jaxpr) not in self.contains:
            found = any(
                eqn.primitive is soft_index_p or any(map(self.has_sites, jaxprs(eqn.params)))
                for eqn in jaxpr.eqns
            )
            self.contains[id(jaxpr)] = (jaxpr, found)
        return self.contains[id(jaxpr)][1]


# --- what runs a program --------------------------------------------------------------------------


@contextmanager
def _reading() -> Iterator[None]:
    """Inside, operations on soft indices are read as tables over the classes."""
    with take_current_trace() as below:
        if isinstance(below, SoftTrace):
            with set_current_trace(below):
                yield
            return
        trace = SoftTrace(below)
        try:
            with set_current_trace(trace):
                yield
        except IndexError as error:
            is_mask = isinstance(error, jax.errors.NonConcreteBooleanIndexError)
            if not trace.asked or not (is_mask or "static" in str(error)):
                raise
            what = "use as a boolean index" if is_mask else "a slice that ends or begins at it"
            raise refusal(trace.asked[0].sites, what, "use jnp.where") from error
        trace.known, trace.contains = {}, {}
        trace.asked.clear()
        with set_current_trace(trace, check_leaks=True):
            pass


def constant(x: Any) -> np.ndarray | None:
    """The values of an array, also under jit if they follow from numbers in the program."""
    if not isinstance(x, jax.core.Tracer):
        return np.asarray(x)
    with take_current_trace() as trace:
        return trace.value(x) if isinstance(trace, SoftTrace) else None


def as_float(value: Any) -> Any:
    """The mean of a soft value under its weights; any other value as it is."""
    if not isinstance(value, Soft):
        return value
    with set_current_trace(value._trace.below):
        return mean(value)


def leave(value: Any) -> Any:
    """A soft value, as it leaves the program: the weights of a site, or else the mean.

    Integers that do not grow with the class become weights over 0..max, bits become their mean.
    """
    if not isinstance(value, Soft) or value.is_float or value.aval.dtype == bool or value.total:
        return as_float(value)
    trace, table, axes = value._trace, value.table, value.axes
    if all(a.bit for a in axes):
        return as_float(value)
    constant = isinstance(table, np.ndarray) and len(axes) == 1 and table.size == len(table)
    if constant and (np.diff(table.ravel()) > 0).all():
        with set_current_trace(trace.below):
            w = full(axes[0].weights, 1, value.aval.shape)
            return jnp.moveaxis(w, 0, -1)
    if not isinstance(table, np.ndarray) or table.min() < 0:
        cure = "return a float that is computed from it"
        refuse(value.sites, "returning negative integers or those of an array", cure)
    with set_current_trace(trace):
        return as_float(jax.nn.one_hot(value, int(table.max()) + 1))


def hardened(value: Any) -> jax.Array:
    """The value of the likeliest class, without gradient; for a total, the nearest integer."""
    with set_current_trace(value._trace.below):
        if value.total:
            return lax.stop_gradient(jnp.round(value.total[0]).astype(value.aval.dtype))
        table = jnp.asarray(full(value.table, len(value.axes), value.aval.shape))
        for axis in value.axes:
            best = jnp.broadcast_to(axis.weights.argmax(0), table.shape[1:])
            table = jnp.take_along_axis(table, best[None], 0)[0]
        return lax.stop_gradient(table)


def interpret(fn: Callable) -> Callable:
    """The program, which may now index by soft indices; `leave` replaces those that it returns."""

    @wraps(fn)
    def program(*args: Any, **kwargs: Any) -> Any:
        with _reading():
            return jax.tree.map(leave, fn(*args, **kwargs))

    return program
