"""The soft index: what a program computes from a relaxed class, read as tables over the classes.

A relaxed site holds weights y over the classes 0..K-1. The program gets a soft index z, an integer
to JAX. Whatever integer or boolean it computes from z is carried as its table over the classes,
with the weights y; where a float array of the program enters, or the program does more than
arithmetic, the value becomes the mean of the table. So locs[z] is y @ locs, one_hot(z) is y, and
at a vertex every form equals the integer program.

A JAX trace that is current while the program runs does the reading.
"""

import itertools
import math
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, NamedTuple, NoReturn

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching

__all__ = [
    "SoftIndexError",
    "as_float",
    "hardened",
    "interpret",
    "leave",
    "reading_soft_indices",
    "soft_bit",
    "soft_index",
    "soft_one_hot",
]

CAP = 2**24  # elements of a product table
KNOWN = 4096  # elements of a constant that is remembered


class SoftIndexError(ValueError):
    """A program uses a soft index in a way that has no meaning for one."""


def _names(sites: frozenset[str]) -> str:
    return f"site{'s' * (len(sites) > 1)} {', '.join(map(repr, sorted(sites)))}"


def refusal(sites: frozenset[str], operation: str, cure: str) -> SoftIndexError:
    return SoftIndexError(f"{_names(sites)}: {operation} is not defined for a soft index; {cure}")


def refuse(sites: frozenset[str], operation: str, cure: str) -> NoReturn:
    raise refusal(sites, operation, cure)


INDEX_CURE = "index a table with it, compare it, or use jnp.where"
DRAWS_CURE = "turn it into a float first, as in z.astype(float) or one_hot(z)"


# --- versions of JAX: the names that have moved ---------------------------------------------------

_home = jex if hasattr(jex, "set_current_trace") else jax.core  # jax.core before 0.8.2
set_current_trace, take_current_trace = _home.set_current_trace, _home.take_current_trace


def _init_tracer(tracer: Any, trace: Any, aval: Any) -> None:
    """Before 0.8 the constructor takes the trace alone."""
    init: Any = jax.core.Tracer.__init__
    try:
        init(tracer, trace, aval)
    except TypeError:
        init(tracer, trace)
        tracer.aval = aval


def bind_custom(primitive: Any, funs: tuple, args: Any, kw: dict[str, Any]) -> Any:
    """The functions are a keyword from 0.10 on."""
    if jax.__version_info__ >= (0, 10):
        return primitive.bind(*args, subfuns=funs, **kw)
    return primitive.bind(*funs, *args, **kw)


def scan_parts(params: dict[str, Any], args: Any) -> tuple[list, list, list]:
    """Constants, carry and slices; as a tree from 0.12 on."""
    if "ft_in" in params:
        consts, carry, slices = map(list, params["ft_in"].update(args).unpack())
        return consts, carry, slices
    n, m = params["num_consts"], params["num_consts"] + params["num_carry"]
    return list(args[:n]), list(args[n:m]), list(args[m:])


# --- values ---------------------------------------------------------------------------------------


class Axis(NamedTuple):
    """One class axis of a table: the draws that its weights come from.

    `weights` has shape (K, *shape) and `ids` shape `shape`, 1 in dimensions that do not matter; an
    id tells which draw an element comes from. Ids of one `token` can be compared; those of two
    tokens only if no site is common to them (a traced row number, a step of a scan).
    """

    weights: Any
    ids: np.ndarray
    sites: frozenset[str]
    token: int = 0
    bit: bool = False  # of a bit, whose program knows its weight of 1 alone


_counter = itertools.count(1)


def _fresh(shape: Sequence[int]) -> np.ndarray:
    """Ids of new draws."""
    return (next(_counter) << 32) + np.arange(math.prod(shape)).reshape(shape)


class Soft(jax.core.Tracer):
    """A table over the classes of one or several draws; an array to the program."""

    aval: Any = None  # a slot or a property above, by version

    def __init__(
        self, trace: Any, aval: Any, table: Any, axes: Sequence[Axis], parts: Any = None
    ) -> None:
        _init_tracer(self, trace, aval)
        self.table = table  # (K_1, ..., K_m, *shape), 1 where a dimension does not matter
        self.axes = tuple(axes)
        self.parts = parts  # (dimension, what is joined along it): a table made when asked for

    @property
    def sites(self) -> frozenset[str]:
        return frozenset().union(*(axis.sites for axis in self.axes))

    @property
    def is_float(self) -> bool:
        return jnp.issubdtype(self.aval.dtype, jnp.floating)

    def __repr__(self) -> str:
        return f"<soft index of {_names(self.sites)}: {self.aval.str_short()}>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def full_lower(self) -> "Soft":
        return self

    def to_concrete_value(self) -> None:
        """JAX's refusal of a mask as an index does not say which; it asks this before."""
        self._trace.book.asked = self if self.aval.dtype == bool else None


def _refusal(operation: str, cure: str) -> Callable[..., NoReturn]:
    return lambda self, *_, **__: refuse(self.sites, operation, cure)


for _method, _operation, _cure in [
    ("__bool__", "a Python condition (if, while, and, or)", "use jnp.where"),
    ("__index__", "use as a Python integer (range, list index)", INDEX_CURE),
    ("__int__", "int()", INDEX_CURE),
    ("__float__", "float()", INDEX_CURE),
    ("__complex__", "complex()", INDEX_CURE),
    ("__array__", "a NumPy function", "use jax.numpy"),
    ("item", "item()", INDEX_CURE),
    ("tolist", "tolist()", INDEX_CURE),
    ("__hash__", "use as a key (of a dict or a set)", INDEX_CURE),
    ("__reduce__", "pickle", "store the weights that the trace holds"),
    ("__deepcopy__", "deepcopy", "store the weights that the trace holds"),
]:
    setattr(Soft, _method, _refusal(_operation, _cure))


def _tail(x: Any, lead: int) -> tuple[int, ...]:
    return tuple(np.shape(x)[lead:])


def _lift(x: Any, lead: int, ndim: int) -> Any:
    """A scalar beside arrays."""
    missing = ndim - (np.ndim(x) - lead)
    return x.reshape(np.shape(x)[:lead] + (1,) * missing + _tail(x, lead)) if missing else x


def mean(x: Soft) -> jax.Array:
    """sum_k w_k table_k, one contraction over the classes of all draws.

    0 * inf is NaN: what is not finite counts where its weight is not 0.
    """
    shape, m, weights = x.aval.shape, len(x.axes), [axis.weights for axis in x.axes]
    value = _indicator(x)
    if value is None:
        dtypes = [w.dtype for w in weights] + [x.aval.dtype] * x.is_float
        table = jnp.asarray(x.table, jnp.result_type(*dtypes))
        finite = isinstance(x.table, np.ndarray) and bool(np.isfinite(x.table).all())
        finite = finite or not jnp.issubdtype(x.table.dtype, jnp.floating)
        if m == 1 and np.broadcast_shapes(table.shape, weights[0].shape) == table.shape:
            (w,) = weights
            if not finite:
                table = jnp.where((w == 0) & ~jnp.isfinite(table), 0, table)
            value = (w * table).sum(0)
        elif finite:
            value = _contract(table, weights, shape, m)
        else:
            value = _contract(jnp.where(jnp.isfinite(table), table, 0), weights, shape, m)
            args = lax.stop_gradient((table, weights))
            value = value + lax.cond(
                jnp.isfinite(args[0]).all(),
                lambda table, weights: jnp.zeros_like(value),
                lambda table, weights: _infinite(table, weights, shape, m),
                *args,
            )
    return jnp.broadcast_to(value.astype(x.aval.dtype) if x.is_float else value, shape)


def _infinite(table: Any, weights: Sequence[Any], shape: tuple[int, ...], m: int) -> jax.Array:
    """What to add for the entries that are not finite: 0, or one of them."""
    rest = jnp.where(jnp.isfinite(table), 0, jnp.sign(table))
    hit = _contract(rest, [(w != 0).astype(table.dtype) for w in weights], shape, m)
    return jnp.where(hit != 0, hit * jnp.inf, 0)


def _indicator(x: Soft) -> Any:
    """The weights themselves, where the table is that of a bit or a one-hot vector."""
    if len(x.axes) > 1 or not isinstance(x.table, np.ndarray):
        return None
    table, w = x.table, x.axes[0].weights
    if table.size == len(w) == 2 and (table.ravel() == [0, 1]).all():
        return w[1]
    if (
        table.size == len(w) ** 2
        and table.shape[-1] == len(w) > 1
        and w.shape[-1] == 1
        and (table.reshape(len(w), -1) == np.eye(len(w))).all()
    ):
        return jnp.moveaxis(w[..., 0], 0, -1)
    return None


def _contract(table: Any, weights: Sequence[Any], shape: tuple[int, ...], m: int) -> jax.Array:
    classes, dims = string.ascii_letters[:m], string.ascii_letters[m : m + len(shape)]

    def squeezed(x: Any, lead: str) -> tuple[Any, str]:
        kept = [(s, d) for s, d in zip(_tail(x, len(lead)), dims, strict=True) if s != 1]
        shape = np.shape(x)[: len(lead)] + tuple(s for s, _ in kept)
        return x.reshape(shape), lead + "".join(d for _, d in kept)

    pairs = [squeezed(table, classes)]
    pairs += [squeezed(w, c) for w, c in zip(weights, classes, strict=True)]
    out = [d for d in dims if any(d in letters for _, letters in pairs)]
    spec = ",".join(letters for _, letters in pairs) + "->" + "".join(out)
    value = jnp.einsum(spec, *(x for x, _ in pairs))
    return value.reshape([s if d in out else 1 for s, d in zip(shape, dims, strict=True)])


def _same_draws(operation: str, a: Axis, b: Axis) -> bool:
    """Whether two axes hold the same draws everywhere, or different ones everywhere."""
    if a.token != b.token:
        if not a.sites & b.sites:
            return False
    elif a.ids is b.ids:
        return True
    else:
        equal = a.ids == b.ids
        if equal.all() or not equal.any():
            return bool(equal.all())
    refuse(
        a.sites | b.sites,
        f"{operation} of values that share some of their draws",
        "combine values of the same draws, or of different ones, element by element",
    )


def _place(x: Soft, where: list[int], m: int, ndim: int) -> Any:
    """The table of x with its class axes at the positions `where` of m."""
    k = len(where)
    order = sorted(range(k), key=where.__getitem__)
    table = _lift(x.table, k, ndim).transpose(*order, *range(k, k + ndim))
    lead = [1] * m
    for axis, position in enumerate(where):
        lead[position] = x.table.shape[axis]
    return table.reshape(*lead, *_tail(table, k))


def _align(operation: str, xs: Sequence[Any], ndim: int) -> tuple[list[Axis], list[Any]]:
    """The class axes of all, and their tables over these."""
    axes: list[Axis] = []
    positions = []
    for x in xs:
        where = []
        for axis in x.axes if isinstance(x, Soft) else ():
            axis = axis._replace(weights=_lift(axis.weights, 1, ndim), ids=_lift(axis.ids, 0, ndim))
            same = [i for i, other in enumerate(axes) if _same_draws(operation, axis, other)]
            if not same:
                axes.append(axis)
            where.append(same[0] if same else len(axes) - 1)
        positions.append(where)
    m = len(axes)
    tables = [
        _place(x, where, m, ndim)
        if isinstance(x, Soft)
        else x
        if np.ndim(x) == 0
        else x.reshape((1,) * m + np.shape(x))
        for x, where in zip(xs, positions, strict=True)
    ]
    shapes = [np.shape(table) for table in tables]
    size = math.prod(np.broadcast_shapes(*shapes))
    if m > 1 and size > CAP:
        refuse(
            frozenset().union(*(a.sites for a in axes)),
            f"a product table of {size} elements in {operation}",
            "take the sum of floats (z.astype(float)), or use fewer sites at once",
        )
    return axes, tables


# --- the primitive: weights -> an integer, which traces of JAX can stage --------------------------

soft_index_p = jex.Primitive("soft_index")


class Law(NamedTuple):
    """What the weights of a site stand for; static, so that it can stand in a jaxpr."""

    site: str
    kind: str  # "index", "bit", "one_hot"
    values: tuple
    dtype: Any
    draw: Any


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
    refuse(
        frozenset([law.site]), "a derivative taken inside the program", "take it outside of relax"
    )


def soft_index(site: str, weights: Any, values: Any = None, draw: Any = None) -> jax.Array:
    """The soft index of a site, an integer to the program.

    Args:
        site: name of the site, for the errors.
        weights: y, shape batch + (K,).
        values: the K integers that the classes stand for; None: 0..K-1.
        draw: what identifies the draw, if the program gets it more than once; hashable.

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
            f"site {site!r}: values must be {k} integers, got {values.dtype}, shape {values.shape}"
        )
    law = Law(site, "index", tuple(values.tolist()), jnp.arange(1).dtype, draw)
    return soft_index_p.bind(weights, law=law)


def soft_bit(site: str, y: Any) -> jax.Array:
    """A relaxed bit, which is an integer in NumPyro's programs: weights 1 - y and y."""
    return soft_index_p.bind(
        jnp.asarray(y), law=Law(site, "bit", (0, 1), jnp.arange(1).dtype, None)
    )


def soft_one_hot(site: str, y: Any) -> jax.Array:
    """A relaxed one-hot vector: a float, whose table is the identity."""
    y = jnp.asarray(y)
    return soft_index_p.bind(y, law=Law(site, "one_hot", (), y.dtype, None))


# --- the trace ------------------------------------------------------------------------------------


class Book:
    """What one reading remembers: constants of the program, and draws that it gets again."""

    def __init__(self, outer: "Book | None" = None) -> None:
        self.known: dict[int, tuple[Any, np.ndarray, bool]] = dict(outer.known) if outer else {}
        self.draws: dict[Any, np.ndarray] = {}
        self.contains: dict[int, tuple[Any, bool]] = {}
        self.asked: Soft | None = None

    def value(self, x: Any) -> tuple[np.ndarray, bool] | None:
        """A constant with 1 in dimensions that do not matter, and whether it is a number."""
        if isinstance(x, jax.Array):
            found = self.known.get(id(x))
            return found and found[1:]
        x = np.asarray(x)
        return (x, True) if x.ndim == 0 else (x, False) if x.size <= KNOWN else None

    def learn(self, x: Any, value: np.ndarray, number: bool) -> None:
        if value.size <= KNOWN and isinstance(x, jax.Array):
            self.known[id(x)] = (x, value, number)

    def has_sites(self, jaxpr: Any) -> bool:
        """Whether a jaxpr makes soft indices."""
        if id(jaxpr) not in self.contains:
            found = any(
                eqn.primitive is soft_index_p or any(map(self.has_sites, _jaxprs(eqn.params)))
                for eqn in jaxpr.eqns
            )
            self.contains[id(jaxpr)] = (jaxpr, found)
        return self.contains[id(jaxpr)][1]


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            x = getattr(x, "jaxpr", x)
            if hasattr(x, "eqns"):
                yield x


class SoftTrace(jax.core.Trace):
    """Reads operations on soft indices; hands all others to the trace below."""

    def __init__(self, below: Any, book: Book) -> None:
        super().__init__()
        self.below, self.book = below, book

    def stage_value(self, val: Any) -> Any:
        return val if isinstance(val, Soft) else self.below.stage_value(val)

    def make(
        self, table: Any, axes: Sequence[Axis], shape: Any, dtype: Any, weak: bool = False
    ) -> Soft:
        return Soft(self, jax.core.ShapedArray(tuple(shape), dtype, weak_type=weak), table, axes)

    def adopt(self, x: Any) -> Any:
        """The same value in this trace."""
        return Soft(self, x.aval, x.table, x.axes, x.parts) if isinstance(x, Soft) else x

    def process_primitive(self, primitive: Any, args: Any, params: Any, /) -> Any:
        soft = any(isinstance(x, Soft) for x in args)
        name, jaxprs = primitive.name, list(_jaxprs(params))
        known = not soft and all(self.book.value(x) is not None for x in args)
        if name in CALLS and (soft or known or any(map(self.book.has_sites, jaxprs))):
            with set_current_trace(self):
                return _call(params, args)
        with set_current_trace(self.below):
            if primitive is soft_index_p:
                return self.draw(args[0], params["law"])
            if not soft and not any(map(self.book.has_sites, jaxprs)):
                out = primitive.bind(*args, **params)
                if known and not primitive.multiple_results:
                    _remember(self.book, name, params, args, out)
                return out
            if name not in LAZY:
                args = [_whole(self, x) for x in args]
            return RULES.get(name, _others)(self, primitive, params, list(args))

    def draw(self, y: Any, law: Law) -> Soft:
        """The soft index itself: classes lead the weights, and each element is a draw."""
        k = y.shape[-1] if law.kind != "bit" else 2
        shape = y.shape if law.kind == "bit" else y.shape[:-1]
        ids = _fresh(shape) if law.draw is None else self.book.draws.setdefault(
            (law.site, law.draw, shape), _fresh(shape)
        )  # fmt: skip
        weights = jnp.stack([1 - y, y]) if law.kind == "bit" else jnp.moveaxis(y, -1, 0)
        table = (
            np.array(law.values, law.dtype).reshape(k, *(1,) * len(shape)) if law.values else None
        )
        if law.kind == "one_hot":
            table = np.eye(k, dtype=law.dtype).reshape(k, *(1,) * len(shape), k)
            weights, ids, shape = weights[..., None], ids[..., None], y.shape
        return self.make(
            table,
            [Axis(weights, ids, frozenset([law.site]), bit=law.kind == "bit")],
            shape,
            law.dtype,
        )

    def process_custom_jvp_call(
        self, primitive: Any, fun: Any, jvp: Any, args: Any, /, **kw: Any
    ) -> Any:
        return self.custom(primitive, (fun, jvp), args, kw)

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, args: Any, /, **kw: Any
    ) -> Any:
        return self.custom(primitive, (fun, fwd, bwd), args, kw)

    def custom(self, primitive: Any, funs: tuple, args: Any, kw: dict[str, Any]) -> Any:
        """A function with a derivative of its own: cell by cell, if it goes element by element."""
        with set_current_trace(self.below):
            args = [_whole(self, x) for x in args]
            if any(isinstance(x, Soft) and not x.is_float for x in args):
                return _by_cells(self, partial(bind_custom, primitive, funs, kw=kw), args)
            return bind_custom(primitive, funs, list(map(as_float, args)), kw)


def _call(params: dict[str, Any], args: Any) -> Any:
    closed = params.get("jaxpr", params.get("call_jaxpr"))
    jaxpr: Any = getattr(closed, "jaxpr", closed)
    consts = getattr(closed, "consts", ())
    return jax.core.eval_jaxpr(jaxpr, consts, *args)


CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}


# --- rules ----------------------------------------------------------------------------------------


def _spec(x: Any) -> jax.ShapeDtypeStruct:
    typeof: Any = getattr(jax, "typeof", None) or getattr(jax.core, "get_aval")  # noqa: B009
    aval = typeof(x)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def _result(primitive: Any, params: dict[str, Any], args: Any) -> Any:
    """What the integer program gets: shape, dtype and weak type."""
    return jax.eval_shape(lambda *xs: primitive.bind(*xs, **params), *map(_spec, args))


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    exact = np.issubdtype(a.dtype, np.integer)
    return (np.trunc(a / b) if exact else a / b).astype(a.dtype)


# NumPy's counterparts: a table that is a constant stays one under jit, where it can be recognised
NUMPY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "sign": np.sign,
    "abs": np.abs, "max": np.maximum, "min": np.minimum, "rem": np.fmod, "div": _quotient,
    "add_any": np.add, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "square": np.square,
}  # fmt: skip
LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}
CONSTANT: dict[str, Callable] = {
    **{name: lambda p, *xs, f=f: f(*xs) for name, f in (NUMPY | LOGIC).items()},
    "convert_element_type": lambda p, x: x.astype(p["new_dtype"]),
    "integer_pow": lambda p, x: x ** p["y"],
    "clamp": lambda p, low, x, high: np.clip(x, low, high),
    "select_n": lambda p, which, *cases: np.choose(which.astype(int), cases),
}
# fmt: off
ELEMENTWISE = {
    *CONSTANT, "pow", "exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt", "cbrt", "logistic",
    "tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh",
    "atan2", "erf", "erfc", "erf_inv", "lgamma", "digamma", "floor", "ceil", "round", "nextafter",
    "is_finite", "shift_left", "shift_right_arithmetic", "shift_right_logical",
    "population_count", "reduce_precision",
}
# fmt: on


def _compute(primitive: Any, params: dict[str, Any], tables: list[Any]) -> Any:
    constant = CONSTANT.get(primitive.name)
    if constant and all(isinstance(t, np.ndarray | np.generic) for t in tables):
        with np.errstate(all="ignore"):
            return np.asarray(constant(params, *tables))
    shape = np.broadcast_shapes(*map(np.shape, tables))
    return primitive.bind(*(jnp.broadcast_to(t, shape) for t in tables), **params)


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _elementwise(trace: SoftTrace, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """On the tables; the mean where a float array of the program enters."""
    name = primitive.name
    out = _result(primitive, params, args)
    facts = [None if isinstance(x, Soft) else trace.book.value(x) for x in args]
    ends = any(
        not isinstance(x, Soft) and _is_float(x) and not (fact and fact[1])
        for x, fact in zip(args, facts, strict=True)
    )
    soft = [i for i, x in enumerate(args) if isinstance(x, Soft)]
    linear = name in ("add", "sub", "mul") or (name == "div" and soft == [0])
    if ends and linear and len(soft) == 1:
        args[soft[0]] = mean(args[soft[0]])
        return primitive.bind(*args, **params)
    if name == "select_n" and soft == [0] and args[0].aval.dtype == bool:
        args[0] = _of_two(trace, args[0])
    args = [x if fact is None else _typed(fact[0], x) for x, fact in zip(args, facts, strict=True)]
    axes, tables = _align(name, args, len(out.shape))
    if name == "select_n" and 0 not in soft and len(axes) > 1:
        chosen = _chosen(trace, *args, out=out)
        if chosen is not None:
            return chosen
    table = _compute(primitive, params, tables)
    result = trace.make(table, axes, out.shape, out.dtype, out.weak_type)
    return mean(result) if ends and result.is_float else result


def _by_cells(trace: SoftTrace, call: Callable, args: list[Any]) -> list[Any]:
    shape = np.broadcast_shapes(*map(np.shape, args))
    axes, tables = _align("a function", args, len(shape))
    m = len(axes)
    lead = np.broadcast_shapes(*(np.shape(t)[:m] for t in tables if np.ndim(t) >= m))
    full = [
        jnp.broadcast_to(t, lead + np.shape(x)).astype(_spec(x).dtype)
        for t, x in zip(tables, args, strict=True)
    ]
    f: Callable = lambda *xs: call(xs)  # noqa: E731
    for _ in range(m):
        f = jax.vmap(f)
    outs = f(*full)
    if any(out.shape[m:] != shape for out in outs):
        sites = frozenset().union(*(a.sites for a in axes))
        refuse(sites, "a function that is not element by element", DRAWS_CURE)
    results = [trace.make(out, axes, shape, out.dtype) for out in outs]
    return [mean(x) if x.is_float else x for x in results]


def _typed(value: np.ndarray, x: Any) -> np.ndarray:
    return value.astype(jnp.result_type(x)) if not isinstance(x, Soft) else value


def _chosen(trace: SoftTrace, which: Any, *values: Any, out: Any) -> Soft | None:
    """A choice that is not soft itself: weights and tables of the case that holds."""
    like = next(x for x in values if isinstance(x, Soft))
    cases = [_as_soft(trace, x, like) for x in values if len(like.axes) == 1]
    if not cases or any(len(x.axes) != 1 or len(x.table) != len(like.table) for x in cases):
        return None

    def choose(arrays: list[Any], lead: int) -> Any:
        shape = np.broadcast_shapes(*map(np.shape, arrays), which.shape)
        spread = [jnp.broadcast_to(a, shape) for a in (which, *arrays)]
        return lax.select_n(*spread)

    axes, tables = [x.axes[0] for x in cases], [x.table for x in cases]
    shared = all(isinstance(t, np.ndarray) and np.array_equal(t, tables[0]) for t in tables)
    fact = trace.book.value(which)
    shape = np.broadcast_shapes(*(a.ids.shape for a in axes), which.shape)
    ids = _fresh(shape) if fact is None else np.choose(fact[0].astype(int), [a.ids for a in axes])
    token = 0 if fact is not None and not any(a.token for a in axes) else next(_counter)
    sites = frozenset().union(*(a.sites for a in axes))
    axis = Axis(choose([a.weights for a in axes], 1), ids, sites, token)
    table = tables[0] if shared else choose(tables, 1)
    return trace.make(table, [axis], out.shape, out.dtype, out.weak_type)


def _of_two(trace: SoftTrace, x: Soft) -> Soft:
    """A condition by its probability: two classes, however many there were."""
    if len(x.axes) == 1 and x.axes[0].weights.shape[0] == 2:
        return x
    # both from the table: an event that is sure has a complement of weight exactly 0
    shape, no = x.aval.shape, trace.make(~x.table, x.axes, x.aval.shape, bool)
    axis = Axis(jnp.stack([mean(no), mean(x)]), _fresh(shape), x.sites)
    return trace.make(np.array([False, True]).reshape(2, *(1,) * len(shape)), [axis], shape, bool)


# structural operations, on arrays with leading class axes and 1 in dimensions that do not matter


def _full(x: Any, lead: int, shape: Sequence[int]) -> Any:
    library = np if isinstance(x, np.ndarray) else jnp
    return library.broadcast_to(x, np.shape(x)[:lead] + tuple(shape))


def _reshape(x: Any, lead: int, p: Any, shape: Sequence[int], out: Sequence[int]) -> Any:
    classes, tail = np.shape(x)[:lead], _tail(x, lead)
    if [s for s in shape if s != 1] == [s for s in out if s != 1]:
        kept = iter([t for s, t in zip(shape, tail, strict=True) if s != 1])
        return x.reshape(classes + tuple(next(kept) if s != 1 else 1 for s in out))
    if set(tail) <= {1}:
        return x.reshape(classes + (1,) * len(out))
    return _full(x, lead, shape).reshape(classes + tuple(out))


def _spread(x: Any, lead: int, p: Any, shape: Sequence[int], out: Sequence[int]) -> Any:
    new = [1] * len(out)
    for size, d in zip(_tail(x, lead), p["broadcast_dimensions"], strict=True):
        new[d] = size
    return x.reshape(np.shape(x)[:lead] + tuple(new))


def _slice(x: Any, lead: int, p: Any, shape: Sequence[int], out: Sequence[int]) -> Any:
    strides = p["strides"] or (1,) * len(shape)
    cuts = zip(_tail(x, lead), p["start_indices"], p["limit_indices"], strides, strict=True)
    return x[
        (slice(None),) * lead
        + tuple(slice(a, b, c) if s != 1 else slice(None) for s, a, b, c in cuts)
    ]


MOVES: dict[str, Callable] = {
    "reshape": _reshape, "squeeze": _reshape, "expand_dims": _reshape,
    "broadcast_in_dim": _spread, "slice": _slice,
    "transpose": lambda x, lead, p, *_: x.transpose(
        *range(lead), *(lead + d for d in p["permutation"])
    ),
    "rev": lambda x, lead, p, *_: x[
        (slice(None),) * lead
        + tuple(slice(None, None, -1 if d in p["dimensions"] else 1) for d in range(x.ndim - lead))
    ],
    "copy": lambda x, *_: x, "copy_p": lambda x, *_: x,
}  # fmt: skip


def _structural(trace: SoftTrace, primitive: Any, params: dict[str, Any], args: list[Any]) -> Soft:
    x, out = args[0], _result(primitive, params, args)
    move, shape = MOVES[primitive.name], args[0].aval.shape
    return _moved(trace, x, lambda a, lead: move(a, lead, params, shape, out.shape), out.shape)


def _moved(trace: SoftTrace, x: Soft, move: Callable, shape: Any, token: int | None = None) -> Soft:
    """The same move on table, weights and ids; with a token, the ids are new ones."""
    axes = []
    for axis in x.axes:
        w = move(axis.weights, 1)
        if token is None:
            axes.append(axis._replace(weights=w, ids=move(axis.ids, 0)))
        else:
            tail = w.shape[1:]
            axes.append(Axis(w, _fresh(tail), axis.sites, token))
    return trace.make(move(x.table, len(x.axes)), axes, shape, x.aval.dtype, x.aval.weak_type)


def _dynamic_slice(
    trace: SoftTrace, primitive: Any, params: dict[str, Any], args: list[Any]
) -> Any:
    x, *starts = args
    if any(isinstance(s, Soft) for s in starts):
        return _soft_row(trace, x, starts, params["slice_sizes"])
    sizes = params["slice_sizes"]
    known: list[Any] = [trace.book.value(s) for s in starts]
    if all(fact is not None for fact in known):
        where = [
            min(max(int(fact[0]), 0), n - s)
            for fact, n, s in zip(known, x.aval.shape, sizes, strict=True)
        ]
        p = {"start_indices": where, "strides": None}
        p["limit_indices"] = [a + s for a, s in zip(where, sizes, strict=True)]
        return _moved(trace, x, partial(_slice, p=p, shape=x.aval.shape, out=sizes), sizes)

    def move(a: Any, lead: int) -> Any:
        for d, (n, start, size) in enumerate(zip(_tail(a, lead), starts, sizes, strict=True)):
            if n != 1:
                a = lax.dynamic_slice_in_dim(a, start, size, lead + d)
        return a

    return _moved(trace, x, move, sizes, next(_counter))


def _soft_row(trace: SoftTrace, t: Any, starts: list[Any], sizes: Sequence[int]) -> Any:
    """t[z] with a scalar z, which JAX writes as a slice of one row."""
    dims = [d for d, (n, size) in enumerate(zip(np.shape(t), sizes, strict=True)) if n != size]
    rows = tuple(d for d in dims if sizes[d] == 1)
    numbers = lax.GatherDimensionNumbers(tuple(range(t.ndim - len(rows))), rows, tuple(dims))
    params: dict[str, Any] = {"dimension_numbers": numbers, "slice_sizes": tuple(sizes)}
    with set_current_trace(trace):
        index = jnp.stack([starts[d] for d in dims], -1)
        return lax.gather(t, index, mode="clip", **params).reshape(sizes)


def _remember(book: Book, name: str, params: Any, args: Any, out: Any) -> None:
    """Follows constants: numbers, arange, and what is computed from them."""
    facts: list[Any] = [book.value(x) for x in args]
    number = bool(facts) and all(fact[1] for fact in facts)
    if name == "iota":
        shape, d = params["shape"], params["dimension"]
        value = np.arange(shape[d]).astype(params["dtype"])
        book.learn(out, value.reshape([-1 if i == d else 1 for i in range(len(shape))]), False)
    elif name in MOVES:
        value = MOVES[name](facts[0][0], 0, params, np.shape(args[0]), out.shape)
        book.learn(out, value, number)
    elif name in CONSTANT and facts:
        values = [
            _lift(_typed(fact[0], x), 0, out.ndim) for fact, x in zip(facts, args, strict=True)
        ]
        with np.errstate(all="ignore"):
            value = np.asarray(CONSTANT[name](params, *values)).astype(out.dtype)
        book.learn(out, value, number)


# joining


def _join(trace: SoftTrace, primitive: Any, params: dict[str, Any], args: list[Any]) -> Soft:
    """Of concatenate and stack: the parts are kept, since an index array takes them apart again."""
    out = _result(primitive, params, args)
    dim = params["dimension"] if "dimension" in params else params["axis"]
    if primitive.name == "stack":
        shape = (*out.shape[:dim], 1, *out.shape[dim + 1 :])
        args = [
            _moved(
                trace,
                _whole(trace, x),
                partial(_reshape, p=None, shape=x.aval.shape, out=shape),
                shape,
            )
            if isinstance(x, Soft)
            else jnp.reshape(x, shape)
            for x in args
        ]
    axes = [axis for x in args if isinstance(x, Soft) for axis in x.axes]
    aval = jax.core.ShapedArray(out.shape, out.dtype, weak_type=out.weak_type)
    return Soft(trace, aval, None, axes, (dim, args))


def _whole(trace: SoftTrace, x: Any) -> Any:
    """One table for what has been joined."""
    if not isinstance(x, Soft) or x.parts is None:
        return x
    if x.table is None:
        with set_current_trace(trace.below):
            dim, parts = x.parts
            parts = [_whole(trace, part) for part in parts]
            model = next(part for part in parts if isinstance(part, Soft))
            parts = [_as_soft(trace, part, model) for part in parts]
            if any(len(part.axes) != 1 for part in parts):
                refuse(x.sites, "concatenation of values of several draws", INDEX_CURE)
            x.table, x.axes = _concatenate(parts, dim, x.aval.shape)
    return trace.make(x.table, x.axes, x.aval.shape, x.aval.dtype, x.aval.weak_type)


def _concatenate(
    parts: list[Soft], dim: int, shape: tuple[int, ...]
) -> tuple[Any, tuple[Axis, ...]]:
    k = max(part.axes[0].weights.shape[0] for part in parts)

    def along(xs: list[Any], lead: int) -> Any:
        tails = np.broadcast_shapes(
            *((*_tail(x, lead)[:dim], 1, *_tail(x, lead)[dim + 1 :]) for x in xs)
        )
        sizes = [part.aval.shape[dim] for part in parts]
        xs = [
            _full(x, lead, (*tails[:dim], n, *tails[dim + 1 :]))
            for x, n in zip(xs, sizes, strict=True)
        ]
        library = np if all(isinstance(x, np.ndarray) for x in xs) else jnp
        return library.concatenate(xs, lead + dim)

    def padded(x: Any, mode: str) -> Any:
        library = np if isinstance(x, np.ndarray) else jnp
        return library.pad(x, [(0, k - x.shape[0])] + [(0, 0)] * (x.ndim - 1), mode=mode)

    tables = [padded(part.table, "edge") for part in parts]
    first = tables[0]
    shared = all(isinstance(t, np.ndarray) and t.shape[dim + 1] == 1 for t in tables) and all(
        t.shape == first.shape and (t == first).all() for t in tables
    )
    axes = [part.axes[0] for part in parts]
    tokens = {axis.token for axis in axes}
    axis = Axis(
        along([padded(a.weights, "constant") for a in axes], 1),
        along([a.ids for a in axes], 0),
        frozenset().union(*(a.sites for a in axes)),
        tokens.pop() if len(tokens) == 1 else next(_counter),
    )
    return first if shared else along(tables, 1), (axis,)


def _as_soft(trace: SoftTrace, x: Any, like: Soft, shared: Any = True) -> Soft:
    """A constant as a value that is sure: a vertex of the same table, if it is in there."""
    if isinstance(x, Soft):
        return x
    fact, shape, axis = trace.book.value(x), np.shape(x), like.axes[0]
    k, table = axis.weights.shape[0], like.table
    dtype = axis.weights.dtype
    if shared and fact and isinstance(table, np.ndarray) and len(like.axes) == 1:
        value = _lift(np.asarray(fact[0]), 0, len(shape))
        covered = tuple(d + 1 for d, s in enumerate(table.shape[1:]) if s != 1)
        if all(like.aval.shape[d - 1] == shape[d - 1] for d in covered):
            hit = (table == value).all(axis=covered, keepdims=True)
            if (hit.sum(0) == 1).all():
                return trace.make(table, [_sure(hit.astype(dtype), axis)], shape, table.dtype)
    one = np.zeros((k,) + (1,) * len(shape), dtype)
    one[0] = 1
    table = jnp.broadcast_to(x, (k, *shape))
    return trace.make(table, [_sure(one, axis)], shape, jnp.result_type(x))


def _sure(weights: np.ndarray, axis: Axis) -> Axis:
    return Axis(jnp.asarray(weights), _fresh(weights.shape[1:]), axis.sites, axis.token)


def _split(trace: SoftTrace, primitive: Any, params: dict[str, Any], args: list[Any]) -> list[Soft]:
    """Of split and unstack."""
    x, d = args[0], params["axis"]
    sizes = params.get("sizes", (1,) * x.aval.shape[d])
    ends = np.cumsum(sizes)
    outs = []
    for start, end in zip(ends - sizes, ends, strict=True):
        limits = [(0, s) for s in x.aval.shape]
        limits[d] = (int(start), int(end))
        p = {"start_indices": [a for a, _ in limits], "limit_indices": [b for _, b in limits]}
        shape = [b - a for a, b in limits]
        out = _moved(
            trace, x, partial(_slice, p=p | {"strides": None}, shape=x.aval.shape, out=shape), shape
        )
        if primitive.name == "unstack":
            less = shape[:d] + shape[d + 1 :]
            out = _moved(trace, out, partial(_reshape, p=None, shape=shape, out=less), less)
        outs.append(out)
    return outs


# reductions


def _reduce(trace: SoftTrace, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """Over the classes of one draw, on the table."""
    (x,), m, axes = args, len(args[0].axes), params["axes"]
    out, shape = _result(primitive, params, args), x.aval.shape
    ids = [
        np.broadcast_to(axis.ids, np.broadcast_shapes(axis.ids.shape, (1,) * len(shape)))
        for axis in x.axes
    ]
    if any((a != a.take([0], d)).any() for a in ids for d in axes if a.shape[d] > 1):
        return _others(trace, primitive, params, args)
    table = _full(
        x.table,
        m,
        [
            n if d in axes else s
            for d, (s, n) in enumerate(zip(_tail(x.table, m), shape, strict=True))
        ],
    )
    constant = REDUCE.get(primitive.name) if isinstance(table, np.ndarray) else None
    where = tuple(m + d for d in axes)
    if constant:
        table = constant(table, where if primitive.name not in ("argmax", "argmin") else where[0])
        table = table.astype(out.dtype)
    else:
        table = primitive.bind(jnp.asarray(table), **(params | {"axes": where}))

    def less(a: Any, lead: int) -> Any:
        cut = (slice(None),) * lead + tuple(
            0 if d in axes else slice(None) for d in range(len(shape))
        )
        return a[cut]

    kept = [a._replace(weights=less(a.weights, 1), ids=less(a.ids, 0)) for a in x.axes]
    return trace.make(table, kept, out.shape, out.dtype, out.weak_type)


REDUCE: dict[str, Callable] = {
    "reduce_sum": np.sum, "reduce_prod": np.prod, "reduce_max": np.max, "reduce_min": np.min,
    "reduce_or": np.any, "reduce_and": np.all, "argmax": np.argmax, "argmin": np.argmin,
}  # fmt: skip


# indexing


def _columns(trace: SoftTrace, index: Any) -> list[Any]:
    """The columns of an index array, shape batch; each may come from draws of its own."""
    last = np.ndim(index) - 1
    if isinstance(index, Soft) and index.parts and index.parts[0] == last:
        parts = index.parts[1]
    else:
        index, n = _whole(trace, index), np.shape(index)[last]
        if not isinstance(index, Soft):
            return [index[..., i] for i in range(n)]
        parts = (
            [index]
            if n == 1
            else _split(trace, lax.split_p, {"axis": last, "sizes": (1,) * n}, [index])
        )
    columns = []
    for part in parts:
        if np.shape(part)[last] != 1:
            columns += _columns(trace, part)
            continue
        part, shape = _whole(trace, part), np.shape(part)[:last]
        if isinstance(part, Soft):
            move = partial(_reshape, p=None, shape=part.aval.shape, out=shape)
            columns.append(_moved(trace, part, move, shape))
        else:
            columns.append(part.reshape(shape))
    return columns


def _gather(trace: SoftTrace, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """t[z]: the tables as indices, with the class axes leading; the mean if t is of floats."""
    t, index = args
    if isinstance(t, Soft):
        if isinstance(index, Soft):
            what = "indexing a soft index by a soft index"
            refuse(t.sites | index.sites, what, "index a table, as in t[z]")
        return _take(trace, primitive, params, [_whole(trace, t), index])
    out, dims = _result(primitive, params, args), params["dimension_numbers"]
    columns = _columns(trace, index)
    batch = np.ndim(columns[0])
    axes, tables = _align("indexing", columns, batch)
    m, whole = len(axes), _whole_dimensions(t, columns, tables, params, len(axes))
    kept = [d not in whole.values() for d in dims.start_index_map]
    tables = list(itertools.compress(tables, kept))
    shape = list(np.broadcast_shapes((1,) * (m + batch), *map(np.shape, tables)))
    for d, b in zip(dims.operand_batching_dims, dims.start_indices_batching_dims, strict=True):
        shape[m + b] = t.shape[d]
    inside = {*dims.collapsed_slice_dims, *dims.operand_batching_dims}
    through = [d for d in range(t.ndim) if d not in inside or d in whole.values()]
    sizes = [
        n if d in whole.values() else k
        for d, (n, k) in enumerate(zip(t.shape, params["slice_sizes"], strict=True))
    ]
    if tables:
        numbers = lax.GatherDimensionNumbers(
            tuple(range(m + batch, m + batch + len(through))),
            tuple(d for d in dims.collapsed_slice_dims if d not in whole.values()),
            tuple(itertools.compress(dims.start_index_map, kept)),
            dims.operand_batching_dims,
            tuple(m + b for b in dims.start_indices_batching_dims),
        )
        changed: dict[str, Any] = {"dimension_numbers": numbers, "slice_sizes": tuple(sizes)}
        changed |= {"unique_indices": False, "indices_are_sorted": False}
        indices = jnp.stack([jnp.broadcast_to(x, shape) for x in tables], -1)
        g = primitive.bind(t, indices, **(params | changed))
    else:  # no index is left: a transposition
        pairs = sorted(
            zip(dims.start_indices_batching_dims, dims.operand_batching_dims, strict=True)
        )
        t = t[tuple(slice(k) if d in through else slice(None) for d, k in enumerate(sizes))]
        g = t.transpose(*(d for _, d in sorted(pairs)), *through)
        g = g.reshape(*shape, *(t.shape[d] for d in through))
    # from (classes, batch, through) to (classes, as in out)
    position = {d: m + batch + i for i, d in enumerate(through)}
    order = [position[whole[i]] if i in whole else i for i in range(m)]
    rows, offsets = iter(range(m, m + batch)), iter(d for d in through if d not in whole.values())
    is_row = [i not in dims.offset_dims for i in range(len(out.shape))]
    order += [next(rows) if row else position[next(offsets)] for row in is_row]
    g = g.transpose(*order, *whole).reshape([g.shape[i] for i in order])
    axes = [
        a._replace(weights=_among(a.weights, 1, is_row), ids=_among(a.ids, 0, is_row)) for a in axes
    ]
    result = trace.make(g, axes, out.shape, out.dtype)
    return mean(result) if result.is_float else result


def _among(x: Any, lead: int, is_row: list[bool]) -> Any:
    """The dimensions of the batch where they stand in the result, 1 in the others."""
    tail = iter(_tail(x, lead))
    return x.reshape(np.shape(x)[:lead] + tuple(next(tail) if row else 1 for row in is_row))


def _whole_dimensions(t: Any, columns: Any, tables: Any, params: Any, m: int) -> dict[int, int]:
    """Class axes that go through a dimension of t, class by class: no index is needed there."""
    dims, found = params["dimension_numbers"], {}
    uses = [[i for i in range(m) if np.ndim(x) >= m and np.shape(x)[i] != 1] for x in tables]
    for column, table, used, d in zip(columns, tables, uses, dims.start_index_map, strict=True):
        if (
            isinstance(column, Soft)
            and isinstance(table, np.ndarray)
            and len(used) == 1
            and sum(used[0] in others for others in uses) == 1
            and d in dims.collapsed_slice_dims
            and table.size == t.shape[d]
            and (table.ravel() == np.arange(table.size)).all()
        ):
            found[used[0]] = d
    return found


def _take(trace: SoftTrace, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """z[rows] with plain rows."""
    x, index = args
    out, shape = _result(primitive, params, args), x.aval.shape
    take = lambda a: primitive.bind(a, index, **params)  # noqa: E731
    fact = trace.book.value(index)
    concrete = not isinstance(index, jax.core.Tracer) or fact is not None

    def move(a: Any, lead: int) -> Any:
        if set(_tail(a, lead)) <= {1}:
            return a.reshape(np.shape(a)[:lead] + (1,) * len(out.shape))
        if isinstance(a, np.ndarray) and lead == 0:
            with jax.ensure_compile_time_eval():
                rows = jnp.asarray(
                    index if fact is None else np.broadcast_to(fact[0], np.shape(index))
                )
                where = np.arange(math.prod(shape)).reshape(shape)
                return _full(a, 0, shape).ravel()[
                    np.asarray(
                        primitive.bind(jnp.asarray(where), rows, **(params | {"fill_value": None}))
                    )
                ]
        # classes last: so the weights lie in memory, and a row of them is taken at once
        first, last = range(lead), range(-lead, 0)
        f = take
        for _ in first:
            f = jax.vmap(f, -1, -1)
        return jnp.moveaxis(
            f(jnp.moveaxis(jnp.asarray(_full(a, lead, shape)), first, last)), last, first
        )

    return _moved(trace, x, move, out.shape, None if concrete else next(_counter))


def _scatter_add(trace: SoftTrace, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """Linear: the updates, times their weights, go to all classes."""
    t, index, updates = args
    if not isinstance(index, Soft) or isinstance(t, Soft) or not _is_float(t):
        return _others(trace, primitive, params, args)
    if isinstance(updates, Soft):
        updates = mean(_whole(trace, updates))
    dims = params["dimension_numbers"]
    columns = _columns(trace, index)
    batch = columns[0].ndim
    axes, tables = _align("scattering", columns, batch)
    m = len(axes)
    shape = tuple(a.weights.shape[0] for a in axes) + columns[0].shape
    indices = jnp.stack([jnp.broadcast_to(x, shape) for x in tables], -1)
    places = [i for i in range(updates.ndim) if i not in dims.update_window_dims]
    for i, axis in enumerate(axes):
        w = jnp.moveaxis(jnp.expand_dims(axis.weights, range(1, m)), 0, i)
        tail = iter(w.shape[m:])
        w = w.reshape(
            w.shape[:m] + tuple(next(tail) if j in places else 1 for j in range(updates.ndim))
        )
        updates = (
            updates * w.astype(updates.dtype)
            if i
            else updates[(None,) * m] * w.astype(updates.dtype)
        )
    updates = jnp.broadcast_to(updates, tuple(shape[:m]) + updates.shape[m:])
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(m + d for d in dims.update_window_dims),
        inserted_window_dims=dims.inserted_window_dims,
        scatter_dims_to_operand_dims=dims.scatter_dims_to_operand_dims,
        operand_batching_dims=dims.operand_batching_dims,
        scatter_indices_batching_dims=tuple(m + d for d in dims.scatter_indices_batching_dims),
    )
    return lax.scatter_add(t, indices, updates, numbers, mode=params["mode"])


# control flow


def _eval(trace: SoftTrace, closed: Any, args: Sequence[Any]) -> list[Any]:
    with set_current_trace(trace):
        outs = jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *args)
    with set_current_trace(trace.below):
        return [_whole(trace, out) for out in outs]


def _cond(trace: SoftTrace, primitive: Any, params: dict[str, Any], args: list[Any]) -> list[Any]:
    """All branches, and then a choice among their results."""
    which, *operands = args
    cases = [_eval(trace, branch, operands) for branch in params["branches"]]
    outs = []
    for out in zip(*cases, strict=True):
        if all(x is out[0] for x in out):
            outs.append(out[0])
            continue
        with set_current_trace(trace):
            outs.append(
                lax.select_n(jnp.broadcast_to(which, np.shape(out[0])).astype(jnp.int32), *out)
            )
    return outs


class Slot(NamedTuple):
    """What a soft value is in the carry of a scan: its weights, and its table unless a constant."""

    classes: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]  # shapes of the draws, by axis
    sites: tuple[frozenset[str], ...]
    table: np.ndarray | None
    shape: tuple[int, ...]
    dtype: Any
    weights: Any  # their dtype

    @classmethod
    def of(cls, x: Soft) -> "Slot":
        return cls(
            tuple(a.weights.shape[0] for a in x.axes),
            tuple(np.broadcast_shapes(a.ids.shape, a.weights.shape[1:]) for a in x.axes),
            tuple(a.sites for a in x.axes),
            x.table if isinstance(x.table, np.ndarray) else None,
            x.aval.shape,
            x.aval.dtype,
            jnp.result_type(*(a.weights for a in x.axes)),
        )

    def join(self, other: "Slot") -> "Slot":
        """The slot that holds the values of both."""
        if self.classes != other.classes:
            refuse(
                self.sites[0].union(*other.sites),
                "a carry whose number of classes changes",
                "pad the classes",
            )
        a, b = self.table, other.table
        same = a is not None and b is not None and np.array_equal(a, b)
        return self._replace(
            tails=tuple(map(np.broadcast_shapes, self.tails, other.tails)),
            sites=tuple(a | b for a, b in zip(self.sites, other.sites, strict=True)),
            table=self.table if same else None,
        )

    def equals(self, other: "Slot") -> bool:
        return self[:3] == other[:3] and (self.table is None) == (other.table is None)

    def flat(self, x: Soft) -> list[Any]:
        """The arrays in the carry."""
        parts = [
            jnp.broadcast_to(a.weights, (k, *tail)).astype(self.weights)
            for a, k, tail in zip(x.axes, self.classes, self.tails, strict=True)
        ]
        if self.table is not None:
            return parts
        return [
            *parts,
            jnp.asarray(
                _full(_full(x.table, len(parts), self.shape), 0, self.classes + self.shape),
                self.dtype,
            ),
        ]

    def soft(
        self, trace: SoftTrace, arrays: Iterator[Any], ids: Sequence[np.ndarray], token: int = 0
    ) -> Soft:
        axes = [
            Axis(next(arrays), i, sites, token) for i, sites in zip(ids, self.sites, strict=True)
        ]
        table = next(arrays) if self.table is None else self.table
        return trace.make(table, axes, self.shape, self.dtype)


def _scan(trace: SoftTrace, primitive: Any, params: dict[str, Any], args: list[Any]) -> list[Any]:
    """Weights and tables in the carry; the body is read anew.

    Inside, a soft carry is taken for new draws, which differ from each other and from all that the
    body gets from outside; this is checked where the carry begins and where it goes on.
    """
    consts, init, xs = scan_parts(params, args)
    init = [_fitted(trace, None, x) for x in init]
    slots, soft_xs = list(map(_slot, init)), list(map(_slot, xs))
    outside = [a for x in consts if isinstance(x, Soft) for a in x.axes]
    ids = [a.ids.ravel() for x in args if isinstance(x, Soft) for a in x.axes]
    apart = not ids or len(np.unique(np.concatenate(ids))) == sum(map(len, ids))
    apart = apart and not any(a.token for x in args if isinstance(x, Soft) for a in x.axes)
    seen: dict[str, Any] = {"settled": False}

    def body(carry: list[Any], rows: list[Any]) -> tuple[list[Any], list[Any]]:
        with take_current_trace() as below:
            inner = SoftTrace(below, Book(trace.book))
        arrays = iter(carry)
        values = [
            slot.soft(inner, arrays, list(map(_fresh, slot.tails))) if slot else next(arrays)
            for slot in slots
        ]
        arrays = iter(rows)
        values += [_row(inner, x, slot, arrays, apart) for x, slot in zip(xs, soft_xs, strict=True)]
        outs = _eval(inner, params["jaxpr"], [*map(inner.adopt, consts), *values])
        after = [_fitted(inner, slot, x) for slot, x in zip(slots, outs[: len(init)], strict=True)]
        ys = outs[len(init) :]
        seen["after"] = list(map(_slot, after))
        seen["axes"] = [
            a._replace(weights=None) for x in after if isinstance(x, Soft) for a in x.axes
        ]
        seen["ys"] = [
            (Slot.of(y), [a.ids for a in y.axes]) if isinstance(y, Soft) else None for y in ys
        ]
        if not seen["settled"]:
            return carry, []
        carry = [a for slot, x in zip(slots, after, strict=True) for a in _flat(slot, x)]
        return carry, [a for y in ys for a in _flat(_slot(y), y)]

    def carried() -> list[Any]:
        fitted = [_fitted(trace, slot, x) for slot, x in zip(slots, init, strict=True)]
        return [a for slot, x in zip(slots, fitted, strict=True) for a in _flat(slot, x)]

    rows = [a for x, slot in zip(xs, soft_xs, strict=True) for a in _rows(x, slot)]
    while not seen["settled"]:  # until the slots hold what the body hands on
        jax.eval_shape(lambda carry, rows: body(carry, [r[0] for r in rows]), carried(), rows)
        joined = []
        for slot, after, x in zip(slots, seen["after"], init, strict=True):
            if after and not slot:
                after = after.join(_slot(_fitted(trace, after, x)))
            joined.append(slot.join(after) if slot and after else after)
        seen["settled"] = all(
            a is b is None or (a and b and a.equals(b)) for a, b in zip(slots, joined, strict=True)
        )
        slots = joined
    starts = [a for x in init if isinstance(x, Soft) for a in x.axes]
    for axes in (starts, seen["axes"]):
        _check_lags(axes, outside)
    options = {key: params[key] for key in ("length", "reverse", "unroll")}
    final, stacked = lax.scan(body, carried(), rows, **options)
    arrays, token = iter(final), next(_counter)
    outs = [
        slot.soft(trace, arrays, [_fresh(tail) for tail in slot.tails], token)
        if slot
        else next(arrays)
        for slot in slots
    ]
    arrays = iter(stacked)
    tokens: dict[Any, Any] = {}
    fixed = {id(a.ids): a for a in outside}
    return outs + [_stacked(trace, y, arrays, params["length"], tokens, fixed) for y in seen["ys"]]


def _fitted(trace: SoftTrace, slot: Slot | None, x: Any) -> Any:
    """A plain value that meets soft ones in the carry: it is sure."""
    if isinstance(x, Soft):
        return mean(x) if x.is_float and len(x.axes) > 1 else x
    if slot is None:
        return x
    if len(slot.classes) > 1:
        cure = "begin with a soft index"
        refuse(
            slot.sites[0].union(*slot.sites),
            "a carry of several draws that begins as an array",
            cure,
        )
    axis = Axis(
        np.zeros((*slot.classes, *slot.tails[0]), slot.weights),
        _fresh(slot.tails[0]),
        slot.sites[0],
    )
    table = jnp.zeros(slot.classes + slot.shape) if slot.table is None else slot.table
    return _as_soft(trace, x, trace.make(table, [axis], slot.shape, slot.dtype))


def _flat(slot: Slot | None, x: Any) -> list[Any]:
    return [x] if slot is None else slot.flat(x)


def _slot(x: Any) -> Slot | None:
    return Slot.of(x) if isinstance(x, Soft) else None


def _check_lags(axes: list[Axis], outside: list[Axis]) -> None:
    cure = "use a Python loop"
    for i, a in enumerate(axes):
        if len(np.unique(a.ids)) < a.ids.size:
            refuse(a.sites, "a carry that holds one draw several times", cure)
        for b in [*axes[:i], *outside]:
            if np.intersect1d(a.ids, b.ids).size or (a.token != b.token and a.sites & b.sites):
                refuse(
                    a.sites,
                    "a carry that holds one draw twice, or one that the body uses besides",
                    cure,
                )


def _rows(x: Any, slot: Slot | None) -> list[Any]:
    """The arrays that scan goes through, first dimension first."""
    if slot is None:
        return [x]
    arrays = [
        jnp.moveaxis(_full(a.weights, 1, x.aval.shape[:1] + a.weights.shape[2:]), 1, 0)
        for a in x.axes
    ]
    m = len(x.axes)
    if _tail(x.table, m)[0] == 1:
        return arrays
    return [*arrays, jnp.moveaxis(jnp.asarray(x.table), m, 0)]


def _row(trace: SoftTrace, x: Any, slot: Slot | None, arrays: Iterator[Any], apart: bool) -> Any:
    """One step's slice; draws of its own if no other soft value of the scan holds them."""
    if slot is None:
        return next(arrays)
    axes = []
    for a in x.axes:
        w = next(arrays)
        axes.append(Axis(w, _fresh(w.shape[1:]), a.sites, 0 if apart else next(_counter)))
    m = len(axes)
    table = x.table[(slice(None),) * m + (0,)] if _tail(x.table, m)[0] == 1 else next(arrays)
    return trace.make(table, axes, x.aval.shape[1:], x.aval.dtype, x.aval.weak_type)


def _stacked(
    trace: SoftTrace, y: Any, arrays: Iterator[Any], length: int, tokens: dict, fixed: dict
) -> Any:
    """What the steps return, as draws of their own: those of other steps are not known apart."""
    if y is None:
        return next(arrays)
    slot, ids = y
    axes = []
    for i, sites in zip(ids, slot.sites, strict=True):
        w = jnp.moveaxis(next(arrays), 0, 1)
        key = (i.shape, i.tobytes())
        if key not in tokens:
            tokens[key] = (next(_counter), _fresh((length, *i.shape)))
        token, new = tokens[key]
        axes.append(Axis(w, new, sites, token))
    m = len(axes)
    table = (
        np.expand_dims(slot.table, m)
        if slot.table is not None
        else jnp.moveaxis(next(arrays), 0, m)
    )
    return trace.make(table, axes, (length, *slot.shape), slot.dtype)


# everything else


def _others(trace: SoftTrace, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """Soft floats are their means there; integers are refused."""
    args = [_whole(trace, x) for x in args]
    soft = [x for x in args if isinstance(x, Soft)]
    sites = frozenset().union(*(x.sites for x in soft))
    if any(map(trace.book.has_sites, _jaxprs(params))):
        refuse(
            sites | frozenset(["of the body"]),
            f"a site inside of {primitive.name}",
            "use scan or a Python loop",
        )
    if primitive.name == "dot_general":  # b @ x may have both kinds; it is linear
        floats = [as_float(x) for x in args]
        if any(jnp.issubdtype(_spec(x).dtype, jnp.floating) for x in args):
            dtype = jnp.result_type(*(x for x in args if _is_float(_spec(x))))
            return primitive.bind(*(x.astype(dtype) for x in floats), **params)
    if all(x.is_float for x in soft):
        means = [mean(x) if isinstance(x, Soft) else x for x in args]
        out = _result(primitive, params, means)
        if all(jnp.issubdtype(o.dtype, jnp.inexact) for o in jax.tree.leaves(out)):
            return primitive.bind(*means, **params)
    refuse(sites, *REFUSED.get(primitive.name, (primitive.name, INDEX_CURE)))


def _over(what: str) -> tuple[str, str]:
    return f"{what} over several draws", DRAWS_CURE


REFUSED = {
    **{f"reduce_{x}": _over(x) for x in ("sum", "prod", "max", "min", "or", "and", "xor")},
    **{
        x: _over(x)
        for x in ("argmax", "argmin", "sort", "top_k", "cumsum", "cumprod", "cummax", "cummin")
    },
    "while": ("while_loop", "use scan or fori_loop with fixed bounds"),
    "scatter": ("assignment at a soft index (at[z].set)", "use jnp.where(one_hot(z), new, old)"),
    "scatter_add": ("adding integers at a soft index", "begin with an array of floats"),
    "scatter-add": ("adding integers at a soft index", "begin with an array of floats"),
    "dynamic_slice": ("a slice that begins at a soft index", "index a table, as in t[z]"),
    "dynamic_update_slice": ("assignment into or at a soft index", "use jnp.where"),
    "dot_general": ("a product of integer matrices", DRAWS_CURE),
    "bitcast_convert_type": ("a view of the bits", INDEX_CURE),
    "pure_callback": ("a NumPy function", "use jax.numpy"),
}

RULES: dict[str, Callable] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(MOVES, _structural),
    **dict.fromkeys(REDUCE, _reduce),
    "concatenate": _join, "stack": _join, "split": _split, "unstack": _split,
    "cond": _cond, "scan": _scan, "gather": _gather, "dynamic_slice": _dynamic_slice,
    "scatter-add": _scatter_add, "scatter_add": _scatter_add,
}  # fmt: skip
LAZY = {"gather", "scatter-add", "scatter_add", "concatenate", "stack"}


# --- what runs a program --------------------------------------------------------------------------


@contextmanager
def reading_soft_indices() -> Iterator[None]:
    """Inside, operations on soft indices are read as tables over the classes."""
    with take_current_trace() as below:
        if isinstance(below, SoftTrace):
            with set_current_trace(below):
                yield
            return
        trace = SoftTrace(below, Book())
        try:
            with set_current_trace(trace):
                yield
        except jax.errors.NonConcreteBooleanIndexError as error:
            if trace.book.asked is None:
                raise
            sites = trace.book.asked.sites
            raise refusal(sites, "use as a boolean index", "use jnp.where") from error
        trace.book = Book()
        with set_current_trace(trace, check_leaks=True):
            pass


def constant(x: Any) -> np.ndarray | None:
    """The values of an array, under jit too where they follow from numbers in the program."""
    if not isinstance(x, jax.core.Tracer):
        return np.asarray(x)
    with take_current_trace() as trace:
        found = trace.book.value(x) if isinstance(trace, SoftTrace) else None
    return None if found is None else found[0]


def as_float(value: Any) -> Any:
    """The mean of a soft value under its weights; any other value as it is."""
    if not isinstance(value, Soft):
        return value
    with set_current_trace(value._trace.below):
        return mean(_whole(value._trace, value))


def leave(value: Any) -> Any:
    """What a soft value is outside the program: the weights of a site, or else the mean.

    Integers that are computed from a site leave as weights over 0..max.
    """
    if not isinstance(value, Soft) or value.is_float or value.aval.dtype == bool:
        return as_float(value)
    trace = value._trace
    with set_current_trace(trace.below):
        x = _whole(trace, value)
    if len(x.axes) == 1 and x.table.size == len(x.table):
        if x.axes[0].bit:
            return as_float(x)
        w = x.axes[0].weights
        with set_current_trace(trace.below):
            return jnp.moveaxis(jnp.broadcast_to(w, (len(w), *x.aval.shape)), 0, -1)
    if not isinstance(x.table, np.ndarray) or x.table.min() < 0:
        refuse(x.sites, "returning what a table gives", "return a float that is computed from it")
    with set_current_trace(trace):
        return as_float(jax.nn.one_hot(x, int(x.table.max()) + 1))


def hardened(value: Any) -> jax.Array:
    """Value of the class of largest weight, without gradient."""
    trace = value._trace
    with set_current_trace(trace.below):
        x = _whole(trace, value)
        m, shape = len(x.axes), x.aval.shape
        table = jnp.asarray(_full(x.table, m, shape))
        for axis in x.axes:
            best = jnp.broadcast_to(axis.weights.argmax(0), table.shape[1:])
            table = jnp.take_along_axis(table, best[None], 0)[0]
        return lax.stop_gradient(table)


def interpret(fn: Callable) -> Callable:
    """The program, in which soft indices are read; one that it returns leaves as its weights."""

    @wraps(fn)
    def program(*args: Any, **kwargs: Any) -> Any:
        with reading_soft_indices():
            return jax.tree.map(leave, fn(*args, **kwargs))

    return program
