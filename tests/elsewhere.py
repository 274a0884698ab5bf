"""A device for torch that is not the CPU, on a machine that has no other.

Its tensors are in the CPU's memory, but their device is "meta". So the numbers are those of the
CPU, while an operation between the two devices is refused, as on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")
MOVES = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default


class Elsewhere(torch.Tensor):
    """A tensor on the other device, with its numbers."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, x: torch.Tensor) -> Elsewhere:
        form = {"strides": x.stride(), "storage_offset": x.storage_offset(), "dtype": x.dtype}
        tensor = torch.Tensor._make_wrapper_subclass(cls, x.shape, device=DEVICE, **form)
        tensor.numbers = x
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Elsewhere({self.numbers!r})"


@contextmanager
def other_device() -> Iterator[None]:
    """In this context the device exists, for torch.zeros(3, device="meta") too."""
    with Operations(), Numbers():
        yield


class Numbers(TorchFunctionMode):
    """Conversions from and to numbers without an operation: on this device torch would lose the
    numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        if func is torch.Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return args[0].numbers.new_tensor(*args[1:], **kwargs).to(DEVICE)
        if func is torch.Tensor.numpy and isinstance(args[0], Elsewhere) and kwargs.get("force"):
            return args[0].detach().cpu().numpy()
        return func(*args, **kwargs)


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, Elsewhere)]
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.dim()]  # 0-d may be anywhere
    if there and here and func not in MOVES:
        shapes = ", ".join(f"{tuple(x.shape)} on {x.device}" for x in tensors)
        raise RuntimeError(f"{func} takes tensors of one device, got {shapes}")
    device = kwargs.get("device")
    stays = bool(there) if device is None else torch.device(device) == DEVICE
    if device is not None:
        kwargs = kwargs | {"device": "cpu"}
    wrappers = {id(x.numbers): x for x in there}
    bare = functools.partial(tree_map_only, Elsewhere, lambda x: x.numbers)
    result = func(*bare(args), **bare(kwargs))
    written = func is torch.ops.aten.copy_.default  # copies into a tensor of the other device

    def wrap(x: torch.Tensor) -> torch.Tensor:
        if id(x) in wrappers:
            return wrappers[id(x)]  # written in place
        return x if written or not stays else Elsewhere(x)

    return tree_map_only(torch.Tensor, wrap, result)
