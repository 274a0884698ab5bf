"""The names of JAX that have moved, for the trace that reads soft indices."""

from typing import Any

import jax
import jax.extend.core as jex

__all__ = ["bind_custom", "init_tracer", "scan_parts", "set_current_trace", "take_current_trace"]

_home = jex if hasattr(jex, "set_current_trace") else jax.core  # jax.core before 0.8.2
set_current_trace, take_current_trace = _home.set_current_trace, _home.take_current_trace


def init_tracer(tracer: Any, trace: Any, aval: Any) -> None:
    """Before 0.8 the constructor takes the trace alone."""
    init: Any = jax.core.Tracer.__init__
    try:
        init(tracer, trace, aval)
    except TypeError:
        init(tracer, trace)
        tracer.aval = aval


def bind_custom(primitive: Any, funs: tuple, args: Any, kw: dict[str, Any]) -> Any:
    """The functions are a keyword from 0.10 on."""
    if jax.__version_info__ >= (0, 10):
        return primitive.bind(*args, subfuns=funs, **kw)
    return primitive.bind(*funs, *args, **kw)


def scan_parts(params: dict[str, Any], args: Any) -> tuple[list, list, list]:
    """Constants, carry and slices; as a tree from 0.12 on."""
    if "ft_in" in params:
        consts, carry, slices = map(list, params["ft_in"].update(args).unpack())
        return consts, carry, slices
    n, m = params["num_consts"], params["num_consts"] + params["num_carry"]
    return list(args[:n]), list(args[n:m]), list(args[m:])
