"""Entropy, moments and KL: closed forms, quadrature, Monte Carlo; an absent one says why."""

import math

import numpy as np
import pytest
from laws import LAWS, name, select

from gs_ppl import reference

MASS, DENSITY = select(scored_as="mass", event_dims=1), select(scored_as="density", event_dims=1)
MASS_BIT, DENSITY_BIT = (
    select(scored_as="mass", event_dims=0),
    select(scored_as="density", event_dims=0),
)


def logits(seed=0, batch=(3,), K=4):
    return np.random.default_rng(seed).normal(size=(*batch, K))


def monte_carlo_kl(backend, p, q, seed=0, n=200_000):
    """Mean and standard error of log p - log q under p, from plain copies of the samples."""
    value = backend.array(backend.numpy(backend.sample(p, seed, (n,))))
    terms = backend.numpy(p.log_prob(value)) - backend.numpy(q.log_prob(value))
    return terms.mean(0), terms.std(0) / math.sqrt(n)


# --- entropy and moments --------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
def test_log_space_entropy(backend, tau):
    d = backend.gs.ExpGumbelSoftmax(tau, logits=backend.array(logits()))
    entropy = backend.numpy(d.entropy())
    np.testing.assert_allclose(entropy, reference.exp_gumbel_softmax_entropy(tau, 4), rtol=1e-13)
    _, score = backend.sample_and_score(d, 0, (100_000,))
    score = backend.numpy(score)
    assert entropy.shape == (3,)
    assert (np.abs(-score.mean(0) - entropy) < 5 * score.std(0) / math.sqrt(100_000)).all()


@pytest.mark.parametrize("law", MASS, ids=name)
def test_categorical_moments(backend, law):
    a = logits()
    d = law(backend, 0.5, backend.array(a))
    pi = np.exp(a) / np.exp(a).sum(-1, keepdims=True)
    np.testing.assert_allclose(backend.numpy(d.probs), pi, rtol=1e-12)
    if law.hard:
        np.testing.assert_allclose(backend.numpy(d.mean), pi, rtol=1e-12)
        np.testing.assert_allclose(backend.numpy(d.variance), pi * (1 - pi), rtol=1e-12)
    np.testing.assert_array_equal(backend.numpy(d.mode), np.eye(4)[a.argmax(-1)])
    np.testing.assert_allclose(
        backend.numpy(d.entropy()), reference.categorical_entropy(a), rtol=1e-12
    )


@pytest.mark.parametrize("law", MASS_BIT, ids=name)
def test_bernoulli_moments(backend, law):
    a = np.array([-2.0, 0.5, 3.0])
    d, p = law(backend, 0.5, backend.array(a)), 1 / (1 + np.exp(-a))
    np.testing.assert_allclose(backend.numpy(d.probs), p, rtol=1e-12)
    if law.hard:
        np.testing.assert_allclose(backend.numpy(d.mean), p, rtol=1e-12)
        np.testing.assert_allclose(backend.numpy(d.variance), p * (1 - p), rtol=1e-12)
    np.testing.assert_array_equal(backend.numpy(d.mode), [0, 1, 1])
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    np.testing.assert_allclose(backend.numpy(d.entropy()), entropy, rtol=1e-12)


def test_log_space_mode_is_where_the_density_is_largest(backend):
    d = backend.gs.ExpGumbelSoftmax(0.7, logits=backend.array(logits(batch=())))
    top = backend.numpy(d.log_prob(d.mode))
    assert (backend.numpy(d.log_prob(backend.sample(d, 0, (5_000,)))) < top).all()
    (gradient,) = backend.grad(lambda x: d.log_prob(backend.F.log_softmax(x)), d.mode)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


NO_CLOSED_FORM = [
    (law, what)
    for law in select(scored_as="density")
    for what in ("mean", "variance", "mode", "entropy")
    if not (law.name == "ExpGumbelSoftmax" and what in ("mode", "entropy"))
] + [(law, what) for law in select(scored_as="mass", hard=False) for what in ("mean", "variance")]


@pytest.mark.parametrize(("law", "what"), NO_CLOSED_FORM, ids=lambda x: getattr(x, "name", x))
def test_no_closed_form_says_why(backend, law, what):
    d = law(backend, 0.5, backend.array(law.logits(np.random.default_rng(0))))
    with pytest.raises(NotImplementedError, match=f"{law.name} has no {what} in closed form: "):
        getattr(d, what)() if what == "entropy" else getattr(d, what)


# --- enumeration ----------------------------------------------------------------------------------


def test_relaxed_bit_scores_classes_by_mass(backend):
    """An integer is a class; a float is in the open interval, because a sigmoid may round to 1."""
    d = backend.gs.GumbelSigmoid(0.3, logits=backend.array(0.5), validate_args=True)
    inside, one = backend.array(0.25), backend.array(1.0)
    density = backend.numpy(d.log_prob(inside))
    assert backend.numpy(d.log_prob(d.enumerate_support()[1])) == pytest.approx(
        -np.logaddexp(0, -0.5)
    )
    assert backend.numpy(d.log_prob(inside)) == density
    for outside in (one, backend.array(2, "int64")):
        with pytest.raises(ValueError, match="support"):
            d.log_prob(outside)


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_enumerate_support(backend, law):
    """Values of shape (support,) + batch + event, whose masses sum to one."""
    a = law.logits(np.random.default_rng(0), (5, 2), 3)
    d = law(backend, 0.3, backend.array(a))
    assert bool(d.has_enumerate_support) == (law.scored_as == "mass")
    size, event = (3, (3,)) if law.event_dims else (2, ())
    narrow, wide = d.enumerate_support(expand=False), d.enumerate_support(expand=True)
    assert narrow.shape == (size, 1, 1, *event)
    assert wide.shape == (size, 5, 2, *event)
    mass = backend.numpy(d.log_prob(narrow))
    np.testing.assert_allclose(mass, backend.numpy(d.log_prob(wide)), rtol=1e-12)
    log_pi = (
        np.moveaxis(a - np.logaddexp.reduce(a, -1)[..., None], -1, 0)
        if law.event_dims
        else -np.logaddexp(0, np.stack([a, -a]))
    )
    np.testing.assert_allclose(mass, log_pi, rtol=1e-12)


# --- KL -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q_law", MASS, ids=name)
@pytest.mark.parametrize("p_law", MASS, ids=name)
def test_kl_of_masses(backend, p_law, q_law):
    a, b = logits(0), logits(1)
    p, q = p_law(backend, 0.5, backend.array(a)), q_law(backend, 0.9, backend.array(b))
    expected = reference.categorical_kl(a, b)
    np.testing.assert_allclose(backend.numpy(backend.kl(p, q)), expected, rtol=1e-12)


@pytest.mark.parametrize("q_law", MASS_BIT, ids=name)
@pytest.mark.parametrize("p_law", MASS_BIT, ids=name)
def test_kl_of_binary_masses(backend, p_law, q_law):
    a, b = np.array([-2.0, 0.5, 30.0]), np.array([1.0, 0.5, -30.0])
    p, q = p_law(backend, 0.5, backend.array(a)), q_law(backend, 0.9, backend.array(b))
    two = [np.stack([x, 0 * x], -1) for x in (a, b)]
    got = backend.numpy(backend.kl(p, q))
    np.testing.assert_allclose(got, reference.categorical_kl(*two), rtol=1e-10, atol=1e-15)
    native = backend.native.Bernoulli(logits=backend.array(b))
    np.testing.assert_allclose(backend.numpy(backend.kl(p, native)), got, rtol=1e-12)
    native = backend.native.Bernoulli(logits=backend.array(a))
    np.testing.assert_allclose(backend.numpy(backend.kl(native, q)), got, rtol=1e-12)


@pytest.mark.parametrize("tau", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("law", DENSITY, ids=name)
@pytest.mark.quick("1.0")
def test_kl_of_densities(backend, law, tau):
    """Compared with the oracle's quadrature, and with Monte Carlo over both densities."""
    a, b = logits(0), logits(1)
    p, q = law(backend, tau, backend.array(a)), law(backend, tau, backend.array(b))
    got = backend.numpy(backend.kl(p, q))
    np.testing.assert_allclose(got, reference.exp_gumbel_softmax_kl(a, b), rtol=1e-11)
    if tau >= 1 or law.name == "ExpGumbelSoftmax":
        mean, error = monte_carlo_kl(backend, p, q)
        assert (np.abs(mean - got) < 5 * error).all()


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-6), ("float64", 1e-12)])
def test_kl_of_the_design_example(backend, dtype, rtol):
    """3.7216 at every temperature: it is not the categorical KL, and does not converge to it."""
    a, b = backend.array([3.0, -2.0, 0.5], dtype), backend.array(np.zeros(3), dtype)
    expected = reference.exp_gumbel_softmax_kl([3.0, -2.0, 0.5], np.zeros(3))
    assert abs(expected - 3.7216) < 5e-5
    for tau in (0.01, 1.0, 10.0):
        got = backend.kl(*(backend.gs.GumbelSoftmax(tau, logits=x) for x in (a, b)))
        np.testing.assert_allclose(backend.numpy(got), expected, rtol=rtol)
        assert backend.dtype(got) == dtype


def test_kl_of_relaxed_bits(backend):
    a, b = np.array([-2.0, 0.5, 8.0]), np.array([1.0, 0.5, -3.0])
    p, q = (backend.gs.GumbelSigmoid(0.8, logits=backend.array(x)) for x in (a, b))
    got = backend.numpy(backend.kl(p, q))
    mean, error = monte_carlo_kl(backend, p, q)
    assert (np.abs(mean - got) <= 5 * error + 1e-14).all()
    assert got[1] == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("law", select(scored_as="density"), ids=name)
def test_kl_gradient_by_differences(backend, law):
    rng = np.random.default_rng(0)
    a, b, v, w = (law.logits(rng, (3,)) for _ in range(4))

    def kl(a, b):
        return backend.kl(law(backend, 0.5, a), law(backend, 0.5, b)).sum()

    ga, gb = backend.grad(kl, backend.array(a), backend.array(b))
    h = 1e-5
    plus, minus = (
        backend.numpy(kl(backend.array(a + s * h * v), backend.array(b + s * h * w)))
        for s in (1, -1)
    )
    assert (ga * v).sum() + (gb * w).sum() == pytest.approx((plus - minus) / (2 * h), rel=1e-7)


def test_kl_temperatures(backend):
    """Equal numbers or the same object have the quadrature; other pairs have no KL, and the ELBO
    samples."""
    a = backend.array(logits())

    def kl(t, s):
        return backend.kl(*(backend.gs.GumbelSoftmax(x, logits=a) for x in (t, s)))

    tau = backend.array(0.5)
    for t, s in [(0.5, 0.5), (tau, tau), (tau, backend.array(0.5)), (tau, 0.5)]:
        np.testing.assert_allclose(backend.numpy(kl(t, s)), 0, atol=1e-13)
    for t, s in [(0.5, 0.6), (tau, backend.array(0.6)), (tau, 0.6)]:
        with pytest.raises(NotImplementedError, match="equal temperatures"):
            kl(t, s)
    # a derivative in only one temperature does not count as equal temperatures
    with pytest.raises(NotImplementedError, match="equal temperatures"):
        backend.grad(lambda t: kl(t, tau).sum(), backend.array(0.5))
    assert backend.grad(lambda t: (kl(t, t) + 0 * t).sum(), tau)[0] == 0


@pytest.mark.parametrize(
    ("density", "mass"),
    [(d, m) for d in DENSITY for m in MASS] + [(d, m) for d in DENSITY_BIT for m in MASS_BIT],
    ids=name,
)
def test_kl_of_mixed_measures_is_refused(backend, density, mass):
    one = density(backend, 0.5, backend.array(density.logits(np.random.default_rng(0))))
    other = mass(backend, 0.5, backend.array(mass.logits(np.random.default_rng(0))))
    for p, q in [(one, other), (other, one)]:
        with pytest.raises(ValueError, match=r"mixes a density with a mass.*on both"):
            backend.kl(p, q)
        with pytest.raises(ValueError, match="mixes a density with a mass"):
            backend.kl(p.expand((2,)).to_event(1), q.expand((2,)).to_event(1))


def test_kl_through_wrappers(backend):
    """expand, to_event and mask, as plates and handlers apply them."""
    a, b = backend.array(logits(0)), backend.array(logits(1))
    p, q = (backend.gs.GumbelSoftmax(0.5, logits=x) for x in (a, b))
    exact = backend.numpy(backend.kl(p, q))
    np.testing.assert_allclose(
        backend.numpy(backend.kl(p.expand((2, 3)), q.expand((2, 3)))), np.stack([exact] * 2)
    )
    np.testing.assert_allclose(
        backend.numpy(backend.kl(p.to_event(1), q.to_event(1))), exact.sum(), rtol=1e-12
    )
    keep = np.array([True, False, True])
    masked = backend.kl(backend.mask(p, keep), backend.mask(q, keep))
    np.testing.assert_allclose(backend.numpy(masked), exact * keep, rtol=1e-12)


def test_kl_where_masks_differ(backend):
    full, part = np.zeros((1, 3)), np.array([[0.0, -np.inf, 0.0]])
    other = np.array([[0.5, -np.inf, -0.5]])
    relaxed = backend.gs.GumbelSoftmax
    hard = backend.gs.STGumbelSoftmax

    def kl(make, a, b):
        return backend.numpy(backend.kl(*(make(0.5, logits=backend.array(x)) for x in (a, b))))

    assert kl(relaxed, full, part) == np.inf
    assert kl(relaxed, part, full) == np.inf
    assert kl(hard, full, part) == np.inf
    assert kl(hard, part, full) == pytest.approx(math.log(3) - math.log(2))
    two = reference.exp_gumbel_softmax_kl(part[:, ::2], other[:, ::2])
    np.testing.assert_allclose(kl(relaxed, part, other), two, rtol=1e-12)
