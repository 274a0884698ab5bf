"""compare: exact numbers compared with summation by hand and quadrature; the report."""

import itertools

import numpy as np
import pytest
from enumerable import (
    CASES,
    RNG,
    automatic,
    log_joints,
    marginals_by_hand,
    one_site,
    plain,
    rows,
    slopes,
)
from matplotlib.figure import Figure
from numpy.polynomial.hermite_e import hermegauss
from programs import DATA, LOCS, PRIOR, laws, normal
from scipy.special import log_softmax, softmax

from gs_ppl.report import ALL, Value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.quick("nested", "mixture", "dependent")
def test_exact_numbers_equal_summation(backend, case):
    """Evidence, marginals of posterior and guide, ELBO and its gradient in the parameters."""
    session, program = case.session(backend), case.program
    evidence, posterior = session.marginals("model", 1)
    zero, guide = session.marginals("guide", 1)
    elbo, gradients = session.elbo(1)
    assert evidence == pytest.approx([program.evidence()], rel=1e-10)
    assert zero == pytest.approx([0.0], abs=1e-10)
    assert elbo == pytest.approx([case.elbo(case.parameters)], rel=1e-10)
    for got, log_weights in (
        (posterior, log_joints(program.name)),
        (guide, case.log_q(case.parameters)),
    ):
        assert list(got) == list(session.model.discrete)
        expected = marginals_by_hand(program, log_weights)
        for row, by_hand in zip(rows(got, program), expected, strict=True):
            np.testing.assert_allclose(row, by_hand, rtol=1e-8)
    expected = slopes(case.elbo, case.parameters)
    for got, by_hand in zip(gradients.values(), expected.values(), strict=True):
        np.testing.assert_allclose(got[0], by_hand, rtol=1e-6, atol=1e-8)


SHIFT = {
    "loc": np.array(0.3),
    "scale": np.array(0.5),
    "logits": np.round(RNG.normal(size=(3, 3)), 3),
}


def shifted_mixture(backend):
    """A mixture whose components share a normal shift; the guide is normal and mean-field."""
    ppl, array, gs, Normal = backend.ppl, backend.array, backend.gs, backend.native.Normal
    positive = backend.native.constraints.positive

    def model():
        w = ppl.sample("w", Normal(array(0.0), 1.0))
        with ppl.plate("data", 3):
            z = ppl.sample("z", gs.OneHotCategorical(probs=array(PRIOR)))
            ppl.sample("x", Normal(gs.select(array(LOCS), z) + w, 1.0), obs=array(DATA[:3]))

    def guide():
        loc = ppl.param("loc", array(SHIFT["loc"]))
        scale = ppl.param("scale", array(SHIFT["scale"]), constraint=positive)
        ppl.sample("w", Normal(loc, scale))
        logits = ppl.param("logits", array(SHIFT["logits"]))
        with ppl.plate("data", 3):
            ppl.sample("z", gs.OneHotCategorical(logits=logits))

    return model, guide


def shifted_by_quadrature(parameters):
    """ELBO, and mean of log p(x, w) - log q(w), by Gauss-Hermite quadrature; the scale is given as
    a log."""
    nodes, weights = hermegauss(40)
    weights = weights / weights.sum()
    loc, scale = parameters["loc"], np.exp(parameters["scale"])
    w = loc + scale * nodes
    log_ratio = normal(w, 0.0) - normal(nodes, 0.0) + np.log(scale)
    given = np.log(PRIOR) + normal(DATA[:3, None], LOCS + w[:, None, None])  # node, row, class
    log_q = log_softmax(parameters["logits"], -1)
    elbo = (np.exp(log_q) * (given - log_q)).sum((-1, -2)) + log_ratio
    evidence = np.logaddexp.reduce(given, -1).sum(-1) + log_ratio
    posterior = np.tensordot(weights, softmax(given, -1), 1)
    return weights @ elbo, weights @ evidence, posterior


def test_continuous_latents(backend):
    """Compared with quadrature, within 4.5 standard errors; the gradient is in the log scale."""
    draws, session = 250, backend.session(*shifted_mixture(backend))
    assert session.stochastic
    unconstrained = {**SHIFT, "scale": np.log(SHIFT["scale"])}
    elbo, evidence, posterior = shifted_by_quadrature(unconstrained)
    by_hand = slopes(lambda p: shifted_by_quadrature(p)[0], unconstrained)
    values, gradients = session.elbo(draws)
    log_evidence, marginals = session.marginals("model", draws)
    for got, expected in ((values, elbo), (log_evidence, evidence)):
        estimate = Value.of(got)
        assert 0 < estimate.error < 0.1
        assert abs(estimate.mean - expected) < 4.5 * estimate.error
    np.testing.assert_allclose(marginals["z"], posterior, atol=0.03)
    for name, expected in by_hand.items():
        got = gradients[name]
        error = got.std(0, ddof=1) / np.sqrt(draws)
        assert (np.abs(got.mean(0) - expected) < 4.5 * error + 1e-9).all()


def test_common_random_numbers(backend):
    """Estimator and exact gradient have the same continuous draws, so that their difference varies
    less."""
    session = backend.session(*shifted_mixture(backend))
    exact = session.elbo(100)[1]["loc"]
    estimate = session.relaxed(backend.gs.GumbelSoftmax, "categorical", 0.5, 100)[1]["loc"]
    assert (estimate - exact).var() < 0.7 * estimate.var()
    with_other_draws = estimate - np.roll(exact, 1, 0)
    assert (estimate - exact).var() < 0.5 * with_other_draws.var()


def test_noise_of_a_site_is_its_own(backend):
    """The estimate for one site does not depend on the draws of other sites."""
    ppl, gs, native = backend.ppl, backend.gs, backend.native

    def program(names):
        def model():
            for name in names:
                z = ppl.sample(name, gs.OneHotCategorical(probs=backend.array(PRIOR)))
            loc = gs.select(backend.array(LOCS), z)
            ppl.sample("x", native.Normal(loc, 1.0), obs=backend.array(0.4))

        return model, gs.AutoGumbelSoftmax(model, init_logits=0.5)

    options = {"families": [gs.STGumbelSoftmax], "temperature": 0.5, "num_samples": 10}
    alone, beside = (
        backend.compare(*program(names), **options).estimates[0].gradients for names in ("z", "wz")
    )
    (name,) = {*alone} - {ALL}
    assert alone[name].variance > 0.01
    assert alone[name].variance == pytest.approx(beside[name].variance, rel=1e-6)


def test_subsampled_plate(backend):
    """Evidence over random rows, scaled; marginals are exact for each row, because rows are
    independent."""
    ppl, array, gs = backend.ppl, backend.array, backend.gs

    def model():
        with ppl.plate("data", 6, subsample_size=4) as rows:
            z = ppl.sample("z", gs.OneHotCategorical(probs=array(PRIOR)))
            loc = gs.select(array(LOCS), z)
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=array(DATA)[rows])

    logits = np.round(RNG.normal(size=(6, 3)), 3)

    def guide():
        with ppl.plate("data", 6, subsample_size=4):
            law = gs.OneHotCategorical(logits=ppl.param("logits", array(logits), event_dim=1))
            ppl.sample("z", law)

    session = backend.session(model, guide)
    assert session.stochastic
    evidence, posterior = session.marginals("model", 60)
    elbo, gradients = session.elbo(60)
    given = np.log(PRIOR) + normal(DATA[:, None], LOCS)
    log_q = log_softmax(logits, -1)
    own = (np.exp(log_q) * (given - log_q)).sum(-1)
    for got, by_row in ((evidence, np.logaddexp.reduce(given, -1)), (elbo, own)):
        of_draws = [1.5 * sum(chosen) for chosen in itertools.combinations(by_row, 4)]
        assert np.abs(got[:, None] - of_draws).min(1).max() < 1e-8
        assert len(np.unique(got.round(6))) > 5
    np.testing.assert_allclose(posterior["z"], softmax(given, -1), rtol=1e-8)
    np.testing.assert_allclose(session.marginals("guide", 60)[1]["z"], np.exp(log_q), rtol=1e-8)
    (gradient,) = gradients.values()
    assert set((gradient != 0).sum(1)) == {12}  # four rows in each draw


def test_a_row_that_no_draw_has_seen(backend):
    ppl, array = backend.ppl, backend.array

    def model():
        with ppl.plate("data", 6, subsample_size=1):
            ppl.sample("z", backend.gs.OneHotCategorical(probs=array(PRIOR)))

    session = backend.session(model, backend.gs.AutoGumbelSoftmax(model))
    seen = ~np.isnan(session.marginals("model", 2)[1]["z"]).any(-1)
    assert 1 <= seen.sum() <= 2


def test_relabel(backend):
    """The guide has the classes of the posterior in another order."""
    posterior = softmax(np.log(PRIOR) + normal(DATA[:3, None], LOCS), -1)
    order = np.array([2, 0, 1])
    model = plain(backend, "mixture")
    guide = automatic(backend, model, {"z": np.log(posterior[:, order])})
    options = {"num_samples": 2, "families": [backend.gs.STGumbelSoftmax], "temperature": 0.5}
    as_it_is = backend.compare(model, guide, **options).marginals["z"]
    matched = backend.compare(model, guide, relabel=["z"], **options)
    expected = 0.5 * np.abs(posterior - posterior[:, order]).sum(-1)
    np.testing.assert_allclose(as_it_is.distance, expected, rtol=1e-6)
    assert matched.marginals["z"].distance.max() < 1e-6
    assert matched.marginals["z"].relabelled == tuple(np.argsort(order))
    assert "z (relabelled)" in str(matched)
    with pytest.raises(ValueError, match="relabel: no enumerated site is called 'y'"):
        backend.compare(model, guide, relabel=["y"], **options)


def test_a_bound_is_not_called_exact(backend):
    """With continuous latents the first number is a mean over draws of the guide."""
    options = {"families": (), "num_samples": 3}
    bound = backend.compare(*shifted_mixture(backend), **options)
    assert bound.evidence_name == "bound on the log evidence"
    assert "bound on the log evidence" in str(bound)
    model = plain(backend, "mixture")
    exact = backend.compare(model, backend.gs.AutoGumbelSoftmax(model), **options)
    assert exact.evidence_name == "log evidence"
    assert "bound" not in str(exact)


def test_rows_that_are_drawn_give_an_estimate(backend):
    """Without continuous latents it is right on average: no bound. Fails once in 16,000 seeds."""
    ppl, array, x = backend.ppl, backend.array, np.linspace(-1.0, 2.0, 6)

    def model():
        with ppl.plate("rows", 6, subsample_size=3) as rows:
            z = ppl.sample("z", backend.native.Categorical(probs=array(PRIOR)))
            ppl.sample("x", backend.native.Normal(array(LOCS)[z], 1.0), obs=array(x)[rows])

    guide = backend.gs.AutoGumbelSoftmax(model)
    report = backend.compare(model, guide, families=(), num_samples=300)
    assert report.evidence_name == "estimate of the log evidence"
    evidence = np.log((np.exp(normal(x[:, None], LOCS)) * PRIOR).sum(-1)).sum()
    assert abs(report.evidence.mean - evidence) < 4 * report.evidence.error


def test_report(backend):
    case = CASES[2]
    model = case.program.build(backend, laws(backend, "OneHotCategorical"))
    guide = case.guide(backend, model, case.parameters)
    report = backend.compare(model, guide, temperatures=[0.5, 1.0], num_samples=5)
    assert len(report.estimates) == 6
    text = str(report)
    for shown in (
        "log evidence",
        "GumbelSoftmax",
        "STGumbelSoftmax",
        "relaxed",
        "cos",
        "5 samples",
    ):
        assert shown in text
    figure = report.plot()
    assert isinstance(figure, Figure)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0].startswith("ELBO")
    assert "bias" in titles[1]
    assert "variance" in titles[2]
    assert [title.split(":")[0] for title in titles[3:]] == ["a", "b", "c"]
    data = report.to_dataset()
    assert data.sizes["estimate"] == 6
    assert data.sizes["parameter"] == 4  # three sites, and all together
    assert float(data["evidence"]) == pytest.approx(case.program.evidence())
    at_one = data.isel(estimate=5)
    assert str(at_one["family"].item()) == "STGumbelSoftmax"
    row = report.estimates[5]
    assert float(at_one["bias"].isel(parameter=-1)) == row.gradient.bias
    np.testing.assert_array_equal(data["a_exact"], report.marginals["a"].exact)


def test_same_seed_same_report(backend):
    pair = one_site(backend, np.zeros(3), np.ones(3))
    options = {"families": [backend.gs.STGumbelSoftmax], "temperature": 0.5, "num_samples": 5}
    first, second, other = (backend.compare(*pair, seed=s, **options) for s in (1, 1, 2))
    assert str(first) == str(second)
    assert first.to_dataset().identical(second.to_dataset())
    assert first.estimates != other.estimates


@pytest.mark.only("pyro")
def test_nothing_is_left_behind(backend):
    """Random state, parameters and their grad are unchanged."""
    torch, ppl = backend.torch, backend.ppl
    ppl.clear_param_store()
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    logits.grad = torch.ones_like(logits)
    model, _ = one_site(backend, np.zeros(3), np.zeros(3))

    def guide():
        ppl.sample("z", backend.gs.OneHotCategorical(logits=ppl.param("logits", logits)))

    torch.manual_seed(5)
    expected = torch.rand(3)
    for loss in (None, backend.infer.RenyiELBO(num_particles=2)):
        torch.manual_seed(5)
        options = {"families": [backend.gs.STGumbelSoftmax], "progress_bar": False}
        backend.gs.compare(model, guide, num_samples=2, loss=loss, **options)
        assert torch.equal(torch.rand(3), expected)
        assert torch.equal(ppl.get_param_store()["logits"].grad, logits.grad)
        assert (logits.grad == 1).all()


@pytest.mark.only("numpyro")
def test_parameters_that_are_not_given(backend):
    """NumPyro's compare has only the parameters that it is given; a note names the others."""
    ppl, options = backend.ppl, {"num_samples": 2, "families": (), "progress_bar": False}

    def model():
        loc = ppl.param("loc", backend.array(0.0))
        z = ppl.sample("z", backend.native.Bernoulli(probs=backend.array(0.5)))
        ppl.sample("x", backend.native.Normal(loc + z, 1.0), obs=backend.array(1.0))

    guide = backend.gs.AutoGumbelSoftmax(model)
    (note,) = backend.gs.compare(model, guide, **options).notes
    assert note.startswith("params= does not have z_auto_logits, loc: ")
    given = {"z_auto_logits": backend.array(1.0), "loc": backend.array(0.5)}
    (note,) = backend.gs.compare(model, guide, params={"loc": given["loc"]}, **options).notes
    assert note.startswith("params= does not have z_auto_logits: ")
    assert backend.gs.compare(model, guide, params=given, **options).notes == ()
    fixed = ppl.handlers.substitute(guide, data=given)
    (note,) = backend.gs.compare(model, fixed, **options).notes
    assert note.startswith("params= does not have loc: ")
