"""A guide after its training: reading it, or replacing its laws, needs no temperature."""

import functools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from programs import LOCS, PRIOR, by_name, plain
from scipy.special import expit, log_expit, log_softmax, softmax

LOGITS = {"a": np.array([0.3, -0.2, 0.9]), "b": np.array([0.1, -0.4]), "c": np.array(-0.7)}


def auto(backend, model, **options):
    logits = {name: backend.array(a) for name, a in LOGITS.items()}
    return backend.gs.AutoGumbelSoftmax(model, init_logits=logits, **options)


def by_hand(backend, model, **options):
    """The same guide as a plain program that is relaxed."""

    def guide():
        for name in ("a", "b"):
            law = backend.gs.OneHotCategorical(logits=backend.array(LOGITS[name]))
            backend.ppl.sample(name, law)
        backend.ppl.sample("c", backend.native.Bernoulli(logits=backend.array(LOGITS["c"])))

    return backend.gs.relax(guide, **options)


def elbo_by_hand():
    """The ELBO summed over all classes, at LOGITS."""
    joint = by_name("factorial").log_joints()
    c = LOGITS["c"]
    log_q = sum(np.ix_(log_softmax(LOGITS["a"]), log_softmax(LOGITS["b"]), log_expit([-c, c])))
    return (np.exp(log_q) * (joint - log_q)).sum()


@pytest.mark.parametrize("make", [auto, by_hand], ids=["auto", "relax"])
@pytest.mark.parametrize(
    ("family", "objective"),
    [
        ("GumbelSoftmax", "categorical"),
        ("GumbelSoftmax", "relaxed"),
        ("STGumbelSoftmax", "categorical"),
    ],
)
def test_what_replaces_the_law_needs_no_temperature(backend, make, family, objective):
    """Enumerated and discretized guides have the ELBO summed by hand, and draw its classes."""
    model, gs = plain(backend, by_name("factorial")), backend.gs
    guide = make(backend, model, family=getattr(gs, family), objective=objective)
    pair = gs.config_enumerate(model), gs.config_enumerate(guide)
    loss = backend.enumerated_loss(*pair, by_name("factorial").plates)
    assert loss == pytest.approx(-elbo_by_hand(), rel=1e-6)
    pair = (gs.config_enumerate(gs.discretize(fn)) for fn in (gs.relax(model), guide))
    loss = backend.enumerated_loss(*pair, by_name("factorial").plates)
    assert loss == pytest.approx(-elbo_by_hand(), rel=1e-6)
    for value in backend.trace(gs.discretize(guide), 0).values():
        assert np.isin(backend.numpy(value), (0, 1)).all()


def drawn(backend, model):
    backend.trace(auto(backend, model), 0)


def drawn_by_hand(backend, model):
    backend.trace(by_hand(backend, model), 0)


def scored(backend, model):
    guide = auto(backend, model, temperature=0.5)
    backend.loss("TraceMeanField_ELBO", backend.gs.relax(model), guide, 1, 0)


def scored_density(backend, model):
    guide = auto(backend, model, temperature=0.5, objective="relaxed")
    backend.loss("Trace_ELBO", backend.gs.relax(model, objective="relaxed"), guide, 1, 0)


def checked(backend, model):
    guide = auto(backend, model, temperature=0.5, objective="relaxed")
    relaxed = backend.gs.relax(model, objective="relaxed")
    backend.gs.check(relaxed, guide, backend.infer.Trace_ELBO())


@pytest.mark.parametrize("use", [drawn, drawn_by_hand, scored, scored_density, checked])
def test_drawing_and_scoring_need_one(backend, use):
    with pytest.raises(ValueError, match=r"site 'a' has no temperature.*discretize\(guide\)"):
        use(backend, plain(backend, by_name("factorial")))


# --- in a fresh process ---------------------------------------------------------------------------


def test_parameters_are_read_without_a_run(backend):
    model = plain(backend, by_name("factorial"))
    guide, params = backend.gs.AutoGumbelSoftmax(model), backend.saved_logits(LOGITS)
    probs, mode = backend.guide_probs(guide, params), backend.guide_mode(guide, params)
    np.testing.assert_allclose(probs["a"], softmax(LOGITS["a"]), rtol=1e-6)
    np.testing.assert_allclose(probs["b"], softmax(LOGITS["b"]), rtol=1e-6)
    np.testing.assert_allclose(probs["c"], expit(LOGITS["c"]), rtol=1e-6)
    assert mode["a"].tolist() == [0, 0, 1]
    assert mode["c"] == 0


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 4)], ids=["no rows", "rows", "classes"])
def test_logits_of_another_guide(backend, shape):
    """Pyro's store keeps them until it is cleared; NumPyro's params may be of another run."""
    guide = backend.gs.AutoGumbelSoftmax(plain(backend, by_name("mixture")))
    params = backend.saved_logits({"z": np.zeros(shape)})
    given = re.escape(str(shape))
    wanted = rf"z.* of shape {given}, but the guide of this program needs shape \(3, 3\)"
    with pytest.raises(ValueError, match=wanted):
        backend.guide_probs(guide, params)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("logits", [np.eye(3)[:, 1:], np.eye(3)[:1]], ids=["classes", "one row"])
def test_draws_with_logits_of_another_guide(backend, sparse, logits):
    """Predictive, an ELBO and ArviZ's draws would leave classes out, or repeat one row."""
    model = plain(backend, by_name("mixture"))
    guide = backend.gs.AutoGumbelSoftmax(model, sparse=sparse)
    params = backend.saved_logits({"z": logits})
    with pytest.raises(ValueError, match=r"z.* but the guide of this program needs shape"):
        backend.predict(model, backend.gs.discretize(guide), params, 2)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("door", ["probs", "mode", "assign", "compare", "to_inference_data"])
def test_a_result_in_place_of_its_parameters(backend, door):
    gs, model = backend.gs, plain(backend, by_name("mixture"))
    guide, elbo = gs.AutoGumbelSoftmax(model), backend.infer.TraceMeanField_ELBO()
    run = backend.run(gs.relax(model), guide, elbo, lambda t: 0.5, 2, 0.1, progress_bar=False)
    call = getattr(guide, door, None) or functools.partial(getattr(gs, door, None), model, guide)
    with pytest.raises(TypeError, match=r"params must be a dict of arrays, .*got RunResult"):
        call(params=run)
    with pytest.raises(ValueError, match="params does not have z_auto_logits"):
        guide.probs({"z_logits": run.params["z_auto_logits"]})


def rows(backend):
    """A program that takes its data as an argument."""

    def model(x):
        with backend.ppl.plate("data", len(x)):
            z = backend.ppl.sample("z", backend.gs.OneHotCategorical(probs=backend.array(PRIOR)))
            loc = backend.gs.select(backend.array(LOCS), z)
            backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)

    return model


def test_of_a_program_with_data_the_call_is_named(backend):
    model, logits = rows(backend), np.arange(6.0).reshape(2, 3) ** 2
    guide, params = backend.gs.AutoGumbelSoftmax(model), backend.saved_logits({"z": logits})
    with pytest.raises(ValueError, match=r"has not run yet.* call \w+.*\(\*args\) once") as refused:
        backend.guide_probs(guide, params)
    run_as_told(backend, refused.value, guide)
    probs = backend.guide_probs(guide, params)["z"]
    np.testing.assert_allclose(probs, softmax(logits, -1), rtol=1e-6)


def run_as_told(backend, refused, guide):
    """Runs the call that the message names."""
    names = {"discretize": backend.gs.discretize}
    names["handlers"] = getattr(backend.ppl, "handlers", None)
    names |= {"guide": guide, "args": [backend.array(np.zeros(2))]}
    call = re.search(r"call (.*) once", str(refused))[1]
    eval(call, names)


def test_median_of_both_kinds_in_a_fresh_process(backend):
    """The message says what is missing; the PPLs' guides of continuous latents fail without a
    reason."""

    def model(*x):
        backend.ppl.sample("w", backend.native.Normal(3.0, 1.0))
        backend.ppl.sample("z", backend.gs.OneHotCategorical(probs=backend.array(PRIOR)))

    guide = backend.gs.auto_relaxed(model)
    params = backend.saved_of_both({"w": 2.5}, {"z": np.array([0.0, 1.0, 0.0])})
    with pytest.raises(ValueError, match="has not run yet") as refused:
        backend.guide_median(guide, params)
    run_as_told(backend, refused.value, guide)
    for fresh in (guide, backend.gs.auto_relaxed(lambda: model())):
        found = backend.guide_median(fresh, params)
        assert found["w"] == pytest.approx(2.5)
        np.testing.assert_array_equal(found["z"], [0, 1, 0])


def test_first_run_by_predictive(backend):
    """The first run may be inside of a loop of JAX; the values that the guide keeps are right after
    it."""
    model, logits = rows(backend), 40.0 * np.eye(3)[[2, 0]]
    guide, params = backend.gs.AutoGumbelSoftmax(model), backend.saved_logits({"z": logits})
    x = backend.array(np.zeros(2))
    draws = backend.predict(model, backend.gs.discretize(guide), params, 5, x)
    assert draws["x"].shape == (5, 2)
    np.testing.assert_array_equal(backend.guide_probs(guide, params)["z"].argmax(-1), [2, 0])
    backend.trace(lambda: backend.gs.discretize(guide)(x), 0)


def test_two_processes(backend, tmp_path):
    """A guide that is saved as in the documentation is loaded in another process, also with
    parents."""
    script = backend.saved_script
    paths = [tmp_path / parents for parents in script.PARENTS]
    trained = [script.train(*pair) for pair in zip(paths, script.PARENTS, strict=True)]
    command = [sys.executable, "-W", "ignore", script.__file__, *paths]
    read = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    for found, expected in zip(read, trained, strict=True):
        np.testing.assert_allclose(found["probs"], expected["probs"], rtol=1e-6)
        assert found["loc"] == pytest.approx(expected["loc"], rel=1e-6)
        assert found["mode"] == np.eye(2)[np.argmax(expected["probs"], -1)].tolist()
        assert np.abs(np.subtract(found["predicted"], [-2, -2, 2])).max() < 0.5
    assert read[0]["probs"] != read[1]["probs"]
