"""Rarer forms of a soft index as a Pyro program writes them, and what is refused: see
test_soft_index_more.py."""

import torch
from pyro.ops.indexing import Vindex

FORMS = {
    # elementwise, with floats and float arrays
    "number": lambda s, t: 0.1 * s.z * t.x,
    "number_bool": lambda s, t: 0.1 * (s.z == 1) * t.x,
    "number_where": lambda s, t: torch.where(s.z == 0, 0.1, 0.7) * t.x,
    "number_root": lambda s, t: s.z**0.5 * t.x,
    "number_clamp": lambda s, t: s.z.clamp(min=0.5) * t.x,
    "reciprocal": lambda s, t: t.x / (s.z + 1),
    "power_of_array": lambda s, t: t.x**s.z,
    "power_of_bit": lambda s, t: t.x**s.b,
    "maximum": lambda s, t: torch.maximum(s.z.to(t.x.dtype), t.x),
    "lgamma": lambda s, t: torch.lgamma(s.z + 1.0),
    "exp_bit": lambda s, t: torch.exp(0.3 * s.b),
    "round": lambda s, t: (s.z / 2).round() * t.x,
    "where_of_two": lambda s, t: t.locs[torch.where(s.w > 1, s.z, 1)],
    "where_bit": lambda s, t: t.locs[torch.where(t.keep, t.keep.to(t.x.dtype), s.b).long()],
    "where_index_or_float": lambda s, t: torch.where(s.z > 0, s.z, t.x),
    "crossed": lambda s, t: ((2 * s.z + s.w) == (2 * s.w - s.z)) * t.x,
    "unequal_bits": lambda s, t: (s.b != s.c) * t.x,
    "floor_by_array": lambda s, t: s.z // t.x * t.u,
    "floor_by_row": lambda s, t: (s.z[:, None] - 1) // t.x * t.u,
    "remainder_by_array": lambda s, t: (s.z - 1) % t.u,
    "class_of_hot": lambda s, t: t.locs[(s.h * torch.arange(3)).sum(-1).long()],
    "hot_above": lambda s, t: (s.h * torch.arange(3) > 1).any(-1) * t.x,
    "hot_row_above": lambda s, t: (s.h[..., None] * torch.arange(3) > 1)[:, 1].any(-1) * t.x,
    # tables
    "vindex_all": lambda s, t: Vindex(t.Q[None])[..., s.w, s.z, :],
    "after_number": lambda s, t: t.Q[1, s.g],
    "after_slice": lambda s, t: t.Q[1:3, s.g, ::2],
    "between": lambda s, t: t.Q[:, s.z, 1],
    "apart": lambda s, t: t.Q[s.w, :, s.z],
    "two_shapes": lambda s, t: t.Q[s.g, s.z],
    "plain_mask": lambda s, t: t.R[t.keep, s.z[:1]],
    "bool_table": lambda s, t: torch.where(t.flags[s.z], t.x, t.u),
    # structure
    "chain": lambda s, t: t.T[torch.cat([torch.zeros(1).long(), s.z[:-1]]), s.z],
    "chain_of_two": lambda s, t: t.T[
        torch.cat([torch.zeros(2).long(), s.z[:-1]]), torch.cat([torch.zeros(1).long(), s.z])
    ],
    "stack_beside_stack": lambda s, t: t.A[
        torch.stack([s.z[0], torch.tensor(1)]), torch.stack([s.v[0] - 2, s.z[1]])
    ],
    "iterate": lambda s, t: (lambda a, b: t.T[a, b])(*s.z),
    "repeat": lambda s, t: t.locs[s.z.repeat_interleave(2)],
    "roll": lambda s, t: t.T[s.z, s.z.roll(1)],
    "mask_of_index": lambda s, t: t.locs[s.z[t.keep]],
    # sums, products of matrices
    "scatter_matrix": lambda s, t: (
        torch.zeros(2, 3).to(t.x).scatter_add(1, s.z[:, None], t.X[:, :1])
    ),
    "add_columns": lambda s, t: torch.zeros(5, 3).to(t.x).index_add(1, s.z, t.X.T),
    "dot": lambda s, t: s.z.to(t.x.dtype) @ t.x,
    "bit_dot": lambda s, t: s.b @ t.x,
    "hot_count": lambda s, t: s.h.sum(0) * t.locs,
}

REFUSED = {
    "none": (lambda s, t: s.z == None, "__eq__ of these arguments"),  # noqa: E711
    "out": (lambda s, t: torch.exp(s.z, out=t.x), "argument out"),
    "new_array": (lambda s, t: torch.tensor([s.z[0], 1]), "Python integer"),
    "full_of": (lambda s, t: torch.full_like(t.x, s.z[0]), "item()"),
    "move_by": (lambda s, t: s.z.roll(s.g), "roll by a soft index"),
    "row_of": (lambda s, t: s.z.select(0, s.g), "select by a soft index"),
    "joined_sizes": (lambda s, t: torch.stack([s.z, s.w]), "different numbers of classes"),
    "hot_without_size": (lambda s, t: torch.nn.functional.one_hot(s.z), "without num_classes"),
    "product_of_draws": (lambda s, t: s.b.prod() * s.z[0], "prod over several draws"),
    "matrix_of_integers": (lambda s, t: s.z @ t.perm[:2], "matmul"),
    "added_in_place": (lambda s, t: s.z.add_(1), "assignment"),
    "cast_to_mask": (lambda s, t: t.X[s.b.bool()] * s.z, "boolean index"),
    "float_index": (lambda s, t: t.locs[s.z.to(t.x.dtype)], "float as an index"),
}
