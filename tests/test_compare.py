"""compare: exact numbers against summation by hand, estimates against what is known of them."""

import itertools

import numpy as np
import pytest
from enumerable import (
    CASES,
    RNG,
    automatic,
    by_name,
    log_joints,
    marginals_by_hand,
    one_site,
    plain,
    rows,
    slopes,
    toy_net,
)
from matplotlib.figure import Figure
from numpy.polynomial.hermite_e import hermegauss
from programs import BITS, DATA, LOCS, PRIOR, TRANSITION, laws, normal
from scipy.special import log_softmax, softmax

from gs_ppl import reference
from gs_ppl._shared import comparison
from gs_ppl.report import ALL, Value

# --- exact numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.quick("nested", "mixture", "dependent")
def test_exact_numbers_equal_summation(backend, case):
    """Evidence, posterior and guide marginals, ELBO and its gradient in the parameters."""
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
    """A mixture whose components share a normal shift; guide normal and mean-field."""
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
    """ELBO, and mean of log p(x, w) - log q(w), by Gauss-Hermite quadrature; log scale as given."""
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
    """Against quadrature, within 4.5 standard errors, in the logarithm of the scale."""
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
    """Estimator and exact gradient see the same continuous draws: their difference varies less."""
    session = backend.session(*shifted_mixture(backend))
    exact = session.elbo(100)[1]["loc"]
    estimate = session.relaxed(backend.gs.GumbelSoftmax, "categorical", 0.5, 100)[1]["loc"]
    assert (estimate - exact).var() < 0.7 * estimate.var()
    with_other_draws = estimate - np.roll(exact, 1, 0)
    assert (estimate - exact).var() < 0.5 * with_other_draws.var()


def test_noise_of_a_site_is_its_own(backend):
    """Whatever else is drawn, the estimate for one site stays."""
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
    """Evidence over random rows, scaled; marginals of each row exactly, since rows are separate."""
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
    assert set((gradient != 0).sum(1)) == {12}  # four rows at each draw


def test_a_row_that_no_draw_has_seen(backend):
    ppl, array = backend.ppl, backend.array

    def model():
        with ppl.plate("data", 6, subsample_size=1):
            ppl.sample("z", backend.gs.OneHotCategorical(probs=array(PRIOR)))

    session = backend.session(model, backend.gs.AutoGumbelSoftmax(model))
    seen = ~np.isnan(session.marginals("model", 2)[1]["z"]).any(-1)
    assert 1 <= seen.sum() <= 2


# --- estimates ------------------------------------------------------------------------------------


def test_bias_and_variance_of_straight_through(backend):
    """The ranges of the literature, about .3 at tau = .5 and .5 at tau = 1."""
    report = backend.compare(
        *toy_net(backend, 40),
        families=[backend.gs.STGumbelSoftmax],
        temperatures=[0.1, 0.5, 1.0],
        num_samples=60,
    )
    cold, half, one = (row.gradient for row in report.estimates)
    assert 0.15 < half.bias < 0.45
    assert 0.35 < one.bias < 0.65
    assert half.floor < 0.1 < half.bias < one.bias
    assert cold.variance > 2 * half.variance > 4 * one.variance
    assert cold.snr < half.snr < one.snr
    assert half.cosine > one.cosine > 0.8


def test_straight_through_has_the_discrete_objective(backend):
    """Within 4.5 standard errors, and the same at each temperature: the noise is."""
    case = CASES[0]
    model = case.program.build(backend, laws(backend, "OneHotCategorical"))
    guide = case.guide(backend, model, case.parameters)
    families = [backend.gs.STGumbelSoftmax]
    report = backend.compare(model, guide, families=families, temperatures=[0.2, 1.0])
    first, second = report.estimates
    assert first.elbo == second.elbo
    assert first.objective == "discrete"
    assert abs(first.elbo.mean - report.elbo.mean) < 4.5 * first.elbo.error
    assert report.elbo.mean == pytest.approx(case.elbo(case.parameters))
    assert first.gradient.size == 9


@pytest.mark.long
def test_estimators_of_the_discrete_program(backend):
    """No bias above four floors, where straight-through has more; and the exact ELBO."""
    gs = backend.gs
    names = ["RLOO_ELBO(4)", "MuProp_ELBO(1)", "REBAR_ELBO(1)"]
    elbos = [gs.RLOO_ELBO(4), gs.MuProp_ELBO(), gs.REBAR_ELBO()]
    report = backend.compare(
        *one_site(backend, np.array([0.0, 1.0, -0.5]), np.array([0.5, -0.4, 0.1])),
        families=[gs.STGumbelSoftmax, *elbos],
        temperatures=[0.5, 2.0],
        num_samples=400,
        adaptation_steps=20,  # no bias at any; see the next ones
    )
    assert [row.family for row in report.estimates[2:]] == names
    for row in report.estimates[2:]:
        assert np.isnan(row.temperature)
        assert row.objective == "discrete"
        assert abs(row.elbo.mean - report.elbo.mean) < 4.5 * row.elbo.error
        assert row.gradient.bias < 4 * row.gradient.floor < 0.5
    assert report.estimates[1].gradient.bias > 4 * report.estimates[1].gradient.floor
    assert all(name in str(report) for name in names)
    assert "KL gap" not in str(report)
    labels = report.plot().axes[1].get_legend_handles_labels()[1]
    assert set(names) < set(labels)
    with pytest.raises(TypeError, match=r"pass ELBOs as objects: RLOO_ELBO\(\)"):
        backend.compare(*one_site(backend, np.zeros(3), np.zeros(3)), families=[gs.RLOO_ELBO])


@pytest.mark.long
@pytest.mark.parametrize("x", [0.4, 9.0])
def test_baseline_has_adapted(backend, x):
    """NVIL's variance is that with the baseline E r, summed by hand, but for what the mean wavers.

    By 5 % where it is drawn anew; the bound is at 5 standard deviations of the running mean.
    """
    prior, logits = np.array([0.0, 1.0, -0.5]), np.array([0.5, -0.4, 0.1])
    pi, elbo = softmax(logits), backend.gs.NVIL_ELBO(normalize=False)
    r = log_softmax(prior) + normal(x, LOCS) - np.log(pi)
    G = (r - pi @ r)[:, None] * (np.eye(3) - pi)
    variance = pi @ (G**2).sum(-1) - (pi @ G @ (pi @ G))
    pair = one_site(backend, prior, logits, x=x)
    found = [
        backend.compare(*pair, families=[elbo], num_samples=1000).estimates[0] for _ in range(2)
    ]
    gradient = found[0].gradient
    assert gradient == found[1].gradient  # what the first one learnt has gone
    assert gradient.size == 3
    assert gradient.bias < 4 * gradient.floor
    assert gradient.variance < 2.3 * variance
    at_zero = pi @ ((r[:, None] * (np.eye(3) - pi)) ** 2).sum(-1)
    assert gradient.variance < 0.1 * at_zero or x < 1


@pytest.mark.long
def test_control_variate_has_adapted(backend):
    """REBAR's variance forgets its start, at which it was 8 times as large."""
    pair = one_site(backend, np.array([0.0, 1.0, -0.5]), np.array([0.5, -0.4, 0.1]), x=3.0)
    starts = [backend.gs.REBAR_ELBO(scale=scale) for scale in (-1.0, 1.0)]
    report = backend.compare(*pair, families=starts, num_samples=500)
    far, near = (row.gradient for row in report.estimates)
    assert far.size == near.size == 3
    assert far.bias < 4 * far.floor
    assert far.variance < 1.2 * near.variance


def test_gap_is_relaxed_kl_minus_categorical_kl(backend):
    prior, logits = np.array([0.0, 1.0, -0.5]), np.array([3.0, -2.0, 0.5])
    report = backend.compare(
        *one_site(backend, prior, logits),
        families=[backend.gs.GumbelSoftmax],
        temperatures=[0.3, 1.0],
        num_samples=4,
    )
    relaxed = reference.exp_gumbel_softmax_kl(logits, prior)
    gap = relaxed - reference.categorical_kl(logits, prior)
    assert [row.objective for row in report.estimates] == ["categorical"] * 2 + ["relaxed"] * 2
    for row in report.estimates:
        if row.objective == "relaxed":
            assert row.gap.mean == pytest.approx(gap, rel=1e-6)
            assert row.gap.error < 1e-6
        else:
            assert row.gap is None


def test_gradient_is_that_of_the_loss(backend):
    """At one site: the mean of what the PPL's own loss gives, within 4.5 standard errors."""
    model, guide = one_site(backend, np.zeros(3), np.array([0.5, -1.0, 0.2]), temperature=0.7)
    family, elbo = backend.gs.GumbelSoftmax, backend.infer.TraceMeanField_ELBO()
    _, gradients = backend.session(model, guide).relaxed(family, "categorical", 0.7, 200)
    relaxed = backend.gs.relax(model, 0.7)
    own = [backend.loss_and_gradient(elbo, relaxed, guide, seed)[1] for seed in range(40)]
    own = -np.array([next(iter(gradient.values())) for gradient in own])
    (got,) = gradients.values()
    error = np.sqrt(got.var(0) / len(got) + own.var(0) / len(own))
    assert (error > 0).all()
    assert (np.abs(got.mean(0) - own.mean(0)) < 4.5 * error).all()


@pytest.mark.parametrize("elbo", ["Trace_ELBO", "RenyiELBO"])
def test_other_losses(backend, elbo):
    """Three particles each: less variance, and a tighter bound by RenyiELBO."""
    session, draws = backend.session(*one_site(backend, np.zeros(3), np.zeros(3))), 60
    row = backend.gs.STGumbelSoftmax, "discrete", 0.5, draws
    alone, gradient = session.relaxed(*row)
    session = backend.session(*one_site(backend, np.zeros(3), np.zeros(3)))
    session.loss = getattr(backend.infer, elbo)(num_particles=3)
    values, averaged = session.relaxed(*row)
    (one,), (three,) = gradient.values(), averaged.values()
    assert three.var(0).sum() < 0.7 * one.var(0).sum()
    gain, error = values.mean() - alone.mean(), np.hypot(values.std(), alone.std()) / draws**0.5
    if elbo == "RenyiELBO":
        assert gain > 2 * error
    else:
        assert abs(gain) < 4.5 * error


def test_a_program_that_takes_the_temperature(backend):
    """Relaxed at that of the row, enumerated at 1."""
    ppl, array, gs = backend.ppl, backend.array, backend.gs

    def model(x, temperature):
        ppl.sample("z", gs.OneHotCategorical(probs=array(PRIOR)))
        ppl.sample("x", backend.native.Normal(array(0.0), temperature), obs=x)

    def guide(x, temperature):
        logits = ppl.param("logits", array(np.zeros(3)))
        ppl.sample("z", gs.GumbelSoftmax(temperature, logits=logits))

    families = [gs.STGumbelSoftmax]
    options = {"families": families, "temperatures": [0.5, 1.0], "num_samples": 3}
    report = backend.compare(model, guide, array(0.0), **options)
    cold, warm = (row.elbo.mean for row in report.estimates)
    assert cold - warm == pytest.approx(np.log(2))
    assert report.evidence.mean == pytest.approx(normal(0.0, 0.0))


def test_one_temperature_in_place_of_several(backend):
    pair = one_site(backend, np.zeros(3), np.ones(3))
    options = {"families": [backend.gs.STGumbelSoftmax], "num_samples": 3}
    one = backend.compare(*pair, temperature=0.3, **options)
    assert one.estimates == backend.compare(*pair, temperatures=[0.3], **options).estimates
    assert [row.temperature for row in one.estimates] == [0.3]


# --- what cannot be done --------------------------------------------------------------------------


def test_a_guide_without_parameters(backend):
    model, _ = one_site(backend, np.zeros(3), np.zeros(3))

    def guide():
        backend.ppl.sample("z", backend.gs.OneHotCategorical(probs=backend.array(PRIOR)))

    report = backend.compare(model, guide, num_samples=3, temperature=0.5)
    assert [row.gradient for row in report.estimates] == [None] * 3
    assert str(report)
    assert report.plot().axes
    assert report.to_dataset().sizes["parameter"] == 0


def test_a_limit_to_the_tables(backend):
    """At 72 entries, a x b x c x data, the factorial program is enumerated; at 71 it is not."""
    model = plain(backend, "factorial")
    guide = backend.gs.AutoGumbelSoftmax(model)
    options = {"families": [backend.gs.STGumbelSoftmax], "temperature": 0.5, "num_samples": 5}
    enough = backend.compare(model, guide, max_entries=72, **options)
    assert enough.evidence.mean == pytest.approx(by_name("factorial").evidence())
    assert enough.notes == ()
    report = backend.compare(model, guide, max_entries=71, **options)
    assert report.evidence is None
    assert report.elbo is None
    assert report.marginals == {}
    for note in report.notes:
        assert "a table over a, b, c would have 72 entries, more than max_entries = 71" in note
    assert len(report.notes) == 2
    (row,), (known,) = report.estimates, enough.estimates
    assert row.elbo == known.elbo
    assert (row.gradient.variance, row.gradient.snr) == (
        known.gradient.variance,
        known.gradient.snr,
    )
    assert np.isnan([row.gradient.bias, row.gradient.floor, row.gradient.cosine]).all()
    assert "not enumerated" in str(report)
    assert report.best == ()
    assert "nan" not in str(report)
    assert report.plot().axes
    assert np.isnan(report.to_dataset()["evidence"])


def test_an_error_in_every_run_is_raised(backend):
    """Only what enumeration alone refuses becomes a note."""
    guide = backend.gs.AutoGumbelSoftmax(plain(backend, "factorial"))

    def broken():
        raise ValueError("the program's own")

    with pytest.raises(ValueError, match="the program's own"):
        backend.compare(
            broken,
            guide,
            families=[backend.gs.STGumbelSoftmax],
            temperature=0.5,
            num_samples=5,
        )


def test_the_guide_alone_may_be_enumerated(backend):
    """Its ELBO averages each score by itself, where the model's evidence joins them."""
    table = {"model": (10**9, ["z"]), "guide": (1, ["z"])}
    session = backend.session(*one_site(backend, np.zeros(3), np.zeros(3)))
    session.table = table.get
    families = [backend.gs.STGumbelSoftmax]
    report = comparison.run(
        session, comparison.Options(families, [], [0.5], 3, 1, [], 100, progress_bar=False)
    )
    assert report.evidence is None
    assert report.elbo is not None
    assert list(report.marginals) == ["z"]
    assert report.marginals["z"].exact is None
    assert np.isfinite(report.estimates[0].gradient.bias)
    assert "1.0e9 entries" in report.notes[0]
    assert str(report)
    assert report.plot().axes
    assert report.to_dataset()


def test_joined_sites_are_noted(backend):
    ppl, gs = backend.ppl, backend.gs

    def model():
        law = gs.OneHotCategorical(probs=backend.array(np.tile(PRIOR, (2, 1)))).to_event(1)
        z = ppl.sample("z", law)
        loc = (z * backend.array(LOCS)).sum(-1).sum(-1)
        ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(0.4))

    report = backend.compare(model, gs.AutoGumbelSoftmax(model), num_samples=3, temperature=0.5)
    assert report.evidence is None
    assert len(report.notes) == 2
    assert all("site 'z': to_event joins" in note for note in report.notes)
    assert [row.family for row in report.estimates] == ["GumbelSoftmax"] * 2 + ["STGumbelSoftmax"]


def test_a_score_of_all_rows_is_not_summed_to_a_wrong_number(backend):
    """NumPyro would give a finite number here, as if all rows had one common value."""
    ppl, array = backend.ppl, backend.array

    def model():
        with ppl.plate("units", 3):
            h = ppl.sample("h", backend.native.Bernoulli(probs=array(BITS)))
        ppl.sample("x", backend.native.Normal((h * array(1.0)).sum(-1), 1.0), obs=array(1.0))

    guide = backend.gs.AutoGumbelSoftmax(model)
    report = backend.compare(
        model, guide, families=[backend.gs.STGumbelSoftmax], num_samples=3, temperature=0.5
    )
    assert report.evidence is None
    assert all("'x' depends on all rows of 'h'" in note for note in report.notes)
    assert len(report.estimates) == 1


def test_sites_coupled_across_plates_are_noted(backend):
    ppl, array, gs = backend.ppl, backend.array, backend.gs

    def model():
        rows, columns = ppl.plate("rows", 2, dim=-1), ppl.plate("columns", 3, dim=-2)
        with rows:
            z = ppl.sample("z", gs.OneHotCategorical(probs=array(PRIOR)))
        with columns:
            w = ppl.sample("w", gs.OneHotCategorical(probs=array(PRIOR)))
        with rows, columns:
            loc = gs.select(array(LOCS), z) * gs.select(array(LOCS), w)
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=array(DATA.reshape(3, 2)))

    guide = backend.gs.AutoGumbelSoftmax(model)
    report = backend.compare(
        model, guide, families=[gs.STGumbelSoftmax], num_samples=3, temperature=0.5
    )
    assert report.evidence is None
    assert "'w', 'z' depend on each other across plates" in report.notes[0]


def test_a_relaxation_that_is_refused(backend):
    def model():
        backend.ppl.sample("n", backend.native.Categorical(probs=backend.array(PRIOR)))

    families = {"families": [backend.gs.ExpGumbelSoftmax], "objectives": ["categorical"]}
    with pytest.raises(ValueError, match="site 'n': objective='categorical' scores masses"):
        backend.compare(model, model, num_samples=2, **families)


def test_too_few_samples(backend):
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        backend.compare(*one_site(backend, np.zeros(3), np.zeros(3)), num_samples=1)
    with pytest.raises(ValueError, match="adaptation_steps must be at least 1, got 0"):
        backend.compare(*one_site(backend, np.zeros(3), np.zeros(3)), adaptation_steps=0)


# --- kinds of parameter, and the choice of a family -----------------------------------------------


def of_all_kinds(backend):
    """A parameter of the model; w from (loc, scale), z from logits, w and a weight for both."""
    ppl, array, gs, Normal = backend.ppl, backend.array, backend.gs, backend.native.Normal
    positive = backend.native.constraints.positive

    def model():
        noise = ppl.param("noise", array(1.5), constraint=positive)
        w = ppl.sample("w", Normal(array(0.0), 1.0))
        z = ppl.sample("z", gs.OneHotCategorical(probs=array(PRIOR)))
        ppl.sample("x", Normal(gs.select(array(LOCS), z) + w, noise), obs=array(0.4))

    def guide():
        loc, scale = ppl.param("loc", array(0.1)), ppl.param("scale", array(1e-4))
        both = ppl.param("both", array(0.3))
        w = ppl.sample("w", Normal(loc + both, scale))
        ppl.sample(
            "z", gs.OneHotCategorical(logits=ppl.param("a", array([0.5, 0.0, 0.2])) + w * both)
        )

    return model, guide


def test_kinds_of_parameters(backend):
    """Of the logits is what the law of z takes; what reaches it by way of w is not."""
    families, cost = [backend.gs.STGumbelSoftmax, backend.gs.RLOO_ELBO()], {"RLOO_ELBO(2)": 3.0}
    report = backend.compare(
        *of_all_kinds(backend), families=families, temperature=0.5, num_samples=100, cost=cost
    )
    for row in report.estimates:
        sizes = {kind: g.size for kind, g in row.kinds.items()}
        assert sizes == {"logits": 4, "continuous": 2, "model": 1}
        assert row.gradient.size == 6
        assert row.kinds == {"logits": row.logits, "continuous": row.continuous, "model": row.model}
        # the derivative by log(noise), w being 0.4 but for 1e-4
        log_q = log_softmax(np.array([0.5, 0.0, 0.2]) + 0.4 * 0.3)
        slope = np.exp(log_q) @ ((LOCS / 1.5) ** 2 - 1)
        assert row.model.exact == pytest.approx(abs(slope), rel=1e-3)
        assert row.model.bias < 4 * row.model.floor
    st, rloo = report.estimates
    assert (st.cost, rloo.cost) == (1.0, 3.0)
    bias = (rloo.logits.bias**2 - rloo.logits.floor**2) * rloo.logits.exact**2
    expected = (bias + rloo.logits.variance * 3 / 100) / rloo.logits.exact**2
    assert rloo.squared_error.mean == pytest.approx(expected)
    assert report.best[0] in report.estimates
    text, html = str(report), report._repr_html_()
    for shown in ("continuous", "model", "cost", report.best[0].label):
        assert shown in text
        assert shown in html
    assert repr(report).endswith(f"2 estimates, best: {report.best[0].label})")
    data = report.to_dataset()
    assert float(data["bias_by_kind"].sel(kind="model")[1]) == rloo.model.bias
    assert data["cost"].values.tolist() == [1.0, 3.0]


@pytest.mark.only("pyro")  # whose AutoNormal has auxiliary sites
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


# --- relabelling ----------------------------------------------------------------------------------


def test_relabel(backend):
    """A guide that has the classes of the posterior in another order."""
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


# --- the report -----------------------------------------------------------------------------------


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
    assert data.sizes["parameter"] == 4  # three sites and all together
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
    """Random state, parameters and their grad."""
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


@pytest.mark.only("pyro")
def test_torch_modules(backend):
    """Weights of an encoder, by name."""
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
    """As SVI gives them, constrained; the model's too."""
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
    """NumPyro's parts see the same rows under enumeration too; the exact numbers come."""
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
