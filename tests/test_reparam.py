"""Reparameterized sites: TransformReparam into log space, GumbelSoftmaxReparam into noise, NUTS."""

import numpy as np
import pytest
from scipy import integrate, stats

from gs_ppl import reference

FAILURE_RATE = 1e-4
A = np.array([0.5, -0.5, 0.0])
SOFT = ["GumbelSoftmax", "ExpGumbelSoftmax", "SoftOneHotCategorical"]
BITS = ["GumbelSigmoid", "SoftBernoulli"]


def logits(family):
    return np.array(0.4) if family in BITS else A


def log_ratios(l):
    """l_i - l_j, which is logistic with scale 1 / tau."""
    return {(i, j): l[..., i] - l[..., j] for i, j in [(0, 1), (1, 2), (2, 0)]}


def follows_the_law(family, log_value, tau):
    """Whether logs (for bits: logits) of samples pass a test of fit."""
    if family in BITS:
        samples = {0: (log_value, 0.4)}
    else:
        samples = {k: (r, A[k[0]] - A[k[1]]) for k, r in log_ratios(log_value).items()}
    return all(
        stats.kstest(np.ravel(r), stats.logistic(a / tau, 1 / tau).cdf).pvalue
        > FAILURE_RATE / len(samples)
        for r, a in samples.values()
    )


def law(backend, family, tau, batch=(), dtype="float64"):
    a = np.broadcast_to(logits(family), batch + logits(family).shape)
    return getattr(backend.gs, family)(tau, logits=backend.array(a, dtype))


def program(backend, family, tau, batch=(50,), dtype="float64"):
    return lambda: backend.ppl.sample("z", law(backend, family, tau, batch, dtype).to_event(1))


# --- the noise and its sample ---------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.01, 0.3, 1.0, 10.0])
def test_inverse_gives_noise_of_the_sample(backend, tau):
    """softmax((a + g) / tau) is the sample, in log space to 1e-12, and sum exp(-g) = K."""
    Reparam = backend.gs.GumbelSoftmaxReparam
    d = law(backend, "ExpGumbelSoftmax", tau)
    l = backend.sample(d, 0, (100,))
    g = backend.numpy(Reparam.inverse(d, l))
    again = reference.exp_gumbel_softmax_sample(tau, A, np.exp(-g))
    scale = np.abs(backend.numpy(l)).max() + 1
    np.testing.assert_allclose(again, backend.numpy(l), atol=1e-12 * scale)
    np.testing.assert_allclose(np.exp(-g).sum(-1), 3)
    np.testing.assert_allclose(
        backend.numpy(Reparam.forward(d, backend.array(g))), again, atol=1e-12 * scale
    )


@pytest.mark.parametrize("family", [*SOFT, *BITS])
def test_forward_undoes_inverse(backend, family):
    Reparam = backend.gs.GumbelSoftmaxReparam
    d = law(backend, family, 0.5, (4,)).to_event(1)
    z = backend.sample(law(backend, family, 0.5, (4,)), 0, (10,))
    g = Reparam.inverse(d, z)
    base = law(backend, family, 0.5, (4,))
    np.testing.assert_allclose(
        backend.numpy(Reparam.forward(base, g)), backend.numpy(z), rtol=1e-9, atol=1e-12
    )


def test_masked_categories(backend):
    """Logits of -inf give 0 in the sample for any noise, and no NaN in the inverse."""
    Reparam = backend.gs.GumbelSoftmaxReparam
    d = backend.gs.GumbelSoftmax(0.5, logits=backend.array([0.5, -np.inf, 0.0]))
    z = Reparam.forward(d, backend.array([0.3, 8.0, -0.2]))
    expected = np.exp(np.array([0.8, -0.2]) / 0.5)
    np.testing.assert_allclose(backend.numpy(z)[[0, 2]], expected / expected.sum())
    assert backend.numpy(z)[1] == 0
    g = backend.numpy(Reparam.inverse(d, z))
    assert g[1] == 0
    assert g[0] - g[2] == pytest.approx(0.5)
    assert np.exp(-g[[0, 2]]).sum() == pytest.approx(2)


@pytest.mark.parametrize("kind", ["transform", "noise"])
@pytest.mark.parametrize("family", ["GumbelSoftmax", "GumbelSigmoid"])
def test_reparameterized_samples_follow_the_law(backend, family, kind):
    model = backend.reparam(program(backend, family, 0.3, (2_000,)), {"z": kind})
    (value,) = backend.trace(model, 0).values()
    assert follows_the_law(family, log_of(backend, family, kind, value, 0.3), 0.3)


def log_of(backend, family, kind, value, tau):
    """Log (or logit) of the samples, from the value of the auxiliary site."""
    if kind == "transform":
        return backend.numpy(value)
    F, a = backend.gs.functional, backend.array(logits(family))
    if family in BITS:
        return backend.numpy(a + value) / tau
    return backend.numpy(F.tempered_log_softmax(tau, a + value))


@pytest.mark.parametrize("family", ["GumbelSoftmax", "GumbelSigmoid"])
def test_density_is_that_of_the_transformed_base(backend, family):
    """TransformReparam relies on log p(z) = log p(base) - log |dz / dbase|."""
    d = law(backend, family, 0.7, (20,))
    z = backend.array(backend.numpy(backend.sample(d, 0)))  # removes the record of the draw
    (transform,) = d.transforms
    base = backend.inverse(transform)(z)
    jacobian = transform.log_abs_det_jacobian(base, z)
    np.testing.assert_allclose(
        backend.numpy(d.base_dist.log_prob(base) - jacobian),
        backend.numpy(d.log_prob(z)),
        rtol=1e-12,
        atol=1e-12,
    )
    np.testing.assert_allclose(backend.numpy(transform(base)), backend.numpy(z), rtol=1e-12)


@pytest.mark.parametrize("kind", ["transform", "noise"])
@pytest.mark.parametrize("wrapper", ["plate", "to_event", "relax"])
def test_composes(backend, wrapper, kind):
    """Inside of plates, to_event and relax: the auxiliary site has the right shape, the program
    gets z."""
    ppl, gs, seen = backend.ppl, backend.gs, []

    def model():
        a = backend.array(np.tile(A, (4, 1)))
        if wrapper == "to_event":
            seen.append(ppl.sample("z", gs.GumbelSoftmax(0.3, logits=a).to_event(1)))
        else:
            with ppl.plate("data", 4):
                d = gs.GumbelSoftmax(0.3, logits=a)
                if wrapper == "relax":
                    d = gs.OneHotCategorical(logits=a)
                seen.append(ppl.sample("z", d))

    relaxed = gs.relax(model, 0.3, objective="relaxed") if wrapper == "relax" else model
    values = backend.trace(backend.reparam(relaxed, {"z": kind}), 0)
    assert set(values) == {"z_base" if kind == "transform" else "z_gumbel"}
    (value,) = values.values()
    assert value.shape == (4, 3)
    z = backend.numpy(seen[-1])
    np.testing.assert_allclose(np.log(z), log_of(backend, "GumbelSoftmax", kind, value, 0.3))


# --- inference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.3, pytest.param(1.0, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("GumbelSoftmax", None),
        ("GumbelSoftmax", "transform"),
        ("GumbelSoftmax", "noise"),
        ("ExpGumbelSoftmax", None),
        ("GumbelSigmoid", None),
        ("GumbelSigmoid", "transform"),
        ("GumbelSigmoid", "noise"),
    ],
)
@pytest.mark.quick("noise")
@pytest.mark.quick("GumbelSigmoid")
def test_nuts_reproduces_own_samples(backend, family, kind, tau):
    """NUTS on the prior alone: 50 independent sites, thinned draws."""
    model = program(backend, family, tau)
    model = backend.reparam(model, {"z": kind}) if kind else model
    draws = backend.nuts(model, seed=0, warmup=150, samples=100)
    if kind is None:
        z = draws["z"][::5]
        if family == "ExpGumbelSoftmax":
            log_value = z
            assert np.abs(np.logaddexp.reduce(z, -1)).max() < 1e-6
        else:
            log_value = np.log(z) - np.log1p(-z) if family in BITS else np.log(z)
    else:
        site = {"transform": "z_base"}.get(kind, "z_logistic" if family in BITS else "z_gumbel")
        value = backend.array(draws[site][::5])
        log_value = log_of(backend, family, kind, value, tau)
    assert follows_the_law(family, log_value, tau)


@pytest.mark.parametrize("kind", ["transform", "noise"])
@pytest.mark.long
def test_nuts_finds_the_relaxed_posterior(backend, kind):
    """A relaxed bit with an observation, at tau = .3: mean of z by quadrature over its logit."""
    tau, a, x = 0.3, 0.4, 0.2
    density = lambda t: stats.logistic(a / tau, 1 / tau).pdf(t)  # noqa: E731
    sigmoid = lambda t: 1 / (1 + np.exp(-t))  # noqa: E731
    joint = lambda t: density(t) * stats.norm(2 * sigmoid(t) - 1).pdf(x)  # noqa: E731
    evidence = integrate.quad(joint, -60, 60, limit=500)[0]
    mean = integrate.quad(lambda t: joint(t) * sigmoid(t), -60, 60, limit=500)[0] / evidence

    def model():
        with backend.ppl.plate("data", 20):
            z = backend.ppl.sample("z", backend.native.Bernoulli(logits=backend.array(a)))
            backend.ppl.sample("x", backend.native.Normal(2 * z - 1, 1.0), obs=backend.array(x))

    relaxed = backend.gs.relax(model, tau, objective="relaxed")
    draws = backend.nuts(backend.reparam(relaxed, {"z": kind}), seed=1, warmup=200, samples=300)
    if kind == "transform":
        z = sigmoid(draws["z_base"])
    else:
        z = sigmoid((a + draws["z_logistic"]) / tau)
    # 20 independent chains of the same law
    means = z.mean(0)
    assert abs(means.mean() - mean) < 5 * means.std(ddof=1) / np.sqrt(len(means))


@pytest.mark.parametrize("tau", [1.0, 0.01])
def test_elbo_of_a_guide_in_log_space(backend, tau):
    """KL(q || p), in float32 and at low temperature, compared with quadrature."""
    q, p = np.array([3.0, -2.0, 0.5]), np.zeros(3)
    prior = backend.gs.GumbelSoftmax(tau, logits=backend.array(p, "float32"))
    model = backend.reparam(lambda: backend.ppl.sample("z", prior), {"z": "transform"})
    log_space = backend.gs.ExpGumbelSoftmax(tau, logits=backend.array(q, "float32"))
    guide = lambda: backend.ppl.sample("z_base", log_space)  # noqa: E731
    losses = [backend.loss("Trace_ELBO", model, guide, 10_000, s) for s in (0, 1)]
    assert np.mean(losses) == pytest.approx(reference.exp_gumbel_softmax_kl(q, p), abs=0.1)


@pytest.mark.only("pyro")
def test_initial_value_becomes_noise(backend):
    """Pyro passes the initial value of z to the reparameterizer."""
    from pyro.infer.autoguide.initialization import InitMessenger, init_to_value

    z = backend.array([0.7, 0.2, 0.1])
    model = backend.reparam(
        lambda: backend.ppl.sample("z", law(backend, "GumbelSoftmax", 0.3)), {"z": "noise"}
    )
    with InitMessenger(init_to_value(values={"z": z})):
        trace = backend.ppl.poutine.trace(model).get_trace()
    noise = trace.nodes["z_gumbel"]
    assert not noise["is_observed"]
    again = reference.exp_gumbel_softmax_sample(0.3, A, np.exp(-backend.numpy(noise["value"])))
    np.testing.assert_allclose(np.exp(again), [0.7, 0.2, 0.1])


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("STGumbelSoftmax", "got STGumbelSoftmax"),
        ("OneHotCategorical", "got OneHotCategorical"),
        ("Normal", "got Normal"),
        ("observed", "this one is observed"),
    ],
)
def test_refuses(backend, family, message):
    def model():
        if family == "Normal":
            return backend.ppl.sample("z", backend.native.Normal(backend.array(0.0), 1.0))
        if family == "observed":
            d = law(backend, "GumbelSoftmax", 0.5)
            return backend.ppl.sample("z", d, obs=backend.array([0.2, 0.3, 0.5]))
        make = getattr(backend.gs, family)
        a = backend.array(A)
        return backend.ppl.sample(
            "z", make(logits=a) if family == "OneHotCategorical" else make(0.5, logits=a)
        )

    with pytest.raises(ValueError, match=f"site 'z': GumbelSoftmaxReparam takes .*{message}"):
        backend.trace(backend.reparam(model, {"z": "noise"}), 0)
