"""The temperature that an annealed run hands down to handlers, guides and programs."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_temperature: ContextVar[Any] = ContextVar("temperature", default=None)


@contextmanager
def at_temperature(temperature: Any) -> Iterator[None]:
    """Within it, handlers and guides that were given no temperature take this one."""
    token = _temperature.set(temperature)
    try:
        yield
    finally:
        _temperature.reset(token)


def temperature_at(site: str, explicit: Any) -> Any:
    """The temperature of a site: the handler's own, else that of the annealed run."""
    temperature = _temperature.get() if explicit is None else explicit
    if temperature is None:
        raise ValueError(
            f"site {site!r} has no temperature: pass temperature=, or train with AnnealedSVI"
        )
    return temperature


def annealed(fn: Callable, innermost: Callable[[Callable], Callable] = lambda fn: fn) -> Callable:
    """`fn` with the temperature as a first positional argument, which handlers and guides see.

    A program that declares an argument `temperature` gets it there, wherever it stands.
    `innermost` finds the program inside of handlers that hide its signature.
    """
    inside = innermost(fn)
    parameters = inspect.signature(getattr(inside, "forward", inside)).parameters
    declared = "temperature" in parameters
    position = list(parameters).index("temperature") if declared else 0
    by_keyword = declared and parameters["temperature"].kind is inspect.Parameter.KEYWORD_ONLY

    def program(temperature: Any, *args: Any, **kwargs: Any) -> Any:
        with at_temperature(temperature):
            if not declared:
                return fn(*args, **kwargs)
            if by_keyword or position > len(args):
                return fn(*args, temperature=temperature, **kwargs)
            return fn(*args[:position], temperature, *args[position:], **kwargs)

    return program
