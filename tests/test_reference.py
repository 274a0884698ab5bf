"""The oracle, compared with 80-digit arithmetic, quadrature and Monte Carlo."""

import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
from scipy import integrate, stats

from gs_ppl import reference as ref

DATA = json.loads((Path(__file__).parent / "data" / "densities.json").read_text())
INF = math.inf
LOGITS = {2: [0.7, -0.4], 3: [0.3, -0.8, 1.1]}
TEMPERATURES = [0.7, 1.0, 2.0]


def random_logits(num_categories: int, scale: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    return tuple(scale * np.random.default_rng(seed).normal(size=(2, num_categories)))


def draw(temperature, logits, size, seed=0):
    noise = np.random.default_rng(seed).exponential(size=(size, len(logits)))
    return ref.exp_gumbel_softmax_sample(temperature, logits, noise)


def assert_mean(draws: np.ndarray, expected: float) -> None:
    """The mean of independent draws is within five standard errors of the expected value."""
    standard_error = draws.std() / math.sqrt(len(draws))
    assert abs(draws.mean() - expected) < 5 * standard_error


# Compared with densities.json: the error is at most 1e-13 of the sum of the formula's absolute
# terms.


def case_ids(rows, size):
    return [f"{i}-tau={row['temperature']:.3g}-{size(row)}" for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    "row", DATA["density"], ids=case_ids(DATA["density"], lambda row: f"K={len(row['logits'])}")
)
def test_densities(row):
    tau, a, l = row["temperature"], np.array(row["logits"]), np.array(row["log_value"])
    K = len(a)
    terms = (
        math.lgamma(K)
        + abs((K - 1) * math.log(tau))
        + np.sum(abs(a) + abs(tau * l))
        + K * abs(np.logaddexp.reduce(a - tau * l))
    )
    in_log_space = ref.exp_gumbel_softmax_log_prob(tau, a, l)
    on_simplex = ref.gumbel_softmax_log_prob(tau, a, l)
    assert abs(in_log_space - row["exp_gumbel_softmax_log_prob"]) <= 1e-13 * terms
    assert abs(on_simplex - row["gumbel_softmax_log_prob"]) <= 1e-13 * (terms + np.sum(abs(l)))


@pytest.mark.parametrize(
    "row", DATA["binary"], ids=case_ids(DATA["binary"], lambda row: f"a={row['logits']:.3g}")
)
def test_binary_densities(row):
    tau, a, x = row["temperature"], row["logits"], row["logit_value"]
    terms = abs(math.log(tau)) + abs(a) + abs(tau * x) + 2
    in_logit_space = ref.logistic_log_prob(tau, a, x)
    on_interval = ref.gumbel_sigmoid_log_prob(tau, a, x)
    assert abs(in_logit_space - row["logit_space_log_prob"]) <= 1e-13 * terms
    assert abs(on_interval - row["unit_interval_log_prob"]) <= 1e-13 * (terms + abs(x) + 2)


@pytest.mark.parametrize(
    "row", DATA["entropy"], ids=case_ids(DATA["entropy"], lambda row: f"K={row['num_categories']}")
)
def test_entropies(row):
    tau, K = row["temperature"], row["num_categories"]
    terms = math.lgamma(K) + abs((K - 1) * math.log(tau)) + K * (1 + math.log(K))
    entropy = ref.exp_gumbel_softmax_entropy(tau, K)
    assert abs(entropy - row["exp_gumbel_softmax_entropy"]) <= 1e-13 * terms


# The densities integrate to 1 in the documented measures.


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_densities_of_two_categories_integrate_to_one(tau):
    def in_log_space(l1):
        l2 = math.log(-math.expm1(l1))
        return math.exp(ref.exp_gumbel_softmax_log_prob(tau, LOGITS[2], [l1, l2]) - l2)

    def on_simplex(y1):
        return math.exp(ref.gumbel_softmax_log_prob(tau, LOGITS[2], np.log([y1, 1 - y1])))

    assert integrate.quad(in_log_space, -INF, 0)[0] == pytest.approx(1, abs=1e-7)
    assert integrate.quad(on_simplex, 0, 1)[0] == pytest.approx(1, abs=1e-7)


def simplex_grid(num_categories: int) -> tuple[np.ndarray, np.ndarray]:
    """Points l = log y by stick breaking, and the logarithms of their weights dy_1 ... dy_{K-1}."""
    step = 0.25
    sticks = np.meshgrid(*[step * np.arange(-240, 241)] * (num_categories - 1), indexing="ij")
    log_y, log_dy, log_rest = [], 0.0, 0.0
    for x in sticks:  # y = rest * sigmoid(x)
        log_broken, log_kept = -np.logaddexp(0, -x), -np.logaddexp(0, x)
        log_y.append(log_rest + log_broken)
        log_dy = log_dy + log_rest + log_broken + log_kept + math.log(step)
        log_rest = log_rest + log_kept
    return np.stack([*log_y, log_rest], -1), log_dy


@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize("K", LOGITS)
def test_densities_integrate_to_one(tau, K):
    l, log_dy = simplex_grid(K)
    on_simplex = ref.gumbel_softmax_log_prob(tau, LOGITS[K], l)
    in_log_space = ref.exp_gumbel_softmax_log_prob(tau, LOGITS[K], l)
    log_symmetric = log_dy - l.sum(-1)  # dl_1 ... dl_{K-1} / y_K, where dl = dy / y
    assert np.exp(on_simplex + log_dy).sum() == pytest.approx(1, abs=1e-12)
    assert np.exp(in_log_space + log_symmetric).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_binary_densities_integrate_to_one(tau):
    def in_logit_space(x):
        return math.exp(ref.logistic_log_prob(tau, 0.7, x))

    def on_interval(y):
        return math.exp(ref.gumbel_sigmoid_log_prob(tau, 0.7, math.log(y) - math.log1p(-y)))

    assert integrate.quad(in_logit_space, -INF, INF)[0] == pytest.approx(1, abs=1e-7)
    assert integrate.quad(on_interval, 0, 1)[0] == pytest.approx(1, abs=1e-7)


# Samples follow the densities


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_binary_law_is_the_law_of_two_categories(tau):
    a = np.array([0.7, -0.4])
    l = draw(tau, a, 100)
    x = l[:, 0] - l[:, 1]
    np.testing.assert_allclose(
        ref.gumbel_sigmoid_log_prob(tau, a[0] - a[1], x),
        ref.gumbel_softmax_log_prob(tau, a, l),
        rtol=1e-12,
    )


@pytest.mark.parametrize("tau", [0.1, *TEMPERATURES])
def test_samples_follow_the_density(tau):
    # The cumulative distribution of Logistic(a / tau, 1 / tau) at its samples is uniform.
    a = np.array([0.7, -0.4, 0.1])
    l = draw(tau, a, 10_000)
    x = l[:, 0] - l[:, 1]
    assert stats.kstest(x, stats.logistic((a[0] - a[1]) / tau, 1 / tau).cdf).pvalue > 1e-3

    noise = stats.logistic.rvs(size=10_000, random_state=1)
    x = ref.logistic_sample(tau, 0.7, noise)
    assert stats.kstest(x, stats.logistic(0.7 / tau, 1 / tau).cdf).pvalue > 1e-3


def test_samples_choose_the_categorical_category():
    a = np.log([0.5, 0.3, 0.2])
    counts = np.bincount(draw(0.3, a, 10_000).argmax(-1), minlength=3)
    assert stats.chisquare(counts, 10_000 * np.exp(a)).pvalue > 1e-3


def test_samples_are_normalised():
    np.testing.assert_allclose(np.exp(draw(0.3, random_logits(10, 3.0)[0], 100)).sum(-1), 1)


# Entropy


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_entropy_of_two_categories(tau):
    # In x = l_1 - l_2 the symmetric measure is dx.
    def integrand(x):
        log_p = ref.exp_gumbel_softmax_log_prob(
            tau, LOGITS[2], [-np.logaddexp(0, -x), -np.logaddexp(0, x)]
        )
        return -math.exp(log_p) * log_p

    entropy = integrate.quad(integrand, -INF, INF)[0]
    assert ref.exp_gumbel_softmax_entropy(tau, 2) == pytest.approx(entropy, abs=1e-7)


@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("K", [2, 3, 10])
def test_entropy_by_monte_carlo(tau, K):
    a, _ = random_logits(K, 2.0)
    log_p = ref.exp_gumbel_softmax_log_prob(tau, a, draw(tau, a, 100_000))
    assert_mean(-log_p, ref.exp_gumbel_softmax_entropy(tau, K))


def test_entropy_of_integer_arrays():
    K = np.array([[1], [3]])
    expected = -math.lgamma(3) - 2 * np.log(TEMPERATURES) + 3 * 1.5
    np.testing.assert_allclose(
        ref.exp_gumbel_softmax_entropy(TEMPERATURES, K), [np.zeros(3), expected], atol=1e-15
    )


# Kullback-Leibler divergence


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_kl_of_two_categories_by_quadrature(tau):
    p_logits, q_logits = random_logits(2, 2.0)

    def integrand(x):
        l = [-np.logaddexp(0, -x), -np.logaddexp(0, x)]
        log_p = ref.exp_gumbel_softmax_log_prob(tau, p_logits, l)
        return math.exp(log_p) * (log_p - ref.exp_gumbel_softmax_log_prob(tau, q_logits, l))

    kl = integrate.quad(integrand, -INF, INF)[0]
    assert ref.exp_gumbel_softmax_kl(p_logits, q_logits) == pytest.approx(kl, abs=1e-7)


def kl_in_high_precision(p_logits, q_logits) -> float:
    """The formula as its docstring derives it, term by term, in 30 digits."""
    with mpmath.workdps(30):
        log_p, log_q = (
            [mpmath.mpf(float(x)) - mpmath.log(mpmath.fsum(map(mpmath.exp, a))) for x in a]
            for a in (p_logits, q_logits)
        )
        K, log_w = len(log_p), [q - p for p, q in zip(log_p, log_q, strict=True)]
        top = max(log_w)
        v = [mpmath.exp(x - top) for x in log_w]

        def integrand(u):
            t = mpmath.exp(u)
            return mpmath.exp(-t) - mpmath.fprod(1 / (1 + x * t) for x in v)

        corners = [-mpmath.log(x) for x in v if x > mpmath.exp(-100)]
        mean_log_sum = top + mpmath.quad(integrand, sorted({-120, *corners, 120}))
        return float(-mpmath.fsum(log_w) - K * (mpmath.digamma(K) - mean_log_sum))


@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("K", [2, 3, 10])
def test_kl_in_high_precision(K, scale):
    p_logits, q_logits = random_logits(K, scale)
    kl = kl_in_high_precision(p_logits, q_logits)
    assert ref.exp_gumbel_softmax_kl(p_logits, q_logits) == pytest.approx(kl, rel=1e-13)


@pytest.mark.parametrize("scale", [0.1, 1.0])
@pytest.mark.parametrize("tau", [0.3, 1.0])
@pytest.mark.parametrize("K", [2, 10, 100])
def test_kl_by_monte_carlo(K, tau, scale):
    p_logits, q_logits = random_logits(K, scale)
    l = draw(tau, p_logits, 20_000)
    for log_prob in (ref.exp_gumbel_softmax_log_prob, ref.gumbel_softmax_log_prob):
        ratio = log_prob(tau, p_logits, l) - log_prob(tau, q_logits, l)
        assert_mean(ratio, ref.exp_gumbel_softmax_kl(p_logits, q_logits))


def test_kl_of_a_law_to_itself_is_zero():
    a, shift = random_logits(1000, 10.0)[0], 3.0
    assert ref.exp_gumbel_softmax_kl(a, a) == 0
    assert ref.exp_gumbel_softmax_kl(a, a + shift) == pytest.approx(0, abs=1e-9)


# Categorical laws


@pytest.mark.parametrize("K", [2, 3, 10])
def test_categorical(K):
    p_logits, q_logits = random_logits(K, 2.0)
    p, q = (np.exp(a) / np.exp(a).sum() for a in (p_logits, q_logits))
    value = np.linspace(-1, 2, K)
    log_prob = ref.categorical_log_prob(p_logits, np.eye(K))
    np.testing.assert_allclose(log_prob, np.log(p), rtol=1e-13)
    assert ref.categorical_log_prob(p_logits, value) == pytest.approx(value @ np.log(p), rel=1e-12)
    assert ref.categorical_entropy(p_logits) == pytest.approx(stats.entropy(p), rel=1e-12)
    assert ref.categorical_kl(p_logits, q_logits) == pytest.approx(stats.entropy(p, q), rel=1e-12)


# Masked categories: the formulas on the finite sub-vector


MASKED = [0.3, -INF, -0.8, 1.1, -INF]
FREE = [0, 2, 3]


def embed(x: np.ndarray, fill: float) -> np.ndarray:
    """Embeds vectors over the free categories in vectors over all categories."""
    full = np.full((*x.shape[:-1], len(MASKED)), fill)
    full[..., FREE] = x
    return full


def test_masked_samples():
    noise = np.random.default_rng(0).exponential(size=(20, len(MASKED)))
    l = ref.exp_gumbel_softmax_sample(0.5, MASKED, noise)
    expected = ref.exp_gumbel_softmax_sample(0.5, LOGITS[3], noise[:, FREE])
    np.testing.assert_allclose(l, embed(expected, -INF), rtol=1e-14)


@pytest.mark.parametrize(
    "law", [ref.exp_gumbel_softmax_log_prob, ref.gumbel_softmax_log_prob], ids=["log", "simplex"]
)
def test_masked_densities(law):
    l = draw(0.5, LOGITS[3], 20)
    expected = law(0.5, LOGITS[3], l)
    np.testing.assert_allclose(law(0.5, MASKED, embed(l, -INF)), expected, rtol=1e-14)
    assert np.isneginf(law(0.5, MASKED, embed(l, -50.0))).all()


def test_masked_categorical():
    value = np.random.default_rng(0).normal(size=(20, 3))
    expected = ref.categorical_log_prob(LOGITS[3], value)
    actual = ref.categorical_log_prob(MASKED, embed(value, 0.0))
    np.testing.assert_allclose(actual, expected, rtol=1e-13)
    assert np.isneginf(ref.categorical_log_prob(MASKED, embed(value, 0.1))).all()
    entropy = ref.categorical_entropy(LOGITS[3])
    assert ref.categorical_entropy(MASKED) == pytest.approx(entropy, rel=1e-14)


@pytest.mark.parametrize(
    "kl", [ref.exp_gumbel_softmax_kl, ref.categorical_kl], ids=["relaxed", "mass"]
)
def test_masked_kl(kl):
    p, q = random_logits(3, 1.0)
    masked = kl(embed(p, -INF), embed(q, -INF))
    assert masked == pytest.approx(kl(p, q), rel=1e-14)
    batch = kl(np.stack([embed(p, -INF), embed(p, 0.0)]), embed(q, -INF))
    np.testing.assert_allclose(batch, [masked, INF])


def test_kl_into_a_larger_set_of_categories():
    # A density on a face of the simplex is no density on the whole simplex; a mass there has a
    # complement.
    assert ref.exp_gumbel_softmax_kl([0.0, -INF], [0.0, 0.0]) == INF
    assert ref.exp_gumbel_softmax_kl([0.0, -INF], [-INF, 0.0]) == INF
    assert ref.categorical_kl([0.0, -INF], [0.0, 0.0]) == pytest.approx(math.log(2))


def test_one_category_is_certain():
    assert ref.exp_gumbel_softmax_log_prob(0.5, [3.0], [0.0]) == 0
    assert ref.gumbel_softmax_log_prob(0.5, [-INF, 3.0], [-INF, 0.0]) == 0
    assert ref.exp_gumbel_softmax_kl([3.0], [1.0]) == 0


# The edge of the simplex


@pytest.mark.parametrize("logits", [LOGITS[3], [0.3, -INF, 1.1]], ids=["free", "masked"])
def test_vertices(logits):
    with np.errstate(divide="ignore"):
        vertices = np.log(np.eye(3))
    masses = ref.categorical_log_prob(logits, np.eye(3))
    np.testing.assert_array_equal(ref.gumbel_softmax_log_prob(0.5, logits, vertices), masses)
    assert np.isneginf(ref.exp_gumbel_softmax_log_prob(0.5, logits, vertices)).all()


def test_faces_are_outside_of_the_support():
    l = np.array([-INF, math.log(0.4), math.log(0.6)])
    assert ref.exp_gumbel_softmax_log_prob(0.5, LOGITS[3], l) == -INF
    assert ref.gumbel_softmax_log_prob(0.5, LOGITS[3], l) == -INF
    assert ref.gumbel_softmax_log_prob(0.5, LOGITS[3], [-INF] * 3) == -INF


# Shapes and bad arguments


@pytest.mark.parametrize(
    ("tau", "logits", "value", "batch"),
    [
        ((), (3,), (3,), ()),
        ((5, 1), (5, 4, 3), (3,), (5, 4)),
        ((4,), (3,), (5, 1, 3), (5, 4)),
        ((2, 1, 1), (1, 4, 3), (5, 4, 3), (2, 5, 4)),
    ],
    ids=str,
)
def test_shapes(tau, logits, value, batch):
    rng = np.random.default_rng(0)
    tau, a, noise = rng.exponential(size=tau), rng.normal(size=logits), rng.exponential(size=value)
    l = ref.exp_gumbel_softmax_sample(tau, a, noise)
    assert l.shape == (*batch, 3)
    for log_prob in (ref.exp_gumbel_softmax_log_prob, ref.gumbel_softmax_log_prob):
        values = log_prob(tau, a, l)
        assert values.shape == batch
        for i in np.ndindex(batch):
            one = [np.broadcast_to(x, shape)[i] for x, shape in ((tau, batch), (a, l.shape))]
            assert values[i] == pytest.approx(log_prob(*one, l[i]), rel=1e-12)
    assert ref.categorical_log_prob(a, np.exp(l)).shape == batch
    assert ref.exp_gumbel_softmax_kl(a, l).shape == batch
    assert ref.categorical_kl(a, l).shape == batch
    assert ref.logistic_log_prob(tau[..., None], a, noise).shape == l.shape


NAN = math.nan
SIMPLEX = ref.exp_gumbel_softmax_log_prob


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (SIMPLEX, (0.0, [0, 0], [0, 0]), "temperature must be positive and finite, got 0.0"),
        (SIMPLEX, (NAN, [0, 0], [0, 0]), "temperature must be positive and finite, got nan"),
        (SIMPLEX, (1, [0, NAN], [0, 0]), "logits must be finite or -inf, .* got .*nan"),
        (SIMPLEX, (1, [0, INF], [0, 0]), "logits must be finite or -inf, .* got .*inf"),
        (SIMPLEX, (1, [[-INF, -INF]], [0, 0]), "not all of them -inf"),
        (SIMPLEX, (1, 0.0, [0, 0]), r"last axis of categories, got shape \(\)"),
        (SIMPLEX, (1, [0, 0], [0, NAN]), "log_value must not be NaN"),
        (SIMPLEX, (1, [0], [0, 0]), r"equally many categories, got \(1,\), \(2,\)"),
        (SIMPLEX, (1, np.zeros((2, 3)), np.zeros((4, 3))), "broadcast"),
        (ref.exp_gumbel_softmax_sample, (1, [0, 0], [0, 1]), "noise must be positive and finite"),
        (ref.logistic_sample, (-1, 0, 0), "temperature must be positive and finite, got -1"),
        (ref.logistic_log_prob, (1, -INF, 0), "logits must be finite, got -inf"),
        (ref.gumbel_sigmoid_log_prob, (1, 0, INF), "logit_value must be finite, got inf"),
        (ref.exp_gumbel_softmax_entropy, (1, 2.5), "integers >= 1, got 2.5"),
        (ref.exp_gumbel_softmax_entropy, (1, 0), "integers >= 1, got 0"),
        (ref.exp_gumbel_softmax_kl, ([0, 0], [0]), r"equally many categories, got \(2,\), \(1,\)"),
        (ref.categorical_log_prob, ([0, 0], [0, NAN]), "value must not be NaN"),
    ],
)
def test_bad_arguments(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
