"""The rules for soft indices, one for each kind of function of torch.

A function without a rule is refused; one that gives floats takes soft floats as their means.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from gs_ppl.pyro.soft_value import (
    DRAWS_CURE,
    RULES,
    Axis,
    Form,
    SoftIndex,
    aligned,
    as_float,
    broadcast,
    draw_ids,
    mean,
    name_of,
    named,
    padded,
    refusal,
    shape_of,
    sites_of,
    soft_in,
    weighted,
)

__all__: list[str] = []


def _functions(names: str) -> set[Callable]:
    """The functions and methods of torch with these names."""
    homes = (Tensor, torch, F, torch.special)
    found = (getattr(home, name, None) for name in names.split() for home in homes)
    return {f.__get__ if hasattr(f, "__set__") else f for f in found if f is not None}


def _rule(names: str) -> Callable[[Callable], Callable]:
    def register(f: Callable) -> Callable:
        RULES.update(dict.fromkeys(_functions(names), f))
        return f

    return register


# --- elementwise: on the tables; the mean if a float array of the program takes part --------------

SUMS = "add sub subtract rsub neg negative positive __add__ __radd__ __sub__ __rsub__"
PRODUCTS = "mul multiply __mul__ __rmul__"
QUOTIENTS = "div divide true_divide __truediv__ __div__ reciprocal __rtruediv__ __rdiv__"
ENDS = (
    "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan sinh cosh tanh atan sigmoid expit"
    " logit lgamma digamma erf softplus logsigmoid xlogy"
)
_SUMS, _PRODUCTS, _QUOTIENTS, _ENDS = map(_functions, (SUMS, PRODUCTS, QUOTIENTS, ENDS))
GETITEM = Tensor.__getitem__


@_rule(f"{SUMS} {PRODUCTS} {QUOTIENTS} {ENDS}")
@_rule(
    "eq ne lt le gt ge not_equal less less_equal greater greater_equal"
    " __eq__ __ne__ __lt__ __le__ __gt__ __ge__ isnan isinf isfinite"
    " floor_divide __floordiv__ __rfloordiv__ remainder fmod __mod__ __rmod__ pow __pow__ __rpow__"
    " abs absolute __abs__ square sign sgn relu floor ceil round trunc frac"
    " minimum maximum clamp clip clamp_min clamp_max"
    " logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_not"
    " __and__ __or__ __xor__ __rand__ __ror__ __rxor__ __invert__"
)
def _elementwise(func: Callable, *args: Any, **kwargs: Any) -> Any:
    leaves = [*args, *kwargs.values()]
    soft, ends = soft_in(leaves), _has_float_array(leaves)
    rounds = kwargs.get("rounding_mode") is not None
    linear = func in _SUMS or (func in _PRODUCTS and len(soft) == 1)
    if linear and (ends or _have_means(soft)):
        value = func(*map(as_float, args), **{k: as_float(x) for k, x in kwargs.items()})
        return value if ends else SoftIndex(lambda: _on_tables(func, args, kwargs), value)
    to_float = func in _ENDS or (func in _QUOTIENTS and not rounds)
    number = to_float or any(isinstance(x, float) for x in leaves)
    form = _on_tables(func, args, kwargs, number and not ends)
    is_mean = form.table.is_floating_point() and (ends or func in _ENDS)
    return mean(form) if is_mean else SoftIndex(form)


def _on_tables(func: Callable, args: Sequence, kwargs: dict, number: bool = False) -> Form:
    """With a `number`, integers become floats in the weights' dtype, not in torch's default."""
    leaves = [*args, *kwargs.values()]
    shape = broadcast([shape_of(x) for x in leaves if isinstance(x, Tensor)])
    tables, axes = aligned(name_of(func), [z.form for z in soft_in(leaves)], len(shape))
    if number:
        dtype = axes[0].weights.dtype
        tables = [table if table.is_floating_point() else table.to(dtype) for table in tables]
    following = iter(tables)
    leaves = [next(following) if isinstance(x, SoftIndex) else x for x in leaves]
    table = func(*leaves[: len(args)], **dict(zip(kwargs, leaves[len(args) :], strict=True)))
    if table is NotImplemented:  # z == None
        raise TypeError
    return Form(table, tuple(axes), shape)


def _has_float_array(values: Sequence) -> bool:
    return any(
        isinstance(x, Tensor) and not isinstance(x, SoftIndex) and x.is_floating_point()
        for x in values
    )


def _have_means(soft: Sequence[SoftIndex]) -> bool:
    """Whether all are floats that are still unchanged: their tables are made at first use."""
    return all(z.is_float and z._mean is not None for z in soft)


def _where(func: Callable, condition: Any, x: Any, y: Any) -> Any:
    """A mean of arrays by the condition's weight. Under a plain condition the table is kept."""
    ends, soft = _has_float_array([x, y]), isinstance(condition, SoftIndex)
    if ends and soft and not soft_in(x, y):
        weight = as_float(condition)
        return weighted(weight, x) + weighted(1 - weight, y)
    if not ends:  # numbers in the weights' dtype
        like = soft_in(condition, x, y)[0].form.axes[0].weights
        x, y = (like.new_tensor(v) if isinstance(v, float) else v for v in (x, y))
    form = _on_tables(torch.where, (condition, x, y), {})
    return mean(form) if ends and soft else SoftIndex(form)


RULES[torch.where] = _where
RULES[Tensor.where] = lambda func, x, condition, y: _where(func, condition, x, y)
_rule("masked_fill")(lambda func, x, mask, value: _where(func, mask, value, x))


@_rule("long int short bool float double half bfloat16 char byte to type type_as cpu cuda")
def _cast(func: Callable, x: Any, *args: Any, **kwargs: Any) -> Any:
    if soft_in(args, kwargs):
        args, kwargs = tree_map(_shell, (args, kwargs))
    if not isinstance(x, SoftIndex):
        return func(x, *args, **kwargs)
    form, table = x.form, func(x.form.table, *args, **kwargs)
    if table.device != x.device:
        raise refusal(x, "a move between devices", "move the tables of the program")
    ordinal = form.ordinal and table.dtype is not torch.bool
    return x if table.dtype == x.dtype else SoftIndex(Form(table, *form[1:3], ordinal))


def _shell(x: Any) -> Any:
    """A plain tensor of the same shape, dtype and device."""
    if not isinstance(x, SoftIndex):
        return x
    return torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape)


# --- structural: the same move on tables, weights and ids -----------------------------------------

SEVERAL = "unbind split split_with_sizes chunk tensor_split"
_SEVERAL = _functions(SEVERAL)


@_rule(
    f"{SEVERAL} reshape view squeeze unsqueeze transpose t permute movedim moveaxis swapaxes"
    " swapdims flatten ravel unflatten expand broadcast_to select narrow contiguous clone flip"
    " fliplr flipud roll tile repeat repeat_interleave diagonal unfold atleast_1d atleast_2d T mT"
)
def _structural(func: Callable, z: Any, *args: Any, **kwargs: Any) -> Any:
    if soft_in(args, kwargs):
        raise refusal((z, args, kwargs), f"{name_of(func)} by a soft index")

    def move(xs: Any) -> Any:
        return func(xs[0], *args, **kwargs)

    if _have_means([z]) and isinstance(value := move([z._mean]), Tensor):
        return SoftIndex(lambda: _moved(move, [z.form])[0], value)
    found = tuple(SoftIndex(form) for form in _moved(move, [z.form]))
    return found if func in _SEVERAL else found[0]


RULES[Tensor.__iter__] = lambda func, z: iter(z.unbind(0))


@_rule("expand_as view_as reshape_as")
def _as_another(func: Callable, x: Tensor, other: Any) -> Any:
    return x.expand(other.shape) if func is Tensor.expand_as else x.reshape(other.shape)


@_rule("broadcast_tensors")
def _broadcast_tensors(func: Callable, *tensors: Any) -> tuple[Any, ...]:
    xs: Sequence = tensors[0] if isinstance(tensors[0], tuple | list) else tensors
    shape = broadcast([shape_of(x) for x in xs])
    return tuple(x.expand(shape) for x in xs)


@_rule("stack cat concat concatenate hstack vstack dstack column_stack row_stack")
def _joined(func: Callable, xs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
    """Joins values: all have their classes along one axis, and their elements form one row."""
    if _has_float_array(xs):
        return func([as_float(x) for x in xs], *args, **kwargs)
    like = soft_in(xs)[0].form
    forms = [x.form if isinstance(x, SoftIndex) else _certain(x, like) for x in xs]
    if any(form.classes != like.classes for form in forms):
        raise refusal(xs, f"{name_of(func)} of different numbers of classes")
    return SoftIndex(_moved(lambda grids: func(grids, *args, **kwargs), forms)[0])


def _certain(x: Tensor, like: Form) -> Form:
    """Plain integers, as a draw whose first class has probability 1."""
    axes = []
    for (sites, w, _), k in zip(like.axes, like.classes, strict=True):
        sure = torch.eye(k, 1, dtype=w.dtype, device=w.device).reshape(k, *[1] * x.ndim)
        axes.append(Axis(sites, sure.expand(k, *x.shape), draw_ids(shape_of(x), x.device)))
    return Form(x.expand(*like.classes, *x.shape), tuple(axes), shape_of(x))


def _moved(move: Callable, forms: Sequence[Form]) -> list[Form]:
    """One rule for all moves: the function is run on the numbers of the elements."""
    shapes: list[torch.Size] = []

    def positions(compacts: list[torch.Size]) -> list[tuple[Tensor, bool]]:
        """The source of each element of the result, and whether all elements are there in order."""
        ends = [0, *accumulate(map(math.prod, compacts))]
        grids = [
            torch.arange(*ends[i : i + 2], device=forms[0].table.device).reshape(compact)
            for i, compact in enumerate(compacts)
        ]
        results = move([g.expand(form.shape) for g, form in zip(grids, forms, strict=True)])
        results = [results] if isinstance(results, Tensor) else results
        shapes[:] = [shape_of(p) for p in results]
        if ends[-1] == 1:  # the same for all
            return [(p.new_zeros([1] * p.ndim), True) for p in results]
        found = [_narrowed(p) for p in results]
        start = grids[0].data_ptr()
        return [
            (p, p.data_ptr() == start and p.is_contiguous() and p.numel() == ends[-1])
            for p in found
        ]

    def taken(xs: Sequence[Tensor], lead: int, p: Tensor, in_order: bool) -> Tensor:
        rows = [x.reshape(*x.shape[:lead], -1) for x in xs]
        flat = rows[0] if len(rows) == 1 else torch.cat(rows, lead)
        flat = flat if in_order else flat.index_select(lead, p.reshape(-1))
        return flat.reshape(flat.shape[:lead] + p.shape)

    axes: list[list[Axis]] = []
    for drawn in zip(*[form.axes for form in forms], strict=True):
        sites, weights, ids = zip(*drawn, strict=True)
        at = positions([x.shape for x in ids])
        names = frozenset().union(*sites)
        axes.append([Axis(names, taken(weights, 1, *p), taken(ids, 0, *p)) for p in at])
    results, m, tables = list(zip(*axes, strict=True)), len(axes), [form.table for form in forms]
    if all(form.ordinal for form in forms):  # the table is the same at every element
        new = [tables[0].reshape(-1, *[1] * len(shape)) for shape in shapes]
        return [Form(*parts, True) for parts in zip(new, results, shapes, strict=True)]
    new = [taken(tables, m, *p) for p in positions([table.shape[m:] for table in tables])]
    return [Form(*parts) for parts in zip(new, results, shapes, strict=True)]


def _narrowed(positions: Tensor) -> Tensor:
    for dim, stride in enumerate(positions.stride()):
        if stride == 0 and positions.shape[dim] > 1:
            positions = positions.narrow(dim, 0, 1)
    return positions


# --- tables indexed by soft indices: first by plain indices, then by the tables of soft ones ------


@_rule("__getitem__")
def _getitem(func: Callable, t: Any, index: Any) -> Any:
    if isinstance(index, SoftIndex) and _is_row_number(index, t):
        return _rows(t, index)
    return _indexed(t, index) if soft_in(index) else _structural(func, t, index)


def _is_row_number(z: SoftIndex, t: Any) -> bool:
    is_integer = z.form.ordinal and not z.is_float
    return is_integer and not isinstance(t, SoftIndex) and len(z.form.table) <= len(t)


def _rows(t: Tensor, z: SoftIndex) -> Any:
    """t[z], a product of matrices."""
    form, shape = z.form, t.shape[1:]
    values = t[: len(form.table)].reshape(-1, *[1] * z.ndim, *shape)
    return _read(Form(values, (padded(form.axes[0], 0, len(shape)),), z.shape + shape))


def _read(form: Form) -> Any:
    return mean(form) if form.table.is_floating_point() else SoftIndex(form)


def _indexed(t: Any, index: Any) -> Any:
    soft = soft_in(index)
    _check_index(t, soft)
    t, items = _plain_part(t, list(index) if isinstance(index, tuple) else [index])
    dims = [d for d, x in enumerate(items) if isinstance(x, Tensor)]
    rest = [d for d in range(t.ndim) if d not in dims]
    columns, n = [items[d] for d in dims], max(items[d].ndim for d in dims)
    t = t.movedim(dims, tuple(range(len(dims))))
    # adjacent columns keep their place; separate columns come first
    wide = [d for d in dims if items[d].ndim]
    apart = not wide or any(wide[0] < d < wide[-1] for d in rest)
    before = 0 if apart else sum(d < wide[0] for d in rest)
    shape = broadcast([shape_of(x) for x in columns])
    tables, axes = aligned("an index", [z.form for z in soft], n)
    following = iter(tables)
    found = [next(following) if isinstance(x, SoftIndex) else x for x in columns]
    axes = [padded(axis, 0, len(rest)) for axis in axes]
    try:
        table = t[tuple(found)]
    except IndexError as error:
        raise IndexError(
            f"{named(sites_of(soft))}: a class has no row in the table: {error}"
        ) from None
    value = _read(Form(table, tuple(axes), shape + t.shape[len(dims) :]))
    return value.movedim(tuple(range(n)), tuple(range(before, before + n))) if before else value


def _check_index(t: Any, soft: Sequence[SoftIndex]) -> None:
    if isinstance(t, SoftIndex):
        raise refusal((t, soft), "indexing a soft index by a soft index", "index a plain table")
    if any(z.dtype is torch.bool for z in soft):
        raise refusal(soft, "use as a boolean index", "use torch.where, or weight by the mask")
    if any(z.is_float for z in soft):
        raise refusal(soft, "use of a float as an index", "cast it first, as in z.long()")


def _plain_part(t: Tensor, items: list[Any]) -> tuple[Tensor, list[Any]]:
    """The table, indexed by numbers, slices and None; and what is left for each dimension."""
    items = [torch.tensor(x, device=t.device) if isinstance(x, list) else x for x in items]
    items = [y for x in items for y in (x.nonzero(as_tuple=True) if _is_mask(x) else [x])]
    taken = sum(x is not None and x is not Ellipsis for x in items)
    at = next((i for i, x in enumerate(items) if x is Ellipsis), len(items))
    items[at : at + 1] = [slice(None)] * (t.ndim - taken)
    # torch takes a tensor of no dimensions as a number
    t = t[tuple(slice(None) if isinstance(x, Tensor) else x for x in items)]
    return t, [x for x in items if not isinstance(x, int)]


def _is_mask(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, SoftIndex) and x.dtype is torch.bool


@_rule("index_select")
def _index_select(func: Callable, t: Any, dim: int, index: Any) -> Any:
    return _getitem(GETITEM, t, (*[slice(None)] * (dim % t.ndim), index))


@_rule("embedding")
def _embedding(func: Callable, z: Any, table: Tensor, *args: Any, **kwargs: Any) -> Any:
    if (len(args) > 1 and args[1] is not None) or kwargs.get("max_norm") is not None:
        raise refusal(z, "embedding with max_norm")
    return _indexed(table, z)


@_rule("take")
def _take(func: Callable, t: Any, index: Any) -> Any:
    return _getitem(GETITEM, t.reshape(-1), index)


@_rule("gather")
def _gather(func: Callable, t: Any, dim: int, index: Any) -> Any:
    columns: list[Any] = [
        torch.arange(size, device=t.device).reshape(-1, *[1] * (t.ndim - d - 1))
        for d, size in enumerate(index.shape)
    ]
    columns[dim] = index
    return _getitem(GETITEM, t, tuple(columns))


@_rule("take_along_dim")
def _take_along(func: Callable, t: Any, index: Any, dim: int | None = None) -> Any:
    if dim is None:
        return _take(func, t, index.reshape(-1))
    dim = dim % t.ndim
    shape = list(broadcast([[*x.shape[:dim], 1, *x.shape[dim + 1 :]] for x in (t, index)]))
    shape[dim] = -1
    return _gather(func, t.expand(shape), dim, index.expand(shape))


# --- the classes of one draw, on the table --------------------------------------------------------


@_rule("one_hot")
def _one_hot(func: Callable, z: SoftIndex, num_classes: int = -1) -> SoftIndex:
    if num_classes < 0:
        raise refusal(z, "one_hot without num_classes", "give it, as in one_hot(z, K)")
    axes = tuple(padded(axis, 0, 1) for axis in z.form.axes)
    return SoftIndex(
        Form(func(z.form.table, num_classes), axes, torch.Size([*z.shape, num_classes]))
    )


@_rule("isin")
def _isin(func: Callable, z: Any, values: Any, **kwargs: Any) -> SoftIndex:
    if not isinstance(z, SoftIndex) or isinstance(values, SoftIndex):
        raise refusal((z, values), "isin of soft values")
    return SoftIndex(Form(func(z.form.table, values, **kwargs), *z.form[1:3]))


@_rule("any all sum prod amax amin argmax _is_all_true")
def _reduced(func: Callable, z: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    """Along the classes of one draw; along draws, if the table is the same for all of them."""
    name, n, form = name_of(func).replace("_is_all_true", "all"), z.ndim, z.form
    m, dim = len(form.axes), kwargs.pop("axis", dim)
    dims = range(n) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = sorted(d % n - n for d in dims)
    kept = {d: 1 if d in dims else form.shape[d] for d in range(-n, 0) if keepdim or d not in dims}
    shape = torch.Size(kept.values())
    if name == "all" and form.table.all():
        return torch.ones(shape, dtype=torch.bool, device=z.device)
    if any(axis.ids.shape[d] > 1 for axis in form.axes for d in dims):
        if name == "any" and not form.table.any():
            return torch.zeros(shape, dtype=torch.bool, device=z.device)
        if name == "sum" and z.is_float:
            return func(as_float(z), dims, keepdim, **kwargs)
        raise refusal(z, f"{name} over several draws", DRAWS_CURE)
    full = [form.shape[d] if d in dims else form.table.shape[m + n + d] for d in range(-n, 0)]
    table = form.table.expand(*form.classes, *full)
    table = func(table, dims if len(dims) != 1 else dims[0], keepdim, **kwargs)
    axes = form.axes
    if not keepdim:
        axes = tuple(Axis(a.sites, a.weights.squeeze(dims), a.ids.squeeze(dims)) for a in axes)
    return SoftIndex(Form(table, axes, shape))


# --- sums at soft places, which are linear: each class gets its weight of the source --------------


@_rule("scatter_add scatter_add_ index_add index_add_")
def _scattered(func: Callable, t: Any, dim: int, index: Any, source: Any, **kwargs: Any) -> Tensor:
    name, soft = name_of(func), (t, index, source)
    if isinstance(t, SoftIndex) or not t.is_floating_point():
        raise refusal(soft, f"{name} into integers, or a soft value", "begin with a plain float")
    source = as_float(source)
    if not isinstance(index, SoftIndex):
        return func(t, dim, index, source, **kwargs)
    form = index.form
    if len(form.axes) > 1:
        raise refusal(soft, f"{name} at an index of several sites")
    places = form.table.expand(-1, *form.shape)
    weights, across = form.axes[0].weights.expand(places.shape), dim
    if "scatter" in name:
        source = source[tuple(slice(size) for size in form.shape)]
    else:  # index_add: one place for a whole slice
        dim, across = dim % t.ndim, 0
        weights = weights.reshape(-1, *[1] * dim, *form.shape, *[1] * (t.ndim - 1 - dim))
    source = (weights.to(source.dtype) * source).unbind(0)
    return func(t, dim, torch.cat(places.unbind(0), across), torch.cat(source, dim), **kwargs)


@_rule("scatter scatter_")
def _put(func: Callable, t: Any, dim: int, index: Any, source: Any) -> Tensor:
    """At one place for each slice: one-hot vectors are often made in this way."""
    name, soft = name_of(func), (t, index, source)
    plain = not soft_in((t, source)) and t.is_floating_point()
    alone = [1 if d == dim % t.ndim else size for d, size in enumerate(t.shape)]
    if not plain or shape_of(index) != torch.Size(alone):
        cure = "begin with plain floats, one place for each slice, or use F.one_hot"
        raise refusal(soft, f"{name} of these arguments", cure)
    if not 0 <= index.form.table.min() <= index.form.table.max() < t.shape[dim]:
        raise IndexError(f"{name}: classes beyond the {t.shape[dim]} places of axis {dim}")
    places = torch.arange(t.shape[dim], device=t.device).view(
        -1, *[1] * (t.ndim - 1 - dim % t.ndim)
    )
    value = torch.where(index == places, torch.as_tensor(source).to(t), t.clone())
    return t.copy_(value) if name == "scatter_" else value


# --- reading shape, dtype and device; all else ----------------------------------------------------


@_rule(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full"
    " new_empty new_tensor size dim ndimension numel nelement __len__ is_floating_point is_complex"
)
def _like(func: Callable, x: Any, *args: Any, **kwargs: Any) -> Any:
    if soft_in(args, kwargs):
        raise refusal((x, args, kwargs), f"{name_of(func)} of a soft value", "add it to zeros")
    return func(_shell(x), *args, **kwargs)


READINGS = {
    "__bool__": ("a Python condition (if, while, and, or)", "use torch.where"),
    "__index__": ("use as a Python integer (range, list index)",),
    "__int__": ("int()",),
    "__float__": ("float()",),
    "item": ("item()",),
    "tolist": ("tolist()",),
    "numpy": ("a NumPy function", "use torch"),
    "__array__": ("a NumPy function", "use torch"),
    "__reduce_ex__": ("pickle", "store the weights that the trace holds"),
    "__deepcopy__": ("deepcopy", "store the weights that the trace holds"),
    "__setitem__": ("assignment", "use torch.where, or scatter_add"),
}


def _others(func: Callable, *args: Any, **kwargs: Any) -> Any:
    """A function that gives floats takes soft floats as their means; all else is refused."""
    name, soft = name_of(func), soft_in(args, kwargs)
    if name in READINGS:
        raise refusal(soft, *READINGS[name])
    if isinstance(args[0], SoftIndex) and (name[-1] == "_" != name[-2] or name[:3] == "__i"):
        raise refusal(soft, f"assignment ({name})", "use torch.where")
    if all(z.is_float for z in soft):
        value = func(*tree_map(as_float, args), **tree_map(as_float, kwargs))
        if all(isinstance(x, Tensor) and x.is_floating_point() for x in tree_leaves(value)):
            return value
    raise refusal(soft, name)


RULES[None] = _others
RULES[Tensor.__format__] = lambda func, z, spec: repr(z)
