"""Indexing by soft indices: t[z] in all its forms, and the sums that are its transposes."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gs_ppl.numpyro._versions import set_current_trace
from gs_ppl.numpyro.soft_rules import as_mean, is_float, others, result, structural
from gs_ppl.numpyro.soft_value import Soft, align, expectation, mean, refuse, tail

__all__: list[str] = []


def dynamic_slice(trace: Any, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """t[z] with a scalar z is a slice of one row; z[i] a slice of z."""
    t, *starts = args
    sizes = params["slice_sizes"]
    if not any(isinstance(s, Soft) for s in starts):
        return structural(trace, primitive, params, args)
    dims = [d for d, (n, size) in enumerate(zip(np.shape(t), sizes, strict=True)) if n != size]
    rows = tuple(d for d in dims if sizes[d] == 1)
    numbers = lax.GatherDimensionNumbers(tuple(range(t.ndim - len(rows))), rows, tuple(dims))
    with set_current_trace(trace):
        index = jnp.stack([starts[d] for d in dims], -1)
        return lax.gather(t, index, numbers, tuple(sizes), mode="clip").reshape(sizes)


def gather(trace: Any, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """t[z]: the tables are the indices, class axes first; if t has floats, the mean follows."""
    t, index = args
    if isinstance(t, Soft):
        if isinstance(index, Soft):
            what = "indexing a soft index by a soft index"
            refuse(t.sites | index.sites, what, "index a table, as in t[z]")
        return structural(trace, primitive, params, args)
    out = result(primitive, params, args)
    table, axes = _read(trace, primitive, params, t, index, out)
    x = trace.make(table, axes, out)
    return mean(x) if x.is_float else x


def scatter_add(trace: Any, primitive: Any, params: dict[str, Any], args: list[Any]) -> Any:
    """The transpose of t[z], which is linear in the updates."""
    t, index, updates = args
    if not isinstance(index, Soft) or isinstance(t, Soft) or not is_float(t):
        return others(trace, primitive, params, args)
    d = params["dimension_numbers"]
    windows = iter(updates.shape[i] for i in d.update_window_dims)
    rows = {*d.inserted_window_dims, *d.operand_batching_dims}
    numbers = lax.GatherDimensionNumbers(
        d.update_window_dims,
        d.inserted_window_dims,
        d.scatter_dims_to_operand_dims,
        d.operand_batching_dims,
        d.scatter_indices_batching_dims,
    )
    options: dict[str, Any] = {
        "dimension_numbers": numbers,
        "slice_sizes": tuple(1 if i in rows else next(windows) for i in range(t.ndim)),
        "mode": params["mode"],
        "fill_value": None,
        "unique_indices": False,
        "indices_are_sorted": False,
    }

    def read(t: Any) -> Any:
        out = jax.ShapeDtypeStruct(updates.shape, t.dtype)
        table, axes = _read(trace, lax.gather_p, options, t, index, out)
        value = expectation(table, [a.weights.astype(t.dtype) for a in axes])
        return jnp.broadcast_to(value, updates.shape)

    _, back = jax.vjp(read, jnp.zeros_like(t))
    return t + back(as_mean(updates).astype(t.dtype))[0]


def _read(
    trace: Any, primitive: Any, params: dict[str, Any], t: Any, index: Any, out: Any
) -> tuple[Any, list[Any]]:
    """The table (classes, *out) of t at an index array, and its axes."""
    dims = params["dimension_numbers"]
    columns = [trace.constant(column) for column in _columns(trace, index)]
    axes, tables = align("indexing", columns, np.ndim(index) - 1)
    inside = {*dims.collapsed_slice_dims, *dims.operand_batching_dims}
    windows = [d for d in range(t.ndim) if d not in inside]
    picked = [  # dimensions of the result with one element of an indexed dimension
        o
        for o, d in zip(dims.offset_dims, windows, strict=True)
        if d in dims.start_index_map and params["slice_sizes"][d] == 1
    ]
    kept = [o for o in range(len(out.shape)) if o not in picked]
    dims = dims._replace(
        offset_dims=tuple(kept.index(o) for o in dims.offset_dims if o not in picked),
        collapsed_slice_dims=tuple(
            d for d in range(t.ndim) if d not in dims.operand_batching_dims
            and (d in inside or (d in dims.start_index_map and params["slice_sizes"][d] == 1))
        ),
    )  # fmt: skip
    shape = [out.shape[o] for o in kept]
    table = _straightened(
        primitive, params | {"dimension_numbers": dims}, t, tables, len(axes), shape
    )
    table = jnp.expand_dims(table, [len(axes) + o for o in picked])
    rows = [o for o in range(len(out.shape)) if o not in params["dimension_numbers"].offset_dims]

    def among(x: Any, lead: int) -> Any:
        """The dimensions of the batch at their places in the result, 1 elsewhere."""
        shape = np.ones(len(out.shape), int)
        shape[rows] = tail(x, lead)
        return x.reshape(np.shape(x)[:lead] + tuple(shape))

    return table, [a._replace(weights=among(a.weights, 1), ids=among(a.ids, 0)) for a in axes]


def _columns(trace: Any, index: Any) -> list[Any]:
    """The columns of an index array, shape batch; each may come from other draws."""
    last = np.ndim(index) - 1
    with set_current_trace(trace):
        if isinstance(index, Soft) and index.parts and index.parts[0] == last:
            return list(itertools.chain(*(_columns(trace, part) for part in index.parts[1])))
        return [index[..., i] for i in range(np.shape(index)[last])]


def _straight(dims: Any, t: Any, tables: Sequence[Any], m: int) -> dict[int, int]:
    """Dimensions of t that an index runs through from first to last, and the one of the index."""
    varying = [[i for i, n in enumerate(np.shape(x)) if n != 1] for x in tables]
    used = [*itertools.chain(*varying), *(m + b for b in dims.start_indices_batching_dims)]
    return {
        d: v[0]
        for d, x, v in zip(dims.start_index_map, tables, varying, strict=True)
        if len(v) == 1 == used.count(v[0])
        and d in dims.collapsed_slice_dims
        and isinstance(x, np.ndarray)
        and x.size == t.shape[d]
        and (x.ravel() == np.arange(x.size)).all()
    }


def _straightened(
    primitive: Any, params: dict[str, Any], t: Any, tables: Sequence[Any], m: int, out: list[int]
) -> Any:
    """A gather that keeps whole the dimensions of t that an index runs through in order."""
    dims, n = params["dimension_numbers"], m + len(out)
    straight = _straight(dims, t, tables, m)
    batching = dict(zip(dims.operand_batching_dims, dims.start_indices_batching_dims, strict=True))
    left = [i for i, d in enumerate(dims.start_index_map) if d not in straight]
    if not left:
        straight |= {d: m + b for d, b in batching.items()}
        batching = {}
    rest = [d for d in range(t.ndim) if d not in straight]
    sizes = [params["slice_sizes"][d] for d in rest] + [t.shape[d] for d in straight]
    t, new = t.transpose(*rest, *straight), {d: i for i, d in enumerate([*rest, *straight])}
    if left:
        batch = max(map(np.ndim, tables)) - m
        shape = list(np.broadcast_shapes((1,) * (m + batch), *(np.shape(tables[i]) for i in left)))
        for d, b in batching.items():
            shape[m + b] = t.shape[new[d]]
        index = jnp.stack([jnp.broadcast_to(tables[i], shape) for i in left], -1)
        numbers = lax.GatherDimensionNumbers(
            dims.offset_dims + tuple(range(len(out), len(out) + len(straight))),
            tuple(new[d] for d in dims.collapsed_slice_dims if d in rest),
            tuple(new[dims.start_index_map[i]] for i in left),
            tuple(new[d] for d in batching),
            tuple(batching.values()),
        )
        changed: dict[str, Any] = {"dimension_numbers": numbers, "slice_sizes": tuple(sizes)}
        changed |= {"unique_indices": False, "indices_are_sorted": False}
        read: Callable = partial(primitive.bind, **(params | changed))
        for _ in range(m):
            read = jax.vmap(read, (None, 0))
        g = read(t, index)
    else:  # no index is left: only a transposition
        t = t[tuple(map(slice, sizes))]
        ones = [out[i] if i in dims.offset_dims else 1 for i in range(len(out))]
        g = t.reshape(*(1,) * m, *ones, *sizes[len(rest) :])
    rows = [i for i in range(len(out)) if i not in dims.offset_dims]
    order = list(range(n))
    for i, p in enumerate(straight.values()):
        order[p if p < m else m + rows[p - m]] = n + i
    rest = [i for i in range(n) if i not in order]
    return g.transpose(*order, *rest).reshape([g.shape[i] for i in order])
