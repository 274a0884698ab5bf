"""Soft indices: what a program gets for an integer, a bit or a one-hot vector that is relaxed.

The trace holds the weights y of a relaxed site. The program gets a soft index, which stands for the
classes 0..K-1: an integer or a boolean that is computed from it is kept as its table over the
classes, and the first floating-point result is the mean of the table under y. So `locs[z]` is
y @ locs, `one_hot(z)` is y, and two soft indices give the mean under both weights. At a vertex,
every result is that of the integer program.

A relaxed bit or one-hot vector is a soft float. It has a table as well, and keeps it through
structural operations, casts, and arithmetic with other soft values, Python numbers and integer
arrays, so that `b == 1` and `(1 - b).long()` are right; anything else takes its mean, which is y.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce, wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pyro.util import ignore_jit_warnings
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = [
    "SoftIndex",
    "SoftIndexError",
    "hardened",
    "interpret",
    "leave",
    "reading_soft_indices",
    "soft_bit",
    "soft_index",
    "soft_one_hot",
]

LARGEST_PRODUCT = 2**24  # entries of the table of several draws
DRAW = 2**40  # more elements than a draw has: ids of different draws differ
_draws = itertools.count()


class SoftIndexError(ValueError):
    """An operation that a relaxed class has no meaning for; names site, operation and cure."""


# --- the value ------------------------------------------------------------------------------------


class Axis(NamedTuple):
    """The classes of one draw for each element, and their weights.

    Shapes are compact: 1 in every dimension along which the draw is the same.
    """

    sites: frozenset[str]
    weights: Tensor  # (K,) + compact shape
    ids: Tensor  # compact shape; the draw of each element, negative where none is
    lowest: int
    highest: int


class Form(NamedTuple):
    """Value of each element for each class of its draws: (K1, ..., Km) + compact shape."""

    table: Tensor
    axes: tuple[Axis, ...]
    shape: torch.Size
    ordinal: bool = False  # the table is 0..K-1

    @property
    def compact(self) -> torch.Size:
        return self.table.shape[len(self.axes) :]


class SoftIndex(Tensor):
    """A tensor without storage: the Form, its mean, or both; each is made when it is wanted."""

    _form: Form | Callable[[], Form]
    _mean: Tensor | None
    _shape: torch.Size
    _dtype: torch.dtype
    _device: torch.device

    @staticmethod
    def __new__(cls: type, form: Any, mean: Any = None, like: Tensor | None = None) -> Any:
        like = like if like is not None else form.table
        shape = form.shape if isinstance(form, Form) else _shape(mean)
        z: Any = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        z._shape, z._dtype, z._device = shape, like.dtype, like.device
        z._form, z._mean = form, mean
        return z

    shape = property(lambda z: z._shape)
    ndim = property(lambda z: len(z._shape))
    dtype = property(lambda z: z._dtype)
    device = property(lambda z: z._device)
    requires_grad = property(lambda z: False)

    @property
    def form(self) -> Form:
        if not isinstance(self._form, Form):
            self._form = self._form()
        return self._form

    @property
    def sites(self) -> frozenset[str]:
        return frozenset().union(*(axis.sites for axis in self.form.axes))

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        weights = "; ".join(str(axis.weights.movedim(0, -1)) for axis in self.form.axes)
        return f"SoftIndex({_sites([self])}, shape {tuple(self.shape)}, weights {weights})"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __hash__(self) -> int:
        return id(self)

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = RULES.get(func, _rest)
        with _quiet():
            return rule(func, *args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise _refusal(str(func).removeprefix("aten.").split(".")[0], (args, kwargs))


def _quiet() -> Any:
    """Tracing warns of every size that is read; those of soft values are constants."""
    return ignore_jit_warnings() if torch._C._get_tracing_state() else nullcontext()


def _shape(x: Tensor) -> torch.Size:
    if not torch._C._get_tracing_state():
        return x.shape
    with ignore_jit_warnings():
        return torch.Size(int(size) for size in x.shape)


def _soft(*args: Any) -> list[SoftIndex]:
    found = []
    for x in args:
        if isinstance(x, SoftIndex):
            found.append(x)
        elif isinstance(x, tuple | list | dict):
            found += _soft(*(x.values() if isinstance(x, dict) else x))
    return found


OTHERWISE = "index a table with it, compare it, or take one_hot(z, K) or z.float() first"
CURES = {
    "a branch": "use torch.where, or index a table of both results",
    "assignment": "use torch.where, or scatter_add",
    "a mask as an index": "use torch.where, or weight by the mask",
    "a float as an index": "cast it first, as in z.long()",
    "an index of an index": "index a plain table, as in table[z, w] for table[z][w]",
    "a product": "combine fewer sites at once",
    "elements that share": "combine the elements that share a draw apart from the others",
}


def _refusal(operation: str, args: Any) -> SoftIndexError:
    cure = next((cure for start, cure in CURES.items() if operation.startswith(start)), OTHERWISE)
    return SoftIndexError(f"{_sites(args)}: {operation} is not defined for a soft index; {cure}")


def _sites(args: Any) -> str:
    names = sorted(frozenset().union(*(z.sites for z in _soft(args))))
    return f"site{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"


def _named(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    return func.__self__.__name__ if name == "__get__" else name


# --- making and leaving ---------------------------------------------------------------------------


def _axis(site: str, weights: Tensor, shape: torch.Size) -> Axis:
    n, start = math.prod(shape), next(_draws) % 2**22 * DRAW
    ids = torch.arange(start, start + n, device=weights.device).reshape(shape)
    return Axis(frozenset([site]), weights, ids, start, start + n)


def soft_index(site: str, weights: Tensor, values: Tensor | None = None) -> SoftIndex:
    """The integers that the weights of a site stand for.

    Args:
        site: its name, for refusals.
        weights: y, of shape (..., K).
        values: shape (K,), the integers of the classes; None: 0..K-1.

    Example:
        >>> import torch
        >>> z = soft_index("z", torch.tensor([0.25, 0.0, 0.75]))
        >>> with reading_soft_indices():
        ...     torch.tensor([1.0, 2.0, 3.0])[z], ((z + 1) % 3 == 0).float() * torch.ones(())
        (tensor(2.5000), tensor(0.7500))
    """
    *batch, K = _shape(weights)
    shape = torch.Size(batch)
    table = torch.arange(K, device=weights.device) if values is None else values
    axis = _axis(site, weights.movedim(-1, 0), shape)
    form = Form(table.reshape(K, *[1] * len(shape)), (axis,), shape, values is None)
    return SoftIndex(form)


def soft_bit(site: str, y: Tensor) -> SoftIndex:
    """A relaxed bit: the float y that also stands for 0 and 1, with weights 1 - y and y."""

    def form() -> Form:
        shape = _shape(y)
        table = torch.arange(2, dtype=y.dtype, device=y.device).reshape(2, *[1] * len(shape))
        return Form(table, (_axis(site, torch.stack([1 - y, y]), shape),), shape)

    return SoftIndex(form, y, y)


def soft_one_hot(site: str, y: Tensor) -> SoftIndex:
    """A relaxed one-hot vector: the float y that also stands for the K one-hot vectors."""

    def form() -> Form:
        shape, K = _shape(y), _shape(y)[-1]
        table = torch.eye(K, dtype=y.dtype, device=y.device)
        axis = _axis(site, y.movedim(-1, 0)[..., None], torch.Size([*shape[:-1], 1]))
        return Form(table.reshape(K, *[1] * (len(shape) - 1), K), (axis,), shape)

    return SoftIndex(form, y, y)


def leave(value: Any) -> Any:
    """What a soft value is outside the program: the weights of a site, or else the mean.

    Integers that are computed from a site leave as weights over 0..max.
    """
    if not isinstance(value, SoftIndex):
        return value
    if not value.dtype.is_floating_point and value.dtype is not torch.bool:
        form = value.form
        if form.ordinal or (len(form.axes) == 1 and form.table.numel() == form.table.shape[0]):
            weights = form.axes[0].weights
            return weights.movedim(0, -1).expand(*form.shape, weights.shape[0])
        return as_float(F.one_hot(value))
    return as_float(value)


def hardened(value: SoftIndex) -> Tensor:
    """Value of the class of largest weight, without gradient."""
    form = value.form
    table = form.table.expand(*form.table.shape[: len(form.axes)], *form.shape)
    for axis in form.axes:
        best = axis.weights.detach().argmax(0).expand(form.shape)
        best = best.expand(table.shape[1:])[None]
        table = table.gather(0, best)[0]
    return table.detach()


def as_float(value: Any) -> Any:
    """The mean of a soft value under its weights; any other value as it is."""
    if not isinstance(value, SoftIndex):
        return value
    if value._mean is None:
        with _quiet():
            value._mean = _mean(value.form)
    return value._mean


class ReadIndices(TorchFunctionMode):
    """`t[z]` of a plain table t, which torch does not dispatch on z."""

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is GETITEM or func is SETITEM:
            index = args[1]
            if type(index) is SoftIndex or (
                type(index) in (tuple, list) and any(type(item) is SoftIndex for item in index)
            ):
                return SoftIndex.__torch_function__(func, types, args, kwargs)
        return func(*args, **kwargs) if kwargs else func(*args)


@contextmanager
def reading_soft_indices() -> Iterator[None]:
    """Inside, tables can be indexed by soft indices."""
    with ReadIndices():
        yield


def interpret(fn: Callable) -> Callable:
    """The program that may index tables by soft indices; those that it returns leave."""

    @wraps(fn, updated=())
    def program(*args: Any, **kwargs: Any) -> Any:
        with ReadIndices():
            return tree_map(leave, fn(*args, **kwargs))

    return program


# --- means and products ---------------------------------------------------------------------------


def _mean(form: Form) -> Tensor:
    """Mean over the class axes; 0 where the weight is 0, also of an infinite entry."""
    table, weights = form.table, [axis.weights for axis in form.axes]
    dtype = table.dtype if table.is_floating_point() else weights[0].dtype
    work = reduce(torch.promote_types, [w.dtype for w in weights], dtype)
    ahead = next((d for d, size in enumerate(form.compact) if size > 1), len(form.shape))
    if not _is_finite(table):
        mean = _elementwise_mean(form, work)
    elif len(weights) == 1 and math.prod(weights[0].shape[1 + ahead :]) == 1:
        flat = weights[0].to(work).reshape(weights[0].shape[0], -1)
        mean = flat.T @ table.to(work).reshape(flat.shape[0], -1)
        mean = mean.reshape(weights[0].shape[1 : 1 + ahead] + table.shape[1 + ahead :])
    else:
        letters = "abcdefghijklmnopqrstuvw"[: len(weights)]
        terms = ",".join(f"{letter}..." for letter in letters)
        mean = torch.einsum(
            f"{letters}...,{terms}->...", table.to(work), *[w.to(work) for w in weights]
        )
    return mean.to(dtype).expand(form.shape)


def _elementwise_mean(form: Form, dtype: torch.dtype) -> Tensor:
    n, m = len(form.shape), len(form.axes)
    product: Any = math.prod(
        axis.weights.to(dtype).reshape(
            [-1 if j == i else 1 for j in range(m)] + list(axis.ids.shape)
        )
        for i, axis in enumerate(form.axes)
    )
    return _weighted(product, form.table.to(dtype)).sum(tuple(range(-n - m, -n)))


def _weighted(weights: Tensor, x: Any) -> Tensor:
    """The product, where 0 times an infinity is 0, and has no gradient."""
    if not isinstance(x, Tensor):
        return weights * x if math.isfinite(x) else torch.where(weights == 0, 0.0, x)
    if not _is_finite(x):
        x = torch.where(~x.isfinite() & (weights == 0), 0.0, x)
    return weights * x


def _is_finite(table: Tensor) -> bool:
    if not table.is_floating_point():
        return True
    try:
        return math.isfinite(table.detach().sum().item())
    except RuntimeError:  # within vmap, nobody knows
        return False


def _same(a: Axis, b: Axis, args: Any) -> bool:
    """Whether the draws are the same at every element; if not, they must differ at every one."""
    if a.ids is b.ids:
        return True
    if a.highest <= b.lowest or b.highest <= a.lowest:
        return False
    equal, free = a.ids == b.ids, (a.ids < 0) | (b.ids < 0)
    if (equal | free).all():
        return True
    if (equal & ~free).any():
        raise _refusal("elements that share a draw beside some that do not", args)
    return False


def _padded(axis: Axis, before: int, after: int = 0) -> Axis:
    """With dimensions of size 1 around the compact shape."""
    if before == after == 0:
        return axis
    compact = [1] * before + list(axis.ids.shape) + [1] * after
    weights = axis.weights.reshape(axis.weights.shape[:1] + torch.Size(compact))
    return axis._replace(weights=weights, ids=axis.ids.reshape(compact))


def _aligned(forms: Sequence[Form], n: int, args: Any) -> tuple[list[Tensor], list[Axis]]:
    """Tables over the same class axes, one for each draw, and n dimensions after those."""
    if len(forms) == 1 and len(forms[0].shape) == n:
        return [forms[0].table], list(forms[0].axes)
    axes: list[Axis] = []
    places = []
    for form in forms:
        place = []
        for axis in (_padded(axis, n - len(form.shape)) for axis in form.axes):
            j = next((j for j, a in enumerate(axes) if j not in place and _same(a, axis, args)), -1)
            if j < 0:
                j = len(axes)
                axes.append(axis)
            elif axis.ids.numel() < axes[j].ids.numel():
                axes[j] = axis
            place.append(j)
        places.append(place)
    tables = []
    for form, place in zip(forms, places, strict=True):
        order = sorted(range(len(place)), key=place.__getitem__)
        classes = [1] * len(axes)
        for i, j in enumerate(place):
            classes[j] = form.table.shape[i]
        table = form.table.permute(*order, *range(len(order), form.table.ndim))
        pad = [1] * (n - len(form.shape))
        tables.append(table.reshape(*classes, *pad, *form.compact))
    if len(axes) > 1 and not any(len(form.axes) == len(axes) for form in forms):
        size = math.prod(torch.broadcast_shapes(*[table.shape for table in tables]))
        if size > LARGEST_PRODUCT:
            raise _refusal("a product of so many classes", args)
    return tables, axes


# --- elementwise ----------------------------------------------------------------------------------


def _on_tables(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Form:
    leaves = [*args, *kwargs.values()]
    forms = [x.form for x in leaves if isinstance(x, SoftIndex)]
    shape = torch.broadcast_shapes(*[_shape(x) for x in leaves if isinstance(x, Tensor)])
    tables, axes = _aligned(forms, len(shape), args)
    following = iter(tables)
    leaves = [next(following) if isinstance(x, SoftIndex) else x for x in leaves]
    values = dict(zip(kwargs, leaves[len(args) :], strict=True))
    return Form(func(*leaves[: len(args)], **values), tuple(axes), shape)


def _elementwise(func: Callable, *args: Any, **kwargs: Any) -> Any:
    leaves = [*args, *kwargs.values()]
    soft = [x for x in leaves if isinstance(x, SoftIndex)]
    ends = func in ENDS or _has_float_array(leaves)
    linear = func in SUMS or (func in PRODUCTS and len(soft) == 1)
    linear = linear or (func in QUOTIENTS and len(soft) == 1 and args[0] is soft[0])
    floats = all(z.dtype.is_floating_point for z in soft)
    if ends and func not in READINGS and (floats or (linear and func not in ENDS)):
        return func(*map(as_float, args), **{k: as_float(x) for k, x in kwargs.items()})
    if linear and floats and all(z._mean is not None for z in soft):
        mean = func(*map(as_float, args), **kwargs)
        return SoftIndex(lambda: _on_tables(func, args, kwargs), mean, mean)
    form = _on_tables(func, args, kwargs)
    if ends and form.table.is_floating_point():
        return _mean(form)
    return SoftIndex(form)


def _is_float(x: Any) -> bool:
    """A soft float whose mean is known: its table is made when it is wanted."""
    return isinstance(x, SoftIndex) and x._mean is not None and x._dtype.is_floating_point


def _has_float_array(values: Iterable[Any]) -> bool:
    return any(
        isinstance(x, Tensor) and not isinstance(x, SoftIndex) and x.is_floating_point()
        for x in values
    )


def _cast(func: Callable, x: Any, *args: Any, **kwargs: Any) -> Any:
    if _soft(args, kwargs):  # type_as
        args, kwargs = tree_map(_stand_in, (args, kwargs))
    if not isinstance(x, SoftIndex):
        return func(x, *args, **kwargs)
    if x._mean is not None:
        mean = func(x._mean, *args, **kwargs)
        if mean.is_floating_point():
            return SoftIndex(lambda: _cast_form(func, x.form, args, kwargs), mean, mean)
    return SoftIndex(_cast_form(func, x.form, args, kwargs))


def _cast_form(func: Callable, form: Form, args: Any, kwargs: Any) -> Form:
    table = func(form.table, *args, **kwargs)
    if table.device != form.axes[0].ids.device:
        axes = [
            a._replace(weights=a.weights.to(table.device), ids=a.ids.to(table.device))
            for a in form.axes
        ]
        form = form._replace(axes=tuple(axes))
    ordinal = form.ordinal and not (table.is_floating_point() or table.dtype is torch.bool)
    return form._replace(table=table, ordinal=ordinal)


def _where(func: Callable, condition: Any, x: Any, y: Any) -> Any:
    soft = _soft(x, y)
    ends = _has_float_array([x, y])
    if isinstance(condition, SoftIndex):
        if ends and not soft:
            return _weighted(as_float(condition), x) + _weighted(as_float(~condition), y)
    elif all(z.dtype.is_floating_point and z._mean is not None for z in soft):
        # what is observed is put in: the table stays
        mean = torch.where(condition, as_float(x), as_float(y))
        return SoftIndex(lambda: _on_tables(torch.where, (condition, x, y), {}), mean, mean)
    else:
        ends = ends and not all(z.dtype.is_floating_point for z in soft)
    form = _on_tables(torch.where, (condition, x, y), {})
    return _mean(form) if ends and form.table.is_floating_point() else SoftIndex(form)


# --- structure ------------------------------------------------------------------------------------


def _moves(func: Callable, x: Tensor, lead: int, shape: torch.Size, args: Any, kwargs: Any) -> Any:
    """How an operation moves the elements of x: run on their numbers, and read off."""
    compact = x.shape[lead:]
    n = math.prod(compact)
    grid = torch.arange(n, device=x.device).reshape(compact)
    moved = func(grid.expand(shape), *args, **kwargs)
    outputs = [moved] if isinstance(moved, Tensor) else moved
    return [(_narrowed(p), _shape(p), grid) for p in outputs], isinstance(moved, Tensor)


def _narrowed(positions: Tensor) -> Tensor:
    for dim, stride in enumerate(positions.stride()):
        if stride == 0 and positions.shape[dim] > 1:
            positions = positions.narrow(dim, 0, 1)
    return positions


def _taken(x: Tensor, lead: int, positions: Tensor, grid: Tensor | None = None) -> Tensor:
    flat = x.reshape([*x.shape[:lead], -1])
    view = grid is not None and (
        positions.data_ptr() == grid.data_ptr() and positions.numel() == grid.numel()
    )
    if not (view and positions.is_contiguous()):
        flat = flat.index_select(-1, positions.reshape(-1))
    return flat.reshape(x.shape[:lead] + positions.shape)


def _moved_forms(func: Callable, form: Form, args: Any, kwargs: Any) -> tuple[list[Form], bool]:
    m = len(form.axes)
    moved_axes = []
    for axis in form.axes:
        moves, single = _moves(func, axis.ids, 0, form.shape, args, kwargs)
        shapes = [shape for _, shape, _ in moves]
        moved_axes.append(
            [
                axis._replace(
                    weights=_taken(axis.weights, 1, p, grid), ids=_taken(axis.ids, 0, p, grid)
                )
                for p, _, grid in moves
            ]
        )
    if math.prod(form.compact) == 1:
        tables = [form.table.reshape(*form.table.shape[:m], *[1] * len(s)) for s in shapes]
    else:
        moves, _ = _moves(func, form.table, m, form.shape, args, kwargs)
        tables = [_taken(form.table, m, p, grid) for p, _, grid in moves]
    forms = [
        form._replace(table=table, axes=axes, shape=shape)
        for table, axes, shape in zip(tables, zip(*moved_axes, strict=True), shapes, strict=True)
    ]
    return forms, single


def _structural(func: Callable, z: Any, *args: Any, **kwargs: Any) -> Any:
    """A view, a copy or a selection of elements."""
    if func is GETITEM and _soft(args):
        return _index(func, z, args[0])
    if _soft(args, kwargs):  # expand_as, view_as
        args, kwargs = tree_map(_stand_in, (args, kwargs))
    if not isinstance(z, SoftIndex):
        return func(z, *args, **kwargs)
    if z.dtype.is_floating_point and z._mean is not None:
        means = func(z._mean, *args, **kwargs)
        if isinstance(means, Tensor):
            return SoftIndex(lambda: _moved_forms(func, z.form, args, kwargs)[0][0], means, means)
        return type(means)(
            SoftIndex(lambda i=i: _moved_forms(func, z.form, args, kwargs)[0][i], mean, mean)
            for i, mean in enumerate(means)
        )
    forms, single = _moved_forms(func, z.form, args, kwargs)
    return SoftIndex(forms[0]) if single else tuple(SoftIndex(form) for form in forms)


def _detach(func: Callable, z: SoftIndex) -> SoftIndex:
    mean = None if z._mean is None else z._mean.detach()

    def form() -> Form:
        axes = tuple(axis._replace(weights=axis.weights.detach()) for axis in z.form.axes)
        return z.form._replace(table=z.form.table.detach(), axes=axes)

    return SoftIndex(form, mean, mean) if mean is not None else SoftIndex(form())


def _joined(func: Callable, tensors: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
    """Stack, cat and the like: all classes along one axis, all elements in one row."""
    if _has_float_array(tensors):
        return func([as_float(x) for x in tensors], *args, **kwargs)
    soft = _soft(tensors)
    if all(_is_float(x) for x in tensors):
        mean = func([z._mean for z in tensors], *args, **kwargs)
        return SoftIndex(lambda: _joined_form(func, tensors, soft, args, kwargs), mean, mean)
    return SoftIndex(_joined_form(func, tensors, soft, args, kwargs))


def _joined_form(func: Callable, tensors: Any, soft: Any, args: Any, kwargs: Any) -> Form:
    first = soft[0].form
    classes = first.table.shape[: len(first.axes)]
    if any(z.form.table.shape[: len(z.form.axes)] != classes for z in soft):
        raise _refusal(f"{_named(func)} of different numbers of classes", soft)
    forms = [x.form if isinstance(x, SoftIndex) else _certain(x, first) for x in tensors]

    def positions(compacts: list[torch.Size]) -> Tensor:
        start, pieces = 0, []
        for compact, form in zip(compacts, forms, strict=True):
            n = math.prod(compact)
            grid = torch.arange(start, start + n, device=first.table.device)
            pieces.append(grid.reshape(compact).expand(form.shape))
            start += n
        return func(pieces, *args, **kwargs)

    axes = []
    for drawn in zip(*[form.axes for form in forms], strict=True):
        p = positions([axis.ids.shape for axis in drawn])
        weights = torch.cat([axis.weights.flatten(1) for axis in drawn], 1)
        ids = torch.cat([axis.ids.flatten() for axis in drawn])
        sites = frozenset().union(*(axis.sites for axis in drawn))
        ends = min(a.lowest for a in drawn), max(a.highest for a in drawn)
        axes.append(Axis(sites, _taken(weights, 1, p), _taken(ids, 0, p), *ends))
    p, m = positions([form.compact for form in forms]), len(classes)
    table = torch.cat([form.table.flatten(m) for form in forms], m)
    ordinal = all(form.ordinal for form in forms)  # then the table is the same at every element
    table = first.table.reshape(-1, *[1] * p.ndim) if ordinal else _taken(table, m, p)
    return Form(table, tuple(axes), _shape(p), ordinal)


def _certain(x: Tensor, like: Form) -> Form:
    """Plain integers as a table that is the same for each class."""
    axes = []
    for axis in like.axes:
        weights = torch.zeros_like(axis.weights.flatten(1)[:, :1]).reshape(-1, *[1] * x.ndim)
        ids = torch.full([1] * x.ndim, -1, device=x.device)
        axes.append(Axis(frozenset(), weights.index_fill(0, ids.flatten() + 1, 1.0), ids, -1, 0))
    classes = like.table.shape[: len(axes)]
    return Form(x.expand(*classes, *x.shape), tuple(axes), _shape(x))


def _broadcast(func: Callable, *tensors: Any) -> tuple[Any, ...]:
    xs: Sequence = tensors[0] if isinstance(tensors[0], tuple | list) else tensors
    shape = torch.broadcast_shapes(*[_shape(x) for x in xs])
    return tuple(x.expand(shape) for x in xs)


def _stand_in(x: Any) -> Any:
    """A plain tensor where nothing but shape, dtype and device of a soft one is read."""
    if not isinstance(x, SoftIndex):
        return x
    return torch.empty((), dtype=x.dtype, device=x.device).expand(x.shape)


def _like(func: Callable, *args: Any, **kwargs: Any) -> Any:
    return func(*tree_map(_stand_in, args), **tree_map(_stand_in, kwargs))


# --- tables indexed by soft indices ---------------------------------------------------------------


def _index(func: Callable, t: Any, index: Any) -> Any:
    """t[index]: first what is plain, then the tables as indices, class axes leading."""
    items = list(index) if isinstance(index, tuple) else [index]
    soft = _soft(items)
    if isinstance(t, SoftIndex):
        raise _refusal("an index of an index", [t, soft])
    if any(z.dtype is torch.bool for z in soft):
        raise _refusal("a mask as an index", soft)
    if any(z.dtype.is_floating_point for z in soft):
        raise _refusal("a float as an index", soft)
    items = [torch.tensor(x, device=t.device) if isinstance(x, list) else x for x in items]
    items = [y for x in items for y in (x.nonzero(as_tuple=True) if _is_mask(x) else [x])]
    taken = sum(x is not None and x is not Ellipsis for x in items)
    if Ellipsis not in [x for x in items if not isinstance(x, Tensor)]:
        items.append(Ellipsis)
    at = next(i for i, x in enumerate(items) if x is Ellipsis)
    items[at : at + 1] = [slice(None)] * (t.ndim - taken)
    # torch takes a tensor of no dimensions as an integer
    t = t[tuple(slice(None) if isinstance(x, Tensor) else x for x in items)]
    items = [x for x in items if not isinstance(x, int)]
    dims = [d for d, x in enumerate(items) if isinstance(x, Tensor)]
    found = [items[d] for d in dims]
    wide = [d for d in dims if items[d].ndim]
    rest = [d for d in range(t.ndim) if d not in dims]
    shape = torch.broadcast_shapes(*[_shape(x) for x in found])
    tables, axes = _aligned([z.form for z in soft], len(shape), soft)
    n, m = len(shape), len(axes)
    if len(found) == 1 and soft[0].form.ordinal and tables[0].numel() <= t.shape[dims[0]]:
        values = t.movedim(dims[0], 0)[: tables[0].numel()]
        values = values.reshape(-1, *[1] * n, *values.shape[1:])
    else:
        following = iter(tables)
        found = [next(following) if isinstance(x, SoftIndex) else x for x in found]
        values = t.movedim(dims, tuple(range(len(dims))))[tuple(found)]
    before = sum(d < wide[0] for d in rest) if wide else 0
    if wide and any(wide[0] < d < wide[-1] for d in rest):
        before = 0
    if before and n:
        values = values.movedim(tuple(range(m, m + n)), tuple(range(m + before, m + before + n)))
    lengths = [t.shape[d] for d in rest]
    full = torch.Size([*lengths[:before], *shape, *lengths[before:]])
    padded = tuple(_padded(axis, before, len(rest) - before) for axis in axes)
    form = Form(values, padded, full)
    return _mean(form) if t.is_floating_point() else SoftIndex(form)


def _is_mask(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, SoftIndex) and x.dtype is torch.bool


def _index_select(func: Callable, t: Any, dim: int, index: Any) -> Any:
    if not isinstance(index, SoftIndex):
        return _structural(func, t, dim, index)
    return _index(func, t, (slice(None),) * (dim % t.ndim) + (index,))


def _embedding(func: Callable, z: SoftIndex, table: Tensor, *args: Any, **kwargs: Any) -> Any:
    if (len(args) > 1 and args[1] is not None) or kwargs.get("max_norm") is not None:
        raise _refusal("embedding with max_norm", z)
    return _index(func, table, z)


def _take(func: Callable, t: Any, index: Any) -> Any:
    if not isinstance(index, SoftIndex):
        return _structural(func, t, index)
    return _index(func, t.reshape(-1), index)


def _gather(func: Callable, t: Any, dim: int, index: Any) -> Any:
    if not isinstance(index, SoftIndex):
        return _structural(func, t, dim, index)
    items: list[Any] = [
        torch.arange(size, device=t.device).reshape(-1, *[1] * (t.ndim - d - 1))
        for d, size in enumerate(index.shape)
    ]
    items[dim] = index
    return _index(func, t, tuple(items))


def _take_along(func: Callable, t: Any, index: Any, dim: int | None = None) -> Any:
    if not isinstance(index, SoftIndex):
        return _structural(func, t, index, dim)
    if dim is None:
        return _take(func, t, index.reshape(-1))
    sizes = [(torch.Size([*x.shape[:dim], 1, *x.shape[dim:][1:]])) for x in (t, index)]
    shape = list(torch.broadcast_shapes(*sizes))
    shape[dim] = -1
    return _gather(func, t.expand(shape), dim, index.expand(shape))


# --- other reads ----------------------------------------------------------------------------------


def _one_hot(func: Callable, z: SoftIndex, num_classes: int = -1) -> SoftIndex:
    form = z.form
    K = num_classes if num_classes >= 0 else int(form.table.max()) + 1

    def hot() -> Form:
        axes = tuple(_padded(axis, 0, 1) for axis in form.axes)
        return Form(func(form.table, K), axes, torch.Size([*form.shape, K]))

    if not (form.ordinal and form.table.numel() == K):
        return SoftIndex(hot())
    weights = form.axes[0].weights.movedim(0, -1)
    return SoftIndex(hot, weights.expand(*form.shape, K), form.table)


def _isin(func: Callable, z: Any, values: Any, **kwargs: Any) -> SoftIndex:
    if not isinstance(z, SoftIndex) or isinstance(values, SoftIndex):
        raise _refusal("isin of soft values", [z, values])
    return SoftIndex(z.form._replace(table=func(z.form.table, values, **kwargs), ordinal=False))


def _reduced(
    func: Callable, z: SoftIndex, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> Any:
    """Over the classes of one draw: on the table. All-true and all-false need no draw."""
    name, n, form = _named(func), z.ndim, z.form
    single = name in ("max", "min") and dim is None
    if z.dtype.is_floating_point and (name in FLOAT_REDUCTIONS or single):
        arguments = () if dim is None else (dim, keepdim)
        return func(as_float(z), *arguments, **kwargs)
    dims = list(range(-n, 0)) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    dims = [d % n - n for d in dims]
    kept = [1 if d - n in dims else size for d, size in enumerate(form.shape)]
    if not keepdim:
        kept = [size for d, size in enumerate(form.shape) if d - n not in dims]
    if name in ("all", "_is_all_true") and form.table.all():
        return torch.ones(kept, dtype=torch.bool, device=z.device)
    if any(axis.ids.shape[d] > 1 for axis in form.axes for d in dims):
        if name == "any" and not form.table.any():
            return torch.zeros(kept, dtype=torch.bool, device=z.device)
        raise _refusal(f"{name} over draws", z)
    if name in NEED_DIM and len(dims) > 1:
        raise _refusal(f"{name} over several dimensions", z)
    table = form.table.expand(
        *form.table.shape[: len(form.axes)],
        *[form.shape[d] if d - n in dims else size for d, size in enumerate(form.compact)],
    )
    table = func(table, dims[0] if len(dims) == 1 else tuple(dims), keepdim, **kwargs)
    axes = form.axes
    if not keepdim:
        axes = tuple(
            a._replace(weights=a.weights.squeeze(tuple(dims)), ids=a.ids.squeeze(tuple(dims)))
            for a in axes
        )
    make = lambda table: SoftIndex(Form(table, axes, torch.Size(kept)))  # noqa: E731
    return make(table) if isinstance(table, Tensor) else type(table)(map(make, table))


def _scattered(func: Callable, t: Any, dim: int, index: Any, source: Any, **kwargs: Any) -> Tensor:
    """Sums at soft places: each class gets its weight of the source."""
    if isinstance(t, SoftIndex) or isinstance(source, SoftIndex):
        if isinstance(t, SoftIndex) or not source.dtype.is_floating_point:
            raise _refusal(f"{_named(func)} of a soft value", [t, index, source])
        source = as_float(source)
    if not isinstance(index, SoftIndex):
        return func(t, dim, index, source, **kwargs)
    if not t.is_floating_point():
        raise _refusal(f"{_named(func)} into integers", index)
    form, m = index.form, len(index.form.axes)
    if m > 1:
        raise _refusal(f"{_named(func)} at an index of several sites", index)
    places = form.table.expand(-1, *form.shape)
    weights = form.axes[0].weights.expand(places.shape)
    if "scatter" in _named(func):
        source = source[tuple(slice(size) for size in form.shape)]
        across = dim
    else:  # index_add: one place for a whole slice
        across = 0
        weights = weights.reshape(-1, form.shape[0], *[1] * (t.ndim - 1 - dim % t.ndim))
    source = (weights.to(source.dtype) * source).unbind(0)
    return func(t, dim, torch.cat(places.unbind(0), across), torch.cat(source, dim), **kwargs)


def _rest(func: Callable, *args: Any, **kwargs: Any) -> Any:
    """Soft floats are floats to everything that gives floats; all else is refused."""
    name, soft = _named(func), _soft(args, kwargs)
    changes = isinstance(args[0] if args else None, SoftIndex) and (
        name.startswith("__i") or (name[-1] == "_" != name[-2])
    )
    if changes or name in READS or not all(z.dtype.is_floating_point for z in soft):
        raise _refusal(READS.get(name, name), soft)
    result = func(*tree_map(as_float, args), **tree_map(as_float, kwargs))
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in tree_leaves(result)):
        raise _refusal(name, soft)
    return result


# --- rules ----------------------------------------------------------------------------------------

GETITEM, SETITEM = Tensor.__getitem__, Tensor.__setitem__


def _functions(names: str) -> list[Callable]:
    """The functions and methods of torch that have these names."""
    homes = (Tensor, torch, F, torch.special)
    found = [getattr(home, name, None) for name in names.split() for home in homes]
    return [f.__get__ if hasattr(f, "__set__") else f for f in found if f is not None]


SUMS = frozenset(
    _functions("add sub subtract rsub neg negative positive __add__ __radd__ __sub__ __rsub__")
)
PRODUCTS = frozenset(_functions("mul multiply __mul__ __rmul__"))
QUOTIENTS = frozenset(_functions("div divide true_divide __truediv__ __div__"))
READINGS = frozenset(
    _functions(
        "eq ne lt le gt ge not_equal less less_equal greater greater_equal"
        " __eq__ __ne__ __lt__ __le__ __gt__ __ge__"
    )
)
ENDS = frozenset(
    _functions(
        "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan sinh cosh tanh atan sigmoid"
        " expit logit lgamma digamma erf reciprocal softplus logsigmoid"
    )
)
ARITHMETIC = (
    "floor_divide __floordiv__ __rfloordiv__ remainder fmod __mod__ __rmod__ pow __pow__ __rpow__"
    " __rtruediv__ __rdiv__ abs absolute __abs__ square sign sgn relu floor ceil round trunc frac"
    " minimum maximum clamp clip clamp_min clamp_max isnan isinf isfinite"
    " logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_not"
    " __and__ __or__ __xor__ __rand__ __ror__ __rxor__ __invert__ bitwise_left_shift"
    " bitwise_right_shift __lshift__ __rshift__ __rlshift__ __rrshift__"
)
CASTS = "long int short bool float double half bfloat16 char byte to type type_as cpu cuda"
STRUCTURE = (
    "reshape view squeeze unsqueeze transpose t permute movedim moveaxis swapaxes swapdims flatten"
    " ravel unflatten expand broadcast_to select narrow unbind split split_with_sizes chunk"
    " tensor_split contiguous clone flip fliplr flipud roll rot90 repeat tile repeat_interleave"
    " diagonal diag unfold atleast_1d atleast_2d adjoint T mT H mH __getitem__ masked_select"
    " expand_as view_as reshape_as"
)
JOINS = "stack cat concat concatenate hstack vstack dstack column_stack row_stack"
REDUCTIONS = "any all sum prod argmax argmin amax amin max min count_nonzero _is_all_true"
FLOAT_REDUCTIONS = ("sum", "prod", "amax", "amin")
NEED_DIM = ("argmax", "argmin", "max", "min", "prod")
LIKES = (
    "zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones"
    " new_full new_empty new_tensor size dim ndimension numel nelement __len__ is_floating_point"
    " is_complex is_signed get_device is_contiguous stride element_size result_type is_cuda layout"
    " is_sparse is_quantized is_meta is_nested itemsize nbytes is_leaf names retains_grad"
)
READS = {
    "__bool__": "a branch",
    "item": "reading one value",
    "__int__": "reading one value",
    "__float__": "reading one value",
    "__index__": "range or a Python index",
    "tolist": "reading values",
    "numpy": "NumPy",
    "__array__": "NumPy",
    "__reduce_ex__": "pickle or copy",
    "__deepcopy__": "pickle or copy",
    "__setitem__": "assignment",
    "__contains__": "membership",
}

RULES: dict[Callable, Callable] = {
    **dict.fromkeys([*SUMS, *PRODUCTS, *QUOTIENTS, *READINGS, *ENDS], _elementwise),
    **dict.fromkeys(_functions(ARITHMETIC), _elementwise),
    **dict.fromkeys(_functions(CASTS), _cast),
    **dict.fromkeys(_functions(STRUCTURE), _structural),
    **dict.fromkeys(_functions(JOINS), _joined),
    **dict.fromkeys(_functions(REDUCTIONS), _reduced),
    **dict.fromkeys(_functions(LIKES), _like),
    **dict.fromkeys(_functions("scatter_add scatter_add_ index_add index_add_"), _scattered),
    **dict.fromkeys(_functions("index_select"), _index_select),
    **dict.fromkeys(_functions("take_along_dim"), _take_along),
    torch.where: lambda func, *args: _where(func, *args),
    Tensor.where: lambda func, x, condition, y: _where(func, condition, x, y),
    **dict.fromkeys(
        _functions("masked_fill"), lambda func, t, mask, value: _where(func, mask, value, t)
    ),
    **dict.fromkeys(_functions("detach"), _detach),
    **dict.fromkeys(_functions("broadcast_tensors"), _broadcast),
    **dict.fromkeys(_functions("gather"), _gather),
    **dict.fromkeys(_functions("take"), _take),
    **dict.fromkeys(_functions("embedding"), _embedding),
    **dict.fromkeys(_functions("one_hot"), _one_hot),
    **dict.fromkeys(_functions("isin"), _isin),
}
