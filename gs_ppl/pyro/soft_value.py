"""Tables over classes: the tensor that a program gets for a relaxed class, and its mean.

A value that is computed from relaxed draws has a table: its value for each class of its draws. Its
mean under the weights of the classes is a float. Tables, weights and ids are compact: they have
size 1 in every dimension along which they are the same.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.util import ignore_jit_warnings
from torch import Tensor

__all__: list[str] = []

LARGEST_PRODUCT = 2**24  # largest size of a table of several draws

INDEX_CURE = "index a table with it, compare it, or use torch.where"
DRAWS_CURE = "turn it into a float first, as in z.float() or one_hot(z, K).float()"


class SoftIndexError(ValueError):
    """A program uses a soft index in a way that has no meaning for one."""


class Axis(NamedTuple):
    """For each element, the classes of one draw."""

    sites: frozenset[str]
    weights: Tensor  # (K,) + compact shape
    ids: Tensor  # compact shape: which draw an element comes from


class Form(NamedTuple):
    """For each element, its value for each class of its draws."""

    table: Tensor  # (K1, ..., Km) + compact shape
    axes: tuple[Axis, ...]
    shape: torch.Size
    ordinal: bool = False  # the table is 0..K-1

    @property
    def classes(self) -> torch.Size:
        return self.table.shape[: len(self.axes)]


RULES: dict[Callable | None, Callable] = {}  # by function of torch; None: all others


class SoftIndex(Tensor):
    """A tensor without storage. The form of an unchanged float is made at first use."""

    _form: Form | Callable[[], Form]
    _mean: Tensor | None
    _shape: torch.Size
    _dtype: torch.dtype
    _device: torch.device

    @staticmethod
    def __new__(cls: type, form: Any, mean: Any = None) -> Any:
        like = form.table if mean is None else mean
        shape = form.shape if mean is None else shape_of(mean)
        z: Any = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        z._form, z._mean = form, mean
        z._shape, z._dtype, z._device = shape, like.dtype, like.device
        return z

    # own attributes: torch.jit.trace would record reads of a tensor's
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
    def is_float(self) -> bool:
        return self._dtype.is_floating_point

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        weights = "; ".join(str(axis.weights.movedim(0, -1)) for axis in self.form.axes)
        return f"<soft index of {named(sites_of(self))}: {tuple(self._shape)}, weights {weights}>"

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = RULES.get(func) or RULES[None]
        if kwargs and kwargs.get("out") is not None:
            raise refusal(args, "the argument out")
        with quiet():
            try:
                return rule(func, *args, **(kwargs or {}))
            except TypeError as error:  # else operators return NotImplemented, == False
                raise refusal((args, kwargs), f"{name_of(func)} of these arguments") from error

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func).removeprefix("aten.").split(".")[0]
        raise refusal((args, kwargs), name.replace("_local_scalar_dense", "item()"))


def quiet() -> Any:
    """Tracing warns each time that a size is read; the sizes of soft values are constants."""
    return ignore_jit_warnings() if torch._C._get_tracing_state() else nullcontext()


def shape_of(x: Tensor) -> torch.Size:
    """The shape as plain numbers, also if tracing makes tensors of them."""
    if not torch._C._get_tracing_state():
        return x.shape
    with ignore_jit_warnings():
        return torch.Size(int(size) for size in x.shape)


def broadcast(shapes: Sequence) -> torch.Size:
    """torch's own function takes 20 us."""
    return torch.Size(np.broadcast_shapes(*shapes))


def soft_in(*args: Any) -> list[SoftIndex]:
    """The soft values among arguments."""
    found = []
    for x in args:
        if isinstance(x, SoftIndex):
            found.append(x)
        elif isinstance(x, tuple | list | dict):
            found += soft_in(*(x.values() if isinstance(x, dict) else x))
    return found


# --- refusals -------------------------------------------------------------------------------------


def sites_of(*values: Any) -> frozenset[str]:
    """The sites that soft values come from."""
    return frozenset().union(*(axis.sites for z in soft_in(values) for axis in z.form.axes))


def refusal(of: Any, operation: str, cure: str = INDEX_CURE) -> SoftIndexError:
    """Names the sites of soft values, the operation and the cure."""
    where = named(of if isinstance(of, frozenset) else sites_of(of))
    return SoftIndexError(f"{where}: {operation} is not defined for a soft index; {cure}")


def named(sites: frozenset[str]) -> str:
    """The names, as errors show them."""
    return f"site{'s' * (len(sites) > 1)} {', '.join(map(repr, sorted(sites)))}"


def name_of(func: Any) -> str:
    """The name of a function, a method or a property of torch."""
    name = getattr(func, "__name__", str(func))
    return func.__self__.__name__ if name == "__get__" else name


_draws = itertools.count()


def draw_ids(shape: torch.Size, device: torch.device) -> Tensor:
    """Numbers of new draws, one for each element."""
    start = next(_draws) % 2**22 * 2**40
    return torch.arange(start, start + math.prod(shape), device=device).reshape(shape)


# --- the mean -------------------------------------------------------------------------------------


def as_float(value: Any) -> Any:
    """The mean of a soft value under its weights; any other value as it is."""
    if not isinstance(value, SoftIndex):
        return value
    if value._mean is None:
        with quiet():
            value._mean = mean(value.form)
    return value._mean


def mean(form: Form) -> Tensor:
    """sum_k w_k table_k over the classes of all draws.

    0 times an infinity is NaN: entries that are not finite count only where the weight is not 0.
    """
    table, weights = form.table, [axis.weights for axis in form.axes]
    dtype = table.dtype if table.is_floating_point() else weights[0].dtype
    work = reduce(torch.promote_types, [w.dtype for w in weights], dtype)
    table, weights = table.to(work), [w.to(work) for w in weights]
    if is_finite(table):
        return _contracted(table, weights).to(dtype).expand(form.shape)
    value = _contracted(torch.where(table.isfinite(), table, 0.0), weights)
    positive = [(w != 0).to(work) for w in weights]
    for bound in (math.inf, -math.inf):  # inf and -inf together give NaN
        hit = _contracted(((table == bound) | table.isnan()).to(work), positive)
        value = value + torch.where(hit > 0, bound, 0.0)
    return value.to(dtype).expand(form.shape)


def _contracted(table: Tensor, weights: Sequence[Tensor]) -> Tensor:
    m, w = len(weights), weights[0]
    first = next((d for d, size in enumerate(table.shape[m:]) if size > 1), table.ndim - m)
    if m == 1 and math.prod(w.shape[1 + first :]) == 1:  # the axes of draws come first
        result = w.reshape(w.shape[0], -1).T @ table.reshape(w.shape[0], -1)
        return result.reshape(w.shape[1 : 1 + first] + table.shape[1 + first :])
    classes = "abcdefghijklmnopqrstuvw"[:m]
    terms = ",".join(f"{k}..." for k in classes)
    return torch.einsum(f"{classes}...,{terms}->...", table, *weights)


def is_finite(table: Tensor) -> bool:
    """Whether all entries are finite; False also if that is unknown."""
    if not table.is_floating_point():
        return True
    try:
        return math.isfinite(table.detach().sum().item())
    except RuntimeError:  # within vmap
        return False


def weighted(weights: Tensor, x: Any) -> Tensor:
    """The product, where 0 times an infinity is 0, and has no gradient."""
    if not isinstance(x, Tensor):
        return weights * x if math.isfinite(x) else torch.where(weights == 0, 0.0, x)
    if not is_finite(x):
        x = torch.where(~x.isfinite() & (weights == 0), 0.0, x)
    return weights * x


# --- alignment ------------------------------------------------------------------------------------


def _same_draws(operation: str, a: Axis, b: Axis) -> bool:
    """Whether two axes hold the same draws everywhere, or different ones everywhere."""
    if a.ids is b.ids or not a.sites & b.sites:
        return a.ids is b.ids
    equal = a.ids == b.ids
    if equal.all() or not equal.any():
        return bool(equal.all())
    raise refusal(
        a.sites | b.sites,
        f"{operation} of values that share some of their draws",
        "combine values of the same draws, or of different ones, element by element",
    )


def padded(axis: Axis, before: int, after: int = 0) -> Axis:
    """With dimensions of size 1 added to the compact shape."""
    if before == after == 0:
        return axis
    compact = [1] * before + list(axis.ids.shape) + [1] * after
    weights = axis.weights.reshape(-1, *compact)
    return Axis(axis.sites, weights, axis.ids.reshape(compact))


def aligned(operation: str, forms: Sequence[Form], n: int) -> tuple[list[Tensor], list[Axis]]:
    """Tables over the same class axes, one for each draw, with n dimensions after those."""
    if len(forms) == 1 and len(forms[0].shape) == n:
        return [forms[0].table], list(forms[0].axes)
    axes: list[Axis] = []
    places = []  # for each form, the places of its axes
    for form in forms:
        place: list[int] = []
        for axis in (padded(axis, n - len(form.shape)) for axis in form.axes):
            same = [
                j for j, a in enumerate(axes) if j not in place and _same_draws(operation, a, axis)
            ]
            place.append(same[0] if same else len(axes))
            if not same:
                axes.append(axis)
        places.append(place)
    tables = []
    for form, place in zip(forms, places, strict=True):
        lead = [1] * len(axes)
        for size, j in zip(form.classes, place, strict=True):
            lead[j] = size
        order = sorted(range(len(place)), key=place.__getitem__)
        table = form.table.permute(*order, *range(len(order), form.table.ndim))
        compact = form.table.shape[len(place) :]
        tables.append(table.reshape(*lead, *[1] * (n - len(form.shape)), *compact))
    size = math.prod(broadcast([table.shape for table in tables]))
    if len(axes) > 1 and size > LARGEST_PRODUCT:
        raise refusal(
            frozenset().union(*(axis.sites for axis in axes)),
            f"a product table of {size} elements",
            "take the sum of floats (z.float()), or use fewer sites at once",
        )
    return tables, axes
