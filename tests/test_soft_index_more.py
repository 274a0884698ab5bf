"""Soft indices: rarer forms, as in test_soft_index.py, and special cases of torch."""

import contextlib
import importlib

import numpy as np
import pytest
import test_soft_index as base
from test_soft_index import one_hot, side  # noqa: F401

FORMS = {
    "number": lambda s, t: 0.1 * s.z * t.x,
    "number_bool": lambda s, t: 0.1 * (s.z == 1) * t.x,
    "number_where": lambda s, t: np.where(s.z == 0, 0.1, 0.7) * t.x,
    "number_root": lambda s, t: s.z**0.5 * t.x,
    "number_clamp": lambda s, t: np.clip(s.z, 0.5, None) * t.x,
    "reciprocal": lambda s, t: t.x / (s.z + 1),
    "power_of_array": lambda s, t: t.x**s.z,
    "power_of_bit": lambda s, t: t.x**s.b,
    "maximum": lambda s, t: np.maximum(s.z, t.x),
    "lgamma": lambda s, t: np.log(np.maximum(s.z, 1)),  # z < 3
    "exp_bit": lambda s, t: np.exp(0.3 * s.b),
    "round": lambda s, t: np.round(s.z / 2) * t.x,
    "where_of_two": lambda s, t: t.locs[np.where(s.w > 1, s.z, 1)],
    "where_bit": lambda s, t: t.locs[np.where(t.keep, 1, s.b)],
    "where_index_or_float": lambda s, t: np.where(s.z > 0, s.z, t.x),
    "crossed": lambda s, t: ((2 * s.z + s.w) == (2 * s.w - s.z)) * t.x,
    "unequal_bits": lambda s, t: (s.b != s.c) * t.x,
    "floor_by_array": lambda s, t: s.z // t.x * t.u,
    "floor_by_row": lambda s, t: (s.z[:, None] - 1) // t.x * t.u,
    "remainder_by_array": lambda s, t: (s.z - 1) % t.u,
    "class_of_hot": lambda s, t: t.locs[s.h],
    "hot_above": lambda s, t: (s.h == 2) * t.x,
    "hot_row_above": lambda s, t: (s.h == 1) * t.x,
    "vindex_all": lambda s, t: t.Q[s.w, s.z][None][0],
    "after_number": lambda s, t: t.Q[1, s.g],
    "after_slice": lambda s, t: t.Q[1:3, s.g, ::2],
    "between": lambda s, t: t.Q[:, :, 1][:, s.z],
    "apart": lambda s, t: t.Q[s.w, :, s.z],
    "two_shapes": lambda s, t: t.Q[s.g, s.z],
    "plain_mask": lambda s, t: t.R[t.keep, s.z[:1]],
    "bool_table": lambda s, t: np.where(t.flags[s.z], t.x, t.u),
    "chain": lambda s, t: t.T[np.append(0, s.z[:-1]), s.z],
    "chain_of_two": lambda s, t: t.T[np.append([0, 0], s.z[:-1]), np.append(0, s.z)],
    "stack_beside_stack": lambda s, t: t.A[np.stack([s.z[0], 1]), np.stack([s.v[0] - 2, s.z[1]])],
    "iterate": lambda s, t: t.T[s.z[0], s.z[1]],
    "repeat": lambda s, t: t.locs[np.repeat(s.z, 2)],
    "roll": lambda s, t: t.T[s.z, np.roll(s.z, 1)],
    "mask_of_index": lambda s, t: t.locs[s.z[t.keep]],
    "scatter_matrix": lambda s, t: one_hot(s.z, 3) * t.X[:, :1],
    "add_columns": lambda s, t: base.added(np.zeros((3, 5)), s.z, t.X).T,
    "dot": lambda s, t: s.z @ t.x,
    "bit_dot": lambda s, t: s.b @ t.x,
    "hot_count": lambda s, t: one_hot(s.h, 3).sum(0) * t.locs,
}


@pytest.fixture
def more(backend):
    return importlib.import_module(f"soft_more_{backend.name}")


@pytest.mark.parametrize("name", FORMS)
def test_form(backend, side, more, name, monkeypatch):  # noqa: F811
    monkeypatch.setitem(base.FORMS, name, FORMS[name])
    monkeypatch.setitem(side.forms.FORMS, name, more.FORMS[name])
    base.test_form(backend, side, name)


REFUSED = ["none", "out", "new_array", "full_of", "move_by", "row_of", "joined_sizes"]
REFUSED += ["hot_without_size", "product_of_draws", "matrix_of_integers", "added_in_place"]
REFUSED += ["cast_to_mask", "float_index"]


@pytest.mark.only("pyro")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(backend, side, more, name):  # noqa: F811
    form, operation = more.REFUSED[name]
    ys = {n: backend.array(base.given(n, base.WEIGHTS[n])) for n in "zwgb"}
    with pytest.raises(side.module.SoftIndexError) as error:
        side.make(form)(**ys)
    assert operation in str(error.value)


@pytest.mark.only("pyro")
def test_ids_of_refused(more):
    assert [*more.REFUSED] == REFUSED


@pytest.mark.only("pyro")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["number", "number_where", "number_root", "lgamma", "exp_bit"])
def test_numbers_have_the_dtype_of_the_weights(backend, side, more, name, dtype):  # noqa: F811
    """It is not torch's default dtype, which its integers would take."""
    t = vars(base.TABLES)
    tables = {n: backend.array(x, dtype) for n, x in t.items() if x.dtype.kind == "f"}
    ys = {n: backend.array(base.given(n, base.WEIGHTS[n]), dtype) for n in "zb"}
    m = side.module

    def program():
        z, b = m.soft_index("z", ys["z"]), m.soft_bit("b", ys["b"])
        return more.FORMS[name](base.SimpleNamespace(z=z, b=b), base.SimpleNamespace(**tables))

    assert backend.dtype(m.interpret(program)()) == dtype


@pytest.mark.only("pyro")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's warning about torch.jit
@pytest.mark.parametrize("name", ["index_matrix", "index_same", "where", "bit_not", "stack", "any"])
def test_traced_by_torch_jit(backend, side, name):  # noqa: F811
    """A trace is right at other weights, without a warning about sizes."""
    m, t = side.module, vars(base.TABLES)
    tables = {n: backend.array(x, None if x.dtype.kind == "f" else "int64") for n, x in t.items()}
    v = backend.array([2, 3, 4], "int64")

    def program(z, v_weights, b):
        soft = {"z": m.soft_index("z", z), "v": m.soft_index("v", v_weights, v)}
        s = base.SimpleNamespace(**soft, b=m.soft_bit("b", b))
        return side.forms.FORMS[name](s, base.SimpleNamespace(**tables))

    program = m.interpret(program)
    ys = [backend.array(base.given(n, base.WEIGHTS[n])) for n in "zvb"]
    traced = backend.torch.jit.trace(program, tuple(y.roll(1, 0) for y in ys), check_trace=False)
    np.testing.assert_allclose(traced(*ys), program(*ys), rtol=0, atol=1e-14)


@pytest.mark.only("pyro")
@pytest.mark.parametrize("name", ["index_matrix", "index_column", "hot_dot", "where_matrix"])
def test_memory_of_a_table_is_that_of_the_result(backend, side, name):  # noqa: F811
    """No tensor of classes x draws x columns, neither forward nor backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, backend.torch.Tensor) and 0 not in out.stride():
                sizes.append(out.numel())
            return out

    m, n, k, d = side.module, 40, 30, 50
    y = backend.array(np.full((n, k), 1 / k)).requires_grad_()
    arrays = {"D": (k, d), "X": (n, d)}
    tables = base.SimpleNamespace(**{x: backend.array(np.ones(s)) for x, s in arrays.items()})

    def program():
        s = base.SimpleNamespace(z=m.soft_index("z", y), h=m.soft_one_hot("h", y))
        return side.forms.FORMS[name](s, tables)

    with Sizes():
        m.interpret(program)().sum().backward()
    assert 0 < max(sizes) <= 2 * n * d


def test_infinity_of_a_choice_at_weight_zero(backend, side):  # noqa: F811
    """0 * inf is 0 there, with a finite gradient."""
    x, u = backend.array([-np.inf, -np.inf]), backend.array([2.0, 3.0])

    def total(y):
        m = side.module
        value = m.interpret(lambda: backend.lib.where(m.soft_index("z", y) == 0, x, u))()
        return value.sum(), value

    value_and_grad = backend.value_and_grad(total)
    value, (gradient,) = value_and_grad(backend.array([[0.0, 1.0], [0.0, 1.0]]))
    np.testing.assert_allclose(value, [2.0, 3.0])
    assert np.isfinite(gradient).all()
    value, _ = value_and_grad(backend.array([[0.0, 1.0], [0.5, 0.5]]))
    np.testing.assert_allclose(value, [2.0, -np.inf])


LAWS = {  # in the program, the score of a law at a soft value is the mean of its scores
    "Categorical": (lambda d, p: d.Categorical(probs=p), "z"),
    "Poisson": (lambda d, p: d.Poisson(1.5 * p[0]), "z"),
    "Bernoulli": (lambda d, p: d.Bernoulli(probs=p[0]), "b"),
}


@pytest.mark.parametrize("name", LAWS)
def test_score_of_a_law_at_a_soft_value(backend, side, name):  # noqa: F811
    make, site = LAWS[name]
    p, weights = backend.array([0.2, 0.3, 0.5]), base.WEIGHTS[site]
    y, m = backend.array(base.given(site, weights)), side.module
    soft = m.soft_bit if site == "b" else m.soft_index

    def at(value):
        return make(backend.native, p).log_prob(value)

    dtype = "int64" if name == "Categorical" else None
    cells = [backend.numpy(at(backend.array(k, dtype))) for k in range(weights.shape[-1])]
    value = backend.numpy(m.interpret(lambda: at(soft("s", y)))())
    np.testing.assert_allclose(value, weights @ cells, rtol=0, atol=1e-12)


def test_integers_computed_from_a_class_leave_by_their_value(backend, side):  # noqa: F811
    y = backend.array(base.WEIGHTS["z"])
    left = side.module.interpret(lambda: 2 - side.module.soft_index("z", y))()
    np.testing.assert_allclose(backend.numpy(left), base.WEIGHTS["z"][:, ::-1])


@pytest.mark.only("numpyro")
def test_compiled_memory_of_a_table_is_near_that_of_the_result(backend, side):  # noqa: F811
    """Of output and scratch, although entries that are not finite require a test of each cell."""
    n, k, d = 400, 8, 32
    D, y = backend.array(np.ones((k, d))), backend.array(np.full((n, k), 1 / k))
    program = side.module.interpret(lambda D, y: D[side.module.soft_index("z", y)])
    found = backend.jit(program).lower(D, y).compile().memory_analysis()
    assert found.output_size_in_bytes + found.temp_size_in_bytes < 1.1 * n * d * D.dtype.itemsize


def test_infinite_entries(backend, side):  # noqa: F811
    """They count if their weight is not 0; for two draws, if the product of the weights is not
    0."""
    m, inf = side.module, np.inf
    table = backend.array([[-inf, 0.0], [1.0, inf]])
    for a, b, wanted in [
        ([0.5, 0.5], [1.0, 0.0], -inf),
        ([0.0, 1.0], [0.5, 0.5], inf),
        ([0.0, 1.0], [1.0, 0.0], 1.0),
        ([0.5, 0.5], [0.5, 0.5], np.nan),
    ]:
        a, b = backend.array(a), backend.array(b)
        program = m.interpret(lambda a=a, b=b: table[m.soft_index("a", a), m.soft_index("b", b)])
        np.testing.assert_equal(float(program()), wanted)


@pytest.mark.only("pyro")
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "raises"])
def test_modes_of_the_program(backend, whole):
    """Modes and devices of the program, entered before the first soft value, are restored at
    exit."""
    torch = backend.torch
    from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

    from gs_ppl.pyro.soft_index import interpret, soft_index

    class Counting(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    def program():
        with torch.device("cpu"), Counting():
            z = soft_index("z", y)
            inside = table[z]
        if not whole:
            raise ArithmeticError
        return inside, table[z], interpret(lambda: table[soft_index("w", y)])()

    seen = []
    y, table = torch.tensor([0.25, 0.0, 0.75]), torch.tensor([1.0, 2.0, 3.0])
    with Counting() as around:
        with contextlib.nullcontext() if whole else pytest.raises(ArithmeticError):
            assert [float(x) for x in interpret(program)()] == [2.5] * 3
        assert _get_current_function_mode_stack() == [around]
        seen.clear()
        table.exp()
        assert seen == [torch.Tensor.exp]
    assert _get_current_function_mode_stack() == []


@pytest.mark.only("pyro")
def test_a_table_with_too_few_rows(backend):
    """NumPyro reads the last row, as JAX does for an integer."""

    def program():
        z = backend.ppl.sample(
            "z", backend.native.Categorical(probs=backend.array([0.2, 0.3, 0.5]))
        )
        return backend.array([-2.0, 2.0])[z]

    with pytest.raises(IndexError, match=r"^site 'z': a class has no row in the table: index 2"):
        backend.gs.relax(program, 0.5)()
