"""jit, vmap, forward mode and higher derivatives of each law."""

import numpy as np
import pytest
from laws import LAWS, name, select


def logits(law, batch=(4,), K=3):
    return law.logits(np.random.default_rng(0), batch, K)


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_jit(backend, law):
    """The whole of building, sampling and scoring traces, with the same results."""
    value = backend.sample(law(backend, 0.5, backend.array(logits(law))), 0)
    value = backend.array(backend.numpy(value))

    def score(a, tau, value):
        return law(backend, tau, a, validate_args=True).log_prob(value)

    args = backend.array(logits(law)), backend.array(0.5), value
    np.testing.assert_allclose(
        backend.numpy(backend.jit(score)(*args)), backend.numpy(score(*args)), rtol=1e-12
    )


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_jit_of_own_scores(backend, law):
    def draw(a, tau):
        d = law(backend, tau, a, validate_args=True)
        return backend.sample_and_score(d, backend.traced_seed(0))

    args = backend.array(logits(law)), backend.array(0.5)
    for got, expected in zip(backend.jit(draw)(*args), draw(*args), strict=True):
        assert got.shape == expected.shape
        assert np.isfinite(backend.numpy(got)).all()


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_vmap_of_scores(backend, law):
    """Over logits, temperature and value, equal to the loop; also of the gradient."""
    a, taus = backend.array(logits(law)), backend.array(np.linspace(0.4, 2, 4))
    value = backend.sample(law(backend, 0.5, a), 0)
    value = backend.array(backend.numpy(value))

    def score(a, tau, value):
        return law(backend, tau, a).log_prob(value)

    for f in (score, backend.functional_grad(score)):
        looped = [f(a[i], taus[i], value[i]) for i in range(4)]
        np.testing.assert_allclose(
            backend.numpy(backend.vmap(f)(a, taus, value)),
            backend.numpy(backend.stack(looped)),
            rtol=1e-12,
        )


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_vmap_of_samples(backend, law):
    """Each lane draws for itself and scores its own draw."""
    d_score = law.scored_as == "density"

    def draw(a, seed):
        value, score = backend.sample_and_score(law(backend, 0.5, a), seed)
        return value, score

    a = backend.array(np.tile(logits(law, (1,)), (64,) + (1,) * law.event_dims))
    seeds = backend.array(np.arange(64), "int64")
    value, score = backend.vmap(lambda a, s: draw(a, backend.traced_seed(s)))(a, seeds)
    assert value.shape == a.shape
    assert score.shape == (64,)
    rounded = np.round(backend.numpy(value).reshape(64, -1), 12)
    assert len(np.unique(rounded, axis=0)) == 64 if not law.hard else len(np.unique(rounded)) == 2
    again = law(backend, 0.5, a).log_prob(backend.array(backend.numpy(value)))
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if d_score else {"rtol": 1e-12}
    np.testing.assert_allclose(backend.numpy(score), backend.numpy(again), **tolerance)


@pytest.mark.parametrize("law", select(hard=False), ids=name)
def test_forward_mode_equals_reverse_mode(backend, law):
    a = backend.array(logits(law))
    v = backend.array(np.random.default_rng(1).normal(size=a.shape))

    def f(a):
        value, score = backend.sample_and_score(law(backend, 0.7, a), 0)
        return score.sum() + (value * value).sum()

    _, tangent = backend.jvp(f, a, v)
    (gradient,) = backend.grad(f, a)
    np.testing.assert_allclose(tangent, (gradient * backend.numpy(v)).sum(), rtol=1e-10)


def check_second_derivatives(backend, f, x):
    """Along one direction, of the derivative along another, by differences."""
    w, v = np.random.default_rng(1).normal(size=(2, *x.shape))

    def directional(x):
        return (backend.functional_grad(f)(x) * backend.array(w)).sum()

    (second,) = backend.grad(directional, x)
    plus, minus = (
        backend.numpy(directional(backend.array(backend.numpy(x) + s * 1e-5 * v))) for s in (1, -1)
    )
    assert (second * v).sum() == pytest.approx((plus - minus) / 2e-5, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_second_derivatives_of_scores(backend, law):
    a = backend.array(logits(law))
    value = backend.array(backend.numpy(backend.sample(law(backend, 0.7, a), 0)))
    score = lambda a: law(backend, 0.7, a, validate_args=False).log_prob(value).sum()  # noqa: E731
    check_second_derivatives(backend, score, a)


@pytest.mark.parametrize("by", ["logits", "temperature"])
@pytest.mark.parametrize("law", select(hard=False), ids=name)
def test_second_derivatives_of_own_samples(backend, law, by):
    a, tau = backend.array(logits(law)), backend.array(0.7)

    def f(x):
        parameters = (tau, x) if by == "logits" else (x, a)
        d = law(backend, *parameters, validate_args=False)
        value, score = backend.sample_and_score(d, 0)
        return score.sum() + (value**3).sum()

    check_second_derivatives(backend, f, a if by == "logits" else tau)
