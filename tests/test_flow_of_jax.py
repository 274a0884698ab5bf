"""JAX's control flow without sites, and draws by sample_shape, under each handler."""

import numpy as np
import pytest
from chains import DATA, LOCS, TRANSITION
from scipy import stats

pytestmark = pytest.mark.only("numpyro")


def test_sample_shape_is_not_enumerated_silently(backend):
    def model():
        law = backend.native.Bernoulli(probs=backend.array(0.5))
        z = backend.ppl.sample("z", law, sample_shape=(3,))
        backend.ppl.sample("y", backend.native.Normal(z.sum(-1), 1.0), obs=backend.array(2.0))

    with pytest.raises(ValueError, match=r"site 'z': sample_shape joins \(3,\) discrete"):
        backend.enumerated_loss(backend.gs.config_enumerate(model), lambda: None, 0)


def test_sample_shape_in_reports_and_losses(backend):
    """Log weights of draws are complete; a loss that would count one of three bits is refused."""
    ppl, native, gs = backend.ppl, backend.native, backend.gs

    def model():
        z = ppl.sample("z", native.Bernoulli(probs=backend.array(0.5)), sample_shape=(3,))
        loc = z.astype(float).sum(-1)  # a sum of integers over draws is refused
        ppl.sample("y", native.Normal(loc, 1.0), sample_shape=(2,), obs=backend.array([2.0, 1.0]))

    def guide():
        ppl.sample("z", native.Bernoulli(probs=backend.array(0.2)), sample_shape=(3,))

    with pytest.raises(ValueError, match=r"site 'z': sample_shape joins \(3,\) discrete"):
        backend.to_inference_data(model, num_samples=4)
    for how, p in ((gs.AutoGumbelSoftmax(model), 0.5), (guide, 0.2)):
        drawn = backend.to_inference_data(model, how, num_samples=4)
        z = drawn["posterior"]["z"].values
        assert z.shape == (1, 4, 3)
        pointwise = stats.norm(z.sum(-1)[..., None]).logpdf([2.0, 1.0])
        assert drawn["log_likelihood"]["y"].values == pytest.approx(pointwise, rel=1e-6)
        log_q = stats.bernoulli(p).logpmf(z.astype(int)).sum(-1)
        weight = pointwise.sum(-1) + 3 * np.log(0.5) - log_q
        assert drawn["sample_stats"]["log_weight"].values == pytest.approx(weight, rel=1e-6)
    relaxed = [gs.relax(p, 0.5, family=gs.STGumbelSoftmax) for p in (model, guide)]
    with pytest.raises(ValueError, match=r"site 'z': TraceMeanField_ELBO counts .* of one var"):
        gs.check(*relaxed, backend.infer.TraceMeanField_ELBO())
    gs.check(*relaxed, backend.infer.Trace_ELBO())
    for elbo in (gs.RLOO_ELBO(num_particles=2), gs.MuProp_ELBO()):
        with pytest.raises(
            ValueError, match=r"site 'z': axis -1 of its batch shape \(3,\) lies in"
        ):
            backend.elbo_loss(elbo, model, guide)


def fori(lax, x):
    return lax.fori_loop(0, 3, lambda i, total: total + x, 0.0 * x)


def until(lax, x):
    return lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] + x), (0, 0.0 * x))[1]


def scanned(lax, x):
    return lax.scan(lambda total, _: (total + x, None), 0.0 * x, None, length=3)[0]


def chosen(lax, x):
    return lax.cond(x.ndim < 9, lambda x: 3 * x, lambda x: x, x)


def switched(lax, x):
    return lax.switch(1, [lambda x: x, lambda x: 3 * x], x)


@pytest.mark.parametrize("integer", [False, True], ids=["one-hot", "integer"])
@pytest.mark.parametrize("flow", [fori, until, scanned, chosen, switched])
@pytest.mark.quick("integer")
def test_flow_of_jax(backend, flow, integer):
    """The location times three, under each handler and report; JAX has no gradient of a while."""
    from jax import lax

    gs, ppl, locs = backend.gs, backend.ppl, backend.array(LOCS)
    prior, x = backend.array(TRANSITION[0]), DATA[0]
    law = backend.native.Categorical if integer else gs.OneHotCategorical

    def model():
        z = ppl.sample("z", law(probs=prior))
        loc = locs[z] if integer else gs.select(locs, z)
        ppl.sample("x", backend.native.Normal(flow(lax, loc), 1.0), obs=x)

    joints = np.log(TRANSITION[0]) + stats.norm(3 * LOCS).logpdf(x)
    relaxed = gs.relax(model, 0.5)
    for k, vertex in enumerate(np.eye(3)):
        at = backend.given(relaxed, {"z": backend.array(vertex)})
        assert backend.seeded_log_joint(at, 0) == pytest.approx(joints[k], rel=1e-10)
    evidence = np.logaddexp.reduce(joints)
    for program in (model, gs.discretize(relaxed)):
        loss = backend.enumerated_loss(gs.config_enumerate(program), lambda: None, 0)
        assert -loss == pytest.approx(evidence, rel=1e-10)
    if flow is until:
        return
    guide = gs.AutoGumbelSoftmax(model, 0.5)
    gs.check(relaxed, guide, backend.infer.TraceMeanField_ELBO())
    report = backend.compare(model, gs.AutoGumbelSoftmax(model), num_samples=2, temperature=0.5)
    assert report.evidence.mean == pytest.approx(evidence, rel=1e-6)
