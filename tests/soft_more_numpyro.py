"""Rarer forms of a soft index as a NumPyro program writes them, and what is refused: see
test_soft_index_more.py."""

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.ops.indexing import Vindex

KEEP = np.array([True, False])  # JAX must know it before the run
FORMS = {
    # elementwise, with floats and float arrays
    "number": lambda s, t: 0.1 * s.z * t.x,
    "number_bool": lambda s, t: 0.1 * (s.z == 1) * t.x,
    "number_where": lambda s, t: jnp.where(s.z == 0, 0.1, 0.7) * t.x,
    "number_root": lambda s, t: s.z**0.5 * t.x,
    "number_clamp": lambda s, t: jnp.clip(s.z, min=0.5) * t.x,
    "reciprocal": lambda s, t: t.x / (s.z + 1),
    "power_of_array": lambda s, t: t.x**s.z,
    "power_of_bit": lambda s, t: t.x**s.b,
    "maximum": lambda s, t: jnp.maximum(s.z.astype(t.x.dtype), t.x),
    "lgamma": lambda s, t: jax.lax.lgamma(s.z + 1.0),
    "exp_bit": lambda s, t: jnp.exp(0.3 * s.b),
    "round": lambda s, t: (s.z / 2).round() * t.x,
    "where_of_two": lambda s, t: t.locs[jnp.where(s.w > 1, s.z, 1)],
    "where_bit": lambda s, t: t.locs[jnp.where(t.keep, t.keep.astype(int), s.b)],
    "where_index_or_float": lambda s, t: jnp.where(s.z > 0, s.z, t.x),
    "crossed": lambda s, t: ((2 * s.z + s.w) == (2 * s.w - s.z)) * t.x,
    "unequal_bits": lambda s, t: (s.b != s.c) * t.x,
    "floor_by_array": lambda s, t: s.z // t.x * t.u,
    "floor_by_row": lambda s, t: (s.z[:, None] - 1) // t.x * t.u,
    "remainder_by_array": lambda s, t: (s.z - 1) % t.u,
    "class_of_hot": lambda s, t: t.locs[(s.h * jnp.arange(3)).sum(-1).astype(int)],
    "hot_above": lambda s, t: (s.h * jnp.arange(3) > 1).any(-1) * t.x,
    "hot_row_above": lambda s, t: (s.h[..., None] * jnp.arange(3) > 1)[:, 1].any(-1) * t.x,
    # tables
    "vindex_all": lambda s, t: Vindex(t.Q[None])[..., s.w, s.z, :],
    "after_number": lambda s, t: t.Q[1, s.g],
    "after_slice": lambda s, t: t.Q[1:3, s.g, ::2],
    "between": lambda s, t: t.Q[:, :, 1][:, s.z],
    "apart": lambda s, t: t.Q[s.w, :, s.z],
    "two_shapes": lambda s, t: t.Q[s.g, s.z],
    "plain_mask": lambda s, t: t.R[KEEP, s.z[:1]],
    "bool_table": lambda s, t: jnp.where(t.flags[s.z], t.x, t.u),
    # structure
    "chain": lambda s, t: t.T[jnp.concatenate([jnp.zeros(1, int), s.z[:-1]]), s.z],
    "chain_of_two": lambda s, t: t.T[
        jnp.concatenate([jnp.zeros(2, int), s.z[:-1]]), jnp.concatenate([jnp.zeros(1, int), s.z])
    ],
    "stack_beside_stack": lambda s, t: t.A[
        jnp.stack([s.z[0], jnp.array(1)]), jnp.stack([s.v[0] - 2, s.z[1]])
    ],
    "iterate": lambda s, t: (lambda a, b: t.T[a, b])(*s.z),
    "repeat": lambda s, t: t.locs[jnp.repeat(s.z, 2)],
    "roll": lambda s, t: t.T[s.z, jnp.roll(s.z, 1)],
    "mask_of_index": lambda s, t: t.locs[s.z[KEEP]],
    # sums, products of matrices
    "scatter_matrix": lambda s, t: jnp.zeros((2, 3)).at[t.rows, s.z].add(t.X[:, 0]),
    "add_columns": lambda s, t: jnp.zeros((5, 3)).at[:, s.z].add(t.X.T),
    "dot": lambda s, t: s.z.astype(t.x.dtype) @ t.x,
    "bit_dot": lambda s, t: s.b @ t.x,
    "hot_count": lambda s, t: s.h.sum(0) * t.locs,
}
