"""What a program computes from a relaxed class: a table over the classes, and its mean.

A table of m draws has shape (K_1, ..., K_m, *shape), with size 1 in every dimension along which it
is constant. Each axis has the weights of its classes, and the draw that each element comes from.
"""

import itertools
import math
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gs_ppl.numpyro._versions import init_tracer, set_current_trace

__all__: list[str] = []

CAP = 2**24  # largest size of a table of several draws
INDEX_CURE = "index a table with it, compare it, or use jnp.where"


class SoftIndexError(ValueError):
    """A program uses a soft index in a way that has no meaning for one."""


def names(sites: frozenset[str]) -> str:
    return f"site{'s' * (len(sites) > 1)} {', '.join(map(repr, sorted(sites)))}"


def refusal(sites: frozenset[str], operation: str, cure: str) -> SoftIndexError:
    return SoftIndexError(f"{names(sites)}: {operation} is not defined for a soft index; {cure}")


def refuse(sites: frozenset[str], operation: str, cure: str) -> NoReturn:
    raise refusal(sites, operation, cure)


def sites_of(xs: Sequence[Any]) -> frozenset[str]:
    return frozenset().union(*(x.sites for x in xs if isinstance(x, Soft)))


# --- the value ------------------------------------------------------------------------------------


class Law(NamedTuple):
    """What the weights of a site represent; static, so that a jaxpr can hold it."""

    site: str
    kind: str  # "index", "bit", "one_hot"
    values: tuple[int, ...]
    dtype: Any


class Axis(NamedTuple):
    """For each element, the classes of one draw.

    `weights` has shape (K, *shape), and `ids` has shape `shape`, with size 1 in dimensions along
    which they are constant; an id is the number of the draw of an element. Ids of one `token` can
    be compared; those of two tokens only if no site is common to them (a traced row number, a step
    of a scan).
    """

    weights: Any
    ids: np.ndarray
    sites: frozenset[str]
    token: int = 0
    bit: bool = False  # of a bit: the program knows only the weight of 1


counter = itertools.count(1)


def fresh(shape: Sequence[int]) -> np.ndarray:
    """Ids of new draws."""
    start = next(counter) << 32
    return np.arange(start, start + math.prod(shape)).reshape(shape)


class Soft(jax.core.Tracer):
    """A table over the classes of one or several draws; for the program it is an array."""

    aval: Any = None  # a slot or a property of the base, by version of JAX

    def __init__(
        self, trace: Any, aval: Any, form: Any, parts: Any = None, total: Any = None
    ) -> None:
        init_tracer(self, trace, aval)
        self._form = form  # (table, axes), or a function that makes them at first use
        self.parts = parts  # the parts of a concatenation, and its dimension
        self.total = total  # the mean of a sum of bits, which has no table, and its sites

    @property
    def form(self) -> tuple[Any, tuple[Axis, ...]]:
        if callable(self._form):
            with set_current_trace(self._trace.below):
                self._form = self._form()
        return self._form

    @property
    def table(self) -> Any:
        return self.form[0]

    @property
    def axes(self) -> tuple[Axis, ...]:
        return self.form[1]

    @property
    def sites(self) -> frozenset[str]:
        if self.total:
            return self.total[1]
        if self.parts:
            return sites_of(self.parts[1])
        return frozenset().union(*(axis.sites for axis in self.axes))

    @property
    def is_float(self) -> bool:
        return jnp.issubdtype(self.aval.dtype, jnp.floating)

    def __repr__(self) -> str:
        return f"<soft index of {names(self.sites)}: {self.aval.str_short()}>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def full_lower(self) -> "Soft":
        return self

    def to_concrete_value(self) -> None:
        """JAX calls this before it refuses a mask or a slice; its own error names no site."""
        self._trace.asked[:] = [self]


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


# --- the mean -------------------------------------------------------------------------------------


def tail(x: Any, lead: int) -> tuple[int, ...]:
    return tuple(np.shape(x)[lead:])


def lift(x: Any, lead: int, ndim: int) -> Any:
    """A scalar, broadcast with arrays."""
    missing = ndim - (np.ndim(x) - lead)
    return x.reshape(np.shape(x)[:lead] + (1,) * missing + tail(x, lead)) if missing else x


def full(x: Any, lead: int, shape: Sequence[int]) -> Any:
    library = np if isinstance(x, np.ndarray) else jnp
    return library.broadcast_to(x, np.shape(x)[:lead] + tuple(shape))


def mean(x: Soft) -> jax.Array:
    """sum_k w_k table_k, one contraction over the classes of all draws.

    0 * inf is NaN: entries that are not finite count only where the weight is not 0.
    """
    if x.total:
        return x.total[0]
    weights, value = [axis.weights for axis in x.axes], _indicator(x)
    if value is None:
        dtype = jnp.result_type(*weights, *[x.aval.dtype] * x.is_float)
        value = expectation if _is_finite(x.table) else _any_mean
        value = value(jnp.asarray(x.table, dtype), weights)
    return jnp.broadcast_to(value.astype(x.aval.dtype) if x.is_float else value, x.aval.shape)


def _is_finite(table: Any) -> bool:
    """Whether all entries are known to be finite."""
    if isinstance(table, np.ndarray):
        return bool(np.isfinite(table).all())
    return not jnp.issubdtype(table.dtype, jnp.floating)


def _any_mean(table: Any, weights: Sequence[Any]) -> jax.Array:
    if _element_by_element(table, weights):
        return expectation(jnp.where((weights[0] == 0) & ~jnp.isfinite(table), 0, table), weights)
    return _infinite(expectation(jnp.where(jnp.isfinite(table), table, 0), weights), table, weights)


@jax.custom_jvp
def _infinite(value: jax.Array, table: Any, weights: Sequence[Any]) -> jax.Array:
    """The mean of the finite entries, plus entries that are not finite where the weight is not 0.

    A loop over the cells, in place; it has no step if all entries are finite. Weights have their
    classes last, as at sites, so that XLA keeps no copy of them for the loop.
    """
    classes = table.shape[: len(weights)]
    cells = table.reshape(-1, *table.shape[len(weights) :])
    as_drawn = [
        jnp.moveaxis(w.reshape(len(w), *(n for n in tail(w, 1) if n != 1)), 0, -1) for w in weights
    ]

    def add(state: Any) -> Any:
        i, value = state
        at = jnp.unravel_index(i, classes)
        hit = ~jnp.isfinite(cells[i])
        for w, y, k in zip(weights, as_drawn, at, strict=True):
            hit = hit & (y[..., k] != 0).reshape(tail(w, 1))
        return i + 1, value + jnp.where(hit, cells[i], 0)

    steps = jnp.where(jnp.isfinite(table).all(), 0, len(cells))
    return lax.while_loop(lambda state: state[0] < steps, add, (0, value))[1]


@_infinite.defjvp
def _jvp(primals: Any, tangents: Any) -> Any:
    return _infinite(*primals), tangents[0]


def _element_by_element(table: Any, weights: Sequence[Any]) -> bool:
    """Whether each element of the mean has a table of its own."""
    shapes = (table.shape, weights[0].shape)
    return len(weights) == 1 and np.broadcast_shapes(*shapes) == table.shape


def expectation(table: Any, weights: Sequence[Any]) -> jax.Array:
    """The mean of a finite table."""
    if _element_by_element(table, weights):
        return (weights[0] * table).sum(0)
    m, n = len(weights), table.ndim - len(weights)
    classes, dims = string.ascii_letters[:m], string.ascii_letters[m : m + n]

    def squeezed(x: Any, lead: str) -> tuple[Any, str]:
        kept = [(s, d) for s, d in zip(tail(x, len(lead)), dims, strict=True) if s != 1]
        shape = np.shape(x)[: len(lead)] + tuple(s for s, _ in kept)
        return x.reshape(shape), lead + "".join(d for _, d in kept)

    pairs = [squeezed(table, classes), *map(squeezed, weights, classes)]
    sizes = {d: s for x, ds in pairs for d, s in zip(ds, x.shape, strict=True)}
    out = [d for d in dims if d in sizes]
    spec = ",".join(letters for _, letters in pairs) + "->" + "".join(out)
    value = jnp.einsum(spec, *(x for x, _ in pairs))
    return value.reshape([sizes.get(d, 1) for d in dims])


def _indicator(x: Soft) -> Any:
    """The weights themselves, where the table is that of a bit or a one-hot vector."""
    if len(x.axes) > 1 or not isinstance(x.table, np.ndarray):
        return None
    table, w = x.table, x.axes[0].weights
    if table.size == len(w) == 2 and (table.ravel() == [0, 1]).all():
        return w[1]
    vectors = table.size == len(w) ** 2 > 1 == w.shape[-1] and table.shape[-1] == len(w)
    if vectors and (table.reshape(len(w), -1) == np.eye(len(w))).all():
        return jnp.moveaxis(w[..., 0], 0, -1)
    return None


# --- several values -------------------------------------------------------------------------------


def same_draws(operation: str, a: Axis, b: Axis) -> bool:
    """Whether two axes hold the same draws everywhere, or different ones everywhere."""
    if a.token != b.token:
        if not a.sites & b.sites:
            return False
    elif a.ids is b.ids and len(a.weights) == len(b.weights):
        return True
    else:
        equal = a.ids == b.ids
        if not equal.any() or (equal.all() and len(a.weights) == len(b.weights)):
            return bool(equal.all())
    refuse(
        a.sites | b.sites,
        f"{operation} of values that share some of their draws",
        "combine values of the same draws, or of different ones, element by element",
    )


def _place(table: Any, where: list[int], m: int, ndim: int) -> Any:
    """A table with its class axes at the positions `where` of m."""
    k = len(where)
    order = sorted(range(k), key=where.__getitem__)
    table = lift(table, k, ndim)
    lead = [1] * m
    for axis, position in enumerate(where):
        lead[position] = table.shape[axis]
    return table.transpose(*order, *range(k, k + ndim)).reshape(*lead, *tail(table, k))


def align(operation: str, xs: Sequence[Any], ndim: int) -> tuple[list[Axis], list[Any]]:
    """The class axes of all values, and their tables over these axes."""
    axes: list[Axis] = []
    positions = []
    for x in xs:
        where = []
        for axis in x.axes if isinstance(x, Soft) else ():
            axis = axis._replace(weights=lift(axis.weights, 1, ndim), ids=lift(axis.ids, 0, ndim))
            same = [i for i, other in enumerate(axes) if same_draws(operation, axis, other)]
            if not same:
                axes.append(axis)
            where.append(same[0] if same else len(axes) - 1)
        positions.append(where)
    tables = [
        _place(x.table, where, len(axes), ndim)
        if isinstance(x, Soft)
        else _place(x, [], len(axes), ndim)
        if np.ndim(x)
        else x
        for x, where in zip(xs, positions, strict=True)
    ]
    size = math.prod(np.broadcast_shapes(*map(np.shape, tables)))
    if len(axes) > 1 and size > CAP:
        refuse(
            sites_of(xs),
            f"a product table of {size} elements in {operation}",
            "take the sum of floats (z.astype(float)), or use fewer sites at once",
        )
    return axes, tables
