"""The table of pairings: guide family x model family x ELBO, each with its reference or its error.

The program is the mixture of three categories below; the guide has logits that are not the
posterior's. References: "discrete": the ELBO of the discrete program, by summation; "relaxed": the
ELBO of the relaxed program, by quadrature of its KL and Monte Carlo of its likelihood;
"categorical": exact categorical KL and Monte Carlo of the likelihood at soft values (the paper's).
"""

import numpy as np
import pytest
from programs import LOCS, PRIOR
from scipy import stats

from gs_ppl import reference

TAU = 0.7
X = 0.4
GUIDE = np.array([0.5, 0.2, -0.3])
LOG_Q = GUIDE - np.logaddexp.reduce(GUIDE)


def likelihood(z):
    return stats.norm(z @ LOCS).logpdf(X)


def soft_likelihood(draws=400_000):
    """Mean of log p(x | y) over relaxed samples of the guide, and its standard error."""
    noise = np.random.default_rng(0).exponential(size=(draws, 3))
    terms = likelihood(np.exp(reference.exp_gumbel_softmax_sample(TAU, GUIDE, noise)))
    return terms.mean(), terms.std() / np.sqrt(draws)


def reference_loss(kind):
    if kind == "discrete":
        return (np.exp(LOG_Q) * (LOG_Q - np.log(PRIOR) - likelihood(np.eye(3)))).sum()
    kl = {"relaxed": reference.exp_gumbel_softmax_kl, "categorical": reference.categorical_kl}[kind]
    return kl(GUIDE, np.log(PRIOR)) - soft_likelihood()[0]


def law(backend, family, logits):
    if family == "Native":
        return backend.native.OneHotCategorical(logits=logits)
    if family == "Categorical":
        return backend.native.Categorical(logits=logits)
    make = getattr(backend.gs, family)
    return make(logits=logits) if family == "OneHotCategorical" else make(TAU, logits=logits)


def programs(backend, guide_family, model_family):
    gs, array, Normal = backend.gs, backend.array, backend.native.Normal

    def model():
        z = backend.ppl.sample("z", law(backend, model_family, array(np.log(PRIOR))))
        backend.ppl.sample("x", Normal(gs.select(array(LOCS), z), 1.0), obs=array(X))

    def guide():
        backend.ppl.sample("z", law(backend, guide_family, array(GUIDE)))

    return model, guide


MEAN_FIELD, TRACE = "TraceMeanField_ELBO", "Trace_ELBO"
GOOD = [
    # guide, model, ELBO, reference
    ("STGumbelSoftmax", "STGumbelSoftmax", TRACE, "discrete"),
    ("STGumbelSoftmax", "STGumbelSoftmax", MEAN_FIELD, "discrete"),
    ("STGumbelSoftmax", "OneHotCategorical", TRACE, "discrete"),
    ("STGumbelSoftmax", "OneHotCategorical", MEAN_FIELD, "discrete"),
    ("STGumbelSoftmax", "SoftOneHotCategorical", TRACE, "discrete"),
    ("STGumbelSoftmax", "SoftOneHotCategorical", MEAN_FIELD, "discrete"),
    ("SoftOneHotCategorical", "SoftOneHotCategorical", MEAN_FIELD, "categorical"),
    ("GumbelSoftmax", "GumbelSoftmax", TRACE, "relaxed"),
    ("GumbelSoftmax", "GumbelSoftmax", MEAN_FIELD, "relaxed"),
]


@pytest.mark.parametrize(("guide", "model", "elbo", "kind"), GOOD)
def test_good_pairings(backend, guide, model, elbo, kind):
    model, guide = programs(backend, guide, model)
    backend.gs.check(model, guide, getattr(backend.infer, elbo)())
    losses = [
        backend.loss(elbo, model, guide, 500 if elbo == MEAN_FIELD else 5_000, s) for s in range(4)
    ]
    assert np.mean(losses) == pytest.approx(reference_loss(kind), abs=0.04)


BAD = [
    ("GumbelSoftmax", "OneHotCategorical", "mixes a density with a mass"),
    ("GumbelSoftmax", "STGumbelSoftmax", "mixes a density with a mass"),
    ("GumbelSoftmax", "SoftOneHotCategorical", "mixes a density with a mass"),
    ("STGumbelSoftmax", "GumbelSoftmax", "mixes a density with a mass"),
    ("SoftOneHotCategorical", "GumbelSoftmax", "mixes a density with a mass"),
    ("SoftOneHotCategorical", "OneHotCategorical", "scores soft values by a law of hard ones"),
    ("SoftOneHotCategorical", "STGumbelSoftmax", "scores soft values by a law of hard ones"),
    ("ExpGumbelSoftmax", "GumbelSoftmax", "mixes log-space with the simplex"),
    ("STGumbelSoftmax", "Categorical", "mixes class indices with vectors"),
    ("Categorical", "SoftOneHotCategorical", "mixes class indices with vectors"),
]


@pytest.mark.parametrize(("guide", "model", "message"), BAD)
def test_bad_pairings_are_refused(backend, guide, model, message):
    """Without the check, some of these report 96 for a KL of 0."""

    def program(family):
        return lambda: backend.ppl.sample("z", law(backend, family, backend.array(GUIDE)))

    message = f"site 'z': {guide}.* in the guide over {model}.* in the model {message}"
    with pytest.raises(ValueError, match=message):
        backend.gs.check(program(model), program(guide), backend.infer.Trace_ELBO())


def test_mask_on_one_side_is_refused(backend):
    def program(masked):
        one = law(backend, "GumbelSoftmax", backend.array(np.tile(GUIDE, (2, 1))))
        one = backend.mask(one, np.array([True, False])) if masked else one

        def run():
            with backend.ppl.plate("data", 2):
                backend.ppl.sample("z", one)

        return run

    backend.gs.check(program(True), program(True), backend.infer.Trace_ELBO())
    for model, guide in [(True, False), (False, True)]:
        with pytest.raises(ValueError, match=r"is masked in the .* alone"):
            backend.gs.check(program(model), program(guide), backend.infer.Trace_ELBO())


def test_site_that_nobody_takes_care_of_is_refused(backend):
    model, _ = programs(backend, "GumbelSoftmax", "GumbelSoftmax")
    elbo = backend.infer.TraceEnum_ELBO(max_plate_nesting=0)
    with pytest.raises(ValueError, match="neither in the guide nor enumerated"):
        backend.gs.check(model, lambda: None, elbo)
    backend.gs.check(backend.gs.config_enumerate(model), lambda: None, elbo)


def test_annealed_svi_checks(backend):
    """An un-relaxed guide over a relaxed model: found before the first step."""
    model, _ = programs(backend, "OneHotCategorical", "OneHotCategorical")
    guide = backend.gs.AutoGumbelSoftmax(model)
    relaxed = backend.gs.relax(model, objective="relaxed")
    with pytest.raises(ValueError, match="mixes a density with a mass"):
        backend.anneal(relaxed, guide, backend.infer.Trace_ELBO(), lambda t: 0.5, steps=1)


def test_check_leaves_the_random_state(backend):
    model, guide = programs(backend, "GumbelSoftmax", "GumbelSoftmax")
    first = backend.loss("Trace_ELBO", model, guide, 1, 0)
    backend.gs.check(model, guide, backend.infer.Trace_ELBO())
    assert backend.loss("Trace_ELBO", model, guide, 1, 0) == first
