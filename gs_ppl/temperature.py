"""Temperature schedules: functions from a step to a temperature, for both backends.

A step is an integer, or an array of steps of NumPy, torch or JAX, which may be traced. The
temperature is a float, or an array of the same library. This module imports only NumPy.

Example:
    >>> schedule = exponential(rate=1e-3, minimum=0.5)
    >>> [round(schedule(step), 3) for step in (0, 100, 1000)]
    [1.0, 0.905, 0.5]
"""

import math
from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np

__all__ = ["Schedule", "constant", "cosine", "exponential", "linear"]

Schedule = Callable[[Any], Any]


def exponential(rate: float, minimum: float = 0.5, every: int = 1, start: float = 1.0) -> Schedule:
    """The paper's schedule: tau(t) = max(minimum, start exp(-rate t)), changed every `every` steps.

    Args:
        rate: decay per step, at least 0.
        minimum: the lowest temperature, positive, at most `start`.
        every: number of steps between changes.
        start: the temperature at step 0.

    Raises:
        ValueError: for a value out of its range.
        TypeError: for a value that is not a number, and if `every` is not an integer.

    Source: Jang, Gu, Poole 2016, section 4.2: rate 1e-5 or 1e-4, every 500 or 1000 steps.

    Example:
        >>> schedule = exponential(1e-4, every=1000)
        >>> [round(schedule(step), 4) for step in (0, 999, 1000, 10_000)]
        [1.0, 1.0, 0.9048, 0.5]
    """
    _check_number("rate", rate)
    if not 0 <= rate < math.inf:
        raise ValueError(f"rate must be finite and at least 0, got {rate}")
    _check_positive(minimum=minimum, start=start)
    _check_count(every=every)
    if minimum > start:
        raise ValueError(f"minimum must be at most start, {start}, got {minimum}")
    return _Shown(_exponential, rate=rate, minimum=minimum, every=every, start=start)


def linear(start: float, end: float, steps: int) -> Schedule:
    """Straight line: tau(t) = start + (end - start) min(t / steps, 1).

    Args:
        start: temperature at step 0, positive.
        end: temperature from step `steps` on, positive.
        steps: number of steps from `start` to `end`.

    Raises:
        ValueError, TypeError: as exponential.

    Example:
        >>> schedule = linear(1.0, 0.5, steps=100)
        >>> [schedule(step) for step in (0, 50, 100, 200)]
        [1.0, 0.75, 0.5, 0.5]
    """
    _check_positive(start=start, end=end)
    _check_count(steps=steps)
    return _Shown(_linear, start=start, end=end, steps=steps)


def cosine(start: float, end: float, steps: int) -> Schedule:
    """Half a cosine: tau(t) = end + (start - end) (1 + cos(pi min(t / steps, 1))) / 2.

    Args, Raises: as linear.

    Example:
        >>> schedule = cosine(1.0, 0.5, steps=100)
        >>> [round(schedule(step), 3) for step in (0, 25, 50, 100, 200)]
        [1.0, 0.927, 0.75, 0.5, 0.5]
    """
    _check_positive(start=start, end=end)
    _check_count(steps=steps)
    return _Shown(_cosine, start=start, end=end, steps=steps)


def constant(temperature: float) -> Schedule:
    """The same temperature at every step: tau(t) = temperature, of the shape of t.

    Args:
        temperature: positive.

    Raises:
        ValueError, TypeError: as exponential.

    Example:
        >>> constant(0.5)(1000)
        0.5
    """
    _check_positive(temperature=temperature)
    return _Shown(_constant, temperature=temperature)


# --- formulas: module-level, so that a schedule pickles -------------------------------------------


class _Shown(partial):
    """A schedule, which is shown as the call that makes it."""

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.keywords.items())
        return f"{self.func.__name__.removeprefix('_')}({options})"


def _exponential(step: Any, *, rate: float, minimum: float, every: int, start: float) -> Any:
    decayed = start * _apply("exp", -rate * (step // every * every))
    return max(minimum, decayed) if isinstance(step, Real) else decayed.clip(min=minimum)


def _linear(step: Any, *, start: float, end: float, steps: int) -> Any:
    return start + (end - start) * _progress(step, steps)


def _cosine(step: Any, *, start: float, end: float, steps: int) -> Any:
    return end + (start - end) * (1 + _apply("cos", math.pi * _progress(step, steps))) / 2


def _constant(step: Any, *, temperature: float) -> Any:
    return temperature + 0.0 * step


def _progress(step: Any, steps: int) -> Any:
    """min(t / steps, 1)."""
    done = step / steps
    return min(done, 1.0) if isinstance(step, Real) else done.clip(max=1.0)


def _apply(name: str, x: Any) -> Any:
    """The function of that name from the library that x belongs to."""
    if isinstance(x, Real):
        return getattr(math, name)(x)
    if hasattr(x, name):  # torch
        return getattr(x, name)()
    if hasattr(x, "__array_namespace__"):  # JAX, whose traced arrays NumPy cannot take
        return getattr(x.__array_namespace__(), name)(x)
    return getattr(np, name)(x)


# --- checks ---------------------------------------------------------------------------------------


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        _check_number(name, value)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _check_count(**values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
