"""Logits that depend on the classes of parents, for automatic guides."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from gs_ppl.pyro.handlers import is_log
from gs_ppl.pyro.integers import event_dims, index_in_support, values_of

__all__: list[str] = []


def mixed(
    table: Tensor, weights: Sequence[Tensor], event_dim: int, *, has_infinite: bool = False
) -> Tensor:
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
    mean = _mean(table.masked_fill(table.isinf(), 0.0), weights, event_dim)
    for limit in (-torch.inf, torch.inf):
        hit = _mean((table == limit).to(table.dtype), [w.detach() for w in weights], event_dim) > 0
        mean = mean.masked_fill(hit, limit)
    return mean


def _mean(table: Tensor, weights: Sequence[Tensor], event_dim: int) -> Tensor:
    for i, w in enumerate(weights):
        rest = len(weights) - 1 - i + event_dim
        shape = table.shape[table.dim() - rest :]
        rows = table.flatten(table.dim() - rest) if rest else table[..., None]
        table = (w[..., None, :] @ rows).squeeze(-2)
        table = table.reshape(table.shape[:-1] + shape)
    return table


def weights_of(law: Any, value: Tensor, values: Collection[int] | None) -> Tensor:
    """The weights of the classes for a value of a law: weights, a bit, or one of `values`."""
    if values is not None:
        if values_of(law) is None:  # the guide was made discrete
            index = index_in_support("", law, value)
            return torch.nn.functional.one_hot(index, len(values)).to(law.logits.dtype)
        if not value.is_floating_point():
            return law.weights(value)
    elif event_dims(law) == 0:
        return torch.stack([1 - value, value], -1)
    return value.exp() if is_log(law) else value
