"""Impossible or certain classes: bits of probability 0 and 1, masked categories."""

import numpy as np
import pytest
from scipy import integrate
from scipy.special import expit, logit, rel_entr
from scipy.stats import norm

from gs_ppl import reference, temperature

FAMILIES = [
    ("GumbelSoftmax", "categorical"),
    ("GumbelSoftmax", "relaxed"),
    ("STGumbelSoftmax", "categorical"),
    ("StraightThrough", "categorical"),
    ("ReinMax", "categorical"),
    ("GumbelRao", "categorical"),
    ("GappedST", "categorical"),
]
P = np.array([0.0, 1.0, 0.3])
TAU = 0.5


@pytest.mark.parametrize(("family", "objective"), FAMILIES)
def test_a_sure_bit_is_its_value(backend, family, objective):
    """The relaxed bit has the same value, and its score is that of its mass, log 1, also with
    densities."""

    def model():
        with backend.ppl.plate("data", 3):
            backend.ppl.sample("z", backend.native.Bernoulli(probs=backend.array(P)))

    options = {"family": getattr(backend.gs, family), "objective": objective}
    with backend.ppl.validation_enabled():
        fn, value = backend.sites(backend.gs.relax(model, TAU, **options), 0)["z"]
        assert backend.numpy(value)[:2].tolist() == [0.0, 1.0]
        y = backend.numpy(value)[2]
        wanted = y * np.log(0.3) + (1 - y) * np.log(0.7)
        if objective == "relaxed":
            wanted = reference.gumbel_sigmoid_log_prob(TAU, logit(0.3), logit(y))
        for copy in (value, 1.0 * value):  # a sample of the law, and any value
            score = backend.numpy(fn.log_prob(copy))
            assert score[:2].tolist() == [0.0, 0.0]
            assert score[2] == pytest.approx(wanted, rel=1e-6)
        wrong = backend.numpy(fn.log_prob(1 - value))
    assert wrong[:2].tolist() == [-np.inf, -np.inf]


LAWS = ["SoftBernoulli", "STGumbelSigmoid", "ReinMaxBernoulli", "GumbelSigmoid"]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("what", ["probs", "logits"])
def test_a_sure_bit_has_no_gradient(backend, law, what):
    make = getattr(backend.gs, law)
    given = P if what == "probs" else np.array([-np.inf, np.inf, -0.4])

    def total(x):
        d = make(TAU, **{what: x})
        value = backend.sample(d, 0, ())
        entropy = 0.0 if law == "GumbelSigmoid" else d.entropy()
        return (value + d.log_prob(value) + d.log_prob(1.0 * value) + entropy).sum()

    (gradient,) = backend.grad(total, backend.array(given))
    assert gradient[:2].tolist() == [0.0, 0.0]
    assert np.isfinite(gradient[2])
    assert gradient[2] != 0


@pytest.mark.parametrize("law", ["SoftBernoulli", "GumbelSigmoid"])
def test_the_value_of_a_sure_bit_has_no_gradient(backend, law):
    """log_prob has no gradient at the value of a sure bit; at other values it has."""
    d = getattr(backend.gs, law)(TAU, probs=backend.array(P))
    (gradient,) = backend.grad(lambda y: d.log_prob(y).sum(), backend.array([0.0, 1.0, 0.6]))
    assert gradient[:2].tolist() == [0.0, 0.0]
    assert np.isfinite(gradient[2])
    assert gradient[2] != 0


def test_divergence_of_sure_bits(backend):
    """0 from itself, -log p if the other law allows the value, inf if not."""
    make = backend.gs.SoftBernoulli
    sure = make(0.5, probs=backend.array(np.array([0.0, 1.0, 1.0, 0.5])))
    other = make(0.5, probs=backend.array(np.array([0.0, 0.25, 0.0, 1.0])))
    found = backend.numpy(backend.kl(sure, other))
    np.testing.assert_allclose(found, [0.0, -np.log(0.25), np.inf, np.inf], rtol=1e-6)


def test_divergence_of_sure_bits_beside_densities(backend):
    """A point has no divergence from a density; from itself it is 0, without a gradient."""
    logits = np.array([-np.inf, np.inf, np.inf, -np.inf, 0.4, 0.4])
    others = np.array([-np.inf, np.inf, -np.inf, 0.3, np.inf, -0.7])
    make = backend.gs.GumbelSigmoid

    def divergences(a):
        return backend.kl(make(TAU, logits=a), make(TAU, logits=backend.array(others)))

    last = reference.exp_gumbel_softmax_kl([0.4, 0.0], [-0.7, 0.0])
    wanted = [0.0, 0.0, np.inf, np.inf, np.inf, last]
    np.testing.assert_allclose(backend.numpy(divergences(backend.array(logits))), wanted, rtol=1e-6)
    keep = backend.array([1.0, 1.0, 0.0, 0.0, 0.0, 1.0]) > 0
    (gradient,) = backend.grad(lambda a: divergences(a)[keep].sum(), backend.array(logits))
    assert gradient[:5].tolist() == [0.0] * 5
    assert gradient[5] > 0


@pytest.mark.parametrize("kind", ["transform", "noise"])
def test_sure_bits_drawn_from_noise(backend, kind):
    """Sure bits do not change the noise; sites that depend on them have the value."""

    def model():
        with backend.ppl.plate("data", 3):
            backend.ppl.sample("z", backend.native.Bernoulli(probs=backend.array(P)))

    relaxed = backend.gs.relax(model, TAU, objective="relaxed")
    sites = backend.sites(backend.reparam(relaxed, {"z": kind}), 0)
    (noise,) = (name for name in sites if name != "z")
    fn, value = sites[noise]
    x = backend.numpy(value)
    free = np.array([0.0, 0.0, logit(0.3)])
    wanted = expit(x if kind == "transform" else (free + x) / TAU)
    if "z" in sites:
        np.testing.assert_allclose(backend.numpy(sites["z"][1]), [0.0, 1.0, wanted[2]], rtol=1e-5)
    density = reference.logistic_log_prob(*((TAU, free) if kind == "transform" else (1.0, 0.0)), x)
    np.testing.assert_allclose(backend.numpy(fn.log_prob(value)), density, rtol=1e-5)


# --- programs -------------------------------------------------------------------------------------

ROWS = 4000
Q, PHI = (0.7, 0.45), (0.6, 0.8)  # of the guide and of the model: alive, and seen if alive


def mean_of(f, objective):
    """E f(y) for the relaxed bit alive, by quadrature over its logit; if hard, by its two
    values."""
    if objective == "hard":
        return Q[0] * f(1.0) + (1 - Q[0]) * f(0.0)
    density = lambda x: np.exp(reference.logistic_log_prob(TAU, logit(Q[0]), x))  # noqa: E731
    return integrate.quad(lambda x: density(x) * f(expit(x)), -25, 25, limit=200)[0]


def divergence(q, p, objective):
    if objective == "relaxed":
        a, b = ([logit(x), 0.0] for x in (q, p))
        return float(reference.exp_gumbel_softmax_kl(a, b))
    return rel_entr([q, 1 - q], [p, 1 - p]).sum()


@pytest.mark.parametrize(("family", "objective"), FAMILIES[:4])
def test_seen_if_alive(backend, family, objective):
    """Bernoulli(phi alive) with a latent bit alive: it is 0 where alive is 0."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array
    options = {"family": getattr(gs, family), "objective": objective}

    def program(p):
        def run():
            with ppl.plate("rows", ROWS):
                alive = ppl.sample("alive", backend.native.Bernoulli(probs=array(p[0])))
                ppl.sample("seen", backend.native.Bernoulli(probs=array(p[1]) * alive))

        return gs.relax(run, TAU, **options)

    model, guide = program(PHI), program(Q)
    loss = backend.infer.TraceMeanField_ELBO()
    gs.check(model, guide, loss)
    kind = "hard" if family != "GumbelSoftmax" else objective
    first = divergence(Q[0], PHI[0], kind)
    below = lambda alive: divergence(Q[1] * alive, PHI[1] * alive, kind)  # noqa: E731
    mean, square = mean_of(below, kind), mean_of(lambda y: below(y) ** 2, kind)
    error = np.sqrt((square - mean**2) / ROWS)
    found = backend.losses(loss, model, guide, 1)[0] / ROWS
    assert found == pytest.approx(first + mean, abs=4 * error)


def test_seen_if_known_to_be_alive(backend):
    """objective="relaxed" with data: sure bits add their likelihood, and nothing else."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array
    alive, x = np.array([1.0, 0.0, 1.0]), np.array([0.3, -0.4, 1.2])
    a = np.array([0.2, -np.inf, -0.6])  # of the guide

    def model():
        with ppl.plate("rows", 3):
            p = array(PHI[1]) * array(alive)
            z = ppl.sample("z", backend.native.Bernoulli(probs=p))
            ppl.sample("x", backend.native.Normal(2 * z, 1.0), obs=array(x))

    relaxed = gs.relax(model, TAU, objective="relaxed")
    guide = gs.AutoGumbelSoftmax(model, TAU, objective="relaxed", init_logits={"z": array(a)})
    elbo = backend.infer.TraceMeanField_ELBO()
    gs.check(relaxed, guide, elbo)

    def row(a, x):
        """Divergence, mean and spread of the likelihood."""
        density = lambda t: np.exp(reference.logistic_log_prob(TAU, a, t))  # noqa: E731
        log_p = lambda t: -0.5 * (x - 2 * expit(t)) ** 2 - 0.5 * np.log(2 * np.pi)  # noqa: E731
        mean, square = (
            integrate.quad(lambda t: density(t) * log_p(t) ** n, -25, 25, limit=200)[0]  # noqa: B023
            for n in (1, 2)
        )
        return divergence(expit(a), PHI[1], "relaxed") - mean, square - mean**2

    (first, first_variance), (last, last_variance) = row(a[0], x[0]), row(a[2], x[2])
    sure = 0.5 * x[1] ** 2 + 0.5 * np.log(2 * np.pi)
    count = 100
    error = np.sqrt((first_variance + last_variance) / count)
    found = backend.losses(elbo, relaxed, guide, count).mean()
    assert found == pytest.approx(first + sure + last, abs=4 * error)
    ((_, gradient),) = backend.gradients(elbo, relaxed, guide, [0])
    (by_logits,) = gradient.values()
    assert by_logits[1] == 0
    assert np.isfinite(by_logits).all()
    assert (by_logits[[0, 2]] != 0).all()


# --- the automatic guide --------------------------------------------------------------------------


def masked(backend):
    """A vector with an impossible second category, and a bit with an impossible first value."""

    def model():
        z = backend.ppl.sample(
            "z", backend.gs.OneHotCategorical(probs=backend.array([0.5, 0.0, 0.5]))
        )
        b = backend.ppl.sample("b", backend.native.Bernoulli(probs=backend.array(1.0)))
        loc = backend.gs.select(backend.array([-1.0, 9.0, 1.0]), z) + b
        backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(1.0))

    return model


@pytest.mark.parametrize("given", [False, True], ids=["by itself", "by init_logits"])
def test_guide_starts_without_impossible_classes(backend, given):
    """Exact at the start: q is uniform over the two categories that exist."""
    model = masked(backend)
    start = {"z": backend.array([0.0, -np.inf, 0.0]), "b": backend.array(0.0)}
    guide = backend.gs.AutoGumbelSoftmax(model, **({"init_logits": start} if given else {}))
    relaxed = backend.gs.relax(model)
    loss = backend.infer.TraceMeanField_ELBO()
    losses, params = backend.anneal(relaxed, guide, loss, temperature.constant(0.5), 5)
    assert np.isfinite(losses).all()
    probs = backend.guide_probs(guide, params)
    assert probs["z"][1] == 0
    assert probs["b"] == 1


def test_what_depends_on_a_latent_stays_free(backend):
    """A category may be impossible in the prototype, given its draw of the parent, and possible
    later."""

    def model():
        ppl, array = backend.ppl, backend.array
        z = ppl.sample("z", backend.gs.OneHotCategorical(probs=array([0.5, 0.5])))
        p = backend.gs.select(array(np.eye(2)), z, axis=0)
        ppl.sample("y", backend.gs.OneHotCategorical(probs=p))

    guide = backend.gs.AutoGumbelSoftmax(model, temperature=0.5)
    fn, _ = backend.sites(guide, 0)["y"]
    np.testing.assert_allclose(backend.numpy(fn.probs), [0.5, 0.5])


def test_rows_that_differ_under_subsampling_are_refused(backend):
    def model():
        probs = backend.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
        with backend.ppl.plate("data", 4, subsample_size=2):
            backend.ppl.sample("z", backend.gs.OneHotCategorical(probs=probs))

    with pytest.raises(ValueError, match=r"site 'z': the rows .*'data' .* init_logits"):
        backend.sites(backend.gs.AutoGumbelSoftmax(model, temperature=0.5), 0)


def impossible(backend, kind):
    """Bits of probability 0, 1 and .3 in rows; or vectors whose second class is impossible."""
    ppl, array = backend.ppl, backend.array

    def model():
        with ppl.plate("rows", 3):
            if kind == "bit":
                z = ppl.sample("z", backend.native.Bernoulli(probs=array(P)))
            else:
                z = ppl.sample("z", backend.gs.OneHotCategorical(probs=array([0.5, 0.0, 0.5])))
            loc = backend.gs.select(
                array([-1.0, 1.0, 9.0][: 3 - (kind == "bit")]), z, kind == "bit"
            )
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=array([0.3, -0.4, 1.2]))

    return model


@pytest.mark.parametrize("objective", ["categorical", "relaxed"])
@pytest.mark.parametrize("kind", ["bit", "one-hot"])
def test_discretized_and_enumerated(backend, kind, objective):
    """Evidence, ELBO and its gradient at the start of the automatic guide: uniform over other
    classes.

    Classes that are impossible in the model are impossible in the guide, and have no term.
    """
    gs, model = backend.gs, impossible(backend, kind)
    guide = gs.AutoGumbelSoftmax(model, TAU, objective=objective)
    backend.sites(guide, 0)
    p = np.stack([1 - P, P], -1) if kind == "bit" else np.array([[0.5, 0.0, 0.5]] * 3)
    locs = np.array([-1.0, 1.0] if kind == "bit" else [-1.0, 1.0, 9.0])
    joint = p * norm.pdf(np.array([[0.3], [-0.4], [1.2]]), locs)
    q = (p > 0) / (p > 0).sum(-1, keepdims=True)
    elbo = np.where(q > 0, q * np.log(np.where(q > 0, joint / np.where(q > 0, q, 1), 1)), 0).sum()
    loss = backend.infer.TraceEnum_ELBO(max_plate_nesting=1)
    for relaxed in (model, gs.relax(model, TAU, objective=objective)):
        for outer in (gs.discretize, lambda fn: fn):
            pair = [gs.config_enumerate(outer(fn)) for fn in (relaxed, guide)]
            value, gradient = backend.loss_and_gradient(loss, *pair, 0)
            assert value == pytest.approx(-elbo, rel=1e-5)
            (by_logits,) = gradient.values()
            assert np.isfinite(by_logits).all()
            assert (by_logits != 0).sum() == (1 if kind == "bit" else 6)
            assert backend.enumerated_loss(pair[0], lambda: None, 1) == pytest.approx(
                -np.log(joint.sum(-1)).sum(), rel=1e-5
            )
