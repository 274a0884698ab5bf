"""No device is hard-coded: all results and intermediates are on the device of the logits.

In torch a simulated device (elsewhere.py) replaces a GPU, in JAX the second device of the CPU. If
there is a GPU, each test runs on it too.
"""

from functools import partial

import numpy as np
import pytest
from laws import LAWS, name


@pytest.fixture(params=["elsewhere", "cuda"])
def place(request, backend):
    """Puts arrays on a device that is not the default one; the device exists in this context."""
    gpu = request.param == "cuda"
    if gpu and (reason := backend.why_no_gpu()):
        pytest.skip(reason)
    with backend.other_place(gpu) as put:
        yield put


def test_two_devices_do_not_mix(backend, place):
    """The tests below rely on this."""
    here, there = backend.bound(backend.array([1.0, 2.0])), place(backend.array([1.0, 2.0]))
    assert there.device != here.device
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)device"):
        here + there


def made_of(backend, law, temperature, logits):
    """All values that a law can make."""
    d, other = law(backend, temperature, logits), law(backend, temperature, logits * 0.5)
    z = backend.sample(d, 0, (2,))
    found = {"sample": z, "own score": d.log_prob(z), "score": d.log_prob(z * 1.0)}
    laws = {"entropy": d.entropy, "divergence": partial(backend.kl, d, other)}
    laws |= {n: partial(getattr, d, n) for n in ("mean", "variance", "probs", "logits")}
    if getattr(d, "has_enumerate_support", False):
        laws["support"] = d.enumerate_support
    for what, make in laws.items():
        try:
            found[what] = make()
        except NotImplementedError:
            continue
    return found


@pytest.mark.quick("GumbelSoftmax", "SoftBernoulli", "pyro")
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("law", LAWS, ids=name)
def test_law_stays_with_its_logits(backend, place, law, masked):
    logits = law.logits(np.random.default_rng(0), (2,))
    if masked:  # or, for a bit, certain
        logits[..., 0] = -np.inf
    logits, tau = (place(backend.array(x)) for x in (logits, 0.5))
    for what, x in made_of(backend, law, tau, logits).items():
        anywhere = not getattr(x, "committed", True)  # a constant of JAX: not placed
        assert anywhere or x.device == logits.device, what


@pytest.mark.quick("STGumbelSoftmax", "pyro")
@pytest.mark.parametrize("family", ["GumbelSoftmax", "STGumbelSoftmax"])
def test_training_stays_with_the_data(backend, place, family):
    """Integers and bits, soft indices, a mask, automatic logits, check, the step: all stay on the
    device."""
    gs, native = backend.gs, backend.native
    x, table, prior = (
        place(backend.array(x)) for x in ([0.1, 2.0, -1.0], [-1.0, 0.0, 2.0], [0.0, 1.0, 0.5])
    )

    def model(x):
        with backend.ppl.plate("data", 3):
            z = backend.ppl.sample("z", native.Categorical(logits=prior))
            b = backend.ppl.sample("b", native.Bernoulli(logits=prior[1]))
            fn = native.Normal(table[z] + b * (z == 1), 1.0)
            backend.ppl.sample("x", backend.mask(fn, x > -0.5), obs=x)

    guide = gs.AutoGumbelSoftmax(model, family=getattr(gs, family))
    relaxed = gs.relax(model, family=getattr(gs, family))
    elbo = backend.infer.TraceMeanField_ELBO()
    left = backend.trained_on(relaxed, guide, elbo, lambda step: 0.5, [x])
    left = left or dict(backend.ppl.get_param_store().items())
    assert len(left) == 2
    for site, value in left.items():
        assert value.device == x.device, site
