"""Soft indices: rarer forms, as in test_soft_index.py, and the traps of torch."""

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
    "unequal_bits": lambda s, t: (s.b != s.c) * t.x,
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
REFUSED += ["float_index"]


@pytest.mark.only("pyro")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(backend, side, more, name):  # noqa: F811
    form, operation = more.REFUSED[name]
    ys = {n: backend.array(base.given(n, base.WEIGHTS[n])) for n in "zwgb"}
    with pytest.raises(side.module.SoftIndexError) as error:
        side.make(form)(**ys)
    assert operation in str(error.value)
