"""The rules for soft indices, one for each operation of JAX.

A rule takes the trace, the primitive, its parameters and its arguments; the trace below is current.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gs_ppl.numpyro.soft_value import (
    INDEX_CURE,
    Axis,
    Soft,
    align,
    counter,
    fresh,
    full,
    lift,
    mean,
    refuse,
    sites_of,
    tail,
)

__all__: list[str] = []

DRAWS_CURE = "turn it into a float first, as in z.astype(float) or one_hot(z)"


def spec_of(x: Any) -> jax.ShapeDtypeStruct:
    aval = x.aval if isinstance(x, Soft) else jax.typeof(x)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def result(primitive: Any, params: dict[str, Any], args: Any) -> Any:
    """The result of the integer program: shape, dtype and weak type."""
    return jax.eval_shape(lambda *xs: primitive.bind(*xs, **params), *map(spec_of, args))


def is_float(x: Any) -> bool:
    return jnp.issubdtype(spec_of(x).dtype, jnp.floating)


def as_mean(x: Any) -> Any:
    return mean(x) if isinstance(x, Soft) else x


# --- element by element ---------------------------------------------------------------------------


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    exact = np.issubdtype(a.dtype, np.integer)
    return (np.trunc(a / b) if exact else a / b).astype(a.dtype)


# NumPy's counterparts: under jit a constant table stays a constant, and can be recognised
NUMPY: dict[str, Callable] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "sign": np.sign,
    "abs": np.abs, "max": np.maximum, "min": np.minimum, "rem": np.fmod, "div": _quotient,
    "add_any": np.add, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "square": np.square, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
}  # fmt: skip
CONSTANT: dict[str, Callable] = {
    **{name: lambda p, *xs, f=f: f(*xs) for name, f in NUMPY.items()},
    "convert_element_type": lambda p, x: x.astype(p["new_dtype"]),
    "integer_pow": lambda p, x: x ** p["y"],
    "clamp": lambda p, low, x, high: np.clip(x, low, high),
    "select_n": lambda p, which, *cases: np.choose(which.astype(int), cases),
}
ELEMENTWISE = {
    *CONSTANT, "pow", "exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt", "logistic", "tanh",
    "sin", "cos", "tan", "erf", "erfc", "erf_inv", "lgamma", "digamma", "floor", "ceil", "round",
    "is_finite", "shift_left", "shift_right_arithmetic", "shift_right_logical",
}  # fmt: skip


def _compute(primitive: Any, params: dict[str, Any], tables: list[Any]) -> Any:
    if primitive.name in CONSTANT and all(isinstance(t, np.ndarray) for t in tables):
        with np.errstate(all="ignore"):
            return np.asarray(CONSTANT[primitive.name](params, *tables))
    shape = np.broadcast_shapes(*map(np.shape, tables))
    return primitive.bind(*(jnp.broadcast_to(t, shape) for t in tables), **params)


def elementwise(trace: Any, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """On the tables; on the mean if a float array of the program takes part."""
    name, out = primitive.name, result(primitive, params, args)
    facts = [None if isinstance(x, Soft) else trace.value(x) for x in args]
    soft = [i for i, x in enumerate(args) if isinstance(x, Soft)]
    ends = any(
        fact is None and i not in soft and is_float(x)
        for i, (x, fact) in enumerate(zip(args, facts, strict=True))
    )
    if any(args[i].total for i in soft) and (name in SUMS or (name == "mul" and len(soft) == 1)):
        means = [jnp.asarray(as_mean(x), jnp.result_type(float)) for x in args]
        value = means[0] if name == "convert_element_type" else primitive.bind(*means)
        return value.astype(out.dtype) if is_float(out) else total(trace, value, args, out)
    if name == "eq" and args[0] is args[1] and args[0].total:  # laws test for NaN like this
        return jnp.ones(out.shape, bool)
    linear = name in ("add", "sub", "mul") or (name == "div" and soft == [0])
    if ends and linear and len(soft) == 1:
        return primitive.bind(*map(as_mean, args), **params)
    if name == "select_n" and soft == [0] and args[0].aval.dtype == bool:
        args[0] = _of_two(trace, args[0])
    if name == "select_n" and 0 not in soft and any(args[i].total for i in soft):
        return structural(trace, primitive, params, args)
    if name == "select_n" and 0 not in soft and not ends and _one_form(trace, args[1:]):
        return structural(trace, primitive, params, args)
    given = [x if fact is None else fact for x, fact in zip(args, facts, strict=True)]
    axes, tables = align(name, given, len(out.shape))
    x = trace.make(_compute(primitive, params, tables), axes, out)
    return mean(x) if ends and x.is_float else x


SUMS = {"add", "sub", "neg", "convert_element_type"}


def total(trace: Any, value: Any, args: list[Any], out: Any) -> Soft:
    """A sum of bits over draws: an integer; only its mean is known."""
    sites = sites_of(args)
    aval = jax.core.ShapedArray(out.shape, out.dtype, weak_type=out.weak_type)
    form = partial(refuse, sites, "a class or index from a sum over several draws", DRAWS_CURE)
    return Soft(trace, aval, form, total=(value, sites))


def _moved_total(
    trace: Any, primitive: Any, params: dict[str, Any], args: list[Any], data: range, outs: Any
) -> Any:
    """A structural move of totals: the same move of their means."""
    dtype = jnp.result_type(float)
    given = [jnp.asarray(as_mean(x), dtype) if i in data else x for i, x in enumerate(args)]
    found, soft = primitive.bind(*given, **params), [args[i] for i in data]
    if isinstance(found, list | tuple):
        return [total(trace, x, soft, out) for x, out in zip(found, outs, strict=True)]
    return total(trace, found, soft, outs)


def _of_two(trace: Any, x: Soft) -> Soft:
    """A condition as two classes, with its probability, whatever the number of classes before."""
    if len(x.axes) == 1 and len(x.axes[0].weights) == 2:
        return x
    # both from the table: if one case is certain, the weight of the other is exactly 0
    no = trace.make(~x.table, x.axes, x.aval)
    axis = Axis(jnp.stack([mean(no), mean(x)]), fresh(x.aval.shape), x.sites)
    return trace.make(np.array([False, True]).reshape(2, *(1,) * x.ndim), [axis], x.aval)


def _one_form(trace: Any, cases: list[Any]) -> bool:
    """Whether a choice among them is a choice among draws that have the same table."""
    soft = [x for x in cases if isinstance(x, Soft)]
    if any(len(x.axes) != 1 for x in soft):
        return False
    return len(soft) == len(cases) or _one_table(_common(trace, cases)) is not None


# functions made of several operations; the mean is taken after them
WHOLE = {"floor_divide", "remainder", "divmod"}


def is_whole(trace: Any, params: dict[str, Any], args: Any) -> bool:
    """Whether this is such a function, with a float array that would end the table inside."""
    return params.get("name") in WHOLE and any(
        not isinstance(x, Soft) and is_float(x) and trace.value(x) is None for x in args
    )


def by_cells(trace: Any, call: Callable, args: list[Any], *, whole: bool = False) -> list[Any]:
    """A function of several operations, if it is elementwise; a `whole` one is."""
    closed = jax.make_jaxpr(lambda *xs: call(xs))(*map(spec_of, args))  # it can be called only once
    jaxpr: Any = closed.jaxpr
    if not whole and not _is_elementwise(jaxpr):
        refuse(sites_of(args), "a function that is not element by element", DRAWS_CURE)
    shape = jaxpr.outvars[0].aval.shape
    axes, tables = align("a function", args, len(shape))
    m = len(axes)
    lead = np.broadcast_shapes(*(np.shape(t)[:m] for t in tables if np.ndim(t)))
    cells = [
        _cells(t, m, lead, np.shape(x)).astype(spec_of(x).dtype)
        for t, x in zip(tables, args, strict=True)
    ]
    f: Callable = partial(jax.core.eval_jaxpr, jaxpr, closed.consts)
    for _ in range(m):
        f = jax.vmap(f)
    outs = [trace.make(t, axes, jax.ShapeDtypeStruct(shape, t.dtype)) for t in f(*cells)]
    return [mean(x) if x.is_float else x for x in outs]


def _cells(table: Any, m: int, lead: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """A table, which may have more dimensions of size 1 than the value, cell by cell."""
    if np.ndim(table):
        table = table.reshape(table.shape[:m] + (tail(table, m)[-len(shape) :] if shape else ()))
    return jnp.broadcast_to(table, lead + shape)


def _is_elementwise(jaxpr: Any) -> bool:
    shape = jaxpr.outvars[0].aval.shape
    for eqn in jaxpr.eqns:
        inner = list(jaxprs(eqn.params))
        same = all(v.aval.shape in ((), shape) for v in (*eqn.invars, *eqn.outvars))
        known = eqn.primitive.name in ELEMENTWISE | {"broadcast_in_dim", "copy", "stop_gradient"}
        if not same or not (all(map(_is_elementwise, inner)) if inner else known):
            return False
    return True


def jaxprs(params: dict[str, Any]) -> list[Any]:
    """The functions in the parameters of a primitive."""
    values = (v if isinstance(v, tuple | list) else (v,) for v in params.values())
    found = (getattr(x, "jaxpr", x) for x in itertools.chain(*values))
    return [x for x in found if hasattr(x, "eqns")]


# --- structure ------------------------------------------------------------------------------------


def _broadcast(p: dict[str, Any], x: np.ndarray) -> np.ndarray:
    shape = [1] * len(p["shape"])
    for size, d in zip(x.shape, p["broadcast_dimensions"], strict=True):
        shape[d] = size
    return np.broadcast_to(x.reshape(shape), p["shape"])


def _slice(p: dict[str, Any], x: np.ndarray) -> np.ndarray:
    strides = p["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]


def _split(p: dict[str, Any], x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, np.cumsum(p["sizes"])[:-1], p["axis"])


MOVES: dict[str, Callable] = {
    "reshape": lambda p, x: x.reshape(p["new_sizes"]),
    "squeeze": lambda p, x: x.squeeze(p["dimensions"]),
    "transpose": lambda p, x: x.transpose(p["permutation"]),
    "rev": lambda p, x: np.flip(x, p["dimensions"]),
    "broadcast_in_dim": _broadcast, "slice": _slice, "split": _split,
    "copy": lambda p, x: x, "copy_p": lambda p, x: x,
    "concatenate": lambda p, *xs: np.concatenate(xs, p["dimension"]),
    "stack": lambda p, *xs: np.stack(xs, p["axis"]),
    "unstack": lambda p, x: list(np.moveaxis(x, p["axis"], 0)),
}  # fmt: skip
DATA = {"select_n": slice(1, None), "gather": slice(1), "dynamic_slice": slice(1)}


def structural(trace: Any, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """The same move on table, weights and ids."""
    where = DATA.get(primitive.name, slice(None))
    data, places = args[where], range(len(args))[where]
    controls = {i: x for i, x in enumerate(args) if i not in places}
    outs = result(primitive, params, args)
    if any(isinstance(x, Soft) and x.total for x in data):
        return _moved_total(trace, primitive, params, args, places, outs)
    facts = {i: trace.value(x) for i, x in controls.items()}

    def run(controls: dict[int, Any], *data: Any) -> Any:
        given = controls | dict(zip(places, data, strict=True))
        return primitive.bind(*(given[i] for i in range(len(args))), **params)

    if any(fact is None for fact in facts.values()):
        return _moved_blindly(trace, partial(run, controls), data, outs)
    offsets = np.cumsum([0, *(math.prod(np.shape(x)) for x in data)])
    grids = [
        np.arange(n, n + math.prod(np.shape(x))).reshape(np.shape(x))
        for n, x in zip(offsets, data, strict=False)
    ]
    if primitive.name in MOVES:
        found = MOVES[primitive.name](params, *grids)
    else:
        with jax.ensure_compile_time_eval():
            given = {
                i: jnp.broadcast_to(f, np.shape(args[i])).astype(spec_of(args[i]).dtype)
                for i, f in facts.items()
            }
            found = run(given, *(jnp.asarray(grid, jnp.int32) for grid in grids))
    x = data[0] if len(data) == 1 else _joined(trace, data, outs)
    if isinstance(found, list | tuple):
        return [moved(trace, x, np.asarray(f), o) for f, o in zip(found, outs, strict=True)]
    return moved(trace, x, np.asarray(found), outs)


def moved(trace: Any, x: Soft, found: np.ndarray, out: Any) -> Soft:
    """The elements of x at these positions."""
    at = partial(take, shape=x.aval.shape, found=found)
    axes = [a._replace(weights=at(a.weights, 1), ids=at(a.ids, 0)) for a in x.axes]
    return trace.make(at(x.table, len(x.axes)), axes, out)


def _strides(shape: Sequence[int]) -> list[int]:
    """The strides of a shape, in elements."""
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]


def take(a: Any, lead: int, shape: Sequence[int], found: np.ndarray) -> Any:
    """Elements of a compact array, again as a compact array."""
    classes, rest = a.shape[:lead], tail(a, lead)
    if math.prod(rest) == 1:
        return a.reshape(classes + (1,) * found.ndim)
    found = found[tuple(slice(1) if s == 0 else slice(None) for s in found.strides)]
    if rest != tuple(shape):
        # by hand, since np.unravel_index errs beyond 8192 places where the last axis has one
        strides = zip(rest, _strides(shape), _strides(rest), strict=True)
        found = np.sum([found // a % n * b for n, a, b in strides if n != 1], 0)
        for d in range(found.ndim):
            if (found == found.take([0], d)).all():
                found = found.take([0], d)
    flat, start = a.reshape((*classes, -1)), found.ravel()[0] if found.size else 0
    if (found.ravel() == np.arange(start, start + found.size)).all():
        return flat[..., start : start + found.size].reshape(classes + found.shape)
    return flat[..., found]


def _moved_blindly(trace: Any, run: Callable, data: list[Any], out: Any) -> Soft:
    """Moves by indices that are unknown until the program runs: equal draws are not recognised."""
    parts = _common(trace, data)
    m, token = len(parts[0].axes), next(counter)

    def move(xs: list[Any], lead: int) -> Any:
        f = run
        for _ in range(lead):
            f = jax.vmap(f)
        return f(*(full(x, lead, p.aval.shape) for x, p in zip(xs, parts, strict=True)))

    axes = []
    for like, *others in zip(*(p.axes for p in parts), strict=True):
        w = move([a.weights for a in (like, *others)], 1)
        sites = like.sites.union(*(a.sites for a in others))
        axes.append(Axis(w, fresh(w.shape[1:]), sites, token))
    table = _one_table(parts)
    if table is None:
        table = move([jnp.asarray(p.table) for p in parts], m)
    return trace.make(lift(table, m, len(out.shape)), axes, out)


# --- joining --------------------------------------------------------------------------------------


def _joined(trace: Any, data: list[Any], out: Any) -> Soft:
    """The elements of all arrays, one after the other."""
    parts = _common(trace, data)

    def line(xs: list[Any], lead: int) -> Any:
        library = np if all(isinstance(x, np.ndarray) for x in xs) else jnp
        rows = [full(x, lead, p.aval.shape) for x, p in zip(xs, parts, strict=True)]
        rows = [x.reshape((*x.shape[:lead], -1)) for x in rows]
        return library.concatenate(rows, lead)

    axes, table = [p.axes[0] for p in parts], _one_table(parts)
    tokens = {a.token for a in axes}
    weights, ids = line([a.weights for a in axes], 1), line([a.ids for a in axes], 0)
    axis = Axis(
        weights,
        ids,
        frozenset().union(*(a.sites for a in axes)),
        tokens.pop() if len(tokens) == 1 else next(counter),
        all(a.bit for a in axes),
    )
    table = line([p.table for p in parts], 1) if table is None else table.reshape(-1, 1)
    leaf = jax.tree.leaves(out)[0]
    spec = jax.ShapeDtypeStruct(ids.shape, leaf.dtype, weak_type=leaf.weak_type)
    return trace.make(table, [axis], spec)


def _common(trace: Any, data: list[Any]) -> list[Soft]:
    """Values of one draw each, all with the same number of classes."""
    like = next(x for x in data if isinstance(x, Soft))
    if len(data) == 1:
        return data
    parts = [as_soft(trace, x, like) for x in data]
    if any(len(part.axes) != 1 for part in parts):
        refuse(sites_of(data), "joining values of several draws", INDEX_CURE)
    k = max(len(part.axes[0].weights) for part in parts)

    def padded(x: Any, mode: str) -> Any:
        library = np if isinstance(x, np.ndarray) else jnp
        more = [(0, k - len(x))] + [(0, 0)] * (x.ndim - 1)
        return library.pad(x, more, mode=mode) if len(x) < k else x

    def over_all(x: Soft) -> Soft:
        axis = x.axes[0]._replace(weights=padded(x.axes[0].weights, "constant"))
        return trace.make(padded(x.table, "edge"), [axis], x.aval)

    return list(map(over_all, parts))


def _one_table(parts: list[Soft]) -> np.ndarray | None:
    """The common table, if all have the same one, equal for every element."""
    tables = [p.table for p in parts]
    first = tables[0]
    m = len(parts[0].axes)
    flat = [isinstance(t, np.ndarray) and math.prod(tail(t, m)) == 1 for t in tables]
    same = all(flat) and all(np.array_equal(t.ravel(), first.ravel()) for t in tables)
    return first.reshape(first.shape[:m]) if same else None


def as_soft(trace: Any, x: Any, like: Soft) -> Soft:
    """A plain value as a vertex of the same table, if the table has the value."""
    if isinstance(x, Soft):
        return x
    fact, axis, shape = trace.value(x), like.axes[0], np.shape(x)
    spec = jax.ShapeDtypeStruct(shape, like.aval.dtype, weak_type=like.aval.weak_type)
    k, dtype, table = len(axis.weights), axis.weights.dtype, like.table

    def sure(weights: np.ndarray, table: Any) -> Soft:
        w = jnp.asarray(weights.astype(dtype))
        return trace.make(table, [Axis(w, fresh(w.shape[1:]), axis.sites, axis.token)], spec)

    if fact is not None and isinstance(table, np.ndarray) and table.size == k:
        flat = table.reshape(k, *(1,) * len(shape))
        hit = flat == lift(fact, 0, len(shape))
        if (hit.sum(0) == 1).all():
            return sure(hit, flat)
    first = np.arange(k).reshape(k, *(1,) * len(shape)) == 0
    return sure(first, jnp.broadcast_to(x, (k, *shape)))


def join(trace: Any, primitive: Any, params: dict[str, Any], args: list[Any]) -> Soft:
    """Concatenation, computed at first use: indexing takes an index array apart again."""
    if any(isinstance(x, Soft) and x.total for x in args):
        return structural(trace, primitive, params, args)
    out = result(primitive, params, args)
    aval = jax.core.ShapedArray(out.shape, out.dtype, weak_type=out.weak_type)

    def form() -> Any:
        x = structural(trace, primitive, params, args)
        return x.table, x.axes

    return Soft(trace, aval, form, (params["dimension"], args))


# --- reductions -----------------------------------------------------------------------------------

REDUCE: dict[str, Callable] = {
    "reduce_sum": np.sum, "reduce_prod": np.prod, "reduce_max": np.max, "reduce_min": np.min,
    "reduce_or": np.any, "reduce_and": np.all, "argmax": np.argmax, "argmin": np.argmin,
}  # fmt: skip


def reduction(trace: Any, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """Along the classes of one draw, on the table."""
    (x,), over, name = args, params["axes"], primitive.name
    out, shape = result(primitive, params, args), x.aval.shape
    if x.total and name == "reduce_sum":
        return total(trace, mean(x).sum(over), args, out)
    m = len(x.axes)
    if any((a.ids != a.ids.take([0], d)).any() for a in x.axes for d in over if shape[d]):
        if name == "reduce_sum" and not x.is_float and all(a.bit for a in x.axes):
            return total(trace, mean(x).sum(over), args, out)
        return others(trace, primitive, params, args)
    sizes = enumerate(zip(tail(x.table, m), shape, strict=True))
    table = full(x.table, m, [n if d in over else s for d, (s, n) in sizes])
    where = tuple(m + d for d in over)
    if isinstance(table, np.ndarray):
        where = where[0] if name in ("argmax", "argmin") else where
        table = np.asarray(REDUCE[name](table, where)).astype(out.dtype)
    else:
        table = primitive.bind(table, **(params | {"axes": where}))
    cut = tuple(0 if d in over else slice(None) for d in range(len(shape)))
    axes = [
        a._replace(weights=a.weights[(slice(None), *cut)], ids=np.asarray(a.ids[cut]))
        for a in x.axes
    ]
    return trace.make(table, axes, out)


# --- everything else ------------------------------------------------------------------------------


def others(trace: Any, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """Soft floats are replaced by their means; integers are refused."""
    if any(map(trace.has_sites, jaxprs(params))):
        where = f"a site inside of {primitive.name}"
        refuse(sites_of(args) | {"of the body"}, where, "use scan or a Python loop")
    means = [mean(x) if isinstance(x, Soft) else x for x in args]
    if primitive.name == "dot_general" and any(map(is_float, args)):  # linear: b @ x as well
        dtype = jnp.result_type(*filter(is_float, map(spec_of, args)))
        return primitive.bind(*(x.astype(dtype) for x in means), **params)
    if all(x.is_float for x in args if isinstance(x, Soft)):
        outs = jax.tree.leaves(result(primitive, params, means))
        if all(jnp.issubdtype(out.dtype, jnp.inexact) for out in outs):
            return primitive.bind(*means, **params)
    refuse(sites_of(args), *REFUSED.get(primitive.name, (primitive.name, INDEX_CURE)))


def _over(what: str) -> tuple[str, str]:
    return f"{what} over several draws", DRAWS_CURE


REFUSED = {
    **{f"reduce_{x}": _over(x) for x in ("sum", "prod", "max", "min", "or", "and", "xor")},
    **{x: _over(x) for x in ("argmax", "argmin", "sort", "top_k", "cumsum", "cumprod", "cummax")},
    "while": ("while_loop", "use scan or fori_loop with fixed bounds"),
    "scatter": ("assignment at a soft index (at[z].set)", "use jnp.where(one_hot(z), new, old)"),
    "scatter_add": ("adding integers at a soft index", "begin with an array of floats"),
    "scatter-add": ("adding integers at a soft index", "begin with an array of floats"),
    "dynamic_slice": ("a slice that begins at a soft index", "index a table, as in t[z]"),
    "dynamic_update_slice": ("assignment into or at a soft index", "use jnp.where"),
    "dot_general": ("a product of integer matrices", DRAWS_CURE),
    "pure_callback": ("a NumPy function", "use jax.numpy"),
}
