"""The dtype of samples and scores, and their values in half precision."""

import numpy as np
import pytest
from laws import KINDS, LAWS, name, select


def logits(law, batch=(4,), K=3):
    return law.logits(np.random.default_rng(0), batch, K)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("law", LAWS, ids=name)
@pytest.mark.quick(*KINDS)
def test_dtypes(backend, law, dtype):
    """The sample has the dtype of the logits; scores and their formulas are at least float32."""
    d = law(backend, 0.5, backend.array(logits(law, (200,)), dtype))
    value, score = backend.sample_and_score(d, 0)
    assert backend.dtype(value) == dtype
    assert backend.dtype(score) == ("float64" if dtype == "float64" else "float32")
    wide = law(backend, 0.5, backend.array(backend.numpy(d.logits)), validate_args=False)
    plain = backend.array(backend.numpy(value))
    expected = backend.numpy(wide.log_prob(plain))
    if dtype in ("float32", "float64"):
        np.testing.assert_allclose(backend.numpy(score), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 2**-11), ("bfloat16", 2**-8)])
@pytest.mark.parametrize("law", LAWS, ids=name)
def test_half_precision_is_rounded_float32(backend, law, dtype, rounding):
    """With the same noise; the density is that of the sample before rounding."""
    a = backend.array(logits(law, (200,)), dtype)
    value, score = backend.sample_and_score(law(backend, 0.5, a), 0)
    wide = law(backend, 0.5, backend.array(backend.numpy(a), "float32"))
    expected, expected_score = map(backend.numpy, backend.sample_and_score(wide, 0))
    error = np.abs(backend.numpy(value) - expected)
    assert (error <= 1.01 * rounding * np.abs(expected) + 1e-7).all()
    exact = law.hard or law.scored_as == "density"
    tolerance = 1e-6 if exact else 8 * rounding
    np.testing.assert_allclose(backend.numpy(score), expected_score, rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("law", select(tempered=True), ids=name)
def test_temperature_of_another_dtype(backend, law):
    d = law(backend, backend.array([0.5], "float64"), backend.array(logits(law), "float32"))
    value, score = backend.sample_and_score(d, 0)
    assert backend.dtype(value) == backend.dtype(score) == "float32"
