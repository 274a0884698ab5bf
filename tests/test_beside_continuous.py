"""Automatic guides over discrete and continuous latents of the same program."""

from functools import partial

import numpy as np
import pytest
from programs import by_name, plain
from scipy import stats

from gs_ppl import temperature

LOCS, SCALE = np.array([-2.0, 2.0]), 0.5
CLASSES = np.arange(12) % 2
DATA = LOCS[CLASSES] + 0.8 + SCALE * np.random.default_rng(0).normal(size=12)
SCHEDULE = temperature.exponential(rate=0.01, minimum=0.2)


def shifted(backend):
    """A class for each row of a subsampled plate, and a shift shared by all rows."""
    ppl, gs, Normal = backend.ppl, backend.gs, backend.native.Normal

    def model():
        shift = ppl.sample("shift", Normal(backend.array(0.0), 1.0))
        with ppl.plate("data", 12, subsample_size=6) as rows:
            z = ppl.sample("z", gs.OneHotCategorical(logits=backend.array(np.zeros(2))))
            loc = gs.select(backend.array(LOCS), z) + shift
            ppl.sample("x", Normal(loc, SCALE), obs=backend.array(DATA)[rows])

    return model


def mean_of_shift():
    """Posterior mean by a grid."""
    grid = np.linspace(-2, 3, 2001)[:, None, None]
    terms = np.logaddexp.reduce(stats.norm(grid + LOCS, SCALE).logpdf(DATA[:, None]), -1).sum(-1)
    weight = np.exp(terms - terms.max() - grid[:, 0, 0] ** 2 / 2)
    return (weight @ grid[:, 0, 0]) / weight.sum()


def check_fit(backend, guide, model, family):
    relaxed = backend.gs.relax(model, family=family)
    elbo = backend.infer.TraceMeanField_ELBO()
    losses, params = backend.anneal(relaxed, guide, elbo, SCHEDULE, steps=400, decay=0.995)
    assert np.isfinite(losses).all()
    median = backend.guide_median(guide, params)
    np.testing.assert_array_equal(median["z"].argmax(-1), CLASSES)
    assert median["shift"] == pytest.approx(mean_of_shift(), abs=0.15)
    (mode,) = backend.guide_mode(guide, params).values()  # only the discrete latents
    np.testing.assert_array_equal(mode, median["z"])
    np.testing.assert_array_equal(backend.guide_probs(guide, params)["z"].round(), mode)
    drawn = backend.trace(backend.gs.discretize(guide), 0)
    assert drawn["z"].shape == (6, 2)
    return params


@pytest.mark.parametrize(
    ("continuous", "family"),
    [
        ("AutoNormal", "STGumbelSoftmax"),
        ("AutoMultivariateNormal", "GumbelSoftmax"),
        ("AutoLowRankMultivariateNormal", "STGumbelSoftmax"),
        ("AutoDelta", "GumbelSoftmax"),
    ],
)
def test_in_one_line(backend, continuous, family):
    model, family = shifted(backend), getattr(backend.gs, family)
    part = getattr(backend.infer.autoguide, continuous)
    guide = backend.gs.auto_relaxed(model, part, family=family)
    check_fit(backend, guide, model, family)


@pytest.mark.parametrize("relaxed", [False, True], ids=["as_written", "relaxed"])
def test_by_parts(backend, relaxed):
    """Parts that see the plate, and parts that do not; with and without a relaxed program."""
    gs, written = backend.gs, shifted(backend)
    model = gs.relax(written) if relaxed else written
    guide = gs.AutoGuideList(model)
    guide.append(backend.infer.autoguide.AutoNormal(backend.bare_block(model, hide=["z"])))
    guide.append(gs.AutoGumbelSoftmax(backend.bare_block(model, expose=["z"])))
    params = check_fit(backend, guide, written, gs.GumbelSoftmax)
    quantiles = backend.guide_quantiles(guide, params, [0.1, 0.9])
    assert set(quantiles) == {"shift"}
    assert quantiles["shift"][0] < mean_of_shift() < quantiles["shift"][1]


def test_classes_that_the_data_rule_out(backend):
    """Nearly each draw of the prior has density 0, but the guide can start."""
    ppl, gs, native = backend.ppl, backend.gs, backend.native

    def model():
        ppl.sample("shift", native.Normal(backend.array(0.0), 1.0))
        with ppl.plate("data", 12):
            z = ppl.sample("z", gs.OneHotCategorical(logits=backend.array(np.zeros(2))))
            ppl.sample("x", native.Categorical(z), obs=backend.array(CLASSES, "int64"))

    drawn = backend.trace(gs.auto_relaxed(model, temperature=0.5), 0)
    assert np.isfinite(backend.numpy(drawn["shift"]))
    assert drawn["z"].shape == (12, 2)


def test_guides_that_need_the_whole_program(backend):
    """Without its discrete latents, a program has the Hessian of the prior."""
    laplace = partial(backend.infer.autoguide.AutoLaplaceApproximation)
    with pytest.raises(ValueError, match="AutoLaplaceApproximation needs the density of the whole"):
        backend.gs.auto_relaxed(shifted(backend), laplace)


def test_no_continuous_latent_is_left(backend):
    """The part for them is empty: the list reads the other parts."""
    model = plain(backend, by_name("factorial"))
    guide = backend.gs.auto_relaxed(model)
    elbo, schedule = backend.infer.TraceMeanField_ELBO(), temperature.constant(0.5)
    _, params = backend.anneal(backend.gs.relax(model), guide, elbo, schedule, steps=1)
    assert backend.guide_quantiles(guide, params, [0.5]) == {}
    assert set(backend.guide_probs(guide, params)) == set("abc")
    assert set(backend.guide_mode(guide, params)) == set("abc")
