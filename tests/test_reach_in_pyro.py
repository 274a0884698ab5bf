"""Internals of Pyro and torch that gs_ppl.pyro uses: an upgrade that breaks one fails here."""

from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import JitTraceMeanField_ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuide, AutoNormal
from pyro.poutine.messenger import _bound_partial, _context_wrap
from pyro.poutine.runtime import _PYRO_STACK


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x**2


def test_torch_func_asks_for_setup_context():
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.vmap(Square.apply)(torch.ones(2))


def test_values_under_vmap_are_refused_by_its_name():
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda x: x * x.item())(torch.ones(2))


@pytest.mark.parametrize(
    ("law", "holder"),
    [
        (lambda **p: torch.distributions.OneHotCategorical(**p), "_categorical"),
        (lambda **p: torch.distributions.Bernoulli(**p), None),
    ],
    ids=["one-hot", "bit"],
)
def test_param_is_what_a_law_was_given(law, holder):
    for name in ("probs", "logits"):
        made = law(**{name: torch.tensor([0.25, 0.75])})
        source = getattr(made, holder) if holder else made
        assert source._param is source.__dict__[name]
        other = {"probs": "logits", "logits": "probs"}[name]
        assert source._param is not getattr(source, other)  # though it may stand there as well


def model():
    return pyro.sample("z", pyro.distributions.Normal(torch.zeros(()), 1.0))


def test_handlers_wrap_by_partials_that_are_known():
    bound = poutine.block(model)
    assert type(bound) is _bound_partial
    wrapped = bound.func
    assert type(wrapped) is partial
    assert wrapped.func is _context_wrap
    assert wrapped.args[1] is model


def test_traces_of_the_mean_field_elbo():
    pair = TraceMeanField_ELBO()._get_trace(model, model, (), {})
    for trace in pair:
        assert "log_prob_sum" in trace.nodes["z"]
    z, w = (trace.nodes["z"] for trace in pair)
    assert z["value"] is w["value"]


def test_the_mean_field_elbo_takes_its_traces_from_get_trace():
    class Counting(TraceMeanField_ELBO):
        calls = 0

        def _get_trace(self, *args):
            self.calls += 1
            return super()._get_trace(*args)

    elbo = Counting(num_particles=2)
    elbo.loss_and_grads(model, model)
    assert elbo.calls == 2


def test_names_of_the_compiled_loss():
    """The name under which it keeps the loss, and the name under which it looks for it."""
    pyro.clear_param_store()

    def guide():
        loc = pyro.param("loc", torch.zeros(()))
        return pyro.sample("z", pyro.distributions.Normal(loc, 1.0))

    elbo = JitTraceMeanField_ELBO(ignore_jit_warnings=True)
    elbo.loss_and_grads(model, guide)
    assert callable(elbo._differentiable_loss)
    assert getattr(elbo, "_loss_and_surrogate_loss", None) is None


def test_score_parts_of_a_site():
    trace = poutine.trace(model).get_trace()
    trace.compute_score_parts()
    site = trace.nodes["z"]
    assert site["score_parts"].score_function == 0  # reparameterized
    assert site["score_parts"].log_prob == site["fn"].log_prob(site["value"])


def test_particles_are_vectorized_by_a_plate_in_front():
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True)
    elbo._guess_max_plate_nesting(model, model, (), {})
    assert elbo.max_plate_nesting == 1
    trace = poutine.trace(elbo._vectorized_num_particles(model)).get_trace()
    assert trace.nodes["z"]["value"].shape == (3,)


def test_an_attribute_of_a_sample_survives_plate_trace_and_replay():
    class Marked(pyro.distributions.Normal):
        def rsample(self, sample_shape=()):
            value = super().rsample(sample_shape)
            value.mark = self.loc
            return value

        def expand(self, batch_shape, _instance=None):
            return Marked(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def program():
        with pyro.plate("rows", 2):
            return pyro.sample("z", Marked(torch.zeros(()), torch.ones(())).mask(True))

    trace = poutine.trace(program).get_trace()
    assert trace.nodes["z"]["value"].mark.shape == (2,)
    assert poutine.replay(program, trace=trace)().mark is trace.nodes["z"]["value"].mark


def test_an_automatic_guide_looks_at_its_model_by_a_function_that_the_stack_shows():
    seen = []

    def looked_at():
        looks = AutoGuide._prototype_hide_fn
        seen.append([getattr(handler, "hide_fn", None) is looks for handler in _PYRO_STACK])
        return model()

    guide = AutoNormal(looked_at)
    pyro.clear_param_store()
    guide()
    assert any(seen[0])
    seen.clear()
    poutine.block(looked_at)()
    assert not any(seen[0])


def test_an_automatic_guide_keeps_frames_and_makes_plates():
    def rows():
        with pyro.plate("rows", 4, subsample_size=2):
            return model()

    guide = AutoNormal(rows)
    guide._setup_prototype()
    assert guide._prototype_frames["rows"].size == 2
    assert guide._prototype_frames["rows"].full_size == 4
    assert guide._create_plates()["rows"].size == 4


def test_names_of_enumerated_axes():
    def below():
        law = pyro.distributions.Categorical(logits=torch.zeros(3))
        z = pyro.sample("z", law, infer={"enumerate": "parallel"})
        pyro.sample("x", pyro.distributions.Normal(z * 1.0, 1.0), obs=torch.tensor(0.0))

    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    trace, _ = next(iter(elbo._get_traces(below, lambda: None, (), {})))
    z, x = (trace.nodes[name] for name in "zx")
    assert z["infer"]["_enumerate_dim"] == -1
    symbol = z["infer"]["_enumerate_symbol"]
    assert x["infer"]["_dim_to_symbol"][-1] == symbol
    assert symbol in x["packed"]["log_prob"]._pyro_dims
    assert symbol in z["packed"]["log_prob"]._pyro_dims


def test_modes_of_torch_functions_are_a_stack():
    """Modes can be removed and put back one by one: the reading mode starts below other modes."""
    from torch._C import _len_torch_function_stack
    from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
    from torch.overrides import _pop_mode as pop
    from torch.overrides import _push_mode as push

    before = _len_torch_function_stack()
    with TorchFunctionMode() as outer, TorchFunctionMode() as inner:
        assert _len_torch_function_stack() == before + 2
        assert pop() is inner
        assert _get_current_function_mode_stack()[-1] is outer
        push(inner)
        assert _get_current_function_mode_stack()[-2:] == [outer, inner]
