"""Checks and errors of both sides: the parameters and the moments of a law."""

import math
from typing import Any, NoReturn


def pick(name: str, probs: Any, logits: Any) -> tuple[str, Any]:
    """The name of the argument that was given, probs or logits, and its value."""
    if (probs is None) == (logits is None):
        got = "both" if probs is not None else "neither"
        raise ValueError(f"{name}: exactly one of probs and logits is wanted, got {got}")
    return ("probs", probs) if logits is None else ("logits", logits)


def check_categories(name: str, what: str, shape: tuple[int, ...]) -> None:
    """Refuses parameters of vectors that have no last axis, or an empty one."""
    if not shape or shape[-1] == 0:
        raise ValueError(f"{name}: {what} must have a last axis of categories, got shape {shape}")


def check_limits(name: str, what: str, low: float, high: float, event_dims: int) -> None:
    """Refuses invalid logits or probs; `what` names the argument with these limits."""
    if what == "probs":
        wanted = "non-negative and finite" if event_dims else "between 0 and 1"
        bad = not (low >= 0 and (high < math.inf if event_dims else high <= 1))
    else:
        wanted = "neither NaN nor +inf" if event_dims else "numbers, not NaN"
        bad = not high < math.inf if event_dims else math.isnan(low)
    if bad:
        raise ValueError(f"{name}: {what} must be {wanted}, got values from {low} to {high}")


def refuse_empty(name: str, what: str) -> NoReturn:
    """All categories of an event are masked."""
    lacking = "all-zero probs" if what == "probs" else "all logits -inf"
    raise ValueError(f"{name}: every event needs an unmasked category, got {lacking}")


def check_positive(name: str, low: float, high: float) -> None:
    """Refuses temperatures that are not positive and finite; these are their limits."""
    if not (low > 0 and high < math.inf):
        got = low if low == high else f"values from {low} to {high}"
        raise ValueError(f"{name}: temperature must be positive and finite, got {got}")


def refuse_broadcast(name: str, shape: tuple[int, ...], batch_shape: tuple[int, ...]) -> NoReturn:
    """The shape of the temperature does not broadcast."""
    raise ValueError(
        f"{name}: temperature must broadcast against the batch shape {batch_shape}, got shape"
        f" {shape}"
    ) from None


WHY = {
    "mean": "average samples, or take `probs` for the probabilities of classes",
    "variance": "take that of samples",
    "mode": "the density is unbounded at low temperature; see ExpGumbelSoftmax",
    "entropy": "E[sum log y] has none; ExpGumbelSoftmax has one, in log-space",
    "entropy of a bit": "E[log y (1 - y)] has none",
}


def refuse_form(law: Any, what: str) -> NoReturn:
    """A soft sample's moments are integrals over the simplex."""
    name, what_of = type(law).__name__, what.removesuffix(" of a bit")
    raise NotImplementedError(f"{name} has no {what_of} in closed form: {WHY[what]}")


def refuse_undefined(thing: Any, method: str) -> NoReturn:
    """For a method that each subclass must define."""
    raise NotImplementedError(f"{type(thing).__name__} must define {method}")
