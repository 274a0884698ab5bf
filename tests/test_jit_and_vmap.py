"""jit, vmap, forward mode and higher derivatives of each law."""

import numpy as np
import pytest
from laws import KINDS, LAWS, name, select


def logits(law, batch=(4,), K=3):
    return law.logits(np.random.default_rng(0), batch, K)


@pytest.mark.parametrize("law", LAWS, ids=name)
@pytest.mark.quick(*KINDS)
def test_jit(backend, law):
    """Building, sampling and scoring can be traced together, with the same results."""
    value = backend.sample(law(backend, 0.5, backend.array(logits(law))), 0)
    value = backend.array(backend.numpy(value))

    def score(a, tau, value):
        return law(backend, tau, a, validate_args=True).log_prob(value)

    args = backend.array(logits(law)), backend.array(0.5), value
    np.testing.assert_allclose(
        backend.numpy(backend.jit(score)(*args)), backend.numpy(score(*args)), rtol=1e-12
    )


@pytest.mark.parametrize("law", LAWS, ids=name)
@pytest.mark.quick(*KINDS)
def test_jit_of_own_scores(backend, law):
    def draw(a, tau):
        d = law(backend, tau, a, validate_args=True)
        return backend.sample_and_score(d, backend.traced_seed(0))

    args = backend.array(logits(law)), backend.array(0.5)
    for got, expected in zip(backend.jit(draw)(*args), draw(*args), strict=True):
        assert got.shape == expected.shape
        assert np.isfinite(backend.numpy(got)).all()


@pytest.mark.parametrize("law", LAWS, ids=name)
@pytest.mark.quick(*KINDS)
def test_vmap_of_scores(backend, law):
    """Over logits, temperature and value, equal to the loop; also for the gradient."""
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
@pytest.mark.quick(*KINDS)
def test_vmap_of_samples(backend, law):
    """Each lane has separate draws, and scores its draw."""
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
    """Compares the derivative along one direction, of the derivative along another, with
    differences."""
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


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("law", LAWS, ids=name)
def test_vmap_over(backend, law):
    """NumPyro's vmap axes of a law: made in vmap, mapped over in vmap, it scores like the batch."""
    from numpyro.distributions.batch_util import promote_batch_shape, vmap_over

    jax, taus = backend.jax, backend.array([0.5, 1.0, 2.0, 0.7])
    logits = backend.array(np.random.default_rng(0).normal(size=(4,) + (3,) * law.event_dims))
    value = backend.array(np.full((3,) * law.event_dims, 1 / 3) if law.event_dims else 0.25)
    value = np.log(value) if law.name == "ExpGumbelSoftmax" else value
    axes = {"temperature": 0, "logits": 0} if law.tempered else {"logits": 0}

    def make(tau, a):
        return law(backend, tau, a, validate_args=False)

    batch, one = make(taus, logits), make(taus[0], logits[0])
    made = jax.vmap(make, out_axes=vmap_over(one, **axes))(taus, logits)
    assert promote_batch_shape(made).batch_shape == (4,)
    assert jax.tree.structure(jax.tree.map(lambda _: 0, one)) == jax.tree.structure(one)
    expected = backend.numpy(batch.log_prob(value))
    assert backend.numpy(made.log_prob(value)) == pytest.approx(expected)
    score = jax.vmap(lambda d: d.log_prob(value), in_axes=(vmap_over(batch, **axes),))
    assert backend.numpy(score(batch)) == pytest.approx(expected)
    if law.tempered:
        fixed = make(0.5, logits)
        score = jax.vmap(lambda d: d.log_prob(value), in_axes=(vmap_over(fixed, logits=0),))
        assert backend.numpy(score(fixed)) == pytest.approx(backend.numpy(fixed.log_prob(value)))
        with pytest.raises(ValueError, match=r"temperature 0\.5 has no axis"):
            vmap_over(fixed, temperature=0)
