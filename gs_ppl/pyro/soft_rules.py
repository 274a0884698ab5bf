"""What the functions of torch do to soft indices, a rule for each kind.

Each rule takes the function and its arguments. A function without a rule is refused, unless it
makes floats of soft floats alone, which are their means to it.
"""

import itertools
import math
from collections.abc import Callable, Sequence
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
    mean,
    name_of,
    padded,
    refusal,
    shape_of,
    sites_of,
    soft_in,
    weighted,
)


def functions(names: str) -> list[Callable]:
    """The functions and methods of torch that have these names."""
    homes = (Tensor, torch, F, torch.special)
    found = [getattr(home, name, None) for name in names.split() for home in homes]
    return [f.__get__ if hasattr(f, "__set__") else f for f in found if f is not None]


def rule(names: str) -> Callable[[Callable], Callable]:
    def register(f: Callable) -> Callable:
        RULES.update(dict.fromkeys(functions(names), f))
        return f

    return register


# --- elementwise: on the tables, and the mean where a float array of the program enters -----------

SUMS = functions("add sub subtract rsub neg negative positive __add__ __radd__ __sub__ __rsub__")
PRODUCTS = functions("mul multiply __mul__ __rmul__")
QUOTIENTS = functions("div divide true_divide __truediv__ __div__")
INVERSES = functions("reciprocal __rtruediv__ __rdiv__")
ENDS = functions(
    "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan sinh cosh tanh atan sigmoid expit"
    " logit lgamma digamma erf softplus logsigmoid"
)
LINEAR = {**dict.fromkeys(SUMS, "sum"), **dict.fromkeys(PRODUCTS, "product")}
LINEAR |= dict.fromkeys(QUOTIENTS, "quotient")
TO_FLOAT = {*QUOTIENTS, *INVERSES, *ENDS}


@rule(
    "eq ne lt le gt ge not_equal less less_equal greater greater_equal"
    " __eq__ __ne__ __lt__ __le__ __gt__ __ge__ isnan isinf isfinite"
    " floor_divide __floordiv__ __rfloordiv__ remainder fmod __mod__ __rmod__ pow __pow__ __rpow__"
    " abs absolute __abs__ square sign sgn relu floor ceil round trunc frac"
    " minimum maximum clamp clip clamp_min clamp_max"
    " logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_not"
    " __and__ __or__ __xor__ __rand__ __ror__ __rxor__ __invert__"
)
def elementwise(func: Callable, *args: Any, **kwargs: Any) -> Any:
    leaves = [*args, *kwargs.values()]
    soft = [x for x in leaves if isinstance(x, SoftIndex)]
    ends, rounds = has_float_array(leaves), kwargs.get("rounding_mode") is not None
    kind = None if rounds else LINEAR.get(func)
    one = kind == "product" or (kind == "quotient" and args[0] is soft[0])
    if kind == "sum" or (one and len(soft) == 1):
        if ends:
            return func(*map(as_float, args), **{k: as_float(x) for k, x in kwargs.items()})
        if all(z.is_float and z._mean is not None for z in soft):
            value = func(*map(as_float, args), **kwargs)
            return SoftIndex(lambda: on_tables(func, args, kwargs), value)
    number = any(isinstance(x, float) for x in leaves) or (func in TO_FLOAT and not rounds)
    form = on_tables(func, args, kwargs, number and not ends)
    is_mean = form.table.is_floating_point() and (ends or func in ENDS)
    return mean(form) if is_mean else SoftIndex(form)


RULES.update(dict.fromkeys([*LINEAR, *TO_FLOAT], elementwise))


def on_tables(func: Callable, args: Sequence, kwargs: dict, number: bool = False) -> Form:
    """With a `number`, integers become floats, in the weights' dtype and not in torch's default."""
    leaves = [*args, *kwargs.values()]
    forms = [x.form for x in leaves if isinstance(x, SoftIndex)]
    shape = torch.broadcast_shapes(*[shape_of(x) for x in leaves if isinstance(x, Tensor)])
    tables, axes = aligned(name_of(func), forms, len(shape))
    if number:
        dtype = axes[0].weights.dtype
        tables = [table if table.is_floating_point() else table.to(dtype) for table in tables]
    following = iter(tables)
    leaves = [next(following) if isinstance(x, SoftIndex) else x for x in leaves]
    table = func(*leaves[: len(args)], **dict(zip(kwargs, leaves[len(args) :], strict=True)))
    if table is NotImplemented:  # z == None
        raise TypeError
    return Form(table, tuple(axes), shape)


def has_float_array(values: Sequence) -> bool:
    return any(
        isinstance(x, Tensor) and not isinstance(x, SoftIndex) and x.is_floating_point()
        for x in values
    )


@rule("masked_fill")
def masked_fill(func: Callable, x: Any, mask: Any, value: Any) -> Any:
    return where(func, mask, value, x)


def where(func: Callable, condition: Any, x: Any, y: Any) -> Any:
    """Between arrays by the condition's weight. What a plain condition puts in keeps the table."""
    ends, soft = has_float_array([x, y]), isinstance(condition, SoftIndex)
    if ends and soft and not soft_in(x, y):
        return weighted(as_float(condition), x) + weighted(as_float(~condition), y)
    if not ends:  # numbers in the weights' dtype
        like = next(z.form.axes[0].weights for z in soft_in(condition, x, y))
        x, y = (like.new_tensor(v) if isinstance(v, float) else v for v in (x, y))
    form = on_tables(torch.where, (condition, x, y), {})
    return mean(form) if ends and soft else SoftIndex(form)


RULES[torch.where] = where
RULES[Tensor.where] = lambda func, x, condition, y: where(func, condition, x, y)


@rule("long int short bool float double half bfloat16 char byte to type type_as cpu cuda")
def cast(func: Callable, x: Any, *args: Any, **kwargs: Any) -> Any:
    like = standing_in(func, x, *args, **kwargs)
    if not isinstance(x, SoftIndex):
        return func(x, *tree_map(_stand_in, args), **tree_map(_stand_in, kwargs))
    if like.device != x.device:
        raise refusal(sites_of(x), "a move between devices", "move the tables of the program")
    if like.dtype == x.dtype:
        return x
    integer = not (like.dtype.is_floating_point or like.dtype is torch.bool)
    table = x.form.table.to(like.dtype)
    return SoftIndex(x.form._replace(table=table, ordinal=x.form.ordinal and integer))


@rule("detach")
def detach(func: Callable, z: SoftIndex) -> SoftIndex:
    def form() -> Form:
        axes = tuple(axis._replace(weights=axis.weights.detach()) for axis in z.form.axes)
        return z.form._replace(table=z.form.table.detach(), axes=axes)

    return SoftIndex(form(), None) if z._mean is None else SoftIndex(form, z._mean.detach())


# --- structural: the same move on tables, weights and ids -----------------------------------------


@rule(
    "reshape view squeeze unsqueeze transpose t permute movedim moveaxis swapaxes swapdims flatten"
    " ravel unflatten expand broadcast_to select narrow unbind split split_with_sizes chunk"
    " tensor_split contiguous clone flip fliplr flipud roll tile repeat repeat_interleave diagonal"
    " unfold atleast_1d atleast_2d T mT expand_as view_as reshape_as"
)
def structural(func: Callable, z: Any, *args: Any, **kwargs: Any) -> Any:
    args, kwargs = tree_map(_stand_in, args), tree_map(_stand_in, kwargs)
    if not isinstance(z, SoftIndex):  # expand_as, view_as
        return func(z, *args, **kwargs)
    move = lambda xs: func(xs[0], *args, **kwargs)  # noqa: E731
    if z.is_float and z._mean is not None:
        value = move([z._mean])
        if isinstance(value, Tensor):
            return SoftIndex(lambda: moved(move, [z.form])[0], value)
    forms = [SoftIndex(form) for form in moved(move, [z.form])]
    return tuple(forms) if len(forms) > 1 or func in SEVERAL else forms[0]


SEVERAL = {*functions("unbind split split_with_sizes chunk tensor_split")}
RULES[Tensor.__iter__] = lambda func, z: iter(z.unbind(0))


@rule("stack cat concat concatenate hstack vstack dstack column_stack row_stack")
def joined(func: Callable, xs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
    """All classes along one axis, all elements in one row."""
    if has_float_array(xs):
        return func([as_float(x) for x in xs], *args, **kwargs)
    first = next(x.form for x in xs if isinstance(x, SoftIndex))
    forms = [x.form if isinstance(x, SoftIndex) else _certain(x, first) for x in xs]
    if any(form.classes != first.classes for form in forms):
        operation = f"{name_of(func)} of different numbers of classes"
        raise refusal(sites_of(xs), operation)
    return SoftIndex(moved(lambda grids: func(grids, *args, **kwargs), forms)[0])


def _certain(x: Tensor, like: Form) -> Form:
    """Plain integers, as a draw whose first class is sure."""
    axes = []
    for axis in like.axes:
        weights = torch.zeros_like(axis.weights.reshape(axis.weights.shape[0], -1)[:, :1])
        weights[0] = 1.0
        ids = draw_ids(shape_of(x), x.device)
        axes.append(Axis(axis.sites, weights.reshape(-1, *[1] * x.ndim).expand(-1, *x.shape), ids))
    return Form(x.expand(*like.classes, *x.shape), tuple(axes), shape_of(x))


_draws = itertools.count()


def draw_ids(shape: torch.Size, device: torch.device) -> Tensor:
    """Numbers of new draws, one for each element."""
    start = next(_draws) % 2**22 * 2**40
    return torch.arange(start, start + math.prod(shape), device=device).reshape(shape)


def moved(move: Callable, forms: Sequence[Form]) -> list[Form]:
    """Run on the numbers of the elements, and read off: one rule for all moves."""
    shapes: list[torch.Size] = []

    def positions(compacts: list[torch.Size]) -> list[tuple[Tensor, bool]]:
        """Of each element of each result, with 1 where all are the same; whether it is a view."""
        grids, start, device = [], 0, forms[0].table.device
        for compact, form in zip(compacts, forms, strict=True):
            stop = start + math.prod(compact)
            grid = torch.arange(start, stop, device=device).reshape(compact)
            grids.append(grid.expand(form.shape))
            start = stop
        results = move(grids)
        results = [results] if isinstance(results, Tensor) else list(results)
        shapes[:] = [shape_of(p) for p in results]
        if start == 1:
            return [(p.new_zeros([1] * p.ndim), True) for p in results]
        found = [_narrowed(p) for p in results]
        plain = [p.data_ptr() == grids[0].data_ptr() and p.numel() == start for p in found]
        return [(p, v and p.is_contiguous()) for p, v in zip(found, plain, strict=True)]

    def taken(xs: Sequence[Tensor], lead: int, p: Tensor, is_view: bool) -> Tensor:
        rows = [x.reshape(*x.shape[:lead], -1) for x in xs]
        flat = rows[0] if len(rows) == 1 else torch.cat(rows, lead)
        flat = flat if is_view else flat.index_select(lead, p.reshape(-1))
        return flat.reshape(flat.shape[:lead] + p.shape)

    axes: list[list[Axis]] = []
    for drawn in zip(*[form.axes for form in forms], strict=True):
        sites = frozenset().union(*(axis.sites for axis in drawn))
        weights, ids = [axis.weights for axis in drawn], [axis.ids for axis in drawn]
        at = positions([x.shape for x in ids])
        axes.append([Axis(sites, taken(weights, 1, *p), taken(ids, 0, *p)) for p in at])
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


# --- tables indexed by soft indices: first what is plain, then the tables as indices --------------


@rule("__getitem__")
def getitem(func: Callable, t: Any, index: Any) -> Any:
    return index_table(t, index) if soft_in(index) else structural(func, t, index)


def index_table(t: Any, index: Any) -> Any:
    soft = soft_in(index)
    _check_index(t, soft)
    t, items = _plain_part(t, list(index) if isinstance(index, tuple) else [index])
    dims = [d for d, x in enumerate(items) if isinstance(x, Tensor)]
    rest = [d for d in range(t.ndim) if d not in dims]
    found = [items[d] for d in dims]
    shape = torch.broadcast_shapes(*[shape_of(x) for x in found])
    tables, axes = aligned("an index", [z.form for z in soft], len(shape))
    n, m = len(shape), len(axes)
    if len(found) == 1 and soft[0].form.ordinal and len(tables[0]) <= t.shape[dims[0]]:
        values = t.movedim(dims[0], 0)[: len(tables[0])]
        values = values.reshape(-1, *[1] * n, *values.shape[1:])
    else:
        following = iter(tables)
        columns = [next(following) if isinstance(x, SoftIndex) else x for x in found]
        values = t.movedim(dims, tuple(range(len(dims))))[tuple(columns)]
    # columns side by side keep their place; columns apart, and numbers, come first
    wide = [d for d in dims if items[d].ndim]
    apart = any(wide[0] < d < wide[-1] for d in rest) if wide else True
    before = 0 if apart else sum(d < wide[0] for d in rest)
    if before and n:
        values = values.movedim(tuple(range(m, m + n)), tuple(range(m + before, m + before + n)))
    sizes = [t.shape[d] for d in rest]
    axes = [padded(axis, before, len(rest) - before) for axis in axes]
    full = torch.Size([*sizes[:before], *shape, *sizes[before:]])
    form = Form(values, tuple(axes), full)
    return mean(form) if t.is_floating_point() else SoftIndex(form)


def _check_index(t: Any, soft: Sequence[SoftIndex]) -> None:
    sites = sites_of(soft, t)
    if isinstance(t, SoftIndex):
        raise refusal(sites, "indexing a soft index by a soft index", "index a plain table")
    if any(z.dtype is torch.bool for z in soft):
        raise refusal(sites, "use as a boolean index", "use torch.where, or weight by the mask")
    if any(z.is_float for z in soft):
        raise refusal(sites, "use of a float as an index", "cast it first, as in z.long()")


def _plain_part(t: Tensor, items: list[Any]) -> tuple[Tensor, list[Any]]:
    """The table after its numbers, slices and None; for each dimension the column that is left."""
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


@rule("index_select")
def index_select(func: Callable, t: Any, dim: int, index: Any) -> Any:
    if not isinstance(index, SoftIndex):
        return structural(func, t, dim, index)
    return index_table(t, (slice(None),) * (dim % t.ndim) + (index,))


@rule("embedding")
def embedding(func: Callable, z: SoftIndex, table: Tensor, *args: Any, **kwargs: Any) -> Any:
    if (len(args) > 1 and args[1] is not None) or kwargs.get("max_norm") is not None:
        raise refusal(sites_of(z), "embedding with max_norm")
    return index_table(table, z)


@rule("take")
def take(func: Callable, t: Any, index: Any) -> Any:
    if not isinstance(index, SoftIndex):
        return structural(func, t, index)
    return index_table(t.reshape(-1), index)


@rule("gather")
def gather(func: Callable, t: Any, dim: int, index: Any) -> Any:
    if not isinstance(index, SoftIndex):
        return structural(func, t, dim, index)
    columns: list[Any] = [
        torch.arange(size, device=t.device).reshape(-1, *[1] * (t.ndim - d - 1))
        for d, size in enumerate(index.shape)
    ]
    columns[dim] = index
    return index_table(t, tuple(columns))


@rule("take_along_dim")
def take_along(func: Callable, t: Any, index: Any, dim: int | None = None) -> Any:
    if dim is None:
        return take(torch.take, t, index.reshape(-1))
    dim = dim % t.ndim
    sizes = [torch.Size([*x.shape[:dim], 1, *x.shape[dim + 1 :]]) for x in (t, index)]
    shape = list(torch.broadcast_shapes(*sizes))
    shape[dim] = -1
    return gather(torch.gather, t.expand(shape), dim, index.expand(shape))


# --- the classes of one draw, on the table --------------------------------------------------------


@rule("one_hot")
def one_hot(func: Callable, z: SoftIndex, num_classes: int = -1) -> SoftIndex:
    if num_classes < 0:
        raise refusal(sites_of(z), "one_hot without num_classes", "give it, as in one_hot(z, K)")
    axes = tuple(padded(axis, 0, 1) for axis in z.form.axes)
    return SoftIndex(Form(func(z.form.table, num_classes), axes, z.shape + (num_classes,)))


@rule("isin")
def isin(func: Callable, z: Any, values: Any, **kwargs: Any) -> SoftIndex:
    if not isinstance(z, SoftIndex) or isinstance(values, SoftIndex):
        raise refusal(sites_of(z, values), "isin of soft values")
    return SoftIndex(z.form._replace(table=func(z.form.table, values, **kwargs), ordinal=False))


@rule("any all sum argmax _is_all_true")
def reduced(func: Callable, z: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    """Over the classes of one draw; over draws, where it is the same for all of them."""
    name, n, form = name_of(func), z.ndim, z.form
    m, dim = len(form.axes), kwargs.pop("axis", dim)
    dims = range(n) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = sorted(d % n - n for d in dims)
    whole = [1 if d in dims else form.shape[d] for d in range(-n, 0)]
    shape = torch.Size(whole if keepdim else [s for d, s in enumerate(whole, -n) if d not in dims])
    if name in ("all", "_is_all_true") and form.table.all():
        return torch.ones(shape, dtype=torch.bool, device=z.device)
    if any(axis.ids.shape[d] > 1 for axis in form.axes for d in dims):
        if name == "any" and not form.table.any():
            return torch.zeros(shape, dtype=torch.bool, device=z.device)
        if name == "sum" and z.is_float:
            return func(as_float(z), dims, keepdim, **kwargs)
        raise refusal(sites_of(z), f"{name} over several draws", DRAWS_CURE)
    full = [form.shape[d] if d in dims else form.table.shape[m + n + d] for d in range(-n, 0)]
    table = form.table.expand(*form.classes, *full)
    table = func(table, dims if len(dims) != 1 else dims[0], keepdim, **kwargs)
    axes = form.axes
    if not keepdim:
        axes = tuple(Axis(a.sites, a.weights.squeeze(dims), a.ids.squeeze(dims)) for a in axes)
    return SoftIndex(Form(table, axes, shape))


# --- sums at soft places, which are linear: each class gets its weight of the source --------------


@rule("scatter_add scatter_add_ index_add index_add_")
def scattered(func: Callable, t: Any, dim: int, index: Any, source: Any, **kwargs: Any) -> Tensor:
    name, sites = name_of(func), sites_of(t, index, source)
    if isinstance(t, SoftIndex):
        raise refusal(sites, "assignment", "use torch.where")
    if not t.is_floating_point():
        raise refusal(sites, f"{name} into integers", "begin with floats")
    if isinstance(source, SoftIndex):
        source = as_float(source).to(t.dtype)
    if not isinstance(index, SoftIndex):
        return func(t, dim, index, source, **kwargs)
    form = index.form
    if len(form.axes) > 1:
        raise refusal(sites, f"{name} at an index of several sites")
    places = form.table.expand(-1, *form.shape)
    weights, across = form.axes[0].weights.expand(places.shape), dim
    if "scatter" in name:
        source = source[tuple(slice(size) for size in form.shape)]
    else:  # index_add: one place for a whole slice
        dim, across = dim % t.ndim, 0
        weights = weights.reshape(-1, *[1] * dim, *form.shape, *[1] * (t.ndim - 1 - dim))
    source = (weights.to(source.dtype) * source).unbind(0)
    return func(t, dim, torch.cat(places.unbind(0), across), torch.cat(source, dim), **kwargs)


# --- reading a shape; all else --------------------------------------------------------------------


def _stand_in(x: Any) -> Any:
    """A plain tensor where nothing but shape, dtype and device of a soft one is read."""
    if not isinstance(x, SoftIndex):
        return x
    return torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape)


@rule(
    "zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones"
    " new_full new_empty new_tensor size dim ndimension numel nelement __len__ is_floating_point"
    " is_complex is_signed get_device is_contiguous stride element_size result_type is_cuda layout"
    " is_sparse is_quantized is_meta is_nested itemsize nbytes is_leaf names retains_grad"
)
def standing_in(func: Callable, *args: Any, **kwargs: Any) -> Any:
    return func(*tree_map(_stand_in, args), **tree_map(_stand_in, kwargs))


@rule("broadcast_tensors")
def broadcast(func: Callable, *tensors: Any) -> tuple[Any, ...]:
    xs: Sequence = tensors[0] if isinstance(tensors[0], tuple | list) else tensors
    shape = torch.broadcast_shapes(*[shape_of(x) for x in xs])
    return tuple(x.expand(shape) for x in xs)


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


def others(func: Callable, *args: Any, **kwargs: Any) -> Any:
    """Soft floats are floats to what gives floats; all else is refused."""
    name, soft = name_of(func), soft_in(args, kwargs)
    if name in READINGS:
        raise refusal(sites_of(soft), *READINGS[name])
    if isinstance(args[0], SoftIndex) and (name[-1] == "_" != name[-2] or name[:3] == "__i"):
        raise refusal(sites_of(soft), f"assignment ({name})", "use torch.where")
    if all(z.is_float for z in soft):
        value = func(*tree_map(as_float, args), **tree_map(as_float, kwargs))
        if all(isinstance(x, Tensor) and x.is_floating_point() for x in tree_leaves(value)):
            return value
    raise refusal(sites_of(soft), name)


RULES[None] = others
