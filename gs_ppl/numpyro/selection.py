"""select: reads a table by integers, one-hot vectors or soft values."""

import jax.numpy as jnp
from jax import Array, lax

__all__ = ["select"]


def select(table: Array, z: Array, binary: bool = False, *, axis: int = -1) -> Array:
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
        >>> import jax.numpy as jnp
        >>> table = jnp.array([1.0, 2.0, 4.0])
        >>> float(select(table, jnp.array([0.5, 0.5, 0.0]))), float(select(table, jnp.array(2)))
        (1.5, 4.0)
        >>> transition = jnp.array([[0.9, 0.1], [0.2, 0.8]])
        >>> select(transition, jnp.array([1, 1, 0]), axis=0).shape
        (3, 2)
    """
    table, z = jnp.asarray(table), jnp.asarray(z)
    if axis not in (-1, 0) or table.ndim == 0:
        raise ValueError(
            "select: axis must be -1 or 0, the last or the first axis of the table, got axis"
            f" {axis!r} and a table of shape {table.shape}"
        )
    is_vector = jnp.issubdtype(z.dtype, jnp.floating) and not binary
    classes = z.shape[-1:] if is_vector else (2,) if binary else table.shape[axis:][:1]
    if (table.shape[axis],) != classes:
        raise ValueError(
            f"select: axis {axis} of the table and the classes of z must agree, got shapes"
            f" {table.shape} and {z.shape}; pass binary=True for a soft bit, and"
            " z.astype(int) for a count"
        )
    if axis == 0 and is_vector:  # a matrix product: no array of rows x columns x classes
        return jnp.tensordot(z, table, 1, precision=lax.Precision.HIGHEST)
    if axis == 0:
        table = jnp.moveaxis(table, 0, -1)  # the classes last, and z before the other axes
        z = z.reshape(z.shape + (1,) * (table.ndim - 1))
    if not jnp.issubdtype(z.dtype, jnp.floating):
        shape = jnp.broadcast_shapes(table.shape[:-1], z.shape)
        table = jnp.broadcast_to(table, (*shape, table.shape[-1]))
        index = jnp.broadcast_to(z.astype(int), shape)[..., None]
        return jnp.take_along_axis(table, index, -1)[..., 0]
    if binary:
        return table[..., 0] * (1 - z) + table[..., 1] * z
    return (table * z).sum(-1)
