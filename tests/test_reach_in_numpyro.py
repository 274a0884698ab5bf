"""Internals of NumPyro that gs_ppl.numpyro uses: an upgrade that breaks one fails here."""

import sys

import funsor
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.contrib import control_flow
from numpyro.contrib.funsor import enum, infer_util, to_data
from numpyro.infer import autoguide
from numpyro.primitives import _PYRO_STACK, Messenger

KEY = jax.random.key(0)


class Notes(Messenger):
    """Changes a message that an outer trace has recorded before."""

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
    """Records the control-flow messages that pass."""

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


def bit():
    law = numpyro.distributions.Bernoulli(probs=jnp.array(0.25))
    z = numpyro.sample("z", law, infer={"enumerate": "parallel"})
    numpyro.factor("f", jnp.where(z == 1, jnp.log(2.0), 0.0))


def test_the_stack_shows_the_enumeration_in_force():
    def seen():
        classes = sys.modules["numpyro.contrib.funsor.enum_messenger"]
        return [isinstance(handler, classes.enum) for handler in _PYRO_STACK]

    assert any(enum(seen, first_available_dim=-1)())
    assert not any(seen())


def test_the_log_density_with_sites_summed_out():
    operations = funsor.ops.logaddexp, funsor.ops.add
    program = numpyro.handlers.seed(enum(bit, first_available_dim=-1), KEY)
    lazy, *_ = infer_util._enum_log_density(program, (), {}, {}, *operations, apply_optimizer=False)
    value = to_data(funsor.optimizer.apply_optimizer(lazy))
    assert float(value) == pytest.approx(np.log(0.75 + 2 * 0.25))


def test_plates_of_enumeration_stand_in_by_new():
    kind = type(numpyro.plate("rows", 2))
    with infer_util.plate_to_enum_plate():
        assert "__new__" in vars(numpyro.plate)
        assert type(numpyro.plate("rows", 2)) is not kind
    assert type(numpyro.plate("rows", 2)) is kind


def test_rows_of_a_plate():
    with numpyro.handlers.seed(rng_seed=0), numpyro.plate("rows", 4, subsample_size=2) as rows:
        assert numpyro.plate("again", 4, subsample_size=2)._indices.shape == (2,)
        assert rows.shape == (2,)


def test_marks_of_a_scan():
    """Its sites are marked as done; sites that it runs one by one have the step and a new name."""

    class Looks(Messenger):
        def postprocess_message(self, msg):
            if msg["type"] == "sample":
                steps.setdefault(msg["name"], msg["infer"].get("_scan_current_index"))

    def body(carry, x):
        with Looks():
            law = numpyro.distributions.Bernoulli(probs=jnp.array(0.25))
            z = numpyro.sample("z", law, infer={"enumerate": "parallel"})
        return z, None

    def chain():
        control_flow.scan(body, 0, jnp.arange(3.0))

    steps = {}
    trace = numpyro.handlers.trace(numpyro.handlers.seed(chain, KEY)).get_trace()
    assert trace["z"]["_control_flow_done"]
    steps.clear()
    with infer_util.plate_to_enum_plate(), enum(first_available_dim=-1):
        numpyro.handlers.seed(chain, KEY)()
    assert steps["_PREV_z"] == 0
    assert "z" in steps


def test_what_is_said_of_an_analytic_divergence_below_enumerated_sites():
    def model():
        law = numpyro.distributions.Bernoulli(probs=jnp.array(0.25))
        z = numpyro.sample("z", law, infer={"enumerate": "parallel"})
        numpyro.sample("w", numpyro.distributions.Normal(z * 1.0, 1.0))

    def guide():
        law = numpyro.distributions.Normal(0.0, 1.0)
        numpyro.sample("w", law, infer={"kl": "analytic"})

    elbo = numpyro.infer.TraceEnum_ELBO(max_plate_nesting=0)
    with pytest.raises(AssertionError, match="analytic KL computation for the latent variable `w`"):
        elbo.loss(KEY, {}, model, guide)


def test_xla_takes_the_option_by_which_it_compiles_in_haste():
    """The probe's programs run about ten times; XLA refuses an unknown option, and names it."""
    square = jax.jit(lambda x: x**2, compiler_options={"xla_backend_optimization_level": 0})
    assert float(square(3.0)) == 9.0
    with pytest.raises(Exception, match="xla_no_such_option"):
        jax.jit(lambda x: x**2, compiler_options={"xla_no_such_option": 0})(3.0)
