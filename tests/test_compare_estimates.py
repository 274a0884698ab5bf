"""compare: estimates of ELBO and gradient against known values, by kind of parameter."""

import numpy as np
import pytest
from enumerable import (
    CASES,
    one_site,
    toy_net,
)
from programs import LOCS, PRIOR, laws, normal
from scipy.special import log_softmax, softmax

from gs_ppl import reference


def test_bias_and_variance_of_straight_through(backend):
    """The values are in the ranges of the literature, about .3 at tau = .5 and .5 at tau = 1."""
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
    """Within 4.5 standard errors, and equal at all temperatures, which share the noise."""
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
    """No bias above four floors, where straight-through has more; the ELBO is exact."""
    gs = backend.gs
    names = ["RLOO_ELBO(4)", "MuProp_ELBO(1)", "REBAR_ELBO(1)"]
    elbos = [gs.RLOO_ELBO(4), gs.MuProp_ELBO(), gs.REBAR_ELBO()]
    report = backend.compare(
        *one_site(backend, np.array([0.0, 1.0, -0.5]), np.array([0.5, -0.4, 0.1])),
        families=[gs.STGumbelSoftmax, *elbos],
        temperatures=[0.5, 2.0],
        num_samples=400,
        adaptation_steps=20,  # the bias is 0 after any number of them; the next tests test the rest
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
    """NVIL's variance is the variance with the baseline E r, summed by hand.

    The running mean adds 5 %; the bound is at 5 of its standard deviations.
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
    assert gradient == found[1].gradient  # nothing that the first run has learnt remains
    assert gradient.size == 3
    assert gradient.bias < 4 * gradient.floor
    assert gradient.variance < 2.3 * variance
    at_zero = pi @ ((r[:, None] * (np.eye(3) - pi)) ** 2).sum(-1)
    assert gradient.variance < 0.1 * at_zero or x < 1


@pytest.mark.long
def test_control_variate_has_adapted(backend):
    """REBAR's variance is no longer that of its start, which was 8 times as large."""
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
    """At one site: the mean gradient of the PPL's loss, within 4.5 standard errors."""
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
    """Three particles: less variance, and a tighter bound by RenyiELBO."""
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
    """Relaxed at the temperature of the row, enumerated at 1."""
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


def of_all_kinds(backend):
    """A model parameter; w from (loc, scale), z from logits and w; one weight is in both."""
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
    """A parameter of z's law counts as logits, but not if it reaches z only through w."""
    families, cost = [backend.gs.STGumbelSoftmax, backend.gs.RLOO_ELBO()], {"RLOO_ELBO(2)": 3.0}
    report = backend.compare(
        *of_all_kinds(backend), families=families, temperature=0.5, num_samples=100, cost=cost
    )
    for row in report.estimates:
        sizes = {kind: g.size for kind, g in row.kinds.items()}
        assert sizes == {"logits": 4, "continuous": 2, "model": 1}
        assert row.gradient.size == 6
        assert row.kinds == {"logits": row.logits, "continuous": row.continuous, "model": row.model}
        # derivative in log(noise); w is 0.4 up to 1e-4
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
