"""The forms of a soft index as a NumPyro program writes them: see test_soft_index.py.

Each form takes the values of the sites (`s`) and the program's tables (`t`).
"""

import operator
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax
from jax.nn import one_hot
from numpyro import distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.ops.indexing import Vindex, vindex

from gs_ppl.numpyro.soft_index import soft_index


@jax.custom_jvp
def share(z):
    return z / z.sum()


share.defjvps(lambda tangent, out, z: tangent)

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
    "index_0d_pair": lambda s, t: t.Q[s.g][:, s.z],
    "index_far": lambda s, t: t.Q[s.w, :, t.some],
    "index_int_table": lambda s, t: t.locs[t.perm[s.z]],
    "index_computed": lambda s, t: t.E[s.z + s.v - 2],
    "index_sum": lambda s, t: t.V[s.z + s.w],
    "index_negative": lambda s, t: t.locs[s.z - 1],
    "index_none": lambda s, t: t.D[s.z[:, None]],
    "index_outer": lambda s, t: t.A[s.z[:, None], s.w[None, :]],
    "index_slice": lambda s, t: t.D[s.z, 1:3],
    "index_bool_table": lambda s, t: t.flags[s.z].astype(t.x.dtype),
    "gather": lambda s, t: jnp.take_along_axis(t.R, s.z[..., None], -1).squeeze(-1),
    "take": lambda s, t: jnp.take(t.V, s.z),
    "index_select": lambda s, t: jnp.take(t.D.T, s.z, axis=1),
    "embedding": lambda s, t: jax.vmap(lambda z: t.D[z])(s.z),
    "vindex": lambda s, t: Vindex(t.D)[s.z],
    "vindex_pair": lambda s, t: Vindex(t.A)[s.z, s.w],
    "vindex_batch": lambda s, t: Vindex(t.P)[..., s.z, :],
    "vindex_batch_pair": lambda s, t: vindex(t.R, (..., s.z)),
    "vindex_particles": lambda s, t: Vindex(t.Q)[s.w, s.m],
    # elementwise
    "add": lambda s, t: t.x + s.z,
    "scale": lambda s, t: 0.5 * s.z + 1,
    "float": lambda s, t: s.z.astype(t.x.dtype) * t.x,
    "divide": lambda s, t: (s.z / 2) * t.x,
    "floor_divide": lambda s, t: (s.z // 2) * t.x,
    "remainder": lambda s, t: (s.z % 2) * t.x,
    "power": lambda s, t: (s.z**2) * t.x,
    "square_float": lambda s, t: s.z.astype(t.x.dtype) ** 2,
    "negative": lambda s, t: -s.z * t.x,
    "abs": lambda s, t: abs(s.z - 1) * t.x,
    "clamp": lambda s, t: jnp.clip(s.z, 1, 2) * t.x,
    "cast_half": lambda s, t: (s.z / 2).astype(int) * t.x,
    "equal": lambda s, t: (s.z == 1) * t.x,
    "same": lambda s, t: (s.z == s.z) * t.x,
    "compare": lambda s, t: (s.z < s.w) * t.x,
    "compare_float": lambda s, t: (s.z < t.x) * t.u,
    "logic": lambda s, t: ((s.z == 0) | ~(s.w > 1)) * t.x,
    "xor": lambda s, t: ((s.z == 0) ^ (s.w > 1)) * t.x,
    "minimum": lambda s, t: jnp.minimum(s.z, s.w) * t.x,
    "where": lambda s, t: jnp.where(s.z == 0, t.x, t.u),
    "where_matrix": lambda s, t: jnp.where((s.z == 0)[:, None], t.X, 2 * t.X),
    "where_pair": lambda s, t: jnp.where(s.z == 1, t.A[0, s.w], t.x),
    "where_number": lambda s, t: jnp.where(s.z == 0, 1.5, 2.5) * t.x,
    "where_int": lambda s, t: t.locs[jnp.where(s.z == 0, 2, s.z)],
    "where_observed": lambda s, t: t.locs[jnp.where(t.keep, t.perm[:2], s.z)],
    "exp": lambda s, t: jnp.exp(s.z),
    # the classes of a draw
    "one_hot": lambda s, t: one_hot(s.z, 3),
    "one_hot_dot": lambda s, t: one_hot(s.z, 3) @ t.D,
    "one_hot_of_sum": lambda s, t: one_hot(s.z + s.w, 6),
    "isin": lambda s, t: jnp.isin(s.z, t.some) * t.x,
    "any": lambda s, t: (s.z[:, None] == t.some).any(-1) * t.x,
    "sum": lambda s, t: (s.z[:, None] > jnp.arange(3)).sum(-1) * t.x,
    "argmax": lambda s, t: t.D[one_hot(s.z, 3).argmax(-1)],
    # structure
    "reshape": lambda s, t: t.D[s.z.reshape(2, 1)],
    "unsqueeze": lambda s, t: t.D[jnp.expand_dims(s.z, 0)],
    "squeeze": lambda s, t: t.locs[s.m.squeeze(-1)],
    "transpose": lambda s, t: t.locs[s.m.T],
    "expand": lambda s, t: t.locs[jnp.broadcast_to(s.z, (3, 2))],
    "slice": lambda s, t: t.locs[s.z[1:]],
    "pick": lambda s, t: t.locs[s.z[0]],
    "plain_index": lambda s, t: t.locs[s.z[jnp.array([1, 0, 1])]],
    "flip": lambda s, t: t.locs[jnp.flip(s.z, 0)],
    "stack": lambda s, t: t.locs[jnp.stack([s.z, s.v - 2])],
    "cat": lambda s, t: t.locs[jnp.concatenate([s.z, s.z[:1]])],
    "stack_plain": lambda s, t: t.locs[jnp.stack([s.z, t.rows])],
    "unstack": lambda s, t: (lambda a, b: t.locs[a] * t.locs[b])(*s.z),
    # sums
    "scatter_add": lambda s, t: jnp.zeros(3).at[s.z].add(t.x),
    "index_add": lambda s, t: jax.ops.segment_sum(t.X, s.z, 3),
    # bits, which are integers in NumPyro
    "bit_index": lambda s, t: t.locs[s.b],
    "bit_equal": lambda s, t: (s.b == 1) * t.x,
    "bit_arith": lambda s, t: (1 - s.b) * t.x + s.b * t.u,
    "bit_not": lambda s, t: jnp.where((1 - s.b).astype(bool), t.x, t.u),
    "bit_slice": lambda s, t: t.locs[s.b[1:].astype(int)],
    "bit_product": lambda s, t: (s.b * s.c) * t.x,
    "bit_square": lambda s, t: (s.b * s.b) * t.x,
    "bit_pair": lambda s, t: t.A[s.b, s.c],
    "bit_sum": lambda s, t: t.locs[s.b + s.c],
    "bit_total": lambda s, t: (3 - s.b.sum()) * t.x,
    "bit_with_index": lambda s, t: t.locs[s.b * s.z],
    "bit_mask": lambda s, t: jnp.where(s.b.astype(bool), t.x, t.u),
    # one-hot vectors
    "hot_index": lambda s, t: t.D[s.h.argmax(-1)],
    "hot_dot": lambda s, t: s.h @ t.D,
    "hot_equal": lambda s, t: (s.h == 1).astype(t.x.dtype) @ t.D,
    "hot_column": lambda s, t: t.locs[s.h[:, 1].astype(int)],
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
    "assign": (lambda s, t: t.locs.at[s.z].set(1.0), "assignment"),
    "mask_index": (lambda s, t: t.x[s.z == 0], "boolean"),
    "reduce": (lambda s, t: s.z.sum(), "sum over several draws"),
    "sort": (lambda s, t: jnp.sort(s.z), "sort"),
    "index_of_index": (lambda s, t: s.z[s.g], "soft index by a soft index"),
    "mixed": (lambda s, t: (s.z[:, None] == s.z) * t.x, "share some of their draws"),
    "product": (lambda s, t: t.x[sum(vars(s)[f"b{i}"] for i in range(30))], "product"),
    # of JAX
    "while": (lambda s, t: lax.while_loop(lambda i: i < 3, lambda i: i + 1, s.z[0]), "while_loop"),
    "shape": (lambda s, t: jnp.zeros(s.z[0]), "Python integer"),
    "operator": (lambda s, t: operator.index(s.z[0]), "Python integer"),
    "assign_soft": (lambda s, t: t.perm.at[0].set(s.z[0]), "assignment"),
    "slice": (lambda s, t: t.locs[: s.z[0]], "a slice"),
    "total": (lambda s, t: t.x[s.b.sum() > 1], "sum over several draws"),
    "counts": (lambda s, t: jnp.bincount(s.z, length=3), "integers"),
    "dynamic_slice": (lambda s, t: lax.dynamic_slice_in_dim(s.z, s.g, 1), "index by a soft index"),
    "function": (lambda s, t: share(s.z), "element by element"),
    "padded": (lambda s, t: t.T[jnp.concatenate([s.z, s.w])[:2], s.z], "share some of their"),
    "gradient": (
        lambda s, t: jax.grad(lambda y: t.D[soft_index("z", y)].sum())(jnp.ones(3)),
        "derivative",
    ),
}


# programs with control flow: get(i) is the class of step i of 3, shape (2,); get(None) has all
# steps


def first_order(get, t):
    """An integer carry that starts with zeros."""

    def step(c, i):
        z = get(i)
        return z, (t.T[c, z] * t.X3[i]).sum()

    c, out = lax.scan(step, jnp.zeros(2, int), jnp.arange(3))
    return out.sum() + t.locs[c].sum()


def second_order(get, t):
    def step(carry, i):
        p, q = carry
        z = get(i)
        return (q, z), (t.A2[p, q, z] * t.X3[i]).sum()

    zeros = jnp.zeros(2, int)
    (p, q), out = lax.scan(step, (zeros, zeros), jnp.arange(3))
    return out.sum() + t.T[p, q].sum()


def lengths(get, t):
    """A state that is kept from some step on."""

    def step(c, i):
        z = jnp.where(i < jnp.array([2, 3]), get(i), c)
        return z, (t.locs[z] * t.X3[i]).sum()

    c, out = lax.scan(step, jnp.zeros(2, int), jnp.arange(3))
    return out.sum() + t.locs[c].sum()


def returned(get, t):
    def step(c, i):
        z = get(i)
        return z, z

    _, zs = lax.scan(step, jnp.zeros(2, int), jnp.arange(3))
    return (t.locs[zs] * t.X3).sum()


def over_draws(get, t):
    def step(c, z):
        return z, t.T[c, z].sum()

    return lax.scan(step, jnp.zeros(2, int), get(None))[1].sum()


def branches(get, t):
    z = get(0)
    two = lax.cond(z[0] == 1, lambda a: a * 2, lambda a: a + 1, 3.5)
    three = lax.switch(z[1], [lambda: 1.0, lambda: 4.0, lambda: 9.0])
    plain = lax.cond(t.X3[0, 0] > 0, lambda a: t.locs[a], lambda a: -t.locs[a], z)
    return two + three + plain.sum()


def functions(get, t):
    """Functions with a custom derivative."""
    z = get(0)
    counts = jax.scipy.special.xlogy(z.astype(t.X3.dtype), jnp.exp(t.X3[1]))
    return (jax.nn.relu(z - 1) * t.X3[0] + counts).sum()


def traced_rows(get, t):
    """Rows that are known only while the program runs, for labels in a long table."""
    z, w = get(0), get(1)
    at = z[(t.X3[:, 0] > 0).astype(int)]
    kept = jnp.where(t.X3[0] > 0, z, w)
    row = lax.dynamic_index_in_dim(w, (t.X3[0, 0] > 0).astype(int), keepdims=False)
    return (t.T[at, at] * t.X3[:, 0]).sum() + (t.locs[kept] * t.X3[1]).sum() + t.locs[row]


def totals(get, t):
    """Floats in the carry that start with 0, and integers that count the steps."""

    def step(carry, i):
        total, n = carry
        return (total + get(i)[0] * 0.5, n + 1), total * t.X3[n, 0]

    (total, _), out = lax.scan(step, (0.0, 0), jnp.arange(3))
    return total + out.sum()


def mapped(get, t):
    """vmap inside of the program, over draws and tables."""
    z = get(0)
    return jax.vmap(lambda k, x: t.T[k, (k + 1) % 3] * x.sum())(z, t.X3.T).sum()


def ppl_scan(get, t):
    def step(c, i):
        z = get(i)
        with numpyro.plate("rows", 2):
            numpyro.sample("x", dist.Normal(t.T[c, z], 1.0), obs=t.X3[i])
        return z, t.locs[z]

    with numpyro.handlers.seed(rng_seed=0):
        _, out = scan(step, jnp.zeros(2, int), jnp.arange(3))
    return (out * t.X3).sum()


FLOW = [first_order, second_order, lengths, returned, over_draws, branches, ppl_scan]
FLOW += [functions, traced_rows, mapped, totals]

# programs that scan refuses: a carry with the same draw twice, integers that are not known


def twice(get, t):
    z = get(0)
    return lax.scan(lambda c, i: ((c[1], get(i)), t.T[c].sum()), (z, z), jnp.arange(3))[1].sum()


def besides(get, t):
    z = get(0)
    return lax.scan(lambda c, i: (get(i), t.T[c, z].sum()), z, jnp.arange(3))[1].sum()


def traced_start(get, t):
    """A carry that starts with an integer known only while the program runs."""

    def step(c, i):
        z = get(i)
        return z, (t.T[c, z] * t.X3[i]).sum()

    return lax.scan(step, (t.X3[0] > 9).astype(int), jnp.arange(3))[1].sum()


CARRIES = [twice, besides, traced_start]
