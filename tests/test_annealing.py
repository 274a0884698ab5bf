"""AnnealedSVI and AutoGumbelSoftmax: schedules that reach what they should, guides that fit."""

import numpy as np
import pytest
from programs import PROGRAMS
from test_handlers import by_name, laws, plain

from gs_ppl import reference, temperature

ELBOS = {
    "Trace_ELBO": {},
    "TraceMeanField_ELBO": {},
    "TraceGraph_ELBO": {},
    "TraceEnum_ELBO": {"max_plate_nesting": 2},
    "RenyiELBO": {"alpha": 0.5, "num_particles": 2},
    "Trace_ELBO, particles": {"num_particles": 3},
}
SCHEDULE = temperature.exponential(rate=0.02, minimum=0.3)


def elbo(backend, name):
    return getattr(backend.infer, name.partition(",")[0])(**ELBOS[name])


@pytest.mark.parametrize("name", ELBOS)
def test_anneals_under_every_elbo(backend, name):
    model = plain(backend, by_name("factorial"))
    seen = []

    def program(temperature):
        seen.append(temperature)
        return model()

    guide = backend.gs.AutoGumbelSoftmax(model)
    losses, params = backend.anneal(
        backend.gs.relax(program), guide, elbo(backend, name), SCHEDULE, steps=200
    )
    assert np.isfinite(losses).all()
    assert seen  # the model declares the argument, and has it
    probs = backend.guide_probs(guide, params)
    assert probs["a"].argmax() == by_name("factorial").marginal(0).argmax()


def test_temperatures_follow_the_schedule(backend):
    """What a site sees at step t is schedule(t), not what it was at compilation."""
    model = plain(backend, by_name("mixture"))
    recorded = backend.recorded_temperatures(model, SCHEDULE, steps=20)
    np.testing.assert_allclose(recorded, [SCHEDULE(t) for t in range(20)], rtol=1e-6)


def test_compiles_once(backend):
    """All steps, at all temperatures, share one compilation."""
    model = plain(backend, by_name("mixture"))
    assert backend.count_traces(model, SCHEDULE, steps=30) == backend.count_traces(
        model, SCHEDULE, steps=60
    )


def test_resumes_in_mid_schedule(backend):
    """A restored state goes on as if there had been no break, bit for bit."""
    model = plain(backend, by_name("factorial"))
    whole, resumed = backend.whole_and_resumed(model, SCHEDULE, steps=20)
    np.testing.assert_array_equal(whole, resumed)


def test_explicit_temperature_wins(backend):
    model = plain(backend, by_name("mixture"))
    relaxed = backend.gs.relax(model, 0.9)
    recorded = backend.recorded_temperatures(relaxed, SCHEDULE, steps=3, relaxed=True)
    np.testing.assert_allclose(recorded, 0.9)


@pytest.mark.parametrize("family", ["GumbelSoftmax", "STGumbelSoftmax"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_auto_guide_finds_the_posterior_mode(backend, program, family):
    """Where the sites are independent, the fitted class probabilities are near the marginals."""
    model = plain(backend, program)
    make = getattr(backend.gs, family)
    guide = backend.gs.AutoGumbelSoftmax(model, family=make)
    losses, params = backend.anneal(
        backend.gs.relax(model, family=make),
        guide,
        backend.infer.TraceMeanField_ELBO(),
        temperature.exponential(rate=0.01, minimum=0.2),
        steps=600,
        learning_rate=0.03,
    )
    probs = backend.guide_probs(guide, params)
    assert set(probs) == set(program.sites)
    evidence = program.evidence()
    assert -losses[-200:].mean() < evidence + 1.0  # no bound, but no runaway either
    if program.name == "mixture":
        marginals = np.stack([program.marginal(i) for i in range(3)])
        assert np.abs(probs["z"] - marginals).max() < 0.2


def test_auto_guide_with_subsampled_plate(backend):
    """Logits for all rows, of which a step trains the drawn ones; mode and probs give all."""
    ppl, gs = backend.ppl, backend.gs
    data = np.concatenate([np.full(10, -2.0), np.full(10, 2.0)])
    x = backend.array(data, "float32")
    locs = backend.array([-2.0, 2.0], "float32")

    def model():
        with ppl.plate("data", 20, subsample_size=5) as rows:
            z = ppl.sample("z", gs.OneHotCategorical(logits=backend.array(np.zeros(2), "float32")))
            ppl.sample("x", backend.native.Normal(gs.select(locs, z), 1.0), obs=x[rows])

    guide = gs.AutoGumbelSoftmax(model)
    _, params = backend.anneal(
        gs.relax(model), guide, backend.infer.TraceMeanField_ELBO(), SCHEDULE, steps=400
    )
    probs = backend.guide_probs(guide, params)["z"]
    assert probs.shape == (20, 2)
    np.testing.assert_array_equal(probs.argmax(-1), (data > 0).astype(int))
    mode = backend.guide_mode(guide, params)["z"]
    np.testing.assert_array_equal(mode, np.eye(2)[probs.argmax(-1)])


def test_auto_guide_list_parts_see_the_same_rows(backend):
    assert backend.rows_of_parts_agree()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_logits": {"q": 0.0}}, "no discrete latent site is called 'q'"),
        ({"family": {"q": None}}, "no discrete latent site is called 'q'"),
        ({"objective": "soft"}, "objective must be one of categorical, relaxed"),
        ({"temperature": None}, "site 'z' has no temperature"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_auto_guide_refuses(backend, options, message):
    model = plain(backend, by_name("mixture"))
    with pytest.raises(ValueError, match=message):
        backend.trace(backend.gs.AutoGumbelSoftmax(model, **{"temperature": 0.5, **options}), 0)


def test_auto_guide_without_discrete_latents(backend):
    model = lambda: backend.ppl.sample(  # noqa: E731
        "w", backend.native.Normal(backend.array(0.0), 1.0)
    )
    with pytest.raises(ValueError, match="no one-hot or Bernoulli latents"):
        backend.trace(backend.gs.AutoGumbelSoftmax(model, 0.5), 0)


# --- exact at low temperature, through replay -----------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("masked", [False, True], ids=["", "mask"])
def test_relaxed_objective_is_exact_through_replay(backend, tau, masked):
    """KL(q || p) by Trace_ELBO in float32, also where a dict for `infer` is reused.

    Scored from the rounded value the estimate would be 607 at tau = 0.01.
    """
    a, zeros = (backend.array(x, "float32") for x in ([3.0, -2.0, 0.5], np.zeros(3)))
    gs, shared = backend.gs, {}
    expected = reference.exp_gumbel_softmax_kl([3.0, -2.0, 0.5], np.zeros(3))

    def program(logits):
        def run():
            law = gs.OneHotCategorical(logits=logits)
            law = backend.mask(law, np.array(True)) if masked else law
            return backend.ppl.sample("z", law, infer=shared)

        return gs.relax(run, tau, objective="relaxed")

    losses = [backend.loss("Trace_ELBO", program(zeros), program(a), 10_000, s) for s in (0, 1)]
    assert np.mean(losses) == pytest.approx(expected, abs=0.1)
    assert shared == {}


def test_laws_of_the_programs(backend):
    """Each family builds each kind of site: the table the tests above rely on."""
    for family in ("OneHotCategorical", "GumbelSoftmax", "STGumbelSoftmax"):
        law = laws(backend, family)
        assert law("one_hot", np.ones(3) / 3).event_shape == (3,)
        assert law("bit", np.array(0.3)).event_shape == ()
