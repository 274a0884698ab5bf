"""Scores against 80-digit vectors, the float64 oracle, quadrature; finite over the whole grid."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from laws import KINDS, LAWS, name, select
from scipy import integrate

from gs_ppl import reference

DATA = json.loads((Path(__file__).parent / "data" / "densities.json").read_text())
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
DTYPES = list(EPS)
TEMPERATURES = [0.01, 0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 10.0, 100.0]


def float32(x):
    return float(np.float32(x))


def formula_terms(tau, a, l):
    """Sum of the absolute terms of the log-space density."""
    K, r = len(a), a - tau * l
    return (
        math.lgamma(K)
        + abs((K - 1) * math.log(tau))
        + np.abs(r).sum()
        + K * abs(np.logaddexp.reduce(r))
    )


# --- given values against densities.json -------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", sorted({row["temperature"] for row in DATA["density"]}))
def test_given_log_value(backend, tau, dtype):
    for row in (row for row in DATA["density"] if row["temperature"] == tau):
        a, l = np.array(row["logits"]), np.array(row["log_value"])
        # the vectors are normalised to float32's rounding, which the float64 check would refuse
        d = backend.gs.ExpGumbelSoftmax(tau, logits=backend.array(a, dtype), validate_args=False)
        got = backend.numpy(d.log_prob(backend.array(l, dtype)))
        error = abs(got - row["exp_gumbel_softmax_log_prob"])
        tolerance = 2 * EPS[dtype] if dtype == "float32" else 1e-13
        assert error <= tolerance * formula_terms(tau, a, l), row


@pytest.mark.parametrize("tau", sorted({row["temperature"] for row in DATA["density"]}))
def test_given_value_inside_the_simplex(backend, tau):
    """In float64, where y = exp(l) has not underflowed and so holds all of l."""
    compared = 0
    for row in (row for row in DATA["density"] if row["temperature"] == tau):
        a, l = np.array(row["logits"]), np.array(row["log_value"])
        y = np.exp(l)
        if l.min() < -700 or y.max() > 0.99:
            continue
        d = backend.gs.GumbelSoftmax(tau, logits=backend.array(a), validate_args=False)
        got = backend.numpy(d.log_prob(backend.array(y)))
        terms = formula_terms(tau, a, l) + np.abs(l).sum()
        # l = log(exp(l)) keeps l to an absolute eps
        assert abs(got - row["gumbel_softmax_log_prob"]) <= 1e-13 * (terms + tau * len(a)), row
        compared += 1
    assert compared or tau < 0.3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", DATA["binary"], ids=lambda r: f"{r['temperature']:.3g}")
def test_given_bit(backend, row, dtype):
    tau, a, x = row["temperature"], row["logits"], row["logit_value"]
    one = backend.F.gumbel_sigmoid_log_prob
    got = backend.numpy(one(tau, backend.array(a, dtype), backend.array(x, dtype)))
    terms = abs(math.log(tau)) + 2 * abs(tau * x) + 2 * abs(a) + abs(x) + 4 * math.log(2)
    tolerance = 2 * EPS[dtype] if dtype == "float32" else 1e-13
    assert abs(got - row["unit_interval_log_prob"]) <= tolerance * terms


@pytest.mark.parametrize("row", DATA["entropy"], ids=lambda r: f"{r['num_categories']}")
@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy_vectors(backend, row, dtype):
    K, tau = row["num_categories"], row["temperature"]
    d = backend.gs.ExpGumbelSoftmax(tau, logits=backend.array(np.zeros(K), dtype))
    expected = row["exp_gumbel_softmax_entropy"]
    terms = math.lgamma(K) + (K - 1) * abs(math.log(tau)) + 2 * K * math.log(K)
    assert abs(backend.numpy(d.entropy()) - expected) <= 2 * EPS[dtype] * terms


# --- own samples against the oracle ---------------------------------------------------------------


def assert_close(got, exact, tau, dtype, seen=0.0):
    """To the stated accuracy, relative to max(1, |exact|), plus four roundings of `seen`."""
    relative = 1e-13 if dtype == "float64" else 1e-6 if tau <= 2 else 4e-6
    error = np.abs(got - exact)
    bound = relative * np.maximum(1, np.abs(exact)) + 4 * EPS[dtype] * seen
    assert (error <= bound).all(), (error / bound).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize("K", [2, 3, 10, 100, 10_000])
@pytest.mark.quick("0.01", "1.0", "100.0")
def test_own_samples(backend, K, tau, dtype):
    """On the simplex against the density at the drawn l; in log-space, where the logits cancel,
    against the density of the noise, at logits of any size."""
    tau = float32(tau)
    for scale in (1.0, 10.0, 100.0):
        a = np.float32(np.random.default_rng(K).normal(size=(8, K)) * scale)
        logits = backend.array(a, dtype)
        noise = backend.own_noise(0, (4, 8, K), dtype)
        l = backend.numpy(backend.F.exp_gumbel_softmax_sample(tau, logits, noise))

        value, score = backend.sample_and_score(
            backend.gs.GumbelSoftmax(tau, logits=logits), 0, (4,)
        )
        rounding = 4 * EPS[dtype] * np.maximum(1, np.abs(l))  # of l
        y = np.exp(l)
        assert (np.abs(backend.numpy(value) - y) <= rounding * y + 1e-37).all()
        exact = reference.gumbel_softmax_log_prob(tau, a, l)
        # the density at l sees the rounding of tau l, which is as large as the logits, and the
        # float64 oracle has its own
        large = scale > 1 or (dtype == "float64" and K > 100)
        seen = np.abs(a).max() * (K if dtype == "float64" else 1) if large else 0.0
        assert_close(backend.numpy(score), exact, tau, dtype, seen)

        _, score = backend.sample_and_score(
            backend.gs.ExpGumbelSoftmax(tau, logits=logits), 0, (4,)
        )
        # the logits cancel, so the oracle, which must not lose digits to them, goes without
        exact_l = reference.exp_gumbel_softmax_sample(tau, np.zeros(K), backend.numpy(noise))
        exact = reference.exp_gumbel_softmax_log_prob(tau, np.zeros(K), exact_l)
        assert_close(backend.numpy(score), exact, tau, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", TEMPERATURES)
def test_own_bits(backend, tau, dtype):
    tau = float32(tau)
    a = np.float32(np.random.default_rng(0).normal(size=(3, 500)) * [[1.0], [10.0], [100.0]])
    d = backend.gs.GumbelSigmoid(tau, logits=backend.array(a, dtype))
    _, score = backend.sample_and_score(d, 0)
    noise = backend.noise("logistic", 0, a.shape, dtype)
    x = backend.numpy(backend.F.gumbel_sigmoid_sample(tau, backend.array(a, dtype), noise))
    exact = reference.logistic_log_prob(tau, 0.0, backend.numpy(noise) / tau)
    exact -= reference.logistic_log_prob(1.0, 0.0, x)
    assert_close(backend.numpy(score), exact, tau, dtype)


@pytest.mark.parametrize("law", select(scored_as="mass", event_dims=1), ids=name)
def test_mass_is_linear_in_the_value(backend, law):
    rng = np.random.default_rng(0)
    a, values = rng.normal(size=(4, 3)), rng.dirichlet(np.ones(3), size=(5, 4))
    d = law(backend, 0.5, backend.array(a), validate_args=False)
    got = backend.numpy(d.log_prob(backend.array(values)))
    np.testing.assert_allclose(got, reference.categorical_log_prob(a, values), rtol=1e-14)


@pytest.mark.parametrize("law", select(scored_as="mass", event_dims=0), ids=name)
def test_binary_mass_is_linear_in_the_value(backend, law):
    a, values = np.array([-40.0, -1.0, 0.0, 3.0, 800.0]), np.array([[0.0], [0.25], [1.0]])
    d = law(backend, 0.5, backend.array(a), validate_args=False)
    expected = values * -np.logaddexp(0, -a) + (1 - values) * -np.logaddexp(0, a)
    np.testing.assert_allclose(backend.numpy(d.log_prob(backend.array(values))), expected, 1e-13)


# --- the density integrates to one ----------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.7, 1.0, 2.0])
def test_integrates_to_one_over_two_categories(backend, tau):
    """The log-ratio u = l_1 - l_2 has Lebesgue measure du = dl_1 / y_2; y_1 = sigmoid(u)."""
    a = backend.array([0.7, -0.4])
    u = np.linspace(-80 / tau, 80 / tau, 20_001)
    l = -np.logaddexp(0, np.stack([-u, u], -1))
    in_log_space = backend.gs.ExpGumbelSoftmax(tau, logits=a).log_prob(backend.array(l))
    total = integrate.trapezoid(np.exp(backend.numpy(in_log_space)), u)
    assert abs(total - 1) < 1e-9

    y, weights = np.polynomial.legendre.leggauss(400)
    y = (y + 1) / 2
    d = backend.gs.GumbelSoftmax(tau, logits=a)
    density = np.exp(backend.numpy(d.log_prob(backend.array(np.stack([y, 1 - y], -1)))))
    if tau >= 1:  # below, the density is unbounded at the vertices
        assert abs((density * weights / 2).sum() - 1) < 1e-4
    bit = backend.gs.GumbelSigmoid(tau, logits=a[0] - a[1])
    np.testing.assert_allclose(np.exp(backend.numpy(bit.log_prob(backend.array(y)))), density, 1e-9)


@pytest.mark.parametrize("tau", [0.7, 1.0, 2.0])
def test_integrates_to_one_over_three_categories(backend, tau):
    u = np.linspace(-60 / tau, 60 / tau, 601)
    grid = np.stack(np.meshgrid(u, u, [0.0], indexing="ij"), -1)[:, :, 0]
    l = grid - np.logaddexp.reduce(grid, -1)[..., None]
    d = backend.gs.ExpGumbelSoftmax(tau, logits=backend.array([0.3, -0.8, 1.1]))
    density = np.exp(backend.numpy(d.log_prob(backend.array(l))))
    total = integrate.trapezoid(integrate.trapezoid(density, u), u)
    assert abs(total - 1) < 1e-6


# --- the gradient law -----------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("K", [2, 3, 10])
def test_gradient_of_own_score(backend, K, tau):
    """d log_prob(rsample) / d logits is (K y - 1) / tau on the simplex, 0 in log-space."""
    a = backend.array(np.random.default_rng(K).normal(size=(5, K)))

    def score(law):
        make = getattr(backend.gs, law)
        return lambda a: backend.sample_and_score(make(tau, logits=a), 0)[1].sum()

    y = backend.numpy(backend.sample(backend.gs.GumbelSoftmax(tau, logits=a), 0))
    (gradient,) = backend.grad(score("GumbelSoftmax"), a)
    np.testing.assert_allclose(gradient, (K * y - 1) / tau, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(backend.grad(score("ExpGumbelSoftmax"), a)[0], 0)


@pytest.mark.parametrize("tau", [0.05, 0.5, 2.0])
def test_gradient_of_own_bit_score(backend, tau):
    a = backend.array(np.random.default_rng(0).normal(size=50) * 5)
    make = backend.gs.GumbelSigmoid
    y = backend.numpy(backend.sample(make(tau, logits=a), 0))
    (gradient,) = backend.grad(
        lambda a: backend.sample_and_score(make(tau, logits=a), 0)[1].sum(), a
    )
    np.testing.assert_allclose(gradient, (2 * y - 1) / tau, rtol=1e-12, atol=1e-12)


def test_binary_gradient_where_clipping_lies(backend):
    """d/dlogit E[log q] at logit -5, tau 0.05 is -19.7; a clipped sigmoid gives -6.4."""
    a = backend.array(np.full(20_000, -5.0), "float32")
    make = backend.gs.GumbelSigmoid
    (g,) = backend.grad(lambda a: backend.sample_and_score(make(0.05, logits=a), 0)[1].sum(), a)
    exact = integrate.quad(
        lambda u: math.tanh((math.log(u / (1 - u)) - 5) / 0.1) / 0.05, 0, 1, points=[0.99, 0.9933]
    )[0]
    assert abs(exact + 19.73) < 0.01
    assert abs(g.mean() - exact) < 5 * g.std() / math.sqrt(len(g))


@pytest.mark.parametrize("law", select(scored_as="density"), ids=name)
def test_gradient_of_a_given_score_by_differences(backend, law):
    """In logits, temperature and value, where the value is plain data."""
    rng = np.random.default_rng(0)
    a, tau = law.logits(rng, (4,)), np.array(0.8)
    value = backend.array(backend.numpy(backend.sample(law(backend, 0.8, backend.array(a)), 0)))

    def score(a, tau, value):
        return law(backend, tau, a, validate_args=False).log_prob(value).sum()

    points = [backend.array(a), backend.array(tau), value]
    gradients = backend.grad(score, *points)
    for i, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)
        steps = [
            backend.numpy(
                score(
                    *[
                        p + h * backend.array(direction) if j == i else p
                        for j, p in enumerate(points)
                    ]
                )
            )
            for h in (-1e-6, 1e-6)
        ]
        expected = (steps[1] - steps[0]) / 2e-6
        assert abs((gradient * direction).sum() - expected) < 1e-6 * max(1, abs(expected))


# --- finite everywhere, and no own sample rejected ------------------------------------------------


def grid(law, scales=(1.0, 10.0, 100.0)):
    for tau in TEMPERATURES:
        for K in (2, 10, 100, 10_000) if law.event_dims else (1,):
            for scale in scales:
                yield float32(tau), K, scale


# float32 has the cells that fail in other libraries; another gradient alone has the same scores
SAME_SCORES = ("GumbelRao", "ReinMax", "GappedST", "StraightThrough")
QUICK_CELLS = [
    pytest.param(
        law,
        dtype,
        marks=[pytest.mark.long] * (dtype != "float32" or law.name.startswith(SAME_SCORES)),
        id=f"{law.name}-{dtype}",
    )
    for law in LAWS
    for dtype in DTYPES
]


@pytest.mark.parametrize(("law", "dtype"), QUICK_CELLS)
@pytest.mark.quick("GumbelSoftmax", "SoftBernoulli", "STGumbelSigmoid")
def test_no_failing_cell(backend, law, dtype):
    """Samples, scores and gradients are finite in all 108 (binary: 27) cells, validation on."""
    failing = []
    rng = np.random.default_rng(0)
    cells = list(grid(law))
    for tau, K, scale in cells:
        a = backend.array(law.logits(rng, (64,) if K <= 100 else (4,), K) * scale, dtype)

        def scored(a, t):
            value, score = backend.sample_and_score(law(backend, t, a, validate_args=True), 0)
            return score.sum() + (value * value).sum() + 0 * t  # ReinMax has no gradient in it

        value, score = backend.sample_and_score(law(backend, tau, a, validate_args=True), 0)
        copy = backend.array(backend.numpy(value), dtype)
        plain = law(backend, tau, a, validate_args=True).log_prob(copy)  # a copy is not rejected
        outputs = [backend.numpy(x) for x in (value, score, plain)]
        outputs += backend.grad(scored, a, backend.array(tau, dtype)) if law.tempered else []
        if not all(np.isfinite(x).all() for x in outputs):
            failing.append((tau, K, scale))
    assert len(cells) == (108 if law.event_dims else 27)
    assert failing == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", *DTYPES])
@pytest.mark.parametrize("law", LAWS, ids=name)
@pytest.mark.quick(*KINDS)
def test_support_check_scales_with_dtype(backend, law, dtype):
    a = backend.array(law.logits(np.random.default_rng(0), (2000,), 10), dtype)
    for tau in (0.1, 0.3, 1.0, 10.0):
        d = law(backend, tau, a, validate_args=True)
        value, score = backend.sample_and_score(d, 0)
        assert backend.dtype(value) == dtype
        assert backend.dtype(score) == (dtype if dtype in DTYPES else "float32")
        assert backend.check(d.support, value).all()
        assert np.isfinite(backend.numpy(score)).all()


# --- gradients where formulas meet their edges ----------------------------------------------------


@pytest.mark.parametrize("law", select(scored_as="density", hard=False), ids=name)
@pytest.mark.quick("GumbelSoftmax")
def test_gradient_through_copies_is_finite(backend, law):
    """A copy has lost its l: 1 / y of a y that has all but vanished must not overflow."""
    rng = np.random.default_rng(0)
    for tau, K, scale in [(1.0, 10, 100.0), (0.1, 100, 10.0), (0.1, 1000, 1.0), (0.01, 2, 1.0)]:
        a = backend.array(law.logits(rng, (64,), K) * scale, "float32")

        def score(a, tau=tau):
            d = law(backend, tau, a)
            return d.log_prob(backend.sample(d, 0) * 1.0).sum()

        assert np.isfinite(backend.grad(score, a)[0]).all()


@pytest.mark.parametrize("law", ["ExpGumbelSoftmax", "GumbelSoftmax"])
def test_gradient_at_the_vertices(backend, law):
    """That of the log mass: one_hot - pi."""
    a, make = np.array([0.3, -0.7, 1.0]), getattr(backend.gs, law)

    def score(a):
        d = make(0.5, logits=a)
        return d.log_prob(d.enumerate_support())[0]

    (gradient,) = backend.grad(score, backend.array(a))
    np.testing.assert_allclose(gradient, [1, 0, 0] - np.exp(a) / np.exp(a).sum(), rtol=1e-12)


def test_bit_gradients_at_zero(backend):
    """Where abs and max have kinks and softplus has none."""
    zero, F = backend.array(0.0), backend.F
    for value in (0.0, 0.3, 1.0):
        (gradient,) = backend.grad(lambda a: F.bernoulli_log_prob(a, backend.array(value)), zero)  # noqa: B023
        assert gradient == pytest.approx(value - 0.5, abs=1e-15)

    def score(x):
        return F.gumbel_sigmoid_log_prob(1.0, backend.array(1.0), x)

    (second,) = backend.grad(backend.functional_grad(score), zero)
    slope = 1 / (1 + math.exp(1)) * (1 - 1 / (1 + math.exp(1)))  # of sigmoid at -1
    assert second == pytest.approx(0.5 - 2 * slope, rel=1e-12)


def test_mode_of_masked_logits_has_a_gradient(backend):
    def mode(a, tau):
        d = backend.gs.ExpGumbelSoftmax(tau, logits=a)
        return backend.F.sum_finite(d.mode, a > -math.inf)

    a = backend.array([0.3, -math.inf, 1.0])
    gradients = backend.grad(mode, a, backend.array(0.5))
    assert all(np.isfinite(g).all() for g in gradients)
