"""Handlers nested in handlers of the PPLs: scale, mask, block, replay, condition, plates, scan."""

import numpy as np
import pytest
from programs import DATA, LOCS, PRIOR, by_name, normal, plain

SITES = {"a", "b", "c"}


@pytest.fixture
def relaxed(backend):
    return backend.gs.relax(plain(backend, by_name("factorial")), 0.5)


def prior(backend):
    return backend.gs.relax(backend.without_observed(plain(backend, by_name("factorial"))), 0.5)


def test_scale(backend, relaxed):
    """The loss of a program scaled by two is twice its loss, for each draw."""
    guide = prior(backend)
    once = backend.loss("TraceMeanField_ELBO", relaxed, guide, 1, 3)
    model, guide = (backend.scaled(f, 2.0) for f in (relaxed, guide))
    assert backend.loss("TraceMeanField_ELBO", model, guide, 1, 3) == pytest.approx(2 * once)


def test_relax_outside_of_scale(backend):
    """The order does not matter: relax sees the sites through inner handlers."""
    program = plain(backend, by_name("factorial"))
    model = backend.gs.relax(backend.scaled(program, 2.0), 0.5)
    sites = backend.sites(model, 0)
    assert {name for name, (fn, _) in sites.items() if "Soft" in type(fn).__name__} == SITES


def test_block_hides_relaxed_sites(backend, relaxed):
    assert set(backend.trace(backend.blocked(relaxed, ["a"]), 0)) == SITES - {"a"}


def test_condition_takes_a_one_hot_value(backend, relaxed):
    """A one-hot value of a relaxed site is scored by its mass, and passed on unchanged."""
    value = backend.array([0.0, 1.0, 0.0])
    conditioned = backend.condition(relaxed, {"a": value})
    assert set(backend.trace(conditioned, 0)) == SITES - {"a"}
    np.testing.assert_array_equal(backend.numpy(backend.sites(conditioned, 0)["a"][1]), value)


def test_same_seed_same_sample(backend, relaxed):
    one, two, other = (backend.trace(relaxed, seed) for seed in (0, 0, 1))
    for name in SITES:
        np.testing.assert_array_equal(backend.numpy(one[name]), backend.numpy(two[name]))
        assert (backend.numpy(one[name]) != backend.numpy(other[name])).any()


def test_continuous_latents_beside(backend):
    """Enumerated, relaxed and straight-through, with a normal latent in guide and model."""
    ppl, gs, Normal = backend.ppl, backend.gs, backend.native.Normal
    zero = backend.array(0.0)

    def model():
        shift = ppl.sample("shift", Normal(zero, 1.0))
        with ppl.plate("data", 6):
            z = ppl.sample("z", gs.OneHotCategorical(probs=backend.array(PRIOR)))
            loc = gs.select(backend.array(LOCS), z) + shift
            ppl.sample("x", Normal(loc, 1.0), obs=backend.array(DATA))

    def continuous():
        ppl.sample("shift", Normal(zero + 0.1, 0.5))

    def whole():
        continuous()
        with ppl.plate("data", 6):
            ppl.sample("z", gs.OneHotCategorical(probs=backend.array(PRIOR)))

    exact = backend.infer.TraceEnum_ELBO(max_plate_nesting=1)
    assert np.isfinite(backend.elbo_loss(exact, gs.config_enumerate(model), continuous))
    for family in (gs.GumbelSoftmax, gs.STGumbelSoftmax):
        pair = [gs.relax(f, 0.5, family=family) for f in (model, whole)]
        assert np.isfinite(backend.loss("TraceMeanField_ELBO", *pair, 1, 0))


def test_subsampled_plate_scales(backend):
    """With 2 of 6 rows drawn, a site of the plate counts three times."""
    ppl, gs = backend.ppl, backend.gs

    def program(a):
        def run():
            with ppl.plate("data", 6, subsample_size=2):
                ppl.sample("z", gs.OneHotCategorical(logits=backend.array(a)))

        return gs.relax(run, 0.5)

    from gs_ppl import reference

    guide, model = np.array([1.0, 0.0, -1.0]), np.zeros(3)
    loss = backend.loss("TraceMeanField_ELBO", program(model), program(guide), 1, 0)
    assert loss == pytest.approx(6 * reference.categorical_kl(guide, model), rel=1e-6)


@pytest.mark.only("numpyro")
def test_scan(backend):
    """Sites in the body of scan are relaxed and enumerated."""
    from numpyro.contrib.control_flow import scan

    ppl, gs, jnp = backend.ppl, backend.gs, backend.jnp

    def model():
        def step(z, x):
            p = (z[..., None] * jnp.full((3, 3), 1 / 3)).sum(-2)
            z = ppl.sample("z", gs.OneHotCategorical(probs=p))
            ppl.sample("x", backend.native.Normal(gs.select(jnp.array(LOCS), z), 1.0), obs=x)
            return z, z

        return scan(step, jnp.eye(3)[0], jnp.array(DATA))

    fn, value = backend.sites(gs.relax(model, 0.5), 0)["z"]
    assert type(fn).__name__ == "SoftOneHotCategorical"
    assert value.shape == (6, 3)
    assert (backend.numpy(value) % 1 > 0).all()
    hard = backend.sites(gs.discretize(gs.relax(model, 0.5)), 0)["z"][1]
    assert set(np.unique(backend.numpy(hard))) == {0.0, 1.0}
    loss = backend.enumerated_loss(gs.config_enumerate(model), lambda: None, 0)
    rows = np.logaddexp.reduce(normal(np.array(DATA)[:, None], np.array(LOCS)) - np.log(3), -1)
    assert -loss == pytest.approx(rows.sum(), rel=1e-6)  # uniform transitions: rows are independent
    losses, _ = backend.fit(
        "TraceMeanField_ELBO",
        gs.relax(model, 0.5),
        gs.relax(backend.without_observed(model), 0.5),
        5,
        0,
    )
    assert np.isfinite(losses).all()
