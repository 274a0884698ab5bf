"""Soft indices: what a program gets for a relaxed integer, bit or one-hot vector.

The trace holds the weights y of a relaxed site. The program gets a soft index, which represents the
classes 0..K-1: an integer or a boolean that is computed from it is kept as its table over the
classes, and the first floating-point result is the mean of the table under y. So `locs[z]` is
y @ locs, `one_hot(z)` is y, and two soft indices give the mean under both weights. At a vertex,
every result is that of the integer program.

A relaxed bit or one-hot vector is a soft float. It has a table as well, and keeps it through
structural operations, casts, and arithmetic with other soft values, Python numbers and integer
arrays, so that `b == 1` and `(1 - b).long()` are right; anything else takes its mean, which is y.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_function_stack
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils._pytree import tree_map

from gs_ppl._shared.families import TABLE_OF_SCORES
from gs_ppl.pyro import soft_rules  # noqa: F401  enters the rules
from gs_ppl.pyro.soft_value import (
    Axis,
    Form,
    SoftIndex,
    SoftIndexError,
    as_float,
    draw_ids,
    refusal,
    shape_of,
    soft_in,
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


_innermost: ContextVar["_Reading | None"] = ContextVar("innermost", default=None)


def _handed_over(z: SoftIndex) -> SoftIndex:
    """Enters the mode for indexing, since the program gets a soft value."""
    if reading := _innermost.get():
        reading.begin()
    return z


def _axis(site: str, weights: Tensor, shape: torch.Size) -> Axis:
    return Axis(frozenset([site]), weights, draw_ids(shape, weights.device))


def soft_index(site: str, weights: Tensor, values: Tensor | None = None) -> SoftIndex:
    """The integers that the weights of a site represent.

    Args:
        site: its name, for refusals.
        weights: y, of shape (..., K).
        values: shape (K,), the integers of the classes; None: 0..K-1.

    Example:
        >>> import torch
        >>> def program():
        ...     z = soft_index("z", torch.tensor([0.25, 0.0, 0.75]))
        ...     return torch.tensor([1.0, 2.0, 3.0])[z], (z + 1) % 3 == 0
        >>> interpret(program)()
        (tensor(2.5000), tensor(0.7500))
    """
    *batch, K = shape_of(weights)
    shape = torch.Size(batch)
    table = torch.arange(K, device=weights.device) if values is None else values
    axis = _axis(site, weights.movedim(-1, 0), shape)
    form = Form(table.reshape(K, *[1] * len(shape)), (axis,), shape, values is None)
    return _handed_over(SoftIndex(form))


def soft_bit(site: str, y: Tensor) -> SoftIndex:
    """A relaxed bit: the float y, which also represents 0 and 1, with weights 1 - y and y."""

    def form() -> Form:
        shape = shape_of(y)
        table = torch.arange(2, dtype=y.dtype, device=y.device).reshape(2, *[1] * len(shape))
        return Form(table, (_axis(site, torch.stack([1 - y, y]), shape),), shape, True)

    return _handed_over(SoftIndex(form, y))


def soft_one_hot(site: str, y: Tensor) -> SoftIndex:
    """A relaxed one-hot vector: the float y, which also represents the K one-hot vectors."""

    def form() -> Form:
        *batch, K = shape_of(y)
        table = torch.eye(K, dtype=y.dtype, device=y.device).reshape(K, *[1] * len(batch), K)
        axis = _axis(site, y.movedim(-1, 0)[..., None], torch.Size([*batch, 1]))
        return Form(table, (axis,), torch.Size([*batch, K]))

    return _handed_over(SoftIndex(form, y))


def leave(value: Any) -> Any:
    """A soft value, as it leaves the program: the weights of a site, or else the mean.

    Integers that are computed from a site become weights over 0..max.
    """
    if not isinstance(value, SoftIndex) or value.is_float or value.dtype is torch.bool:
        return as_float(value)
    form, table = value.form, value.form.table
    if len(form.axes) == 1 and table.numel() == len(table) and (table.flatten().diff() > 0).all():
        weights = form.axes[0].weights
        return weights.movedim(0, -1).expand(*form.shape, len(table))
    if (table < 0).any():
        cure = "return a float that is computed from it"
        raise refusal(value, "returning negative integers", cure)
    return as_float(torch.nn.functional.one_hot(value, int(table.max()) + 1))


def hardened(value: SoftIndex) -> Tensor:
    """The value of the class of largest weight, without gradient."""
    form = value.form
    table = form.table.expand(*form.classes, *form.shape)
    for axis in form.axes:
        best = axis.weights.argmax(0).expand(table.shape[1:])
        table = table.gather(0, best[None])[0]
    return table.detach()


class _Reading(TorchFunctionMode):
    """`t[z]` for a plain table t: torch does not dispatch it on z.

    A mode costs a microsecond in each call of torch: it is entered at the first soft value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.begun = _len_torch_function_stack(), False

    def begin(self) -> None:
        """Enters below the modes that the program has entered, as if it had been entered first."""
        if not self.begun:
            above = [_pop_mode() for _ in range(_len_torch_function_stack() - self.depth)]
            for mode in [self, *reversed(above)]:
                _push_mode(mode)
            self.begun = True

    def end(self) -> None:
        if self.begun:
            above = []
            while (mode := _pop_mode()) is not self:
                above.append(mode)  # for example a device, entered at the bottom
            for mode in reversed(above):
                _push_mode(mode)

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__getitem__ or func is Tensor.__setitem__:
            index = args[1]
            if type(index) is SoftIndex or (
                type(index) in (tuple, list) and any(type(item) is SoftIndex for item in index)
            ):
                return SoftIndex.__torch_function__(func, types, args, kwargs)
        return func(*args, **kwargs) if kwargs else func(*args)


def _name_total(error: NotImplementedError) -> None:
    """Refuses a soft total_count of Multinomial: torch's own error does not name the site."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    if soft := soft_in(frame.f_locals.get("total_count")):
        raise refusal(soft, "an integer parameter total_count", TABLE_OF_SCORES) from error


def interpret(fn: Callable) -> Callable:
    """The program, which may now index by soft indices; `leave` replaces those that it returns."""

    @wraps(fn, updated=())
    def program(*args: Any, **kwargs: Any) -> Any:
        reading = _Reading()
        token = _innermost.set(reading)
        try:
            result = fn(*args, **kwargs)
            return None if result is None else tree_map(leave, result)
        except NotImplementedError as error:
            _name_total(error)
            raise
        finally:
            reading.end()
            _innermost.reset(token)

    return program
