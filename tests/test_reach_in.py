"""What gs_ppl uses of a PPL's internals, each by itself: an upgrade that breaks it fails here."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from numpyro.contrib import control_flow
from numpyro.infer import autoguide
from numpyro.primitives import Messenger
from pyro import poutine
from pyro.infer import JitTraceMeanField_ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import _bound_partial, _context_wrap

from gs_ppl._shared.wrappers import innermost, is_masked

KEY = jax.random.key(0)


# --- both -----------------------------------------------------------------------------------------


def test_wrappers_call_themselves_base_dist_mask_and_reinterpreted_batch_ndims(backend):
    mask = backend.array([True, False]) > 0
    law = backend.ppl.distributions.Normal(backend.array([0.0, 0.0]), 1.0)
    masked, event = law.mask(mask), law.to_event(1)
    assert innermost(masked) is law
    assert innermost(event) is law
    assert backend.numpy(masked._mask).tolist() == [True, False]
    assert event.reinterpreted_batch_ndims == 1
    assert is_masked(masked)
    assert not is_masked(event)


def test_expand_of_any_law_keeps_base_dist_or_class(backend):
    law = backend.ppl.distributions.Normal(backend.array(0.0), 1.0)
    assert isinstance(innermost(law.expand((3,))), type(law))


# --- Pyro -----------------------------------------------------------------------------------------


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
    """The one it keeps, and the one it looks under."""
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


# --- NumPyro --------------------------------------------------------------------------------------


class Notes(Messenger):
    """Writes into what an outer trace has recorded before."""

    def __init__(self, fn):
        super().__init__(fn)
        self.seen = []

    def process_message(self, msg):
        if msg["type"] == "sample":
            msg["infer"] = {**msg["infer"], "first": 1}

    def postprocess_message(self, msg):
        if msg["type"] == "sample":
            msg["infer"]["note"] = 2
            msg["intermediates"].append("own")


def program():
    return numpyro.sample("z", numpyro.distributions.Normal(0.0, 1.0))


def test_a_trace_shares_infer_and_intermediates_with_the_handlers_inside():
    trace = numpyro.handlers.trace(Notes(numpyro.handlers.seed(program, KEY))).get_trace()
    assert trace["z"]["infer"] == {"first": 1, "note": 2}
    assert trace["z"]["intermediates"] == ["own"]


def test_replay_copies_infer_and_not_the_intermediates():
    trace = numpyro.handlers.trace(Notes(numpyro.handlers.seed(program, KEY))).get_trace()
    again = numpyro.handlers.trace(numpyro.handlers.replay(program, trace)).get_trace()
    assert again["z"]["infer"] == trace["z"]["infer"]
    assert again["z"]["infer"] is not trace["z"]["infer"]
    assert again["z"]["intermediates"] == []


class Sees(Messenger):
    """Control-flow messages that pass."""

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            self.message = msg


def test_arguments_of_a_scan_message():
    def body(carry, x):
        return carry + x, carry

    sees = Sees(lambda: control_flow.scan(body, 0.0, jnp.ones(2)))
    numpyro.handlers.seed(sees, KEY)()
    assert sees.message["args"][0] is body
    assert callable(sees.message["fn"])
    assert "substitute_stack" in sees.message["kwargs"]


def test_arguments_of_a_cond_message():
    if_true, if_false = (lambda x: x), (lambda x: -x)
    sees = Sees(lambda: control_flow.cond(True, if_true, if_false, 1.0))
    numpyro.handlers.seed(sees, KEY)()
    predicate, first, second, operand = sees.message["args"]
    assert (predicate, first, second, operand) == (True, if_true, if_false, 1.0)
    assert "substitute_stack" in sees.message["kwargs"]


def test_the_step_is_the_first_of_an_optimizer_state():
    adam = numpyro.optim.Adam(0.1)
    svi = numpyro.infer.SVI(program, program, adam, numpyro.infer.Trace_ELBO())
    state = svi.init(KEY)
    assert int(state.optim_state[0]) == 0
    state = state._replace(optim_state=adam.update({}, state.optim_state))
    assert int(state.optim_state[0]) == 1


def test_kwargs_of_svi_are_static_kwargs():
    svi = numpyro.infer.SVI(program, program, numpyro.optim.Adam(0.1), None, size=3)
    assert svi.static_kwargs == {"size": 3}


def test_particles_run_by_vectorize_particles_fn():
    elbo = numpyro.infer.Trace_ELBO(num_particles=3)
    run = elbo.vectorize_particles_fn(lambda key: jax.random.normal(key), jax.random.split(KEY, 3))
    assert np.unique(run).shape == (3,)


def test_an_automatic_guide_keeps_frames_and_makes_plates():
    def rows():
        with numpyro.plate("rows", 4, subsample_size=2):
            return program()

    guide = autoguide.AutoNormal(rows)
    numpyro.handlers.seed(guide, KEY)()
    assert guide._prototype_frames["rows"].size == 2
    assert guide._prototype_frame_full_sizes == {"rows": 4}
    with numpyro.handlers.seed(rng_seed=0):
        assert guide._create_plates()["rows"].size == 4
