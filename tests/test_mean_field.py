"""The mean-field ELBOs of gs_ppl.pyro.svi compared with Pyro's; in JAX a compiled step has no
waste."""

import math

import numpy as np
import pytest

from gs_ppl import temperature

pytestmark = pytest.mark.only("pyro")
SCHEDULE = temperature.constant(0.5)


class Programs:
    """A latent of each kind: with a known divergence, with an unknown one, and one without a
    model."""

    def __init__(self, backend, kind):
        self.pyro, self.torch, self.gs = backend.ppl, backend.torch, backend.gs
        self.kind, self.mask, self.scored = kind, lambda logits: logits, []
        self.programs = self.model, self.guide  # the Jit ELBOs distinguish programs by their id
        self.pyro.clear_param_store()

    def law(self, tau, logits):
        """Counts how often it is scored."""
        base = getattr(self.gs, self.kind)

        class Law(base):
            def log_prob(law, value):
                self.scored.append(self.kind)
                return base.log_prob(law, value)

        return Law(tau, logits=logits)

    def model(self, x):
        with self.pyro.plate("data", len(x)):
            z = self.pyro.sample("z", self.law(0.7, self.mask(self.torch.zeros(len(x), 3))))
            w = self.pyro.sample("w", self.pyro.distributions.Normal(0.0, 1.0))
            loc = (z * self.torch.tensor([-1.0, 0.0, 2.0])).sum(-1) + w
            self.pyro.sample("x", self.pyro.distributions.Normal(loc, 1.0), obs=x)

    def guide(self, x):
        a = self.pyro.param("a", lambda: self.torch.linspace(-1, 1, 3).repeat(len(x), 1))
        scale = self.pyro.param("scale", lambda: self.torch.full((len(x),), 0.5))
        auxiliary = {"is_auxiliary": True}
        with self.pyro.plate("data", len(x)):
            self.pyro.sample("z", self.law(0.5, self.mask(a)))
            uniform = self.pyro.distributions.Uniform  # a Normal differs in a trace
            u = self.pyro.sample("u", uniform(0.0, scale.exp()), infer=auxiliary)
            self.pyro.sample("w", uniform(u - 1, u + scale.exp()))

    def loss_and_gradients(self, elbo, x):
        self.pyro.set_rng_seed(0)
        loss = elbo.loss_and_grads(*self.programs, x)
        found = {n: p.grad.numpy() for n, p in self.pyro.get_param_store().named_parameters()}
        for p in self.pyro.get_param_store().values():
            p.unconstrained().grad = None
        return loss, found


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "jit"])
@pytest.mark.parametrize("validate", [False, True], ids=["bare", "validated"])
@pytest.mark.parametrize("kind", ["STGumbelSoftmax", "SoftOneHotCategorical", "GumbelSoftmax"])
def test_equals_pyro(backend, kind, validate, jit):
    """GumbelSoftmax at two temperatures has no divergence, and is scored."""
    programs, x = Programs(backend, kind), backend.torch.tensor([-1.0, 0.5, 1.0, 2.0])
    name, options = "TraceMeanField_ELBO", {}
    with backend.ppl.validation_enabled(validate):
        expected = programs.loss_and_gradients(backend.infer.TraceMeanField_ELBO(), x)
        wasted = len(programs.scored)
        programs.scored.clear()
        if jit:
            name, options = "JitTraceMeanField_ELBO", {"ignore_jit_warnings": True}
        ours = getattr(backend.gs.svi, name)(**options)
        if jit:  # compiles, which draws random numbers too
            programs.loss_and_gradients(ours, x)
        loss, gradients = programs.loss_and_gradients(ours, x)
    assert loss == pytest.approx(expected[0], rel=1e-6)
    assert gradients.keys() == expected[1].keys() == {"a", "scale"}
    for name, value in gradients.items():
        np.testing.assert_allclose(value, expected[1][name], rtol=1e-5, atol=1e-6)
    assert wasted == 2
    if not jit:
        assert len(programs.scored) == (2 if kind == "GumbelSoftmax" or validate else 0)


@pytest.mark.parametrize("when", ["always", "later"])
def test_masks_are_structure(backend, when):
    """A compiled program keeps the masks of its first step; later masks show in the loss."""
    third = backend.torch.tensor([False, False, True])
    programs, x = Programs(backend, "SoftOneHotCategorical"), backend.torch.tensor([-1.0, 0.5])

    def hiding(program):
        def run(x, hidden):
            programs.mask = lambda logits: logits.masked_fill(third & hidden, -math.inf)
            program(x)

        return run

    model, guide = hiding(programs.model), hiding(programs.guide)

    elbo = backend.gs.svi.JitTraceMeanField_ELBO(ignore_jit_warnings=True)
    plain = backend.infer.TraceMeanField_ELBO()
    with backend.ppl.validation_enabled(False):
        elbo.loss_and_grads(model, guide, x, backend.torch.tensor(when == "always"))
        backend.ppl.set_rng_seed(1)
        hidden = backend.torch.tensor(True)
        expected = plain.loss(model, guide, x, hidden)
        backend.ppl.set_rng_seed(1)
        found = elbo.differentiable_loss(model, guide, x, hidden).item()
    assert math.isfinite(expected)
    if when == "always":
        assert found == pytest.approx(expected, rel=1e-6)
    else:
        assert not math.isfinite(found)
