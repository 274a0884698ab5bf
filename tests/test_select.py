"""select(table, z, axis=...) in each mode, compared with NumPy's indexing and einsum."""

import numpy as np
import pytest

RNG = np.random.default_rng(0)
VECTOR, MATRIX, STACK = RNG.normal(size=3), RNG.normal(size=(3, 3)), RNG.normal(size=(3, 4, 2))
Z = np.array([[2, 0, 1], [1, 1, 0]])
SOFT = RNG.dirichlet(np.ones(3), (2, 3))


@pytest.mark.parametrize("table", [VECTOR, MATRIX, STACK], ids=["vector", "matrix", "stack"])
def test_axis_0_is_indexing(backend, table):
    """P[z] for each form of z; its shape is the batch of z, then the other axes of the table."""
    select, array = backend.gs.select, backend.array
    for z in (array(Z, "int64"), array(np.eye(3)[Z])):
        found = backend.numpy(select(array(table), z, axis=0))
        np.testing.assert_array_equal(found, table[Z])
    found = backend.numpy(select(array(table), array(SOFT), axis=0))
    np.testing.assert_allclose(found, np.tensordot(SOFT, table, 1), rtol=1e-12)


def test_axis_0_of_bits(backend):
    table, bits = STACK[:2], np.array([0.0, 1.0, 0.25])
    select, array = backend.gs.select, backend.array
    found = backend.numpy(select(array(table), array(bits), binary=True, axis=0))
    weights = np.stack([1 - bits, bits], -1)
    np.testing.assert_allclose(found, np.tensordot(weights, table, 1), rtol=1e-12)
    whole = array(np.array([0, 1, 1]), "int64")
    found = backend.numpy(select(array(table), whole, binary=True, axis=0))
    np.testing.assert_array_equal(found, table[[0, 1, 1]])


def test_last_axis_goes_row_by_row(backend):
    """The rows of the table with those of z; for a matrix this is not P[z]."""
    select, array, z = backend.gs.select, backend.array, Z[0]
    expected = MATRIX[np.arange(3), z]
    for value in (array(z, "int64"), array(np.eye(3)[z])):
        np.testing.assert_array_equal(backend.numpy(select(array(MATRIX), value)), expected)
    found = backend.numpy(select(array(MATRIX), array(SOFT)))
    np.testing.assert_allclose(found, np.einsum("bik,ik->bi", SOFT, MATRIX), rtol=1e-12)


@pytest.mark.parametrize("axis", [1, -2, None])
def test_other_axes_are_refused(backend, axis):
    with pytest.raises(ValueError, match="axis must be -1 or 0"):
        backend.gs.select(backend.array(MATRIX), backend.array(SOFT), axis=axis)


@pytest.mark.parametrize("axis", [-1, 0])
def test_a_number_is_no_table(backend, axis):
    with pytest.raises(ValueError, match=r"axis must be -1 or 0, .* a table of shape \(\)"):
        backend.gs.select(backend.array(1.0), backend.array(SOFT), axis=axis)


@pytest.mark.parametrize("axis", [-1, 0])
def test_classes_must_agree(backend, axis):
    select, array = backend.gs.select, backend.array
    with pytest.raises(ValueError, match=f"axis {axis} of the table and the classes of z"):
        select(array(np.ones((4, 4))), array(SOFT), axis=axis)
    with pytest.raises(ValueError, match=f"axis {axis} of the table and the classes of z"):
        select(array(MATRIX), array(np.array([0.0, 1.0])), binary=True, axis=axis)
