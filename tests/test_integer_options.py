"""Options of relax and of the automatic guide, over programs with integers: sites=, truncate=."""

import numpy as np
import pytest
from indexed import LOCS, PRIOR, RATE, Side, arrivals
from scipy.stats import norm, poisson


def test_marks_do_not_keep_a_site(backend):
    def program():
        law = backend.native.Categorical(probs=backend.array(PRIOR))
        backend.ppl.sample("z", law, infer={"enumerate": "parallel"})
        backend.ppl.sample("w", law, infer={"enumerate": "parallel"})

    drawn = backend.trace(backend.gs.relax(program, 0.5), 0)
    assert np.shape(drawn["z"]) == np.shape(drawn["w"]) == (3,)
    drawn = backend.trace(backend.gs.relax(program, 0.5, sites=["z"]), 0)
    assert np.shape(drawn["z"]) == (3,)
    assert np.shape(drawn["w"]) == ()


def marked(s):
    """Two classes that the PPL's own enumeration would sum out."""
    enumerate_ = {"infer": {"enumerate": "parallel"}}
    law = s.d.Categorical(probs=s.array(PRIOR))
    z, w = (s.ppl.sample(name, law, **enumerate_) for name in "zw")
    s.ppl.sample("x", s.d.Normal(s.array(LOCS)[z] + s.array(LOCS)[w], 1.0), obs=s.array(0.3))


def test_sites_on_both_sides(backend):
    """Other sites are enumerated as they are marked."""
    s, gs = Side(backend), backend.gs
    model = lambda: marked(s)  # noqa: E731
    relaxed = gs.relax(model, 0.5, sites=["z"])
    guide = gs.AutoGumbelSoftmax(model, 0.5, sites=["z"])
    assert list(backend.trace(guide, 0)) == ["z"]
    loss = gs.TraceEnum_ELBO(max_plate_nesting=0)
    gs.check(relaxed, guide, loss)
    value, _ = backend.loss_and_gradient(loss, relaxed, guide, 0)
    y = backend.numpy(backend.trace(backend.gs.relax(model, 0.5, sites=["z"]), 0)["z"])
    assert np.isfinite(value)
    assert y.shape == (3,)


SITES = {  # sites of the model and of the guide, the refusal
    "model alone": (
        ["z"],
        None,
        "site 'w': the guide draws weights of its classes, .* same sites=",
    ),
    "guide alone": (None, ["z"], "site 'w': .* neither in the guide nor enumerated"),
    "no such site": (None, ["q"], "no discrete latent site is called 'q'"),
}


@pytest.mark.parametrize("case", SITES)
def test_sites_differ(backend, case):
    of_model, of_guide, message = SITES[case]
    s, gs = Side(backend), backend.gs
    model = lambda: marked(s)  # noqa: E731
    guide = gs.AutoGumbelSoftmax(model, 0.5, sites=of_guide)
    with pytest.raises(ValueError, match=message):
        gs.check(gs.relax(model, 0.5, sites=of_model), guide, backend.infer.TraceMeanField_ELBO())


def test_truncated_counts(backend):
    """Vertices agree up to the mass beyond the limit; the exact evidence is that of the table."""
    s, gs = Side(backend), backend.gs
    model = lambda: arrivals(s)  # noqa: E731
    relaxed = gs.relax(model, 0.5, truncate={"n": 8})
    inside = poisson.cdf(8, RATE)
    for n in ([0, 8], [3, 1]):
        value = backend.log_joint(relaxed, {"n": backend.array(np.eye(9)[n])})
        wanted = backend.log_joint(model, {"n": s.totals(np.array(n))}) - np.log(inside).sum()
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-11)
    table = poisson.pmf(np.arange(9)[:, None], RATE) / inside
    table = table * norm.pdf([0.5, 2.5], np.arange(9)[:, None])
    loss = backend.enumerated_loss(gs.config_enumerate(relaxed), lambda: None, 1)
    np.testing.assert_allclose(-loss, np.log(table.sum(0)).sum(), rtol=1e-10)


def test_the_tail_is_checked(backend):
    s, gs = Side(backend), backend.gs
    loss = backend.infer.TraceMeanField_ELBO()

    def check(largest, **options):
        getattr(backend.ppl, "clear_param_store", lambda: None)()  # NumPyro has no store
        relaxed = gs.relax(lambda: arrivals(s), 0.5, truncate={"n": largest}, **options)
        gs.check(relaxed, gs.AutoGumbelSoftmax(relaxed, 0.5), loss)

    check(8)
    check(3, max_tail=0.2)
    tail = f"{1 - poisson.cdf(3, 2.0):.2g}"  # of the worst row
    with pytest.raises(ValueError, match=rf"'n': its counts above 3 .* {tail}, more than .*0\.001"):
        check(3)


def test_the_tail_is_checked_after_a_run(backend):
    """The rate has grown beyond the limit of the truncation."""
    s, gs = Side(backend), backend.gs

    def model():
        rate = s.lib.exp(s.ppl.param("a", s.array(-4.6)))
        n = s.ppl.sample("n", s.d.Poisson(rate))
        s.ppl.sample("x", s.d.Normal(n * 1.0, 0.1), obs=s.array(3.0))

    relaxed = gs.relax(model, truncate={"n": 3}, max_tail=1e-4)
    loss, schedule = backend.infer.TraceMeanField_ELBO(), lambda step: 0.5
    guide = gs.AutoGumbelSoftmax(relaxed)
    with pytest.raises(ValueError, match=r"'n': its counts above 3 .* max_tail=0\.0001"):
        backend.run(relaxed, guide, loss, schedule, 40, 0.2, progress_bar=False)


TRUNCATED = {
    "name": ({"q": 5}, "no discrete latent site is called 'q'"),
    "fraction": ({"n": 2.5}, "'n': truncate wants the largest count, 1 or more, got 2.5"),
    "zero": ({"n": 0}, "'n': truncate wants the largest count"),
    "continuous": ({"x": 3, "n": 5}, "'x': truncate is for laws of counts .* got Normal"),
}


@pytest.mark.parametrize("case", TRUNCATED)
def test_truncation_is_refused(backend, case):
    truncate, message = TRUNCATED[case]
    s = Side(backend)

    def program():
        s.ppl.sample("n", s.d.Poisson(s.array(2.0)))
        s.ppl.sample("x", s.d.Normal(s.array(0.0), 1.0))

    with pytest.raises(ValueError, match=message):
        backend.trace(backend.gs.relax(program, 0.5, truncate=truncate), 0)
