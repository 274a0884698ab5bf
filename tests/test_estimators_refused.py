"""Estimators of the discrete program refuse some sites; the message names the site."""

import functools

import numpy as np
import pytest
from estimates import (
    ESTIMATORS,
)
from programs import LOCS, PRIOR

LAWS = {
    "one-hot": lambda gs, native, array: gs.OneHotCategorical(logits=array(np.zeros(3))),
    "bit": lambda gs, native, array: native.Bernoulli(logits=array(0.0)),
    "integer": lambda gs, native, array: native.Categorical(logits=array(np.zeros(3))),
    "normal": lambda gs, native, array: native.Normal(array(0.0), 1.0),
    "relaxed": lambda gs, native, array: gs.GumbelSoftmax(0.5, logits=array(np.zeros(3))),
    "straight-through": lambda gs, native, array: gs.STGumbelSoftmax(
        0.5, logits=array(np.eye(3)[0])
    ),
}
REFUSED = [
    ("NVIL", "one-hot", r"site 'z': NVIL_ELBO keeps its running mean in the guide: .* elbo.wrap"),
    *(
        ("DisARM", law, r"site 'z': DisARM_ELBO takes only bits, .* use REBAR_ELBO or RLOO_ELBO")
        for law in ("one-hot", "integer")
    ),
    *(
        (name, law, rf"site 'z': {name}_ELBO takes {what}")
        for name in ("MuProp", "REBAR", "DARN", "DisARM")
        for law, what in {
            "normal": "only discrete sites .* got Normal: use RLOO_ELBO",
            "relaxed": r"discrete programs, but GumbelSoftmax is relaxed: .* discretize",
            "straight-through": "discrete programs, but STGumbelSoftmax is relaxed",
        }.items()
    ),
]


@pytest.mark.parametrize(("name", "law", "message"), REFUSED)
def test_refused_guides(backend, name, law, message):
    def program():
        backend.ppl.sample("z", LAWS[law](backend.gs, backend.native, backend.array))

    with pytest.raises(ValueError, match=message):
        backend.loss_and_gradient(ESTIMATORS[name](backend), program, program, 0)


def test_refuses_a_latent_without_a_guide(backend):
    def model():
        for name in ("z", "w"):
            backend.ppl.sample(name, LAWS["bit"](backend.gs, backend.native, backend.array))

    def guide():
        backend.ppl.sample("z", LAWS["bit"](backend.gs, backend.native, backend.array))

    with pytest.raises(ValueError, match="site 'w': MuProp_ELBO needs it in the guide too"):
        backend.loss_and_gradient(backend.gs.MuProp_ELBO(), model, guide, 0)


OPTIONS = {
    "RLOO_ELBO: num_particles must be at least 2, got 1": ("RLOO_ELBO", {"num_particles": 1}),
    r"NVIL_ELBO: decay must be in \[0, 1\), got 1": ("NVIL_ELBO", {"decay": 1.0}),
    "REBAR_ELBO: temperature must be positive, got 0": ("REBAR_ELBO", {"temperature": 0.0}),
}


@pytest.mark.parametrize("message", OPTIONS)
def test_refused_options(backend, message):
    name, options = OPTIONS[message]
    with pytest.raises(ValueError, match=message):
        getattr(backend.gs, name)(**options)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("name", ["RLOO", "MuProp"])
def test_refuses_an_axis_in_no_plate(backend, name):
    """NumPyro would allow it, and sum the costs at the wrong places."""

    def program():
        backend.ppl.sample("z", backend.native.Bernoulli(logits=backend.array(np.zeros(3))))

    with pytest.raises(ValueError, match=r"site 'z': axis -1 of its batch shape \(3,\) lies in no"):
        backend.loss_and_gradient(ESTIMATORS[name](backend), program, program, 0)


@pytest.mark.only("numpyro")
def test_refuses_scan_in_the_guide(backend):
    from numpyro.contrib.control_flow import scan

    def program():
        def step(carry, _):
            law = backend.native.Bernoulli(logits=backend.array(0.0))
            return carry, backend.ppl.sample("z", law)

        scan(step, None, None, length=3)

    with pytest.raises(ValueError, match="site 'z': MuProp_ELBO takes no discrete site inside"):
        backend.loss_and_gradient(backend.gs.MuProp_ELBO(), program, program, 0)


@pytest.mark.only("pyro")
@pytest.mark.parametrize("name", ["RLOO", "MuProp", "REBAR", "DARN"])
@pytest.mark.quick("RLOO")
def test_pyros_own_one_hot_law(backend, name):
    """Pyro scores it by argmax, without a gradient; here it is scored by its mass, as ours is."""
    gradients = []
    for law in (backend.gs.OneHotCategorical, backend.native.OneHotCategorical):

        def program(logits, law=law):
            z = backend.ppl.sample("z", law(logits=logits))
            loc = backend.gs.select(backend.array(LOCS), z)
            backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(0.6))

        def guide(law=law):
            a = backend.ppl.param("a", backend.array([0.5, -0.3, 0.1]))
            backend.ppl.sample("z", law(logits=a))

        model = functools.partial(program, backend.array(np.log(PRIOR)))
        pairs = backend.gradients(ESTIMATORS[name](backend), model, guide, range(200))
        gradients.append(np.array([gradient["a"] for _, gradient in pairs]))
    if name == "RLOO":  # Pyro draws from it in another way
        error = gradients[0].std() * np.sqrt(2 / 200)
        assert np.abs(gradients[0].mean(0) - gradients[1].mean(0)).max() < 4 * error
    else:
        np.testing.assert_allclose(*gradients, atol=1e-12)


@pytest.mark.parametrize(
    ("base", "method"), [("ScoreFunctionELBO", "center"), ("SubstitutingELBO", "estimate")]
)
def test_an_elbo_without_its_estimate_says_so(backend, base, method):
    rooms = backend.gs.score_function, backend.gs.substitution
    base = next(getattr(room, base) for room in rooms if hasattr(room, base))

    def program():
        law = backend.gs.OneHotCategorical(logits=backend.array([0.0, 1.0]))
        backend.ppl.sample("z", law)

    guide = backend.gs.discretize(backend.gs.AutoGumbelSoftmax(program))
    elbo = type("Mine", (base,), {})(num_particles=2)
    with pytest.raises(NotImplementedError, match=rf"^Mine must define {method}"):
        backend.loss_and_gradient(elbo, program, guide, 0)
