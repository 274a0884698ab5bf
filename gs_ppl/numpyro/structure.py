"""Logits that depend on the classes of parents, for automatic guides."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gs_ppl.numpyro.handlers import is_log
from gs_ppl.numpyro.integers import event_dims, index_in_support, values_of

__all__: list[str] = []


def mixed(
    table: Array, weights: Sequence[Array], event_dim: int, *, has_infinite: bool = False
) -> Array:
    """sum_{k1, k2, ...} w1_k1 w2_k2 ... table[..., k1, k2, ...]: at a vertex, that entry.

    The result is infinite if an entry with weight is infinite.

    Args:
        table: shape batch + (K1, K2, ...) + event.
        weights: of each parent, shape batch + (K,).
        event_dim: axes of the event.
        has_infinite: whether the table has infinite entries.
    """
    if not (weights and has_infinite):
        return _mean(table, weights, event_dim)
    mean = _mean(jnp.where(jnp.isinf(table), 0.0, table), weights, event_dim)
    for limit in (-jnp.inf, jnp.inf):
        at = [jax.lax.stop_gradient(w) for w in weights]
        hit = _mean((table == limit).astype(table.dtype), at, event_dim) > 0
        mean = jnp.where(hit, limit, mean)
    return mean


def _mean(table: Array, weights: Sequence[Array], event_dim: int) -> Array:
    for i, w in enumerate(weights):
        rest = len(weights) - 1 - i + event_dim
        shape = table.shape[table.ndim - rest :]
        rows = table.reshape((*table.shape[: table.ndim - rest], -1))
        table = (w[..., None, :] @ rows).squeeze(-2)
        table = table.reshape(table.shape[:-1] + shape)
    return table


def weights_of(law: Any, value: Array, values: Collection[int] | None) -> Array:
    """The weights of the classes for a value of a law: weights, a bit, or one of `values`."""
    if values is not None:
        if values_of(law) is None:  # the guide was made discrete
            index = index_in_support("", law, value)
            return jax.nn.one_hot(index, len(values), dtype=law.logits.dtype)
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            return law.weights(value)
    elif event_dims(law) == 0:
        return jnp.stack([1 - value, value], -1).astype(jnp.result_type(value, float))
    return jnp.exp(value) if is_log(law) else value
