"""Names of JAX that differ by version, for the trace of soft indices."""

from typing import Any

import jax
import jax.extend.core as jex

home = jex if hasattr(jex, "set_current_trace") else jax.core  # jax.core before 0.8.2
set_current_trace, take_current_trace = home.set_current_trace, home.take_current_trace


def init_tracer(tracer: Any, trace: Any, aval: Any) -> None:
    """Before 0.8 the constructor takes only the trace."""
    new = jax.__version_info__ >= (0, 8)
    jax.core.Tracer.__init__(tracer, trace, *[aval] * new)
    tracer.aval = aval


def bind_custom(primitive: Any, funs: tuple, args: Any, kw: dict[str, Any]) -> Any:
    """From 0.10 on the functions are a keyword argument."""
    new = jax.__version_info__ >= (0, 10)
    return primitive.bind(*args, subfuns=funs, **kw) if new else primitive.bind(*funs, *args, **kw)


def scan_parts(params: dict[str, Any], args: Any) -> list[list]:
    """Constants, carry and slices; from 0.12 on they are a tree."""
    n, m = params.get("num_consts", 0), params.get("num_carry", 0)
    parts = args[:n], args[n : n + m], args[n + m :]
    return list(map(list, params["ft_in"].update(args).unpack() if "ft_in" in params else parts))
