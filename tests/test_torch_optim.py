"""AnnealedSVI of Pyro with one torch optimizer for all parameters."""

from functools import partial

import numpy as np
import pytest

from gs_ppl import temperature

pytestmark = pytest.mark.only("pyro")
SCHEDULE = temperature.exponential(rate=0.02, minimum=0.3)


class Program:
    """A mixture with parameters in model and guide, and functions that make a run."""

    def __init__(self, backend):
        self.pyro, self.torch, self.gs = backend.ppl, backend.torch, backend.gs
        self.pyro.clear_param_store()
        self.pyro.set_rng_seed(0)
        self.x = backend.array([-2.0, -1.0, 1.5])
        self.late = False

    def model(self):
        scale = self.pyro.param("scale", self.torch.ones(()), constraint=positive())
        locs = self.pyro.param("locs", self.torch.tensor([-1.0, 1.0]).double())
        shift = self.pyro.param("late", self.torch.zeros(()).double()) if self.late else 0.0
        with self.pyro.plate("data", 3):
            z = self.pyro.sample("z", self.gs.OneHotCategorical(logits=self.x.new_zeros(3, 2)))
            law = self.pyro.distributions.Normal(self.gs.select(locs, z) + shift, scale)
            self.pyro.sample("x", law, obs=self.x)

    def guide(self):
        a = self.pyro.param("a", self.x.new_zeros(3, 2))
        with self.pyro.plate("data", 3):
            self.pyro.sample("z", self.gs.OneHotCategorical(logits=a))

    def run(self, optim):
        programs = self.gs.relax(self.model), self.gs.relax(self.guide)
        elbo = self.pyro.infer.TraceMeanField_ELBO()
        return self.gs.AnnealedSVI(*programs, optim, elbo, SCHEDULE)

    def parameters(self):
        return [parameter for _, parameter in self.pyro.get_param_store().named_parameters()]


def positive():
    from torch.distributions import constraints

    return constraints.positive


def make_run(backend, kind):
    """A new run with one of Pyro's optimizers, a torch optimizer, or a function that makes one."""
    program = Program(backend)
    adam = partial(program.torch.optim.Adam, lr=0.05)
    if kind == "pyro":
        return program.run(program.pyro.optim.Adam({"lr": 0.05}))
    if kind == "function":
        return program.run(adam)
    program.model(), program.guide()  # makes the parameters
    program.pyro.set_rng_seed(0)
    return program.run(adam(program.parameters()))


def drawn_alike(run, steps):
    """Losses of steps, each drawn with a fixed seed."""
    from pyro import set_rng_seed

    losses = []
    for _ in range(steps):
        set_rng_seed(run.num_steps)
        losses.append(run.step())
    return losses


@pytest.mark.parametrize("kind", ["function", "optimizer"])
def test_takes_the_steps_of_pyros_own(backend, kind):
    expected = drawn_alike(make_run(backend, "pyro"), 20)
    losses = drawn_alike(make_run(backend, kind), 20)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert losses[-1] != losses[0]


@pytest.mark.parametrize("kind", ["function", "optimizer"])
def test_goes_on_from_a_state(backend, kind):
    import copy

    run = make_run(backend, kind)
    drawn_alike(run, 10)
    state = copy.deepcopy(run.get_state())
    expected = drawn_alike(run, 10)
    run = make_run(backend, kind)
    drawn_alike(run, 3)  # another run, whose state is replaced
    run.set_state(state)
    np.testing.assert_array_equal(drawn_alike(run, 10), expected)


def test_parameters_that_come_later_are_trained(backend):
    program = Program(backend)
    run = program.run(partial(program.torch.optim.Adam, lr=0.05))
    run.step()
    program.late = True
    for _ in range(3):
        run.step()
    assert program.pyro.param("late").item() != 0.0
    state = run.get_state()
    assert state["optim"]["names"] == [["a", "locs", "scale"], ["late"]]
    run.set_state(state)
    run.step()
    assert len(run.optim.optimizer.param_groups) == 2


def test_an_optimizer_may_have_other_parameters(backend):
    """Also in its state, and before a step."""
    program = Program(backend)
    program.model(), program.guide()
    other = program.torch.ones(2, requires_grad=True)
    run = program.run(program.torch.optim.Adam([other, *program.parameters()], lr=0.05))
    run.set_state(run.get_state())
    run.step()
    run.set_state(run.get_state())
    run.step()
    assert other.tolist() == [1.0, 1.0]


def test_what_is_no_optimizer_is_refused(backend):
    with pytest.raises(TypeError, match=r"optim must be an optimizer .*, got \{"):
        Program(backend).run({"lr": 0.05})
    with pytest.raises(TypeError, match=r"optim must be an optimizer .*, got <function"):
        Program(backend).run(backend.ppl.optim.Adam)  # without its options


def test_an_optimizer_must_have_every_parameter(backend):
    program = Program(backend)
    program.model(), program.guide()
    run = program.run(program.torch.optim.Adam(program.parameters(), lr=0.05))
    run.step()
    program.late = True
    with pytest.raises(ValueError, match="must have every parameter, but lacks late"):
        run.step()
