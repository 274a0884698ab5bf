"""Each handler with NumPyro's cond: it reaches both branches."""

import numpy as np
import pytest
from chains import LOCS, TRANSITION
from scipy import stats

pytestmark = pytest.mark.only("numpyro")


def branching(backend, kind):
    from numpyro.contrib.control_flow import cond

    def branch(p):
        def draw(_):
            make = getattr(backend.gs, kind)
            p_ = backend.array(p)
            law = make(probs=p_) if kind == "OneHotCategorical" else make(0.5, probs=p_)
            return backend.ppl.sample("z", law)

        return draw

    def model():
        w = backend.ppl.sample("w", backend.native.Normal(backend.array(0.0), 1.0))
        z = cond(w > 0, branch([0.5, 0.5, 0.0]), branch([0.0, 0.5, 0.5]), w)
        backend.ppl.sample("x", backend.native.Normal(z @ backend.array(LOCS), 1.0), obs=0.3)
        return z

    return model


@pytest.mark.parametrize("handler", ["relax", "discretize", "config_enumerate"])
def test_handlers_reach_into_both_branches(backend, handler):
    """Each branch keeps its impossible category, for both values of the predicate."""
    kind = "OneHotCategorical" if handler == "relax" else "GumbelSoftmax"
    model = branching(backend, kind)
    model = (
        backend.gs.relax(model, 0.5) if handler == "relax" else getattr(backend.gs, handler)(model)
    )
    taken = set()
    for seed in range(6):
        trace = backend.trace(model, seed)
        z, first = backend.numpy(trace["z"]), float(trace["w"]) > 0
        taken.add(first)
        if handler == "config_enumerate":
            assert z in ((0, 1) if first else (1, 2))
        else:
            assert z[2 if first else 0] == 0
            assert np.isin(z, (0, 1)).all() == (handler == "discretize")
    assert taken == {True, False}


@pytest.mark.parametrize("handler", ["relax", "discretize", "config_enumerate"])
def test_branches_without_latents(backend, handler):
    """A predicate that depends on a latent, and a deterministic site in each branch."""
    from numpyro import handlers
    from numpyro.contrib.control_flow import cond

    ppl, gs = backend.ppl, backend.gs

    def model():
        w = ppl.sample("w", backend.native.Normal(backend.array(0.0), 1.0))
        yes, no = (lambda x, shift=s: ppl.deterministic("a", x + shift) for s in (1.0, -2.0))
        y = cond(w > 0, yes, no, w)
        z = ppl.sample("z", gs.OneHotCategorical(probs=backend.array(TRANSITION[0])))
        loc = y + gs.select(backend.array(LOCS), z)
        ppl.sample("x", backend.native.Normal(loc, 1.0), obs=0.3)

    handled = getattr(gs, handler)(model, *([0.5] if handler == "relax" else []))
    taken = set()
    for seed in range(6):
        with handlers.seed(rng_seed=seed), handlers.trace() as trace:
            handled()
        w, a = (float(trace[name]["value"]) for name in "wa")
        assert a == pytest.approx(w + (1.0 if w > 0 else -2.0))
        taken.add(w > 0)
    assert taken == {True, False}


def test_a_branch_sees_what_the_guide_has_drawn(backend):
    """Under replay NumPyro's cond draws again, and gives the new draw to the program."""
    import jax
    from numpyro import handlers

    model = backend.gs.relax(branching(backend, "OneHotCategorical"), 0.5)
    with handlers.seed(rng_seed=0), handlers.trace() as drawn:
        model()
    with handlers.seed(rng_seed=1), handlers.replay(trace=drawn), handlers.trace() as again:
        z = model()
    np.testing.assert_array_equal(backend.numpy(z), backend.numpy(drawn["z"]["value"]))
    np.testing.assert_array_equal(backend.numpy(z), backend.numpy(again["z"]["value"]))
    assert jax.tree.leaves(again["x"]["fn"])  # the law of x used it


def test_branches_are_not_enumerated(backend):
    model = backend.gs.config_enumerate(branching(backend, "OneHotCategorical"))
    guide = lambda: backend.ppl.sample("w", backend.native.Normal(backend.array(0.0), 1.0))  # noqa: E731
    with pytest.raises(ValueError, match="site 'z': sites inside of cond are not enumerated"):
        backend.enumerated_loss(model, guide, 0)


def drawn_in_branches(backend, read, observed, chosen=None):
    """A class is drawn in a branch; each branch has a different law. `read` makes the location of
    x."""
    from numpyro.contrib.control_flow import cond

    ppl, native, array = backend.ppl, backend.native, backend.array

    def branch(p):
        return lambda _: read(ppl.sample("z", native.Categorical(probs=array(p))))

    def model():
        drawn = chosen is None
        w = ppl.sample("w", native.Normal(array(0.0), 1.0)) if drawn else array(chosen)
        loc = cond(w > 0, branch(TRANSITION[0]), branch(TRANSITION[1]), w)
        if observed:
            ppl.sample("x", native.Normal(loc, 1.0), obs=0.3)

    return model


def divergence(q, p):
    return (q * np.log(q / p)).sum()


def test_branches_under_check(backend):
    """The divergence is that of the branch taken; the probe reads both branches."""
    ppl, native, array, gs = backend.ppl, backend.native, backend.array, backend.gs
    q, locs = np.array([0.2, 0.5, 0.3]), array(LOCS)

    def guide(classes=True):
        ppl.sample("w", native.Normal(array(0.2), 1.0))
        if classes:
            ppl.sample("z", native.Categorical(probs=array(q)))

    elbo, own = backend.infer.TraceMeanField_ELBO(), gs.relax(guide, 0.5)
    model = gs.relax(drawn_in_branches(backend, lambda z: locs[z], False), 0.5)
    gs.check(model, own, elbo)
    run = backend.jax.jit(lambda key: elbo.loss(key, {}, model, own))
    found = {round(float(run(backend.jax.random.key(seed))), 6) for seed in range(9)}
    assert found == {round(0.02 + divergence(q, TRANSITION[row]), 6) for row in (0, 1)}
    jump = lambda z: backend.where(locs[z] > 0.5, 1.0, -1.0)  # noqa: E731
    with pytest.raises(ValueError, match="site 'z': the model reads its relaxed value in a way"):
        gs.check(gs.relax(drawn_in_branches(backend, jump, True), 0.5), own, elbo)
    with pytest.raises(ValueError, match=r"site 'z': Categorical.* in the model is neither in"):
        gs.check(drawn_in_branches(backend, lambda z: locs[z], True), lambda: guide(False), elbo)


@pytest.mark.long
def test_branches_under_compare(backend):
    """If enumeration is not possible there is a note; the estimates exist and are right."""
    read = lambda z: backend.array(LOCS)[z]  # noqa: E731
    model = drawn_in_branches(backend, read, True, chosen=-1.0)
    guide, ST = backend.gs.AutoGumbelSoftmax(model), backend.gs.STGumbelSoftmax
    report = backend.compare(model, guide, num_samples=200, temperatures=[0.5], families=[ST])
    assert (report.evidence, report.elbo) == (None, None)
    for note in report.notes:
        assert "site 'z': sites inside of cond are not enumerated: draw the site before" in note
    fit = stats.norm(LOCS).logpdf(0.3).mean()
    elbo, (found,) = fit - divergence(np.full(3, 1 / 3), TRANSITION[1]), report.estimates
    assert abs(found.elbo.mean - elbo) < 4 * found.elbo.error < 1


def test_cond_beside_an_enumerated_latent(backend):
    """NumPyro refuses cond if any site is enumerated, also outside of cond."""
    from numpyro.contrib.control_flow import cond

    def model():
        shift = cond(
            backend.array(1.0) > 0, lambda x: x + 1.0, lambda x: x - 1.0, backend.array(0.5)
        )
        z = backend.ppl.sample(
            "z", backend.gs.OneHotCategorical(probs=backend.array(TRANSITION[0]))
        )
        loc = backend.gs.select(backend.array(LOCS), z) + shift
        backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(0.3))

    expected = np.log((TRANSITION[0] * stats.norm(LOCS + 1.5).pdf(0.3)).sum())
    loss = backend.enumerated_loss(backend.gs.config_enumerate(model), lambda: None, 0)
    assert -loss == pytest.approx(expected, rel=1e-10)
