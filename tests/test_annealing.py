"""AnnealedSVI and AutoGumbelSoftmax: schedules reach the sites, and guides fit."""

import copy
import math

import numpy as np
import optax
import pytest
from programs import PRIOR, PROGRAMS, by_name, laws, plain
from scipy import stats

from gs_ppl import reference, temperature

ELBOS = {
    "Trace_ELBO": {},
    "TraceMeanField_ELBO": {},
    "TraceGraph_ELBO": {},
    "TraceEnum_ELBO": {"max_plate_nesting": 2},
    "RenyiELBO": {"alpha": 0.5, "num_particles": 2},
    "Trace_ELBO, particles": {"num_particles": 3},
    "Trace_ELBO, vectorized": {"num_particles": 3, "vectorize_particles": True},
}
PLATES = {"max_plate_nesting": 1}
SCHEDULE = temperature.exponential(rate=0.02, minimum=0.3)


def elbo(backend, name):
    return getattr(backend.infer, name.partition(",")[0])(**ELBOS[name])


@pytest.mark.parametrize("name", ELBOS)
@pytest.mark.quick("Trace_ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO")
def test_anneals_under_every_elbo(backend, name):
    model = plain(backend, by_name("factorial"))
    seen = []

    def program(temperature):
        seen.append(temperature)
        return model()

    family = backend.gs.STGumbelSoftmax  # soft masses need TraceMeanField_ELBO
    guide = backend.gs.AutoGumbelSoftmax(model, family=family)
    relaxed = backend.gs.relax(program, family=family)
    losses, params = backend.anneal(relaxed, guide, elbo(backend, name), SCHEDULE, steps=200)
    assert np.isfinite(losses).all()
    assert seen  # the model declares the argument, and gets it
    probs = backend.guide_probs(guide, params)
    assert probs["a"].argmax() == by_name("factorial").marginal(0).argmax()


def test_temperatures_follow_the_schedule(backend):
    """At step t a site has schedule(t), not the temperature at compilation."""
    model = plain(backend, by_name("mixture"))
    recorded = backend.recorded_temperatures(model, SCHEDULE, steps=20)
    np.testing.assert_allclose(recorded, [SCHEDULE(t) for t in range(20)], rtol=1e-6)


def test_compiles_once(backend):
    """All steps, at all temperatures, share one compilation."""
    model = plain(backend, by_name("mixture"))
    assert backend.count_traces(model, SCHEDULE, steps=30) == backend.count_traces(
        model, SCHEDULE, steps=60
    )


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("mode", ["run", "update", "stable_update", "scan"])
def test_compiles_once_in_each_mode(backend, mode):
    model = plain(backend, by_name("mixture"))
    runs, once = backend.traces_by_mode(model, SCHEDULE, mode, steps=20)
    assert runs == once


JIT_ELBOS = {
    "JitTrace_ELBO": {},
    "JitTraceMeanField_ELBO": {},
    "JitTraceGraph_ELBO": {},
    "JitTraceEnum_ELBO": PLATES,
}


@pytest.mark.only("pyro")
@pytest.mark.parametrize("name", JIT_ELBOS)
def test_jit_elbos_compile_once(backend, name):
    """Jit ELBOs give the losses of the plain ones."""
    model = plain(backend, by_name("mixture"))
    where = backend.gs.svi if name == "JitTraceMeanField_ELBO" else backend.infer

    def jit():
        return getattr(where, name)(ignore_jit_warnings=True, **JIT_ELBOS[name])

    assert backend.count_traces(model, SCHEDULE, 30, jit()) == 0
    bare = getattr(backend.infer, name.removeprefix("Jit"))(**JIT_ELBOS[name])
    compiled, expected = backend.compiled_and_plain_losses(model, jit(), bare, SCHEDULE, steps=30)
    np.testing.assert_allclose(compiled, expected, rtol=1e-12)


@pytest.mark.only("pyro")
def test_jit_mean_field_trains(backend):
    program = by_name("factorial")
    model = plain(backend, program)
    guide = backend.gs.AutoGumbelSoftmax(model)
    elbo = backend.infer.JitTraceMeanField_ELBO(ignore_jit_warnings=True)
    losses, params = backend.anneal(backend.gs.relax(model), guide, elbo, SCHEDULE, steps=50)
    assert np.isfinite(losses).all()
    assert backend.guide_probs(guide, params)["a"].argmax() == program.marginal(0).argmax()


def test_evaluates_at_the_temperature_of_the_state(backend):
    model = plain(backend, by_name("mixture"))
    seen = backend.evaluated_temperature(model, SCHEDULE, steps=7)
    assert seen == pytest.approx(SCHEDULE(7), rel=1e-6)


def test_optax_schedule(backend):
    schedule = optax.exponential_decay(1.0, transition_steps=5, decay_rate=0.5, end_value=0.3)
    recorded = backend.recorded_temperatures(plain(backend, by_name("mixture")), schedule, steps=12)
    expected = np.maximum(0.5 ** (np.arange(12) / 5), 0.3)
    np.testing.assert_allclose(recorded, expected, rtol=1e-6)


def test_a_schedule_that_becomes_negative(backend):
    """It is refused at the step, or, where the steps are traced, before the first one."""
    model, elbo = plain(backend, by_name("mixture")), backend.infer.TraceMeanField_ELBO()
    guide = backend.gs.AutoGumbelSoftmax(model)
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        backend.anneal(backend.gs.relax(model), guide, elbo, lambda t: 0.35 - 0.1 * t, steps=6)


@pytest.mark.only("numpyro")
def test_a_negative_temperature_in_compiled_steps(backend):
    """Nothing can be raised there: the loss is NaN from that step on. `run` knows its steps."""
    model, elbo = plain(backend, by_name("mixture")), backend.infer.TraceMeanField_ELBO()
    guide = backend.gs.AutoGumbelSoftmax(model)
    svi = backend._annealed(backend.gs.relax(model), guide, elbo, lambda t: 1.5 - t)
    state, update, losses = svi.init(backend.jax.random.key(0)), backend.jax.jit(svi.update), []
    for _ in range(3):
        state, loss = update(state)
        losses.append(float(loss))
    assert [bool(np.isnan(loss)) for loss in losses] == [False, False, True]
    with pytest.raises(ValueError, match=r"the schedule gives -0\.5 at step 2"):
        svi.run(backend.jax.random.key(0), 3, progress_bar=False)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize(
    "schedule",
    [lambda step: 1.0 if step < 5 else 0.5, lambda step: math.exp(-0.1 * step)],
    ids=["if", "math"],
)
def test_a_schedule_of_numbers(backend, schedule):
    """NumPyro's steps are traced: what needs their number is refused. Pyro's are numbers."""
    model = plain(backend, by_name("mixture"))
    with pytest.raises(TypeError, match=r"schedule must be a function that JAX can trace.*where"):
        backend.recorded_temperatures(model, schedule, steps=7)


def svi_of_classes(backend, kind):
    """A start outside of jit takes seconds, since JAX compiles each operation by itself."""
    jnp, ppl, gs, native = backend.jax.numpy, backend.ppl, backend.gs, backend.native

    def model(x):
        shift = ppl.sample("shift", native.Normal(0.0, 1.0)) if kind == "list" else 0.0
        with ppl.plate("rows", len(x)):
            z = ppl.sample("z", native.Categorical(probs=backend.array(PRIOR)))
            ppl.sample("x", native.Poisson(jnp.exp(shift) * (1.0 + z)), obs=x)

    def by_hand(x):
        logits = ppl.param("logits", lambda key: backend.jax.random.normal(key, (len(x), 3)))
        with ppl.plate("rows", len(x)):
            ppl.sample("z", native.Categorical(logits=logits))

    guides = {
        "by hand": lambda: gs.relax(by_hand),
        "one table": lambda: gs.AutoGumbelSoftmax(model),
        "sparse": lambda: gs.AutoGumbelSoftmax(model, sparse=True),
        "list": lambda: gs.auto_relaxed(model),
    }
    guide = guides[kind]()
    elbo = backend.infer.TraceMeanField_ELBO()
    return backend._annealed(gs.relax(model), guide, elbo, SCHEDULE), guide


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("kind", ["by hand", "one table", "sparse", "list"])
def test_starts_inside_of_jit(backend, kind):
    """The same parameters, and a guide that keeps no traced value."""
    key, x = backend.jax.random.key(0), backend.array([0.0, 3.0, 1.0, 2.0])
    (svi, guide), (outside, _) = (svi_of_classes(backend, kind) for _ in range(2))
    state = backend.jax.jit(svi.init)(key, x)
    expected = outside.get_params(outside.init(key, x))
    for name, value in svi.get_params(state).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)
    result = svi.run(key, 3, x, init_state=state, progress_bar=False)
    assert np.isfinite(result.losses).all()
    if kind != "by hand":
        assert guide.probs(result.params)["z"].shape == (4, 3)


@pytest.mark.only("numpyro")
def test_values_are_checked_when_they_come_outside_of_jit(backend):
    ppl, native = backend.ppl, backend.native

    def model(x):
        with ppl.plate("rows", len(x)):
            z = ppl.sample("z", native.Categorical(probs=backend.array(PRIOR)))
            ppl.sample("x", native.Categorical(backend.array(np.eye(3) / 2 + 1 / 6)[z]), obs=x)

    guide, elbo = backend.gs.AutoGumbelSoftmax(model), backend.infer.TraceMeanField_ELBO()
    svi = backend._annealed(backend.gs.relax(model), guide, elbo, SCHEDULE)
    key, x = backend.jax.random.key(0), backend.jax.numpy.array([0, 2, 3])
    state = backend.jax.jit(svi.init)(key, x)
    with pytest.raises(ValueError, match=r"site 'x': .*classes"):
        svi.run(key, 3, x, init_state=state, progress_bar=False)


@pytest.mark.parametrize("declared_by", ["model", "guide", "both", "neither"])
def test_temperature_goes_to_who_declares_it(backend, declared_by):
    """Without relax, a program gets the temperature if it declares the argument, and else none."""
    ppl, seen = backend.ppl, {"model": set(), "guide": set()}

    def law(side, temperature, **parameters):
        seen[side].add(temperature is not None)
        tau = 0.5 if temperature is None else temperature
        return backend.gs.STGumbelSoftmax(tau, **parameters)

    def model(temperature=None):
        ppl.sample("z", law("model", temperature, probs=backend.array(PRIOR)))

    def guide(temperature=None):
        a = ppl.param("a", backend.array(np.zeros(3)))
        ppl.sample("z", law("guide", temperature, logits=a))

    declares = {side: declared_by in (side, "both") for side in seen}
    pair = [
        fn if declares[side] else lambda fn=fn: fn()
        for side, fn in (("model", model), ("guide", guide))
    ]
    backend.anneal(*pair, backend.infer.TraceMeanField_ELBO(), SCHEDULE, steps=2)
    assert seen == {side: {declares[side]} for side in seen}


@pytest.mark.parametrize("name", ["mixture", "bernoulli_net"])
@pytest.mark.quick("mixture")
def test_vectorized_particles(backend, name):
    """Plates of the program are inside of the particles' plate; the mean loss is the same."""
    model = plain(backend, by_name(name))
    guide = backend.gs.AutoGumbelSoftmax(model, 0.5)
    relaxed = backend.gs.relax(model, 0.5)

    def losses(count, **options):
        elbo = backend.infer.Trace_ELBO(**options)
        return backend.losses(elbo, relaxed, guide, count)

    one, many = losses(1000), losses(100, num_particles=50, vectorize_particles=True)
    error = np.hypot(one.std() / np.sqrt(1000), many.std() / np.sqrt(100))
    assert abs(one.mean() - many.mean()) < 5 * error  # fails for one in two million seeds
    assert many.std() < one.std() / 4  # independent particles: a seventh of the spread


def test_resumes_in_mid_schedule(backend):
    """A restored state goes on exactly as without a break, bit for bit."""
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
@pytest.mark.quick("mixture")
def test_auto_guide_finds_the_posterior_mode(backend, program, family):
    """If the sites are independent, the fitted class probabilities are near the marginals."""
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
    assert -losses[-200:].mean() < evidence + 1.0  # not a bound, but it must not diverge
    if program.name == "mixture":
        marginals = np.stack([program.marginal(i) for i in range(3)])
        assert np.abs(probs["z"] - marginals).max() < 0.2


def test_auto_guide_with_subsampled_plate(backend):
    """The guide has logits for all rows; a step trains the drawn ones; mode and probs return
    all."""
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


def test_auto_guide_list_finds_the_posterior(backend):
    """A normal shift and a class for each row of a subsampled plate, compared with summation and a
    grid; the clusters are so far apart that the posterior nearly factorises."""
    ppl, gs, Normal = backend.ppl, backend.gs, backend.native.Normal
    rng, locs, scale = np.random.default_rng(0), np.array([-2.0, 2.0]), 0.5
    data = locs[rng.integers(2, size=20)] + 0.8 + scale * rng.normal(size=20)
    x = backend.array(data)

    def model():
        shift = ppl.sample("shift", Normal(backend.array(0.0), 1.0))
        with ppl.plate("data", 20, subsample_size=10) as rows:
            z = ppl.sample("z", gs.OneHotCategorical(logits=backend.array(np.zeros(2))))
            ppl.sample("x", Normal(gs.select(backend.array(locs), z) + shift, scale), obs=x[rows])

    probs, loc, spread = backend.anneal_list(
        model,
        "z",
        "shift",
        temperature.exponential(rate=0.01, minimum=0.2),
        steps=1500,
        decay=0.998,
    )
    grid = np.linspace(-3, 3, 6001)[:, None, None]
    terms = stats.norm(grid + locs, scale).logpdf(data[:, None])
    weight = np.exp(np.logaddexp.reduce(terms, -1).sum(-1) - grid[:, 0, 0] ** 2 / 2)
    weight /= weight.sum()
    mean = weight @ grid[:, 0, 0]
    deviation = np.sqrt(weight @ (grid[:, 0, 0] - mean) ** 2)
    classes = np.einsum(
        "g,gnk->nk", weight, np.exp(terms - np.logaddexp.reduce(terms, -1)[..., None])
    )
    assert loc == pytest.approx(mean, abs=deviation / 2)
    assert spread == pytest.approx(deviation, rel=0.2)
    assert np.abs(probs - classes).max() < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_logits": {"q": 0.0}}, "no discrete latent site is called 'q'"),
        ({"objective": "soft"}, "objective must be one of categorical, relaxed"),
        ({"temperature": None}, "site 'z' has no temperature"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_auto_guide_refuses(backend, options, message):
    model = plain(backend, by_name("mixture"))
    with pytest.raises(ValueError, match=message):
        backend.trace(backend.gs.AutoGumbelSoftmax(model, **{"temperature": 0.5, **options}), 0)


def test_auto_guide_refuses_a_family_of_no_site(backend):
    model = plain(backend, by_name("mixture"))
    guide = backend.gs.AutoGumbelSoftmax(model, 0.5, family={"q": backend.gs.STGumbelSoftmax})
    with pytest.raises(ValueError, match="no discrete latent site is called 'q'"):
        backend.trace(guide, 0)


def test_auto_guide_without_discrete_latents(backend):
    model = lambda: backend.ppl.sample(  # noqa: E731
        "w", backend.native.Normal(backend.array(0.0), 1.0)
    )
    with pytest.raises(ValueError, match="the program has no discrete latents"):
        backend.trace(backend.gs.AutoGumbelSoftmax(model, 0.5), 0)


@pytest.mark.parametrize("make", ["AutoGumbelSoftmax", "auto_relaxed"])
def test_auto_guide_of_counts(backend, make):
    def model():
        n = backend.ppl.sample("n", backend.native.Poisson(backend.array(2.0)))
        backend.ppl.sample("x", backend.native.Normal(n, 1.0), obs=backend.array(1.0))

    wanted = (
        r"site 'n': Poisson has no known largest value: .* relax\(model, truncate={'n': LARGEST}\)"
    )
    guide = getattr(backend.gs, make)(model, temperature=0.5)
    for _ in range(2):  # the second run has the same error as the first
        with pytest.raises(ValueError, match=wanted):
            backend.trace(guide, 0)
    elbo, guide = backend.infer.TraceMeanField_ELBO(), getattr(backend.gs, make)(model)
    with pytest.raises(ValueError, match=wanted):
        backend.anneal(backend.gs.relax(model), guide, elbo, lambda t: 0.5, steps=1)


@pytest.mark.only("numpyro")
def test_a_number_is_no_key(backend):
    model = plain(backend, by_name("mixture"))
    guide, elbo = backend.gs.AutoGumbelSoftmax(model), backend.infer.TraceMeanField_ELBO()
    svi = backend._annealed(backend.gs.relax(model), guide, elbo, lambda t: 0.5)
    with pytest.raises(TypeError, match=r"AnnealedSVI: rng_key must be a key, .* got 0"):
        svi.run(0, 300)


def test_guide_of_svi(backend):
    """The guide of an AnnealedSVI is the guide that it was given."""
    model = plain(backend, by_name("mixture"))
    guide = backend.gs.AutoGumbelSoftmax(model)
    elbo = backend.infer.TraceMeanField_ELBO()
    svi = backend._annealed(backend.gs.relax(model), guide, elbo, lambda t: 0.5)
    assert svi.guide.probs == guide.probs
    assert repr(svi.guide) == repr(guide)
    assert copy.copy(svi.guide).probs == guide.probs
    with pytest.raises(AttributeError, match="quantile_of"):
        svi.guide.quantile_of  # noqa: B018


# --- exact at low temperature, through replay -----------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("masked", [False, True], ids=["", "mask"])
def test_relaxed_objective_is_exact_through_replay(backend, tau, masked):
    """KL(q || p) by Trace_ELBO in float32, also if a dict for `infer` is reused.

    With a score of the rounded value, the estimate would be 607 at tau = 0.01.
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
    """Each family builds each kind of site; the tests above use this table."""
    for family in ("OneHotCategorical", "GumbelSoftmax", "STGumbelSoftmax"):
        law = laws(backend, family)
        assert law("one_hot", np.ones(3) / 3).event_shape == (3,)
        assert law("bit", np.array(0.3)).event_shape == ()
