"""Schedules: equal values for Python numbers, arrays and traced arrays; bad arguments."""

import math

import numpy as np
import pytest

from gs_ppl import temperature

SCHEDULES = {
    "constant": (temperature.constant(0.7), lambda t: 0.7),
    "exponential": (
        temperature.exponential(1e-2, 0.5, every=10),
        lambda t: max(0.5, math.exp(-1e-2 * (t // 10 * 10))),
    ),
    "linear": (temperature.linear(2.0, 0.2, steps=80), lambda t: 2 - 1.8 * min(t / 80, 1)),
    "cosine": (
        temperature.cosine(2.0, 0.2, steps=80),
        lambda t: 0.2 + 1.8 * (1 + math.cos(math.pi * min(t / 80, 1))) / 2,
    ),
}
STEPS = [0, 1, 9, 10, 40, 79, 80, 81, 1000]


@pytest.mark.parametrize("name", SCHEDULES)
def test_python_steps(name):
    schedule, formula = SCHEDULES[name]
    for step in STEPS:
        assert schedule(step) == pytest.approx(formula(step), rel=1e-14)
        assert isinstance(schedule(step), float)


@pytest.mark.parametrize("name", SCHEDULES)
def test_array_steps(backend, name):
    schedule, formula = SCHEDULES[name]
    for step in STEPS:
        traced = backend.jit(schedule)(backend.array(step, "int64"))
        assert float(traced) == pytest.approx(formula(step), rel=1e-6)
    np.testing.assert_allclose(
        np.broadcast_to(schedule(np.array(STEPS)), len(STEPS)), [formula(t) for t in STEPS], 1e-12
    )


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: temperature.constant(0.0), ValueError),
        (lambda: temperature.constant("1"), TypeError),
        (lambda: temperature.exponential(-1.0), ValueError),
        (lambda: temperature.exponential(math.nan), ValueError),
        (lambda: temperature.exponential(1e-3, minimum=0.0), ValueError),
        (lambda: temperature.exponential(1e-3, minimum=2.0), ValueError),
        (lambda: temperature.exponential(1e-3, every=0), ValueError),
        (lambda: temperature.linear(1.0, 0.5, steps=0), ValueError),
        (lambda: temperature.linear(1.0, 0.5, steps=1.5), TypeError),
        (lambda: temperature.cosine(-1.0, 0.5, steps=10), ValueError),
    ],
)
def test_bad_arguments(make, error):
    with pytest.raises(error, match=r"must be .*, got"):
        make()
