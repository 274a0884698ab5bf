"""The bijections of the two simplexes, with respect to the measure of their densities."""

import numpy as np
import pytest


@pytest.mark.parametrize("constraint", ["simplex", "log_simplex"])
@pytest.mark.parametrize("K", [2, 3, 7])
def test_bijection(backend, constraint, K):
    """The inverse is right, and the Jacobian equals the numerical one in the measure of the
    density."""
    constraint = getattr(backend.gs.constraints, constraint)
    transform = backend.bijection(constraint)
    x = backend.array(np.random.default_rng(0).normal(size=(5, K - 1)))
    y = transform(x)
    assert y.shape == transform.forward_shape(x.shape) == (5, K)
    assert transform.inverse_shape(y.shape) == x.shape
    assert backend.check(constraint, y).all()
    inverse = backend.inverse(transform)
    np.testing.assert_allclose(backend.numpy(inverse(y)), backend.numpy(x), atol=1e-12)

    on_simplex = constraint is backend.gs.constraints.simplex

    def ratios(x):  # measures: dl_1 ... dl_{K-1} / y_K; Lebesgue for y_i
        y = transform(x)
        return y[:-1] if on_simplex else y[:-1] - y[-1:]

    for i in range(5):
        columns = [backend.jvp(ratios, x[i], backend.array(e))[1] for e in np.eye(K - 1)]
        exact = np.linalg.slogdet(np.stack(columns))[1]
        got = backend.numpy(transform.log_abs_det_jacobian(x[i], transform(x[i])))
        assert got == pytest.approx(exact, abs=1e-10)
