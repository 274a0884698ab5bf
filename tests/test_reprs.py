"""Reprs: one short line, which is the call that makes the object."""

from functools import partial

import numpy as np
import pytest

from gs_ppl import temperature
from gs_ppl.report import Marginal

SCHEDULES = {
    "exponential": temperature.exponential(1e-3),
    "linear": temperature.linear(1.0, 0.5, steps=100),
    "cosine": temperature.cosine(1.0, 0.5, steps=100),
    "constant": temperature.constant(0.5),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    shown = repr(SCHEDULES[name])
    again = eval(shown, vars(temperature))
    assert shown.startswith(f"{name}(")
    assert [again(step) for step in (0, 50)] == [SCHEDULES[name](step) for step in (0, 50)]


def objects(backend):
    """Each object with its repr."""
    gs, ppl, infer = backend.gs, backend.ppl, backend.infer

    def model():
        ppl.sample("w", backend.native.Normal(backend.array(0.0), 1.0))
        ppl.sample("z", gs.OneHotCategorical(logits=backend.array(np.zeros(3))))

    tau, soft, hard = backend.array(np.ones(2)), {"objective": "relaxed"}, gs.STGumbelSoftmax
    adam, schedule = backend.optimizer(), temperature.constant(0.5)
    guide = gs.AutoGumbelSoftmax(model, sites=["z"])
    svi = gs.AnnealedSVI(gs.relax(model), guide, adam, infer.TraceMeanField_ELBO(), schedule)
    return {
        "RLOO_ELBO(num_particles=4)": gs.RLOO_ELBO(4),
        "NVIL_ELBO(num_particles=1, normalize=False)": gs.NVIL_ELBO(normalize=False),
        "REBAR_ELBO(num_particles=1, temperature=0.7)": gs.REBAR_ELBO(temperature=0.7),
        "TraceEnum_ELBO(num_particles=1, max_plate_nesting=1)": gs.TraceEnum_ELBO(
            max_plate_nesting=1
        ),
        "relax(model)": gs.relax(model),
        "relax(temperature=0.5)": gs.relax(temperature=0.5),
        "relax(model, temperature=0.5, objective='relaxed')": gs.relax(model, 0.5, **soft),
        "relax(model, family=STGumbelSoftmax, sites=['z'])": gs.relax(
            model, family=hard, sites=["z"]
        ),
        "relax(model, family={'z': GumbelRao(num_samples=9)})": gs.relax(
            model, family={"z": partial(gs.GumbelRao, num_samples=9)}
        ),
        "relax(model, temperature=<array of shape (2,)>)": gs.relax(model, tau),
        "discretize(model)": gs.discretize(gs.relax(model)),
        "config_enumerate(model)": gs.config_enumerate(model),
        "AutoGumbelSoftmax(model)": guide,
        "AutoGuideList(AutoNormal, AutoGumbelSoftmax(model, temperature=0.5))": gs.auto_relaxed(
            model, temperature=0.5
        ),
        f"AnnealedSVI(model, AutoGumbelSoftmax, TraceMeanField_ELBO, {schedule!r})": svi,
        "GumbelSoftmaxReparam()": gs.GumbelSoftmaxReparam(),
    }


def test_objects(backend):
    found = objects(backend)
    assert {shown: repr(x) for shown, x in found.items()} == {shown: shown for shown in found}


def test_marginal():
    marginal = Marginal(np.eye(2), np.full((2, 2), 0.5), ("data",))
    assert repr(marginal) == (
        "Marginal(exact of shape (2, 2), approximate of shape (2, 2), largest distance 0.5000)"
    )
