"""An argument in the wrong place is refused at once, and the message names the argument."""

from functools import partial

import numpy as np
import pytest
from programs import by_name, plain

from gs_ppl import temperature

# values that are no family, by their words in the message
NO_FAMILY = {
    "string": (lambda gs, array: "GumbelSoftmax", "'GumbelSoftmax'"),
    "instance": (
        lambda gs, array: gs.GumbelSoftmax(0.5, logits=array([0.0, 1.0])),
        "GumbelSoftmax",
    ),
    "discrete law": (lambda gs, array: gs.OneHotCategorical, "the class OneHotCategorical"),
    "ELBO class": (lambda gs, array: gs.RLOO_ELBO, "the class RLOO_ELBO"),
    "partial": (lambda gs, array: partial(gs.OneHotCategorical), "the class OneHotCategorical"),
    "number": (lambda gs, array: 0.5, "0.5"),
}
TAKERS = {
    "relax": lambda gs, model, family: gs.relax(model, 0.5, family=family),
    "relax, by site": lambda gs, model, family: gs.relax(model, 0.5, family={"a": family}),
    "AutoGumbelSoftmax": lambda gs, model, family: gs.AutoGumbelSoftmax(model, family=family),
    "AutoGumbelSoftmax, by site": lambda gs, model, family: gs.AutoGumbelSoftmax(
        model, family={"a": family}
    ),
}


@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
@pytest.mark.parametrize(("make", "got"), NO_FAMILY.values(), ids=NO_FAMILY)
def test_no_family(backend, make, got, take):
    model, family = plain(backend, by_name("factorial")), make(backend.gs, backend.array)
    with pytest.raises(TypeError, match=rf"^family must be a class that relaxes.* got .*{got}"):
        take(backend.gs, model, family)


@pytest.mark.parametrize("name", ["string", "instance", "discrete law", "ELBO class", "partial"])
@pytest.mark.quick("string")
def test_no_family_in_compare(backend, name):
    make, got = NO_FAMILY[name]
    model, gs = plain(backend, by_name("factorial")), backend.gs
    elbo = "RLOO_ELBO is not a family; pass ELBOs as objects"
    wanted = elbo if name == "ELBO class" else f"each must be a class that relaxes.* got .*{got}"
    families = [gs.GumbelSoftmax, make(gs, backend.array)]
    with pytest.raises(TypeError, match=rf"^families: {wanted}"):
        gs.compare(model, gs.AutoGumbelSoftmax(model), families=families, progress_bar=False)


SCHEDULE = temperature.constant(0.5)
# arguments of AnnealedSVI, with wrong values for each
MISPLACED = {
    "loss": ["schedule", "function", "optim", "loss class", "number", "string"],
    "schedule": ["loss", "optim", "loss class", "number", "string", "nothing"],
    "optim": ["loss", "loss class", "number", "string", "nothing"],
}


@pytest.mark.parametrize(
    ("argument", "other"), [(a, o) for a, others in MISPLACED.items() for o in others]
)
def test_misplaced_argument_of_annealed_svi(backend, argument, other):
    fitting = {
        "optim": backend.optimizer(),
        "loss": backend.infer.Trace_ELBO(),
        "schedule": SCHEDULE,
    }
    values = fitting | {
        "function": lambda step: 0.5,
        "loss class": backend.infer.Trace_ELBO,
        "number": 0.5,
        "string": "cosine",
        "nothing": None,
    }
    got = "the class Trace_ELBO" if other == "loss class" else repr(values[other])[:10]
    model = plain(backend, by_name("factorial"))
    arguments = {**fitting, argument: values[other]}
    with pytest.raises(TypeError) as error:
        backend.gs.AnnealedSVI(model, model, *arguments.values())
    message = str(error.value)
    assert message.startswith(f"AnnealedSVI: {argument} must be ")
    assert got in message


def test_loss_and_schedule_swapped(backend):
    model, elbo = plain(backend, by_name("factorial")), backend.infer.Trace_ELBO()
    with pytest.raises(TypeError, match=r"loss must be an ELBO, got constant\("):
        backend.gs.AnnealedSVI(model, model, backend.optimizer(), SCHEDULE, elbo)


@pytest.mark.parametrize("steps", ["x", 2.5], ids=repr)
def test_number_of_steps(backend, steps):
    """It comes before the arguments of the programs."""
    model, elbo = plain(backend, by_name("factorial")), backend.infer.Trace_ELBO()
    svi = backend.gs.AnnealedSVI(model, model, backend.optimizer(), elbo, SCHEDULE)
    key = [backend.jax.random.key(0)] if hasattr(backend, "jax") else []
    with pytest.raises(TypeError, match=r"num_steps must be an integer, before the arg.*, got "):
        svi.run(*key, steps, 20)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("kind", ["seed", "data", "nothing"])
def test_key_of_the_start(backend, kind):
    model, elbo = plain(backend, by_name("factorial")), backend.infer.Trace_ELBO()
    svi = backend.gs.AnnealedSVI(model, model, backend.optimizer(), elbo, SCHEDULE)
    given = {"seed": 0, "data": backend.array(0.5), "nothing": None}[kind]
    with pytest.raises(TypeError, match=r"rng_key must be a key, such as jax.random.key.*, got "):
        svi.init(given)


@pytest.mark.parametrize("schedule", [SCHEDULE, lambda step: 0.5], ids=["ours", "plain"])
def test_fitting_arguments(backend, schedule):
    model, elbo = plain(backend, by_name("factorial")), backend.infer.Trace_ELBO()
    svi = backend.gs.AnnealedSVI(model, model, backend.optimizer(), elbo, schedule)
    assert svi.schedule is schedule


@pytest.mark.parametrize("door", ["relax", "AutoGumbelSoftmax"])
def test_a_string_is_no_collection_of_sites(backend, door):
    with pytest.raises(TypeError, match=r"sites must be a collection of names, such as \['z'\]"):
        getattr(backend.gs, door)(plain(backend, by_name("factorial")), sites="z")


@pytest.mark.parametrize("kind", ["guide", "nothing"])
def test_continuous_guides_are_made_by_auto_relaxed(backend, kind):
    model = plain(backend, by_name("factorial"))
    given = backend.infer.autoguide.AutoNormal(model) if kind == "guide" else None
    with pytest.raises(TypeError, match="continuous must be a class of guides, such as AutoNormal"):
        backend.gs.auto_relaxed(model, given)


@pytest.mark.only("numpyro")
def test_a_run_goes_on_from_a_state(backend):
    model, elbo = plain(backend, by_name("factorial")), backend.infer.TraceMeanField_ELBO()
    guide, key = backend.gs.AutoGumbelSoftmax(model), backend.jax.random.key(0)
    svi = backend.gs.AnnealedSVI(
        backend.gs.relax(model), guide, backend.optimizer(), elbo, SCHEDULE
    )
    result = svi.run(key, 2, progress_bar=False)
    further = svi.run(key, 3, init_state=result.state, progress_bar=False)
    assert int(further.state.optim_state[0]) == 5
    with pytest.raises(TypeError, match=r"init_state must be the state of a run, .*, got \{"):
        svi.run(key, 2, init_state=result.params)


@pytest.mark.parametrize("value", [None, 3.0], ids=repr)
def test_a_guide_needs_a_program(backend, value):
    with pytest.raises(TypeError, match="AutoGumbelSoftmax takes a program, which is a function"):
        backend.gs.AutoGumbelSoftmax(value)


@pytest.mark.only("pyro")
def test_a_handler_needs_a_program(backend):
    """NumPyro's handlers refuse it themselves."""
    for handler in ("relax", "discretize", "config_enumerate"):
        with pytest.raises(TypeError, match=rf"^{handler} takes a program, .*, got tensor"):
            getattr(backend.gs, handler)(backend.array(3.0))


@pytest.mark.parametrize("tau", [0, -1.0, np.inf, np.nan], ids=str)
def test_temperature_of_a_handler(backend, tau):
    model = plain(backend, by_name("factorial"))
    for door in (backend.gs.relax, backend.gs.AutoGumbelSoftmax):
        with pytest.raises(ValueError, match="temperature must be positive and finite, got"):
            door(model, tau)


@pytest.mark.parametrize("name", ["RLOO_ELBO", "NVIL_ELBO"])
def test_relaxed_programs_under_a_score_function(backend, name):
    model, elbo = plain(backend, by_name("factorial")), getattr(backend.gs, name)()
    guide = backend.gs.AutoGumbelSoftmax(model, 0.5)
    guide = elbo.wrap(guide) if hasattr(elbo, "wrap") else guide
    with pytest.raises(ValueError, match=r"or discretize\(model\) and discretize\(guide\)"):
        backend.gs.check(backend.gs.relax(model, 0.5), guide, elbo)
