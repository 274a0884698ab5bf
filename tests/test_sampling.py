"""Samplers compared with their laws at a stated failure rate, and the two sides with each other.

Seeds are fixed, so that a test that passes always passes; with a new seed each goodness-of-fit test
would fail with probability FAILURE_RATE.
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from backends import BACKENDS
from laws import name, select
from scipy import stats

from gs_ppl import reference

FAILURE_RATE = 1e-4
TEMPERATURES = [0.1, 0.5, 1.0, 5.0]
N = 50_000


def chi_square(counts, probabilities):
    return stats.chisquare(counts, counts.sum() * probabilities).pvalue


# --- the noise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["uniform", "exponential", "logistic"])
def test_noise_law(backend, kind, dtype):
    noise = backend.numpy(backend.noise(kind, 1, (200_000,), dtype))
    law = {"uniform": stats.uniform, "exponential": stats.expon, "logistic": stats.logistic}[kind]
    assert stats.kstest(noise, law.cdf).pvalue > FAILURE_RATE


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float64", 53)])
def test_noise_bounds(backend, dtype, bits):
    """The documented truncation: u in [2^-(p+1), 1 - 2^-p], so E in [2^-p, (p + 1) log 2]."""
    low, high = 2.0**-bits, (bits + 1) * math.log(2)
    noise = backend.numpy(backend.noise("exponential", 2, (1_000_000,), dtype))
    assert low <= noise.min()
    assert noise.max() <= high * (1 + 1e-6)
    noise = backend.numpy(backend.noise("logistic", 2, (1_000_000,), dtype))
    assert -high * (1 + 1e-6) <= noise.min()
    assert noise.max() <= bits * math.log(2) * (1 + 1e-6)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_words(backend, impl):
    """Both words of a threefry pair: each bit is fair, and independent of its partner."""
    key = backend.jax.random.key(3, impl=impl)
    words = backend.numpy(backend.F.random_words(key, 200_001))
    assert words.shape == (200_001,)
    bits = words[:-1, None] >> np.arange(32, dtype=np.uint32) & 1
    first, second = np.split(bits.astype(bool), 2)
    sums = np.concatenate([bits.sum(0), 2 * (first == second).sum(0)])
    z = (sums - 100_000) / np.sqrt(np.repeat([50_000, 100_000], 32))
    assert stats.chi2.sf((z**2).sum(), 64) > FAILURE_RATE


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("size", [1, 5, 4096, 4097])
def test_words_are_those_of_split(backend, size):
    """First words come before second words, whichever way they are joined."""
    import jax

    key = jax.random.key(3)
    pairs = backend.numpy(jax.random.key_data(jax.random.split(key, (size + 1) // 2)))
    words = backend.numpy(backend.F.random_words(key, size))
    np.testing.assert_array_equal(words, pairs.T.ravel()[:size])


def test_same_noise_same_sample():
    """The sides agree to 1e-12 in float64 on samples, scores, entropies and divergences."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 4)) * 3
    E, L, tau = rng.exponential(size=(6, 4)), rng.logistic(size=(6, 4)), 0.37
    masked = a.copy()
    masked[:, 1] = -np.inf
    results = []
    for make in BACKENDS.values():
        side = make()
        F, (a_, b_, masked_, E_, L_) = side.F, map(side.array, (a, b, masked, E, L))
        l = F.exp_gumbel_softmax_sample(tau, a_, E_)
        x = F.gumbel_sigmoid_sample(tau, a_, L_)
        finite = masked_ > -math.inf
        l_masked = F.exp_gumbel_softmax_sample(tau, masked_, E_, finite)
        outputs = {
            "l": l,
            "y": F.to_simplex(l, l.dtype),
            "l given": F.exp_gumbel_softmax_log_prob(tau, b_, l),
            "noise": F.exp_gumbel_softmax_noise_log_prob(tau, E_),
            "l masked": l_masked,
            "l masked given": F.exp_gumbel_softmax_log_prob(tau, masked_, l_masked, finite),
            "noise masked": F.exp_gumbel_softmax_noise_log_prob(tau, E_, finite),
            "entropy": F.exp_gumbel_softmax_entropy(tau, masked_, finite),
            "mode": F.tempered_log_softmax(tau, a_),
            "kl": F.exp_gumbel_softmax_kl(a_, b_),
            "categorical": F.categorical_log_prob(b_, F.to_simplex(l, l.dtype)),
            "categorical kl": F.categorical_kl(masked_, b_, finite),
            "categorical entropy": F.categorical_entropy(masked_, finite),
            "x": x,
            "bit": F.to_unit_interval(x, x.dtype),
            "bit given": F.gumbel_sigmoid_log_prob(tau, b_, x),
            "bit noise": F.gumbel_sigmoid_log_prob(tau, b_, x, L_),
            "bit kl": F.gumbel_sigmoid_kl(a_, b_),
            "bernoulli": F.bernoulli_log_prob(b_, F.to_unit_interval(x, x.dtype)),
            "bernoulli kl": F.bernoulli_kl(a_, b_),
            "bernoulli entropy": F.bernoulli_entropy(a_),
        }
        results.append({key: side.numpy(value) for key, value in outputs.items()})
    first, second = results
    for key in first:
        np.testing.assert_allclose(first[key], second[key], rtol=1e-12, atol=1e-12, err_msg=key)
    np.testing.assert_allclose(
        first["l"], reference.exp_gumbel_softmax_sample(tau, a, E), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("shape", [(5, 4), (3, 100), (4000, 3)], ids=["short", "long", "many rows"])
def test_one_step_draw_is_its_formulas(backend, shape, masked):
    """Sample, log, residue and, in NumPyro, sum of the log; their gradients are by hand."""
    rng, F = np.random.default_rng(0), backend.F
    a, w, v = rng.normal(size=(3, *shape))
    if masked:
        a[:, 1] = -np.inf
    w, v, E, u = map(backend.array, (w, v, rng.exponential(size=shape), rng.normal(size=shape[0])))
    a, tau = backend.array(a), backend.array(np.linspace(0.3, 2.0, shape[0]))
    finite = a > -math.inf if masked else None

    def by_formulas(tau, a):
        l = F.exp_gumbel_softmax_sample(tau, a, E, finite)
        residue, log_product = F.noise_residue(E, finite), F.sum_finite(l, finite)
        return F.to_simplex(l, l.dtype, finite), l, residue, log_product

    def loss(draw, tau, a):
        y, l, _, *log_product = draw(tau, a)
        product = log_product[0] if log_product else F.sum_finite(l, finite)
        return (F.sum_finite(w * y, finite) + F.sum_finite(v * l, finite) + u * product).sum()

    def in_one_step(tau, a):
        return backend.draw(tau, a, E, finite)

    for x, expected in zip(in_one_step(tau, a), by_formulas(tau, a), strict=False):
        x, expected = backend.numpy(x), backend.numpy(expected)
        np.testing.assert_allclose(x, expected, rtol=1e-12, atol=1e-15)
    found, expected = (
        backend.grad(lambda tau, a, draw=draw: loss(draw, tau, a), tau, a)
        for draw in (in_one_step, by_formulas)
    )
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


# --- the relaxed laws -----------------------------------------------------------------------------


@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize("law", select(event_dims=1, hard=False), ids=name)
def test_log_ratio_is_logistic(backend, law, tau):
    """log(y_i / y_j) is exactly Logistic((a_i - a_j) / tau, 1 / tau)."""
    a = np.array([0.8, -0.5, 0.1])
    value = backend.numpy(backend.sample(law(backend, tau, backend.array(a)), 3, (N,)))
    l = value if law.name == "ExpGumbelSoftmax" else np.log(value)
    for i, j in [(0, 1), (1, 2), (2, 0)]:
        exact = stats.logistic((a[i] - a[j]) / tau, 1 / tau)
        assert stats.kstest(l[:, i] - l[:, j], exact.cdf).pvalue > FAILURE_RATE


@pytest.mark.parametrize("tau", [0.5, 1.0, 5.0])  # at 0.1 even a float64 sigmoid reaches its bound
@pytest.mark.parametrize("law", select(event_dims=0, hard=False), ids=name)
def test_bit_logit_is_logistic(backend, law, tau):
    value = backend.numpy(backend.sample(law(backend, tau, backend.array(0.8)), 3, (N,)))
    exact = stats.logistic(0.8 / tau, 1 / tau)
    assert stats.kstest(np.log(value) - np.log1p(-value), exact.cdf).pvalue > FAILURE_RATE


def categorical_cases():
    """Few categories in float32 for each class; two, many, and float64 for one class of each
    kind."""
    for law, K, dtype in itertools.product(
        select(event_dims=1), [2, 10, 1000], ["float32", "float64"]
    ):
        quick = K <= 10 and dtype == "float32"
        quick |= law.name in ("GumbelSoftmax", "STGumbelSoftmax") and K >= 10
        marks = () if quick else pytest.mark.long
        yield pytest.param(law, K, dtype, marks=marks, id=f"{law.name}-{K}-{dtype}")


@pytest.mark.parametrize(("law", "K", "dtype"), [*categorical_cases()])
@pytest.mark.quick("float32")
@pytest.mark.quick("2", "3", "10")
def test_argmax_is_categorical(backend, law, K, dtype):
    a = np.random.default_rng(K).normal(size=K)
    d = law(backend, 0.5, backend.array(a, dtype))
    value = backend.numpy(backend.sample(d, 4, (N if K < 1000 else N // 10,)))
    counts = np.bincount(value.argmax(-1), minlength=K)
    assert chi_square(counts, np.exp(a) / np.exp(a).sum()) > FAILURE_RATE
    if law.hard:
        assert set(np.unique(value)) == {0.0, 1.0}
        assert (value.sum(-1) == 1).all()


@pytest.mark.parametrize("law", select(event_dims=0), ids=name)
def test_bit_is_bernoulli(backend, law):
    value = backend.numpy(backend.sample(law(backend, 0.5, backend.array(-0.7)), 4, (N,)))
    ones = (value > 0.5).sum()
    p = 1 / (1 + math.exp(0.7))
    assert chi_square(np.array([N - ones, ones]), np.array([1 - p, p])) > FAILURE_RATE
    if law.hard:
        assert set(np.unique(value)) == {0.0, 1.0}


def test_seed_decides(backend):
    d = backend.gs.GumbelSoftmax(0.5, logits=backend.array(np.zeros((3, 4))))
    one, same, other = (backend.numpy(backend.sample(d, seed)) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).all()


# --- gradients of the samples ---------------------------------------------------------------------


@pytest.mark.parametrize("law", ["SoftOneHotCategorical", "GumbelSoftmax", "STGumbelSoftmax"])
@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
def test_sample_gradient(backend, law, tau):
    """d y_i / d a_j = y_i (delta_ij - y_j) / tau, with the soft y also for the hard sample."""
    a = backend.array(np.random.default_rng(0).normal(size=4))
    w = np.random.default_rng(1).normal(size=4)
    make = getattr(backend.gs, law)
    (gradient,) = backend.grad(
        lambda a: (backend.array(w) * backend.sample(make(tau, logits=a), 0)).sum(), a
    )
    y = backend.numpy(backend.sample(backend.gs.SoftOneHotCategorical(tau, logits=a), 0))
    np.testing.assert_allclose(gradient, y * (w - (w * y).sum()) / tau, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("law", ["SoftBernoulli", "STGumbelSigmoid"])
def test_bit_sample_gradient(backend, law):
    a, tau = backend.array(0.3), 0.7
    make = getattr(backend.gs, law)
    (gradient,) = backend.grad(lambda a: backend.sample(make(tau, logits=a), 0), a)
    y = backend.numpy(backend.sample(backend.gs.SoftBernoulli(tau, logits=a), 0))
    np.testing.assert_allclose(gradient, y * (1 - y) / tau, rtol=1e-10)


@pytest.mark.parametrize("law", select(hard=True), ids=name)
def test_straight_through_scores_copies_alike(backend, law):
    """Clones, slices and plain one-hots: the mass depends only on the value."""
    a = law.logits(np.random.default_rng(0), (5,), 4)
    d = law(backend, 0.3, backend.array(a))
    value, score = backend.sample_and_score(d, 0, (2,))
    plain = backend.array(backend.numpy(value))
    score = backend.numpy(score)
    for copy in (plain, value + 0.0, backend.stack(list(value))):
        np.testing.assert_array_equal(backend.numpy(d.log_prob(copy)), score)
    np.testing.assert_array_equal(backend.numpy(d.log_prob(value[1])), score[1])
    if law.event_dims:
        np.testing.assert_allclose(score, reference.categorical_log_prob(a, backend.numpy(plain)))


@pytest.mark.parametrize("law", select(scored_as="mass", event_dims=1), ids=name)
def test_mass_has_a_gradient_in_the_value(backend, law):
    """The gradient is log pi, which a straight-through sample passes to its guide."""
    a = np.array([0.2, -1.0, 0.7])
    d = law(backend, 0.5, backend.array(a))
    (gradient,) = backend.grad(d.log_prob, backend.array([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(gradient, a - np.logaddexp.reduce(a), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_recorded_long_run_of_the_noise(backend, dtype):
    """tests/long/noise.json: 1e8 draws per side and dtype, which would take too long here."""
    record = json.loads((Path(__file__).parent / "long" / "noise.json").read_text())
    run = record["results"][backend.name][dtype]
    assert run["draws"] == 100_000_000
    assert run["not finite or not positive"] == 0
    assert run["stated smallest"] <= run["smallest"]
    assert run["largest"] <= run["stated largest"] * (1 + 1e-6)
    assert run["largest z-score of the tail counts"] < 4.5  # of eleven: fails at a rate of 1e-4
