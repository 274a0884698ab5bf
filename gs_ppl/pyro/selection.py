"""select: reads a table by integers, one-hot vectors or soft values."""

import torch
from pyro.ops.indexing import Vindex
from torch import Tensor, promote_types

__all__ = ["select"]


def select(table: Tensor, z: Tensor, binary: bool = False, *, axis: int = -1) -> Tensor:
    """The entry z of a table, for an integer, one-hot or soft z; for a soft z it is a mean.

    Along the last axis (-1) the other axes of the table broadcast with the batch of z. The result
    is sum_k table_k z_k for a one-hot or soft z, entry z of each row for an integer z, and
    table_0 (1 - z) + table_1 z for a bit (`binary`). Along the first axis (0) the result is
    table[z]: the other axes of the table come after the batch of z. For a table with one axis both
    are the same. So the same program works with integer, relaxed and enumerated sites.

    Args:
        table: shape (..., K), or (K, ...) along axis 0; K = 2 where binary.
        z: floating with last axis K; or integer, or a bit, of the batch shape.
        binary: whether a floating z is a bit.
        axis: -1 or 0, the axis of the classes.

    Shapes: along -1 the batch of z broadcast with (...); along 0 the batch of z + (...).

    Raises:
        ValueError: for another axis, and if table and z differ in K.

    Example:
        >>> import torch
        >>> table = torch.tensor([1.0, 2.0, 4.0])
        >>> select(table, torch.tensor([0.5, 0.5, 0.0])), select(table, torch.tensor(2))
        (tensor(1.5000), tensor(4.))
        >>> transition = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> select(transition, torch.tensor([1, 1, 0]), axis=0).shape
        torch.Size([3, 2])
    """
    if axis not in (-1, 0) or table.dim() == 0:
        raise ValueError(
            "select: axis must be -1 or 0, the last or the first axis of the table, got axis"
            f" {axis!r} and a table of shape {tuple(table.shape)}"
        )
    is_vector = z.is_floating_point() and not binary
    classes = z.shape[-1:] if is_vector else (2,) if binary else (table.shape[axis],)
    if (table.shape[axis],) != tuple(classes):
        raise ValueError(
            f"select: axis {axis} of the table and the classes of z must agree, got shapes"
            f" {tuple(table.shape)} and {tuple(z.shape)}; pass binary=True for a soft bit, and"
            " z.long() for a count"
        )
    if axis == 0 and is_vector:  # a matrix product: no array of rows x columns x classes
        dtype = promote_types(table.dtype, z.dtype)
        return torch.tensordot(z.to(dtype), table.to(dtype), 1)
    if axis == 0:
        table = table.movedim(0, -1)  # the classes last, and z before the other axes
        z = z.reshape(z.shape + (1,) * (table.dim() - 1))
    if not z.is_floating_point():
        return Vindex(table)[..., z.long()]
    if binary:
        return table[..., 0] * (1 - z) + table[..., 1] * z
    return (table * z).sum(-1)
