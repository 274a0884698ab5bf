"""compare with other features of a PPL: modules, trained parameters, scan, lists of guides."""

import numpy as np
import pytest
from programs import DATA, LOCS, PRIOR, TRANSITION, normal
from scipy.special import softmax


@pytest.mark.only("pyro")  # Pyro's AutoNormal has auxiliary sites
def test_a_guide_with_auxiliary_sites(backend):
    ppl, gs, native = backend.ppl, backend.gs, backend.native

    def model():
        w = ppl.sample("w", native.Normal(backend.array(0.0), 1.0))
        z = ppl.sample("z", gs.OneHotCategorical(probs=backend.array(PRIOR)))
        ppl.sample("x", native.Normal(gs.select(backend.array(LOCS), z) + w, 1.0), obs=w * 0)

    guide = gs.auto_relaxed(model, init_logits=backend.array([1.0, 0.0, 0.5]))
    report = backend.compare(model, guide, families=[], num_samples=2)
    expected = softmax([1.0, 0.0, 0.5])
    np.testing.assert_allclose(report.marginals["z"].approximate, expected, rtol=1e-6)


@pytest.mark.only("pyro")
def test_torch_modules(backend):
    """Weights of an encoder, named."""
    torch, ppl = backend.torch, backend.ppl
    torch.manual_seed(0)
    encoder = torch.nn.Linear(2, 3).double()
    model, guide = encoded(backend, lambda x: ppl.module("encoder", encoder)(x))
    report = backend.compare(
        model, guide, num_samples=3, temperature=0.5, families=[backend.gs.STGumbelSoftmax]
    )
    sizes = {name: g.size for name, g in report.estimates[0].gradients.items()}
    assert sizes == {"encoder$$$weight": 6, "encoder$$$bias": 3, "all parameters": 9}
    assert report.estimates[0].gradient.exact > 0


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_flax_modules(backend, api):
    """Weights of an encoder: a tree of arrays under one name."""
    contrib, nnx = pytest.importorskip("numpyro.contrib.module"), pytest.importorskip("flax.nnx")
    linen = pytest.importorskip("flax.linen")

    def encode(x):
        if api == "nnx":
            return contrib.nnx_module("encoder", nnx.Linear(2, 3, rngs=nnx.Rngs(0)))(x)
        return contrib.flax_module("encoder", linen.Dense(3), input_shape=(2,))(x)

    model, guide = encoded(backend, encode)
    report = backend.compare(
        model, guide, num_samples=3, temperature=0.5, families=[backend.gs.STGumbelSoftmax]
    )
    sizes = {name: g.size for name, g in report.estimates[0].gradients.items()}
    assert sizes == {"encoder$params": 9, "all parameters": 9}
    assert report.estimates[0].gradient.exact > 0


def encoded(backend, encode):
    ppl, array, gs = backend.ppl, backend.array, backend.gs
    x = array(DATA.reshape(3, 2))

    def model():
        with ppl.plate("data", 3):
            z = ppl.sample("z", gs.OneHotCategorical(probs=array(PRIOR)))
            ppl.sample("x", backend.native.Normal(gs.select(array(LOCS), z), 1.0), obs=x[:, 0])

    def guide():
        with ppl.plate("data", 3):
            ppl.sample("z", gs.OneHotCategorical(logits=encode(x)))

    return model, guide


@pytest.mark.only("numpyro")
def test_params_of_a_trained_guide(backend):
    """Constrained values, as SVI returns them, with the parameters of the model."""
    numpyro, gs, jnp = backend.ppl, backend.gs, backend.jnp

    def model():
        scale = numpyro.param("scale", 1.0, constraint=backend.native.constraints.positive)
        z = numpyro.sample("z", gs.OneHotCategorical(probs=jnp.array(PRIOR)))
        loc = gs.select(jnp.array(LOCS), z)
        numpyro.sample("x", backend.native.Normal(loc, scale), obs=jnp.array(0.4))

    guide = gs.AutoGumbelSoftmax(model)
    params = {"scale": jnp.array(2.0), "z_auto_logits": jnp.array([1.0, 0.0, -1.0])}
    report = backend.compare(
        model,
        guide,
        params=params,
        num_samples=2,
        temperature=0.5,
        families=[backend.gs.STGumbelSoftmax],
    )
    given = np.log(PRIOR) + normal(0.2, LOCS / 2) - np.log(2)
    assert report.evidence.mean == pytest.approx(np.logaddexp.reduce(given))
    np.testing.assert_allclose(report.marginals["z"].approximate, softmax([1.0, 0.0, -1.0]))


@pytest.mark.only("numpyro")
def test_scan_is_relaxed_and_its_evidence_is_exact(backend):
    numpyro, gs, jnp = backend.ppl, backend.gs, backend.jnp
    scan = pytest.importorskip("numpyro.contrib.control_flow").scan

    def model():
        def step(carry, x):
            z = numpyro.sample("z", gs.OneHotCategorical(probs=carry @ jnp.array(TRANSITION)))
            loc = gs.select(jnp.array(LOCS), z)
            numpyro.sample("x", backend.native.Normal(loc, 1.0), obs=x)
            return z, None

        scan(step, jnp.array(PRIOR), jnp.array(DATA[:4]))

    def guide():
        logits = numpyro.param("logits", jnp.zeros((4, 3)))

        def step(carry, a):
            numpyro.sample("z", gs.OneHotCategorical(logits=a))
            return carry, None

        scan(step, None, logits)

    families = [gs.GumbelSoftmax]
    options = {"families": families, "objectives": ["categorical"], "temperature": 0.5}
    report = backend.compare(model, guide, num_samples=20, **options)
    alpha = np.array(PRIOR)
    for x in DATA[:4]:
        alpha = alpha @ np.array(TRANSITION) * np.exp(normal(x, np.array(LOCS)))
    assert report.evidence.mean == pytest.approx(np.log(alpha.sum()), rel=1e-6)
    assert any("inside of scan are not enumerated in a guide" in note for note in report.notes)
    assert report.estimates[0].logits.size == 12
    assert report.estimates[0].gradient.variance > 0
    assert report.verdict.endswith("the logits was not enumerated.")


@pytest.mark.only("numpyro")
def test_guide_list_in_a_plate(backend):
    """NumPyro's parts see the same rows under enumeration too, so that there are exact numbers."""
    ppl, gs, handlers = backend.ppl, backend.gs, backend.ppl.handlers

    def model():
        w = ppl.sample("w", backend.native.Normal(backend.array(0.0), 1.0))
        with ppl.plate("data", 3):
            z = ppl.sample("z", gs.OneHotCategorical(logits=backend.array(np.zeros(3))))
            loc = w + z[..., 0]
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(np.zeros(3)))

    relaxed = gs.relax(handlers.seed(model, backend.jax.random.key(1)), 0.5)
    guide = gs.AutoGuideList(relaxed)
    guide.append(backend.infer.autoguide.AutoNormal(handlers.block(relaxed, hide=["z"])))
    guide.append(gs.AutoGumbelSoftmax(handlers.block(relaxed, hide=["w"]), 0.5))
    options = {"families": [gs.STGumbelSoftmax], "temperature": 0.5, "num_samples": 50}
    report = backend.compare(model, guide, **options)
    assert report.notes == ()
    assert report.evidence.mean > report.elbo.mean
