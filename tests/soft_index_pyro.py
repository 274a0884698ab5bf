"""The forms of a soft index as a Pyro program writes them: see test_soft_index.py.

Each form takes the values of the sites (`s`) and the program's tables (`t`).
"""

import operator
import pickle

import numpy as np
import torch
from pyro.ops.indexing import Vindex, vindex
from torch.nn.functional import embedding, one_hot

FORMS = {
    # tables
    "index": lambda s, t: t.locs[s.z],
    "index_matrix": lambda s, t: t.D[s.z],
    "index_0d": lambda s, t: t.D[s.g],
    "index_particles": lambda s, t: t.D[s.m],
    "index_column": lambda s, t: t.D.T[:, s.z],
    "index_ellipsis": lambda s, t: t.R[..., s.z],
    "index_values": lambda s, t: t.E[s.v],
    "index_rows": lambda s, t: t.R[t.rows, s.z],
    "index_pair": lambda s, t: t.A[s.z, s.w],
    "index_pair_rest": lambda s, t: t.Q[s.w, s.z],
    "index_same": lambda s, t: t.T[s.z, s.z],
    "index_shift": lambda s, t: t.T[s.z, (s.z + 1) % 3],
    "index_0d_pair": lambda s, t: t.Q[s.g, :, s.z],
    "index_far": lambda s, t: t.Q[s.w, :, t.some],
    "index_int_table": lambda s, t: t.locs[t.perm[s.z]],
    "index_computed": lambda s, t: t.E[s.z + s.v - 2],
    "index_sum": lambda s, t: t.V[s.z + s.w],
    "index_negative": lambda s, t: t.locs[s.z - 1],
    "index_none": lambda s, t: t.D[s.z[:, None]],
    "index_outer": lambda s, t: t.A[s.z[:, None], s.w[None, :]],
    "index_slice": lambda s, t: t.D[s.z, 1:3],
    "index_bool_table": lambda s, t: t.flags[s.z].to(t.x.dtype),
    "gather": lambda s, t: t.R.gather(-1, s.z.unsqueeze(-1)).squeeze(-1),
    "take": lambda s, t: torch.take(t.V, s.z),
    "index_select": lambda s, t: t.D.T.index_select(1, s.z),
    "embedding": lambda s, t: embedding(s.z, t.D),
    "vindex": lambda s, t: Vindex(t.D)[s.z],
    "vindex_pair": lambda s, t: Vindex(t.A)[s.z, s.w],
    "vindex_batch": lambda s, t: Vindex(t.P)[..., s.z, :],
    "vindex_batch_pair": lambda s, t: vindex(t.R, (..., s.z)),
    "vindex_particles": lambda s, t: Vindex(t.Q)[s.w, s.m],
    # elementwise
    "add": lambda s, t: t.x + s.z,
    "scale": lambda s, t: 0.5 * s.z + 1,
    "float": lambda s, t: s.z.to(t.x.dtype) * t.x,
    "divide": lambda s, t: (s.z / 2) * t.x,
    "floor_divide": lambda s, t: (s.z // 2) * t.x,
    "remainder": lambda s, t: (s.z % 2) * t.x,
    "power": lambda s, t: (s.z**2) * t.x,
    "square_float": lambda s, t: s.z.to(t.x.dtype) ** 2,
    "negative": lambda s, t: -s.z * t.x,
    "abs": lambda s, t: abs(s.z - 1) * t.x,
    "clamp": lambda s, t: s.z.clamp(1, 2) * t.x,
    "cast_half": lambda s, t: (s.z / 2).long() * t.x,
    "equal": lambda s, t: (s.z == 1) * t.x,
    "same": lambda s, t: (s.z == s.z) * t.x,
    "compare": lambda s, t: (s.z < s.w) * t.x,
    "compare_float": lambda s, t: (s.z < t.x) * t.u,
    "logic": lambda s, t: ((s.z == 0) | ~(s.w > 1)) * t.x,
    "xor": lambda s, t: ((s.z == 0) ^ (s.w > 1)) * t.x,
    "minimum": lambda s, t: torch.minimum(s.z, s.w) * t.x,
    "where": lambda s, t: torch.where(s.z == 0, t.x, t.u),
    "where_matrix": lambda s, t: torch.where((s.z == 0)[:, None], t.X, 2 * t.X),
    "where_pair": lambda s, t: torch.where(s.z == 1, t.A[0, s.w], t.x),
    "where_number": lambda s, t: torch.where(s.z == 0, 1.5, 2.5) * t.x,
    "where_int": lambda s, t: t.locs[torch.where(s.z == 0, 2, s.z)],
    "where_observed": lambda s, t: t.locs[torch.where(t.keep, t.perm[:2], s.z)],
    "exp": lambda s, t: torch.exp(s.z),
    # the classes of a draw
    "one_hot": lambda s, t: one_hot(s.z, 3).to(t.x.dtype),
    "one_hot_dot": lambda s, t: one_hot(s.z, 3).to(t.x.dtype) @ t.D,
    "one_hot_of_sum": lambda s, t: one_hot(s.z + s.w, 6).to(t.x.dtype),
    "isin": lambda s, t: torch.isin(s.z, t.some) * t.x,
    "any": lambda s, t: (s.z[:, None] == t.some).any(-1) * t.x,
    "sum": lambda s, t: (s.z[:, None] > torch.arange(3)).sum(-1) * t.x,
    "argmax": lambda s, t: t.D[one_hot(s.z, 3).argmax(-1)],
    # structure
    "reshape": lambda s, t: t.D[s.z.reshape(2, 1)],
    "unsqueeze": lambda s, t: t.D[s.z.unsqueeze(0)],
    "squeeze": lambda s, t: t.locs[s.m.squeeze(-1)],
    "transpose": lambda s, t: t.locs[s.m.T],
    "expand": lambda s, t: t.locs[s.z.expand(3, 2)],
    "slice": lambda s, t: t.locs[s.z[1:]],
    "pick": lambda s, t: t.locs[s.z[0]],
    "plain_index": lambda s, t: t.locs[s.z[torch.tensor([1, 0, 1])]],
    "flip": lambda s, t: t.locs[s.z.flip(0)],
    "stack": lambda s, t: t.locs[torch.stack([s.z, s.v - 2])],
    "cat": lambda s, t: t.locs[torch.cat([s.z, s.z[:1]])],
    "stack_plain": lambda s, t: t.locs[torch.stack([s.z, t.rows])],
    "unstack": lambda s, t: t.locs[s.z[0]] * t.locs[s.z[1]],
    # sums
    "scatter_add": lambda s, t: torch.zeros(3).to(t.x).scatter_add(0, s.z, t.x),
    "index_add": lambda s, t: torch.zeros(3, 5).to(t.x).index_add(0, s.z, t.X),
    # bits
    "bit_index": lambda s, t: t.locs[s.b.long()],
    "bit_equal": lambda s, t: (s.b == 1) * t.x,
    "bit_arith": lambda s, t: (1 - s.b) * t.x + s.b * t.u,
    "bit_not": lambda s, t: torch.where((1 - s.b).bool(), t.x, t.u),
    "bit_slice": lambda s, t: t.locs[s.b[1:].long()],
    "bit_product": lambda s, t: (s.b * s.c) * t.x,
    "bit_square": lambda s, t: (s.b * s.b) * t.x,
    "bit_pair": lambda s, t: t.A[s.b.long(), s.c.long()],
    "bit_sum": lambda s, t: t.locs[(s.b + s.c).long()],
    "bit_total": lambda s, t: (3 - s.b.sum()) * t.x,
    "bit_with_index": lambda s, t: t.locs[(s.b * s.z).long()],
    "bit_mask": lambda s, t: torch.where(s.b.bool(), t.x, t.u),
    # one-hot vectors
    "hot_index": lambda s, t: t.D[s.h.argmax(-1)],
    "hot_dot": lambda s, t: s.h @ t.D,
    "hot_equal": lambda s, t: (s.h == 1).to(t.x.dtype) @ t.D,
    "hot_column": lambda s, t: t.locs[s.h[:, 1].long()],
    "hot_product": lambda s, t: (s.h * one_hot(s.z, 3)).sum(-1),
}

# refused forms, and a word of the operation
REFUSED = {
    "bool": (lambda s, t: t.x if s.z[0] == 0 else t.u, "if"),
    "range": (lambda s, t: range(s.z[0]), "range"),
    "int": (lambda s, t: int(s.z[0]), "int()"),
    "float": (lambda s, t: float(s.z[0]), "float()"),
    "item": (lambda s, t: s.z[0].item(), "item()"),
    "numpy": (lambda s, t: np.asarray(s.z), "NumPy"),
    "pickle": (lambda s, t: pickle.dumps(s.z), "pickle"),
    "assign": (lambda s, t: t.locs.__setitem__(s.z, 1.0), "assignment"),
    "mask_index": (lambda s, t: t.x[s.z == 0], "boolean"),
    "reduce": (lambda s, t: s.z.sum(), "sum over several draws"),
    "sort": (lambda s, t: torch.sort(s.z), "sort"),
    "index_of_index": (lambda s, t: s.z[s.g], "soft index by a soft index"),
    "mixed": (lambda s, t: (s.z[:, None] == s.z) * t.x, "share some of their draws"),
    "product": (lambda s, t: t.x[sum(vars(s)[f"b{i}"] for i in range(30)).long()], "product"),
    # of torch
    "while": (lambda s, t: [0 for _ in iter(lambda: bool(s.z[0] < 3), False)], "while"),
    "shape": (lambda s, t: torch.zeros(s.z[0]), "zeros or item()"),  # in torch 2.4 item
    "operator": (lambda s, t: operator.index(s.z[0]), "Python integer"),
    "assign_soft": (lambda s, t: t.perm.__setitem__(0, s.z[0]), "assignment"),
    "slice": (lambda s, t: t.locs[: s.z[0]], "Python integer"),
    "counts": (lambda s, t: torch.bincount(s.z, minlength=3), "bincount"),
}
