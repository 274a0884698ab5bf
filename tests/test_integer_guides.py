"""Guides and estimators of programs with integers: which of them fit, and their values."""

import itertools
from functools import partial

import numpy as np
import pytest
from indexed import (
    CLASSES,
    LOCS,
    PRIOR,
    Side,
    X,
    arrivals,
    change_point,
    counted,
    draw,
    hand_written,
    ids,
    markov_chain,
    mixture,
)
from joint_tables import best_mean_field, elbo
from scipy.stats import norm


@pytest.mark.parametrize("program", [markov_chain, change_point], **ids)
@pytest.mark.quick("change_point")
def test_a_trained_guide_is_near_the_best(backend, program):
    s, x, gs = Side(backend), backend.array(X), backend.gs
    model = lambda: program(s, x)  # noqa: E731
    names = list(backend.trace(model, 0))
    sizes = [CLASSES[name.rstrip("0123456789")] for name in names]
    table = np.empty(sizes)
    for cell in itertools.product(*map(range, sizes)):
        values = {n: s.ints(k) for n, k in zip(names, cell, strict=True)}
        table[cell] = backend.log_joint(model, values)
    guide = gs.AutoGumbelSoftmax(model)
    loss = backend.infer.TraceMeanField_ELBO()
    schedule = lambda step: 0.9 - 0.6 * step / 600  # noqa: E731
    _, params = backend.anneal(gs.relax(model), guide, loss, schedule, 600)
    probs = backend.guide_probs(guide, params)
    assert elbo(table, [probs[n] for n in names]) > best_mean_field(table) - 0.3
    mode = backend.guide_mode(guide, params)
    assert all(mode[n] == probs[n].argmax() for n in names)
    draw = backend.trace(gs.discretize(gs.AutoGumbelSoftmax(model, 0.5)), 0)
    assert all(
        np.ndim(draw[n]) == 0 and int(draw[n]) in range(k)
        for n, k in zip(names, sizes, strict=True)
    )


def test_compare(backend):
    """The exact numbers agree with the enumerated table of log joints."""
    s, x, gs = Side(backend), backend.array(X), backend.gs
    model = lambda: change_point(s, x)  # noqa: E731
    report = backend.compare(
        model,
        gs.AutoGumbelSoftmax(model),
        families=[gs.STGumbelSoftmax],
        temperature=0.5,
        num_samples=3,
    )
    table = np.array([backend.log_joint(model, {"t": s.ints(k)}) for k in range(4)])
    evidence = np.logaddexp.reduce(table)
    np.testing.assert_allclose(report.evidence.mean, evidence, rtol=1e-5)
    np.testing.assert_allclose(report.elbo.mean, table.mean() + np.log(4), rtol=1e-5)
    np.testing.assert_allclose(report.marginals["t"].exact, np.exp(table - evidence), rtol=1e-4)


GUIDES = {  # law of the guide, whether it is relaxed, the refusal
    "Categorical": (lambda s, a: s.d.Categorical(logits=a), True, None),
    "OneHotCategorical": (lambda s, a: s.backend.gs.OneHotCategorical(logits=a), True, None),
    "hard": (lambda s, a: s.backend.gs.STGumbelSoftmax(0.5, logits=a), False, None),
    "soft": (lambda s, a: s.backend.gs.SoftOneHotCategorical(0.5, logits=a), False, None),
    "density": (
        lambda s, a: s.backend.gs.GumbelSoftmax(0.5, logits=a),
        False,
        "density with a mass",
    ),
    "indices": (
        lambda s, a: s.d.Categorical(logits=a),
        False,
        r"'z': .*class indices .* relax\(guide\), .*AutoGumbelSoftmax",
    ),
}


@pytest.mark.parametrize("case", GUIDES)
def test_which_guides_fit(backend, case):
    make, relaxed, message = GUIDES[case]
    s, gs, x = Side(backend), backend.gs, backend.array(X)
    guide = hand_written(s, lambda a: make(s, a))
    guide = gs.relax(guide, 0.5) if relaxed else guide
    pair = gs.relax(lambda: mixture(s, x), 0.5), guide
    mean_field = backend.infer.TraceMeanField_ELBO()
    if message is None:
        gs.check(*pair, mean_field)
        return
    with pytest.raises(ValueError, match=message):
        gs.check(*pair, mean_field if case == "density" else backend.infer.Trace_ELBO())


def one_draw(s, x):
    z = draw(s, "z", s.array(PRIOR), False)
    s.ppl.sample("x", s.d.Normal(s.array(LOCS)[z], 1.0), obs=x[0])


@pytest.mark.parametrize("elbo", ["Trace_ELBO", "TraceMeanField_ELBO"])
def test_a_bare_categorical_does_not_fit(backend, elbo):
    """A single draw is refused too, although no plate shows the error."""
    s, x = Side(backend), backend.array(X)
    guide = lambda: draw(s, "z", s.array(PRIOR), False)  # noqa: E731
    relaxed, loss = backend.gs.relax(lambda: one_draw(s, x), 0.5), getattr(backend.infer, elbo)()
    with pytest.raises(ValueError, match=r"'z': .*class indices .* relax\(guide\), .*AutoGumbel"):
        backend.gs.check(relaxed, guide, loss)


@pytest.mark.parametrize("objective", ["categorical", "relaxed"])
def test_a_relaxed_categorical_is_the_law_of_the_model(backend, objective):
    """Loss and gradient are those of the relaxed class written by hand."""
    s, gs, x = Side(backend), backend.gs, backend.array(X)
    loss = backend.infer.TraceMeanField_ELBO()
    by_hand = gs.SoftOneHotCategorical if objective == "categorical" else gs.GumbelSoftmax
    guides = [
        gs.relax(hand_written(s, lambda a: s.d.Categorical(logits=a)), 0.5, objective=objective),
        hand_written(s, lambda a: by_hand(0.5, logits=a)),
    ]
    relaxed = gs.relax(lambda: mixture(s, x), 0.5, objective=objective)
    found = []
    for guide in guides:
        getattr(backend.ppl, "clear_param_store", lambda: None)()  # NumPyro has no store
        found.append(backend.loss_and_gradient(loss, relaxed, guide, 2))
    (value, gradient), (wanted, slope) = found
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient["a"], slope["a"], rtol=0, atol=1e-12)


ESTIMATORS = ["MuProp_ELBO", "DARN_ELBO", "REBAR_ELBO"]


@pytest.mark.parametrize("elbo", ESTIMATORS)
def test_estimators_as_one_hot(backend, elbo):
    """Loss and gradient of one draw, with the same seed."""
    s, gs, x = Side(backend), backend.gs, backend.array(X)
    laws = {False: s.d.Categorical, True: gs.OneHotCategorical}
    found = []
    for hot, law in laws.items():
        getattr(backend.ppl, "clear_param_store", lambda: None)()  # NumPyro has no store
        estimator = getattr(gs, elbo)()
        guide = hand_written(s, lambda a, law=law: law(logits=a))
        guide = estimator.wrap(guide) if hasattr(estimator, "wrap") else guide
        model = lambda hot=hot: mixture(s, x, hot)  # noqa: E731
        found.append(backend.loss_and_gradient(estimator, model, guide, 2))
    (value, gradient), (wanted, slope) = found
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient["a"], slope["a"], rtol=0, atol=1e-12)
    assert (gradient["a"] != 0).all()


UNBIASED = {
    "MuProp": lambda gs: gs.MuProp_ELBO(),
    "REBAR": lambda gs: gs.REBAR_ELBO(),
    "RLOO": lambda gs: gs.RLOO_ELBO(num_particles=2),
}


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.quick("RLOO")
def test_estimators_are_unbiased(backend, name):
    """The gradient in the logits of each row, compared with that of the sum over the classes."""
    s, gs, rows = Side(backend), backend.gs, 8000
    a, x = np.array([0.3, -0.4, 0.8]), 0.7
    q = np.exp(a) / np.exp(a).sum()
    f = np.log(PRIOR) + norm.logpdf(x, LOCS, 1.0) - np.log(q)

    def model():
        with s.ppl.plate("data", rows):
            z = draw(s, "z", s.array(PRIOR), False)
            s.ppl.sample("x", s.d.Normal(s.array(LOCS)[z], 1.0), obs=s.array(np.full(rows, x)))

    def guide():
        logits = s.ppl.param("a", s.array(np.tile(a, (rows, 1))))
        with s.ppl.plate("data", rows):
            s.ppl.sample("z", s.d.Categorical(logits=logits))

    elbo = UNBIASED[name](gs)
    guide = elbo.wrap(guide) if hasattr(elbo, "wrap") else guide
    value, gradient = backend.loss_and_gradient(elbo, model, guide, 0)
    found, wanted = -gradient["a"], q * (f - q @ f)
    error = found.std(0) / np.sqrt(rows)
    assert (abs(found.mean(0) - wanted) < 4 * error + 1e-12).all()
    assert (error < 0.02).all()
    deviation = np.sqrt(q @ (f - q @ f) ** 2 / rows)
    assert abs(-value / rows - q @ f) < 4 * deviation


def test_what_the_model_excludes(backend):
    """A parent makes a bit certain, but the guide gives both values."""
    s, gs = Side(backend), backend.gs

    def model():
        b = s.ppl.sample("b", s.d.Bernoulli(probs=s.array(0.3)))
        s.ppl.sample("c", s.d.Bernoulli(probs=0 * b + s.array(1.0)))

    relaxed, loss = gs.relax(model, 0.5), backend.infer.TraceMeanField_ELBO()
    with pytest.raises(ValueError, match=r"site 'c': SoftBernoulli .* divergence is infinite"):
        gs.check(relaxed, gs.AutoGumbelSoftmax(model, 0.5), loss)
    getattr(backend.ppl, "clear_param_store", lambda: None)()  # NumPyro has no store
    known = gs.AutoGumbelSoftmax(model, 0.5, init_logits={"c": np.inf})
    gs.check(relaxed, known, loss)


@pytest.mark.parametrize("handler", [True, False])
def test_what_the_model_excludes_under_a_mask(backend, handler):
    """Masked rows do not count, so that an infinite score there is no error."""
    s, gs = Side(backend), backend.gs

    def model(mask):
        def rows():
            law = s.d.Bernoulli(probs=0 * b + s.array([1.0, 0.4]))
            s.ppl.sample("c", law if handler else backend.mask(law, mask))

        b = s.ppl.sample("b", s.d.Bernoulli(probs=s.array(0.3)))
        with s.ppl.plate("rows", 2):
            (backend.masked(rows, mask) if handler else rows)()

    loss = backend.infer.TraceMeanField_ELBO()
    for mask in (np.array([False, True]), np.array([True, False])):
        fixed = partial(model, mask)
        getattr(backend.ppl, "clear_param_store", lambda: None)()  # NumPyro has no store
        relaxed, guide = gs.relax(fixed, 0.5), gs.AutoGumbelSoftmax(fixed, 0.5)
        if not mask[0]:
            gs.check(relaxed, guide, loss)
            losses, _ = backend.anneal(gs.relax(fixed), guide, loss, lambda step: 0.5, 2)
            assert np.isfinite(losses).all()
            continue
        with pytest.raises(ValueError, match=r"site 'c': SoftBernoulli .* divergence is infinite"):
            gs.check(relaxed, guide, loss)


def test_draws_of_a_guide_are_integers(backend):
    s, x = Side(backend), backend.array(X)
    model = lambda: mixture(s, x)  # noqa: E731
    guide = backend.gs.AutoGumbelSoftmax(model)
    loss, schedule = backend.infer.TraceMeanField_ELBO(), lambda step: 0.5
    _, params = backend.anneal(backend.gs.relax(model), guide, loss, schedule, 2)
    data = backend.to_inference_data(model, guide, params=params, num_samples=3)
    z = data.posterior["z"]
    assert z.dtype.kind == "i"
    assert z.shape == (1, 3, 4)


COUNTED = {  # the program, how it is relaxed
    "Poisson": (lambda s: arrivals(s), {"truncate": {"n": 8}}),
    "Binomial": (lambda s: counted(s, s.array(X)), {}),
}


@pytest.mark.parametrize("case", COUNTED)
def test_counts_of_a_guide_are_those_of_the_ppl(backend, case):
    """Counts are floats in Pyro and integers in NumPyro."""
    program, options = COUNTED[case]
    s, gs = Side(backend), backend.gs
    model = lambda: program(s)  # noqa: E731
    relaxed = gs.relax(model, **options)
    guide = gs.AutoGumbelSoftmax(relaxed if options else model)
    loss, schedule = backend.infer.TraceMeanField_ELBO(), lambda step: 0.5
    _, params = backend.anneal(relaxed, guide, loss, schedule, 2)
    kind = backend.numpy(backend.trace(model, 0)["n"]).dtype.kind
    mode, probs = backend.guide_mode(guide, params)["n"], backend.guide_probs(guide, params)["n"]
    assert mode.dtype.kind == kind
    np.testing.assert_array_equal(mode, probs.argmax(-1))
    n = backend.numpy(backend.trace(gs.discretize(gs.AutoGumbelSoftmax(relaxed, 0.5)), 0)["n"])
    assert n.dtype.kind == kind
    assert set(n) <= set(range(9))
