"""The law inside of its wrappers: to_event, mask, expand."""

from collections.abc import Callable
from typing import Any


def is_wrapper(fn: Any) -> bool:
    """Whether this is to_event, mask or expand; a transformed law has a base and is none."""
    return hasattr(fn, "base_dist") and not hasattr(fn, "transforms")


def innermost(fn: Any) -> Any:
    """The law inside of to_event, mask and expand."""
    while is_wrapper(fn):
        fn = fn.base_dist
    return fn


def rewrap(fn: Any, make: Callable[[Any], Any]) -> Any:
    """`fn` with `make` applied to the law inside; `fn` itself where that changes nothing."""
    if not is_wrapper(fn):
        return make(fn)
    inner = rewrap(fn.base_dist, make)
    if inner is fn.base_dist:
        return fn
    if hasattr(fn, "reinterpreted_batch_ndims"):
        return inner.to_event(fn.reinterpreted_batch_ndims)
    return inner.mask(fn._mask) if hasattr(fn, "_mask") else inner.expand(fn.batch_shape)


def is_masked(fn: Any) -> bool:
    """Whether a mask stands anywhere around the law."""
    while is_wrapper(fn):
        if getattr(fn, "_mask", True) is not True:
            return True
        fn = fn.base_dist
    return False


def unmasked(fn: Any) -> Any:
    """`fn` without its masks."""
    if not is_wrapper(fn):
        return fn
    inner = unmasked(fn.base_dist)
    if hasattr(fn, "_mask"):
        return inner
    if hasattr(fn, "reinterpreted_batch_ndims"):
        return inner.to_event(fn.reinterpreted_batch_ndims)
    return inner.expand(fn.batch_shape)
