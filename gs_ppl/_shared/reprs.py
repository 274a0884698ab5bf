"""How objects are shown in a REPL: as the call that makes them, in one line."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any


def call(name: str, *args: str, **options: Any) -> str:
    """The text name(args, option=value), with short values."""
    shown = [*args, *(f"{option}={short(value)}" for option, value in options.items())]
    return f"{name}({', '.join(shown)})"


def short(value: Any) -> str:
    """A number or a word as it is, an array by its shape, a function or a class by its name."""
    if isinstance(value, bool | str) or value is None:
        return repr(value)
    if isinstance(value, Real):
        return f"{value:g}"
    if isinstance(value, set | frozenset):
        return repr(sorted(value))
    if isinstance(value, partial):
        return call(program_name(value), **value.keywords)
    if callable(value):
        return program_name(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {short(x)}' for key, x in value.items())}}}"
    return f"<array of shape {tuple(value.shape)}>" if hasattr(value, "shape") else repr(value)


def program_name(fn: Any) -> str:
    """The name of the function inside of handlers and partials; otherwise that of the class."""
    if isinstance(fn, partial) and not hasattr(fn, "__name__"):
        in_pyros_handler = getattr(fn.func, "__name__", "") == "_context_wrap"
        return program_name(fn.args[1] if in_pyros_handler else fn.func)
    return getattr(fn, "__name__", type(fn).__name__)


def handled(name: str, fn: Callable | None, **options: Any) -> str:
    """A handler with its program, if it has one."""
    return call(name, *([] if fn is None else [program_name(fn)]), **options)


class ShownELBO:
    """Shows the number of particles, and options that differ from the defaults."""

    def __repr__(self) -> str:
        options = {"num_particles": getattr(self, "num_particles", 1)}
        for cls in type(self).__mro__:
            for name, parameter in inspect.signature(cls).parameters.items():
                value = getattr(self, name, parameter.default)
                if isinstance(value, Real | str) and value != parameter.default:
                    options.setdefault(name, value)
        return call(type(self).__name__, **options)
