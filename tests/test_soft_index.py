"""Soft indices: forms of programs compared with the same integer program, cell by cell.

The forms are in soft_index_pyro.py and soft_index_numpyro.py, under the same ids.
"""

import importlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

SITES = {  # shape of the draws, number of classes
    "z": ((2,), 3),
    "w": ((2,), 4),
    "v": ((2,), 3),  # of values 2, 3, 4
    "g": ((), 3),
    "m": ((2, 1), 3),
    "b": ((2,), 2),
    "c": ((2,), 2),
    "h": ((2,), 3),
}
RNG = np.random.default_rng(0)
TABLES = SimpleNamespace(
    locs=RNG.normal(size=3),
    D=RNG.normal(size=(3, 5)),
    T=RNG.normal(size=(3, 3)),
    A=RNG.normal(size=(3, 4)),
    R=RNG.normal(size=(2, 3)),
    Q=RNG.normal(size=(4, 3, 5)),
    E=RNG.normal(size=(8, 5)),
    P=RNG.normal(size=(2, 3, 5)),
    V=RNG.normal(size=9),
    x=np.array([0.7, 1.3]),
    u=RNG.normal(size=2),
    X=RNG.normal(size=(2, 5)),
    perm=np.array([2, 0, 1]),
    some=np.array([0, 2]),
    rows=np.arange(2),
    flags=np.array([True, False, True]),
    keep=np.array([True, False]),
)
WEIGHTS = {
    name: RNG.dirichlet(np.ones(classes), size=shape) for name, (shape, classes) in SITES.items()
}


def one_hot(z, classes):
    return np.eye(classes)[z]


def added(total, z, x):
    np.add.at(total, z, x)
    return total


# the integer programs in NumPy; h is given as its class
FORMS = {
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
    "index_bool_table": lambda s, t: t.flags[s.z] * 1.0,
    "gather": lambda s, t: np.take_along_axis(t.R, s.z[:, None], -1)[:, 0],
    "take": lambda s, t: t.V[s.z],
    "index_select": lambda s, t: t.D.T[:, s.z],
    "embedding": lambda s, t: t.D[s.z],
    "vindex": lambda s, t: t.D[s.z],
    "vindex_pair": lambda s, t: t.A[s.z, s.w],
    "vindex_batch": lambda s, t: t.P[t.rows, s.z],
    "vindex_batch_pair": lambda s, t: t.R[t.rows, s.z],
    "vindex_particles": lambda s, t: t.Q[s.w, s.m],
    "add": lambda s, t: t.x + s.z,
    "scale": lambda s, t: 0.5 * s.z + 1,
    "float": lambda s, t: s.z * t.x,
    "divide": lambda s, t: s.z / 2 * t.x,
    "floor_divide": lambda s, t: s.z // 2 * t.x,
    "remainder": lambda s, t: s.z % 2 * t.x,
    "power": lambda s, t: s.z**2 * t.x,
    "square_float": lambda s, t: s.z**2.0,
    "negative": lambda s, t: -s.z * t.x,
    "abs": lambda s, t: abs(s.z - 1) * t.x,
    "clamp": lambda s, t: np.clip(s.z, 1, 2) * t.x,
    "cast_half": lambda s, t: (s.z / 2).astype(int) * t.x,
    "equal": lambda s, t: (s.z == 1) * t.x,
    "same": lambda s, t: (s.z == s.z) * t.x,
    "compare": lambda s, t: (s.z < s.w) * t.x,
    "compare_float": lambda s, t: (s.z < t.x) * t.u,
    "logic": lambda s, t: ((s.z == 0) | ~(s.w > 1)) * t.x,
    "xor": lambda s, t: ((s.z == 0) ^ (s.w > 1)) * t.x,
    "minimum": lambda s, t: np.minimum(s.z, s.w) * t.x,
    "where": lambda s, t: np.where(s.z == 0, t.x, t.u),
    "where_matrix": lambda s, t: np.where((s.z == 0)[:, None], t.X, 2 * t.X),
    "where_pair": lambda s, t: np.where(s.z == 1, t.A[0, s.w], t.x),
    "where_number": lambda s, t: np.where(s.z == 0, 1.5, 2.5) * t.x,
    "where_int": lambda s, t: t.locs[np.where(s.z == 0, 2, s.z)],
    "where_observed": lambda s, t: t.locs[np.where(t.keep, t.perm[:2], s.z)],
    "exp": lambda s, t: np.exp(s.z),
    "one_hot": lambda s, t: one_hot(s.z, 3),
    "one_hot_dot": lambda s, t: one_hot(s.z, 3) @ t.D,
    "one_hot_of_sum": lambda s, t: one_hot(s.z + s.w, 6),
    "isin": lambda s, t: np.isin(s.z, t.some) * t.x,
    "any": lambda s, t: (s.z[:, None] == t.some).any(-1) * t.x,
    "sum": lambda s, t: (s.z[:, None] > np.arange(3)).sum(-1) * t.x,
    "argmax": lambda s, t: t.D[s.z],
    "reshape": lambda s, t: t.D[s.z.reshape(2, 1)],
    "unsqueeze": lambda s, t: t.D[s.z[None]],
    "squeeze": lambda s, t: t.locs[s.m[:, 0]],
    "transpose": lambda s, t: t.locs[s.m.T],
    "expand": lambda s, t: t.locs[np.broadcast_to(s.z, (3, 2))],
    "slice": lambda s, t: t.locs[s.z[1:]],
    "pick": lambda s, t: t.locs[s.z[0]],
    "plain_index": lambda s, t: t.locs[s.z[[1, 0, 1]]],
    "flip": lambda s, t: t.locs[s.z[::-1]],
    "stack": lambda s, t: t.locs[np.stack([s.z, s.v - 2])],
    "cat": lambda s, t: t.locs[np.concatenate([s.z, s.z[:1]])],
    "stack_plain": lambda s, t: t.locs[np.stack([s.z, t.rows])],
    "unstack": lambda s, t: t.locs[s.z[0]] * t.locs[s.z[1]],
    "scatter_add": lambda s, t: added(np.zeros(3), s.z, t.x),
    "index_add": lambda s, t: added(np.zeros((3, 5)), s.z, t.X),
    "bit_index": lambda s, t: t.locs[s.b],
    "bit_equal": lambda s, t: s.b * t.x,
    "bit_arith": lambda s, t: (1 - s.b) * t.x + s.b * t.u,
    "bit_not": lambda s, t: np.where(s.b == 0, t.x, t.u),
    "bit_slice": lambda s, t: t.locs[s.b[1:]],
    "bit_product": lambda s, t: s.b * s.c * t.x,
    "bit_square": lambda s, t: s.b * t.x,
    "bit_pair": lambda s, t: t.A[s.b, s.c],
    "bit_sum": lambda s, t: t.locs[s.b + s.c],
    "bit_total": lambda s, t: (3 - s.b.sum()) * t.x,
    "bit_with_index": lambda s, t: t.locs[s.b * s.z],
    "bit_mask": lambda s, t: np.where(s.b == 1, t.x, t.u),
    "hot_index": lambda s, t: t.D[s.h],
    "hot_dot": lambda s, t: t.D[s.h],
    "hot_equal": lambda s, t: t.D[s.h],
    "hot_column": lambda s, t: t.locs[(s.h == 1) * 1],
    "hot_product": lambda s, t: (s.h == s.z) * 1.0,
}


class Spy:
    """Records which sites a form uses."""

    def __init__(self):
        self.used = []

    def __getattr__(self, name):
        self.used.append(name)
        return np.zeros(SITES[name][0], int)


def sites_of(form):
    spy = Spy()
    form(spy, TABLES)
    return sorted(set(spy.used))


def cells(names):
    """Classes of all draws of these sites."""
    axes = [range(SITES[name][1]) for name in names for _ in np.ndindex(SITES[name][0])]
    for classes in itertools.product(*axes):
        left = iter(classes)
        yield {
            name: np.array([next(left) for _ in np.ndindex(shape)], int).reshape(shape)
            for name, (shape, _) in ((name, SITES[name]) for name in names)
        }


def run(form, classes):
    values = {name: c + 2 if name == "v" else c for name, c in classes.items()}
    return np.asarray(form(SimpleNamespace(**values), TABLES), float)


def along(name, gradient):
    """The part along the simplex: the sum of the weights is 1 in one program, and free in the
    other."""
    return gradient if name in "bc" else gradient - gradient.mean(-1, keepdims=True)


def brute_force(form, names, coefficients):
    """Mean over all cells, and the gradient of its scalar product with the coefficients."""
    mean, gradients = 0.0, {name: np.zeros_like(WEIGHTS[name]) for name in names}
    for classes in cells(names):
        hot = {name: one_hot(classes[name], SITES[name][1]) for name in names}
        chance = {name: (WEIGHTS[name] * hot[name]).sum(-1) for name in names}
        p = np.prod([np.prod(q) for q in chance.values()])
        value = run(form, classes)
        mean = mean + p * value
        for name in names:
            gradients[name] += (
                (coefficients * value).sum() * p * hot[name] / chance[name][..., None]
            )
    bits = {name: g[..., 1] - g[..., 0] for name, g in gradients.items() if name in "bc"}
    return mean, gradients | bits


@pytest.fixture
def side(backend):
    """The forms of this side, its tables, and its function to run a form on weights."""
    module = importlib.import_module(f"gs_ppl.{backend.name}.soft_index")
    forms = importlib.import_module(f"soft_index_{backend.name}")

    values = backend.array([2, 3, 4], "int64")

    def tables():
        return SimpleNamespace(
            **{
                name: backend.array(value, None if value.dtype.kind == "f" else str(value.dtype))
                for name, value in vars(TABLES).items()
            }
        )

    def site(name, y):
        if name[0] in "bc":
            return module.soft_bit(name, y)
        if name == "h":
            return module.soft_one_hot(name, y)
        return module.soft_index(name, y, values if name == "v" else None)

    def make(form):
        def program(**ys):
            sites = SimpleNamespace(**{name: site(name, y) for name, y in ys.items()})
            return form(sites, tables())

        return module.interpret(program)

    return SimpleNamespace(forms=forms, module=module, make=make)


def given(name, weights):
    """The value in the trace: for a bit, the weight of 1."""
    return weights[..., 1] if name in "bc" else weights


@pytest.mark.parametrize("name", FORMS)
def test_form(backend, side, name):
    """At soft weights it is the mean over all cells, with its gradient; at vertices, the cell."""
    form = FORMS[name]
    names = sites_of(form)
    program = side.make(side.forms.FORMS[name])
    shape = run(form, next(cells(names))).shape
    coefficients = np.random.default_rng(1).normal(size=shape)
    factor = backend.array(coefficients)

    def total(*ys):
        value = program(**dict(zip(names, ys, strict=True)))
        return (factor * value).sum(), value

    value_and_grad = backend.value_and_grad(total)
    value, gradient = value_and_grad(*(backend.array(given(n, WEIGHTS[n])) for n in names))
    mean, expected = brute_force(form, names, coefficients)
    assert value.shape == shape
    np.testing.assert_allclose(value, mean, rtol=0, atol=1e-12)
    for n, g in zip(names, gradient, strict=True):
        np.testing.assert_allclose(along(n, g), along(n, expected[n]), rtol=0, atol=1e-12)
    some = list(cells(names))
    for classes in some[:: max(1, len(some) // 3)]:
        ys = (given(n, one_hot(classes[n], SITES[n][1])) for n in names)
        value, gradient = value_and_grad(*map(backend.array, ys))
        np.testing.assert_allclose(value, run(form, classes), rtol=0, atol=1e-12)
        assert all(np.isfinite(g).all() for g in gradient)


def test_ids_are_those_of_both_sides(side):
    assert side.forms.FORMS.keys() == FORMS.keys()


REFUSED = ["bool", "range", "int", "float", "item", "numpy", "pickle", "assign", "mask_index"]
REFUSED += ["reduce", "sort", "index_of_index", "mixed", "product", "while", "shape", "operator"]
REFUSED += ["assign_soft", "slice", "counts"]


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_site_operation_and_cure(backend, side, name):
    form, operation = side.forms.REFUSED[name]
    ys = {n: backend.array(given(n, WEIGHTS[n])) for n in "zwg"}
    if name == "total":  # a count, which is an integer in the program
        ys = {"b": backend.array(given("b", WEIGHTS["b"]))}
    if name == "product":  # of 30 bits
        ys |= {f"b{i}": backend.array(0.5) for i in range(30)}
    with pytest.raises(side.module.SoftIndexError, match=r"^sites? '") as error:
        side.make(form)(**ys)
    found, cure = str(error.value).split(" is not defined for a soft index; ")
    assert any(word in found for word in operation.split(" or "))
    assert ("'z'" in found) == (name not in ("product", "total"))
    assert cure


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("name", ["function", "padded", "gradient", "dynamic_slice", "total"])
def test_refusal_of_jax(backend, side, name):
    test_refusal_names_site_operation_and_cure(backend, side, name)


# --- control flow, which only JAX has -------------------------------------------------------------

STEPS = RNG.dirichlet(np.ones(3), size=(3, 2))
FLOW = ["first_order", "second_order", "lengths", "returned", "over_draws", "branches", "ppl_scan"]
FLOW += ["functions", "traced_rows", "mapped", "totals"]
CARRIES = {
    "twice": "a carry that holds one draw",
    "besides": "a carry that holds one draw",
    "traced_start": "a carry that begins with an array of integers",
}


def flow_tables(jnp, dtype="float64"):
    tables = {"A2": (3, 3, 3), "T": (3, 3), "locs": (3,), "X3": (3, 2)}
    rng = np.random.default_rng(2)
    return {name: jnp.asarray(rng.normal(size=s), dtype) for name, s in tables.items()}


def steps(module, y):
    return lambda i: module.soft_index("z", y if i is None else y[i])


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("name", FLOW)
def test_flow(backend, side, name):
    """The mean over all paths of the integer program, and its gradient."""
    jax, jnp = backend.jax, backend.jnp
    form, tables = getattr(side.forms, name), flow_tables(jnp)
    paths = jnp.asarray(list(itertools.product(range(3), repeat=6))).reshape(-1, 3, 2)

    def integer(z, t):
        return form(lambda i: z if i is None else z[i], t)

    def total(y, t):
        t = SimpleNamespace(**t)
        return side.module.interpret(lambda: form(steps(side.module, y), t))()

    def brute(y, t):
        t = SimpleNamespace(**t)
        chance = jnp.take_along_axis(y[None], paths[..., None], -1).prod((1, 2, 3))
        return chance @ jax.vmap(lambda z: integer(z, t))(paths)

    value, gradient = jax.jit(jax.value_and_grad(total, (0, 1)))(STEPS, tables)
    expected, slope = jax.jit(jax.value_and_grad(brute, (0, 1)))(STEPS, tables)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)
    ys = [along("z", np.asarray(g[0])) for g in (gradient, slope)]
    np.testing.assert_allclose(*ys, rtol=0, atol=1e-12)
    for key in tables:
        np.testing.assert_allclose(gradient[1][key], slope[1][key], rtol=0, atol=1e-12)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("name", CARRIES)
def test_refused_carry(backend, side, name):
    form, y = getattr(side.forms, name), backend.array(STEPS)

    def total(t):
        t = SimpleNamespace(**t)
        return side.module.interpret(lambda: form(steps(side.module, y), t))()

    with pytest.raises(side.module.SoftIndexError, match=f"site 'z': {CARRIES[name]}"):
        backend.jax.jit(total)(flow_tables(backend.jnp))


@pytest.mark.only("numpyro")
def test_under_transformations(backend, side):
    """Particles by vmap, jit, gradients, float32."""
    jax, jnp = backend.jax, backend.jnp
    t = SimpleNamespace(**flow_tables(jnp, "float32"))
    form = side.forms.second_order

    def total(y):
        return side.module.interpret(lambda: form(steps(side.module, y), t))()

    ys = jnp.stack([jnp.asarray(STEPS, "float32"), jnp.asarray(STEPS[::-1], "float32")])
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(total)))(ys)
    assert values.dtype == gradients.dtype == "float32"
    for y, value, gradient in zip(ys, values, gradients, strict=True):
        one, slope = jax.value_and_grad(total)(y)
        np.testing.assert_allclose(value, one, rtol=1e-5)
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.only("numpyro")
def test_nothing_leaks(backend, side):
    t = SimpleNamespace(**flow_tables(backend.jnp))

    def total(y):
        return side.module.interpret(lambda: side.forms.first_order(steps(side.module, y), t))()

    with backend.jax.checking_leaks():
        backend.jax.make_jaxpr(total)(STEPS)


@pytest.mark.only("numpyro")
def test_names_of_jax(backend):
    """Names that differ between versions, each in the form that the trace uses."""
    jax, jnp, lax = backend.jax, backend.jnp, backend.jax.lax
    versions = importlib.import_module("gs_ppl.numpyro._versions")
    value = importlib.import_module("gs_ppl.numpyro.soft_value")
    with versions.take_current_trace() as trace:
        assert isinstance(trace, jax.core.Trace)
    with versions.set_current_trace(trace), versions.take_current_trace() as same:
        assert same is trace
    aval = jax.core.ShapedArray((2,), jnp.dtype("int32"))
    assert value.Soft(trace, aval, None).aval is aval
    step = lambda c, x: (c + x + c.sum(), c)  # noqa: E731
    const = lambda k, c, xs: lax.scan(lambda c, x: step(c, x * k), c, xs)  # noqa: E731
    (eqn,) = jax.make_jaxpr(const)(jnp.ones(2), jnp.ones(2), jnp.ones((3, 2))).eqns
    parts = versions.scan_parts(eqn.params, eqn.invars)
    assert [[x.aval.shape for x in part] for part in parts] == [[(2,)], [(2,)], [(3, 2)]]


def test_minus_infinity_at_weight_zero(backend, side):
    """A class of weight 0 does not count, whatever its value is."""
    log = backend.array([0.5, -np.inf, 1.0])

    def total(y):
        value = side.module.interpret(lambda: log[side.module.soft_index("z", y)])()
        return value.sum(), value

    value_and_grad = backend.value_and_grad(total)
    value, (gradient,) = value_and_grad(backend.array([[1.0, 0, 0], [0, 0, 1.0], [0.5, 0, 0.5]]))
    np.testing.assert_allclose(value, [0.5, 1.0, 0.75])
    assert np.isfinite(gradient).all()
    value, _ = value_and_grad(backend.array([[0.5, 0.25, 0.25]] * 3))
    assert (value == -np.inf).all()


def test_what_leaves(backend, side):
    """A returned class becomes its weights; a bit or a condition becomes its probability of 1."""
    m, y = side.module, backend.array(WEIGHTS["z"])
    p = y[:, 0]

    def program():
        z = m.soft_index("z", y)
        return {
            "z": z,
            "bit": m.soft_bit("b", p),
            "is": z == 0,
            "sum": z + z,
            "hard": m.hardened(z),
        }

    left = {name: backend.numpy(x) for name, x in m.interpret(program)().items()}
    np.testing.assert_allclose(left["z"], WEIGHTS["z"])
    np.testing.assert_allclose(left["bit"], WEIGHTS["z"][:, 0])
    np.testing.assert_allclose(left["is"], WEIGHTS["z"][:, 0])
    np.testing.assert_array_equal(left["hard"], WEIGHTS["z"].argmax(-1))


def test_repr_names_the_site(backend, side):
    m, y = side.module, backend.array(WEIGHTS["z"])
    seen = []
    m.interpret(lambda: seen.append(f"{m.soft_index('z', y)}"))()
    assert "site 'z'" in seen[0]


OWN = {  # log-probabilities of a class, and products of bits with floats, are linear in the weights
    "categorical": (lambda d, b, z, x: d.Categorical(probs=x).log_prob(z), "z"),
    "bernoulli_probs": (lambda d, b, z, x: d.Bernoulli(probs=x[0]).log_prob(b), "b"),
    "bernoulli_logits": (lambda d, b, z, x: d.Bernoulli(logits=x[0]).log_prob(b), "b"),
    "dot": (lambda d, b, z, x: b @ x[:2], "b"),
}


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("name", OWN)
def test_linear_in_the_weights(backend, side, name):
    form, site = OWN[name]
    x, y = backend.array([0.2, 0.3, 0.5]), backend.array(WEIGHTS["z"])

    def program():
        b, z = side.module.soft_bit("b", y[:, 0]), side.module.soft_index("z", y)
        return form(backend.native, b, z, x)

    cells = [
        form(backend.native, *(backend.jnp.full(2, k),) * 2, x)
        for k in range(3 if site == "z" else 2)
    ]
    w = WEIGHTS["z"]
    weights = w.T if site == "z" else np.stack([1 - w[:, 0], w[:, 0]])
    expected = sum(p * c for p, c in zip(weights, cells, strict=False))
    if name == "dot":
        expected = w[:, 0] @ np.asarray(x[:2])
    np.testing.assert_allclose(side.module.interpret(program)(), expected, rtol=0, atol=1e-12)
