"""The law inside of its wrappers: to_event, mask, expand. No other law with a base is a wrapper."""

from collections.abc import Callable
from functools import cache
from typing import Any

# names in torch, Pyro and NumPyro; ZeroInflatedDistribution has a base too, but is a law itself
WRAPPERS = {"Independent", "MaskedDistribution", "ExpandedDistribution"}


@cache
def _wraps(kind: Any) -> bool:
    return any(base.__name__ in WRAPPERS for base in kind.__mro__)


def is_wrapper(fn: Any) -> bool:
    """Whether this is to_event, mask or expand."""
    kind: Any = type(fn)
    return _wraps(kind)


def innermost(fn: Any) -> Any:
    """The law inside of to_event, mask and expand."""
    while is_wrapper(fn):
        fn = fn.base_dist
    return fn


def rewrap(fn: Any, make: Callable[[Any], Any]) -> Any:
    """`fn` with `make` applied to the law inside; `fn` itself if that changes nothing."""
    if not is_wrapper(fn):
        return make(fn)
    inner = rewrap(fn.base_dist, make)
    if inner is fn.base_dist:
        return fn
    if hasattr(fn, "reinterpreted_batch_ndims"):
        return inner.to_event(fn.reinterpreted_batch_ndims)
    return inner.mask(fn._mask) if hasattr(fn, "_mask") else inner.expand(fn.batch_shape)


def unmasked(fn: Any) -> Any:
    """`fn` without the masks around the law."""
    if not is_wrapper(fn):
        return fn
    inner = unmasked(fn.base_dist)
    if hasattr(fn, "_mask"):
        return inner  # it has the batch shape of the mask
    if inner is fn.base_dist:
        return fn
    if hasattr(fn, "reinterpreted_batch_ndims"):
        return inner.to_event(fn.reinterpreted_batch_ndims)
    return inner.expand(fn.batch_shape)


def masks(fn: Any) -> list[Any]:
    """The masks around the law."""
    found = []
    while is_wrapper(fn):
        found += [fn._mask] if hasattr(fn, "_mask") else []
        fn = fn.base_dist
    return found


def is_masked(fn: Any) -> bool:
    """Whether there is a mask around the law."""
    return any(mask is not True for mask in masks(fn))


def refuse_composed(site: str, law: Any, is_discrete: Callable[[Any], bool]) -> None:
    """Refuses a law that is made from a discrete law, such as ZeroInflatedDistribution."""
    base = None if is_discrete(law) else getattr(law, "base_dist", None)
    while base is not None and not is_discrete(base):
        base = getattr(base, "base_dist", None)
    if base is not None:
        raise ValueError(
            f"site {site!r}: {type(law).__name__} over {type(base).__name__} can be neither relaxed"
            " nor enumerated: write its two parts as two sites"
        )
