"""How a law recognises its samples: Pyro by a record on the tensor, NumPyro by intermediates."""

import copy
import io

import numpy as np
import pytest
from laws import name, select

LAWS = select(scored_as="density")


on_pyro = pytest.mark.only("pyro")
on_numpyro = pytest.mark.only("numpyro")
each_law = pytest.mark.parametrize("law", LAWS, ids=name)


def draw(backend, law, tau=0.7, requires_grad=False):
    a = backend.array(law.logits(np.random.default_rng(0), (6,)))
    a = a.requires_grad_() if requires_grad else a
    return a, law(backend, tau, a)


@on_pyro
@each_law
def test_overwritten_samples_are_scored_by_their_value(backend, law):
    _, d = draw(backend, law)
    first, second = d.sample(), d.sample()
    first.copy_(second)
    np.testing.assert_allclose(d.log_prob(first), d.log_prob(second.clone()), rtol=1e-9)


@on_pyro
@each_law
def test_detached_samples_have_the_partial_derivative(backend, law):
    """A score-function estimator needs it; in the total derivative the logits cancel."""
    a, d = draw(backend, law, requires_grad=True)
    z = d.sample()
    one, other = (
        backend.torch.autograd.grad(d.log_prob(value).sum(), a)[0] for value in (z, z.clone())
    )
    np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)
    assert one.abs().max() > 0.1


@on_pyro
@each_law
def test_leaf_samples_have_the_gradient_at_the_value(backend, law):
    _, d = draw(backend, law)
    z = d.sample()
    one = z.requires_grad_()
    other = z.detach().clone().requires_grad_()
    gradients = [backend.torch.autograd.grad(d.log_prob(v).sum(), v)[0] for v in (one, other)]
    np.testing.assert_allclose(*gradients, rtol=1e-12)


@on_pyro
@each_law
def test_saved_and_copied_samples(backend, law):
    """Saved and copied samples lose their record, and load with weights_only."""
    _, d = draw(backend, law)
    z, buffer = d.sample(), io.BytesIO()
    backend.torch.save(z, buffer)
    buffer.seek(0)
    for other in (backend.torch.load(buffer, weights_only=True), copy.deepcopy(z)):
        assert (other == z).all()
        np.testing.assert_allclose(d.log_prob(other), d.log_prob(z), rtol=1e-9)


@on_pyro
@each_law
def test_inference_mode(backend, law):
    _, d = draw(backend, law)
    with backend.torch.inference_mode():
        z = d.sample()
        np.testing.assert_allclose(d.log_prob(z), d.log_prob(z.clone()), rtol=1e-9)


@on_numpyro
@each_law
def test_intermediates(backend, law):
    """The law's sample, the log of another law's sample, and the value alone have the same
    score."""
    _, d = draw(backend, law)
    value, [drawn] = d.sample_with_intermediates(backend.jax.random.key(0), (4,))
    own = d.log_prob(value, [drawn])
    log_alone = type(drawn)(drawn.log_value)
    np.testing.assert_allclose(d.log_prob(value, [log_alone]), own, rtol=1e-9)
    np.testing.assert_allclose(d.log_prob(value), own, rtol=1e-9)
    np.testing.assert_allclose(d.log_prob(value, []), own, rtol=1e-9)


@on_numpyro
@each_law
def test_another_law_scores_the_log_value(backend, law):
    """In float32 at tau = 0.01, where the value has underflowed."""
    rng = np.random.default_rng(0)
    a, b = (backend.array(law.logits(rng, (6,)), "float32") for _ in range(2))
    p, q = law(backend, 0.01, a), law(backend, 0.01, b)
    value, [drawn] = p.sample_with_intermediates(backend.jax.random.key(0))
    log_alone = type(drawn)
    exact = law(backend, 0.01, backend.array(b, "float64"), validate_args=False)
    wide = log_alone(backend.array(drawn.log_value, "float64"))
    expected = exact.log_prob(backend.array(value, "float64"), [wide])
    own = q.log_prob(value, [log_alone(drawn.log_value)])
    np.testing.assert_allclose(own, expected, rtol=1e-4)


@pytest.mark.only("pyro")
@pytest.mark.parametrize("shape", [(5, 4), (5, 100)], ids=["short", "long"])
def test_may_be_written_to(backend, shape):
    """If no gradient is needed, or none through the sample."""
    a = backend.array(np.zeros(shape)).requires_grad_()
    y = backend.gs.GumbelSoftmax(0.5, logits=a).rsample()
    assert not y._is_view()
    with backend.torch.no_grad():
        y.mul_(2.0)
    np.testing.assert_allclose(backend.numpy(y).sum(-1), 2.0, rtol=1e-6)


@pytest.mark.only("pyro")
@pytest.mark.parametrize("law", ["ExpGumbelSoftmax", "GumbelSoftmax"])
def test_backward_without_a_gradient(backend, law):
    """gradcheck passes None backward, and so does a function without a gradient in the sample."""
    torch = backend.torch

    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, g):
            return None

    def draw(a):
        torch.manual_seed(0)
        return getattr(backend.gs, law)(0.7, logits=a).rsample()

    a = backend.array([0.3, -0.2, 1.0]).requires_grad_()
    assert torch.autograd.gradcheck(draw, (a,))
    (gradient,) = torch.autograd.grad(NoGradient.apply(draw(a)).sum() + (a**2).sum(), a)
    np.testing.assert_array_equal(backend.numpy(gradient), 2 * backend.numpy(a))
