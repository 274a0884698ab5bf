"""Exact enumeration in other algorithms of the PPLs, in float32, and by Pyro's explicit flag."""

from functools import partial

import numpy as np
import pytest
from laws import LAWS, name, of_kinds
from programs import (
    LOCS,
    ONE_HOT,
    PRIOR,
    PROGRAMS,
    by_name,
    empty,
    laws,
    log_joint_of_shift,
    plain,
    with_shift,
)
from scipy import integrate, stats

FAILURE_RATE = 1e-4


def flagged(backend, model):
    return backend.infer_config(model, {"enumerate": "parallel"})


# --- the explicit flag ----------------------------------------------------------------------------


@pytest.mark.only("pyro")
@pytest.mark.parametrize("family", ONE_HOT)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_explicit_flag(backend, program, family):
    """infer={"enumerate": "parallel"} enumerates each class, also of laws that do not by
    default."""
    model = flagged(backend, program.build(backend, laws(backend, family)))
    loss = backend.enumerated_loss(model, empty, program.plates)
    assert -loss == pytest.approx(program.evidence(), rel=1e-12)


@pytest.mark.only("pyro")
def test_explicit_flag_in_log_space(backend):
    def model():
        l = backend.ppl.sample("z", backend.gs.ExpGumbelSoftmax(0.5, probs=backend.array(PRIOR)))
        loc = (l.exp() * backend.array(LOCS)).sum(-1)
        backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(0.3))

    loss = backend.enumerated_loss(flagged(backend, model), empty, 0)
    evidence = np.log((PRIOR * stats.norm(LOCS).pdf(0.3)).sum())
    assert -loss == pytest.approx(evidence, rel=1e-12)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("family", ONE_HOT[1:])
def test_flag_alone_is_refused(backend, family):
    """NumPyro would treat the site as summed out, and its loss would be finite and wrong."""
    program = by_name("bernoulli_net")
    model = flagged(backend, program.build(backend, laws(backend, family)))
    elbo = backend.infer.TraceEnum_ELBO(max_plate_nesting=program.plates)
    with pytest.raises(ValueError, match=r"site 'top': .* use gs_ppl.numpyro.config_enumerate"):
        backend.gs.check(model, empty, elbo)
    backend.gs.check(backend.gs.config_enumerate(model), empty, elbo)


def marked(backend, law, wrapper, native):
    """A site marked by the PPL's own enumeration, and its evidence by hand."""
    ppl, array, rows = backend.ppl, backend.array, 2 if wrapper in ("plate", "to_event") else 1

    def body():
        fn = law(backend, 0.5, probs=array(PRIOR if law.event_dims else PRIOR[0]))
        if wrapper == "to_event":
            fn = fn.expand((rows,)).to_event(1)
        elif wrapper == "mask":
            fn = backend.mask(fn, True)
        z = ppl.sample("z", fn, infer={} if native else {"enumerate": "parallel"})
        z = np.e**z if law.name.startswith("Exp") else z
        loc = (z * array(LOCS)).sum(-1) if law.event_dims else z
        loc = loc.sum(-1) if wrapper == "to_event" else loc
        ppl.sample("x", backend.native.Normal(loc, 1.0), obs=array(0.3))

    def model():
        if wrapper != "plate":
            return body()
        with ppl.plate("rows", rows):
            body()

    locs, p = (LOCS, PRIOR) if law.event_dims else (np.arange(2), [1 - PRIOR[0], PRIOR[0]])
    evidence = rows * np.log(p @ stats.norm(locs).pdf(0.3))
    return backend.native_config_enumerate(model) if native else model, evidence


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("native", [False, True], ids=["flag", "config_enumerate"])
@of_kinds("wrapper", ["bare", "mask", "to_event", "plate"], quick=("bare",))
def test_numpyros_enumeration_is_refused(backend, law, wrapper, native):
    """Without the check, vectors would be class indices, bits independent, and densities prior
    draws."""
    model, _ = marked(backend, law, wrapper, native)
    elbo = backend.infer.TraceEnum_ELBO(max_plate_nesting=int(wrapper == "plate"))
    run = partial(elbo.loss, param_map={}, model=model, guide=empty)
    message = rf"site 'z': {law.name} is not enumerated .* in gs_ppl.numpyro.config_enumerate"
    for evaluate in (run, backend.jit(run)):
        with pytest.raises(ValueError, match=message):
            evaluate(backend.jax.random.key(0))


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("law", [law for law in LAWS if not law.hard], ids=name)
def test_numpyros_enumeration_beside_soft_sites(backend, law):
    """A soft site that the guide draws does not matter to it."""
    ppl, array = backend.ppl, backend.array
    fn = law(backend, 0.5, probs=array(PRIOR if law.event_dims else PRIOR[0]))

    def model():
        ppl.sample("z", fn)
        k = ppl.sample("k", backend.native.Categorical(probs=array(PRIOR)))
        ppl.sample("x", backend.native.Normal(array(LOCS)[k], 1.0), obs=array(0.3))

    program = backend.native_config_enumerate(model)
    loss = backend.enumerated_loss(program, lambda: ppl.sample("z", fn), 0)
    assert -loss == pytest.approx(np.log(PRIOR @ stats.norm(LOCS).pdf(0.3)), rel=1e-10)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("where", ["guide", "infer_discrete"])
def test_a_marked_density_outside_of_a_model(backend, where):
    law = next(law for law in LAWS if law.name == "GumbelSoftmax")
    program, _ = marked(backend, law, "bare", False)
    run = {
        "guide": lambda: backend.enumerated_loss(empty, program, 0),
        "infer_discrete": lambda: backend.infer_discrete(program, 0, 0),
    }[where]
    with pytest.raises(ValueError, match="site 'z': GumbelSoftmax is not enumerated"):
        run()


@pytest.mark.only("numpyro")
def test_a_draw_apart_is_not_a_latent(backend):
    """No inference sees a draw like this: scan runs its body to find shapes."""
    ppl, fn = backend.ppl, backend.gs.GumbelSoftmax(0.5, probs=backend.array(PRIOR))

    def model():
        with ppl.handlers.block(), ppl.handlers.seed(rng_seed=0):
            ppl.sample("z", fn)
        ppl.sample("x", backend.native.Normal(0.0, 1.0), obs=backend.array(0.3))

    loss = backend.enumerated_loss(model, empty, 0)
    assert -loss == pytest.approx(stats.norm().logpdf(0.3), rel=1e-10)


@pytest.mark.only("pyro")
@pytest.mark.parametrize("native", [False, True], ids=["flag", "config_enumerate"])
@of_kinds("wrapper", ["bare", "mask", "plate"], quick=("bare",))
def test_pyros_enumeration(backend, law, wrapper, native):
    """The flag is right; Pyro's config_enumerate ignores densities, and Pyro and check say so."""
    model, evidence = marked(backend, law, wrapper, native)
    loss = partial(backend.enumerated_loss, model, empty, int(wrapper == "plate"))
    if native and law.scored_as == "density":
        elbo = backend.infer.TraceEnum_ELBO(max_plate_nesting=int(wrapper == "plate"))
        with pytest.raises(ValueError, match=rf"site 'z': {law.name} .* config_enumerate the mod"):
            backend.gs.check(model, empty, elbo)
        with backend.ppl.validation_enabled(), pytest.warns(match="model but not guide: {'z'}"):
            loss()
        return
    assert -loss() == pytest.approx(evidence, rel=1e-12)


@pytest.mark.only("pyro")
@pytest.mark.parametrize("law", LAWS, ids=name)
def test_pyros_enumeration_of_joined_variables(backend, law):
    """With the flag, Pyro says what is missing; its config_enumerate ignores the site, and says
    so."""
    with pytest.raises(NotImplementedError, match="cartesian product"):
        backend.enumerated_loss(marked(backend, law, "to_event", False)[0], empty, 0)
    model, _ = marked(backend, law, "to_event", True)
    with pytest.raises(ValueError, match=rf"site 'z': {law.name} .* config_enumerate the model"):
        backend.gs.check(model, empty, backend.infer.TraceEnum_ELBO(max_plate_nesting=0))
    with backend.ppl.validation_enabled(), pytest.warns(match="model but not guide: {'z'}"):
        backend.enumerated_loss(model, empty, 0)


@pytest.mark.only("pyro")
@pytest.mark.parametrize("law", LAWS, ids=name)
def test_auto_discrete_parallel(backend, law):
    """Pyro's guide for the lowered program starts at the prior, where its ELBO is that by hand.

    It knows three of Pyro's classes by name: without config_enumerate it refuses those of gs_ppl.
    """
    ppl, array, weight = backend.ppl, backend.array, 0.3
    guide_of = backend.infer.autoguide.AutoDiscreteParallel

    def model():
        with ppl.plate("rows", 2):
            fn = law(backend, 0.5, probs=array(PRIOR if law.event_dims else PRIOR[2]))
            z = ppl.sample("z", fn.expand((2,)))
            b = ppl.sample("b", backend.gs.STBernoulli(0.5, probs=array(weight)))
            loc = backend.gs.select(array(LOCS), z) if law.event_dims else 2.0 * z
            ppl.sample("x", backend.native.Normal(loc + b, 1.0), obs=array([0.3, -1.0]))

    lowered = backend.gs.config_enumerate(model)
    loss = backend.enumerated_loss(lowered, guide_of(lowered), 1)
    locs, p = (LOCS, PRIOR) if law.event_dims else (np.array([0.0, 2.0]), [0.8, PRIOR[2]])
    log_x = stats.norm(locs[:, None] + np.array([0.0, 1.0])).logpdf(
        np.array([0.3, -1.0])[:, None, None]
    )
    elbo = (np.outer(p, [1 - weight, weight]) * log_x).sum()
    assert -loss == pytest.approx(elbo, rel=1e-6)
    with pytest.raises(NotImplementedError, match=f"{law.name} is not supported|site .z. to be"):
        guide_of(model)()


# --- float32 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["OneHotCategorical", "GumbelSoftmax"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
@pytest.mark.quick("hidden_markov")
def test_float32(backend, program, family):
    with backend.single_precision():
        make = laws(backend, family, "float32")
        model = backend.gs.config_enumerate(program.build(backend, make))
        loss = backend.enumerated_loss(model, empty, program.plates)
    assert -loss == pytest.approx(program.evidence(), rel=1e-5)


# --- marginals ------------------------------------------------------------------------------------


@pytest.mark.only("pyro")
@pytest.mark.parametrize("family", [*ONE_HOT, "ExpGumbelSoftmax"])
@pytest.mark.parametrize("name", ["hidden_markov", "factorial"])
@pytest.mark.quick("factorial", "OneHotCategorical")
def test_compute_marginals(backend, name, family):
    """TraceEnum_ELBO.compute_marginals has laws of class indices, equal to summation by hand."""
    program = by_name(name)
    model = backend.gs.config_enumerate(program.build(backend, laws(backend, family)))
    elbo = backend.infer.TraceEnum_ELBO(max_plate_nesting=program.plates)
    marginals = elbo.compute_marginals(model, empty)
    assert set(marginals) == set(program.sites)
    for i, site in enumerate(program.sites):
        exact = program.marginal(i)
        bit = type(marginals[site]).__name__ == "Bernoulli"
        values = backend.array(np.arange(len(exact)), "float64" if bit else "int64")
        got = np.exp([backend.numpy(marginals[site].log_prob(v)) for v in values])
        np.testing.assert_allclose(got, exact, rtol=1e-10)


# --- log density and NUTS -------------------------------------------------------------------------


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("family", ONE_HOT)
def test_log_density(backend, family):
    """numpyro.contrib.funsor.log_density sums the discrete latents out at given continuous ones."""
    from numpyro.contrib.funsor import enum, log_density

    model = enum(backend.gs.config_enumerate(with_shift(backend, family)), first_available_dim=-2)
    for shift in (-0.7, 0.4):
        got, _ = log_density(model, (), {}, {"shift": backend.array(shift)})
        assert float(got) == pytest.approx(log_joint_of_shift(shift), rel=1e-10)


@pytest.mark.parametrize("family", ["OneHotCategorical", "STGumbelSoftmax"])
@pytest.mark.long
def test_nuts_over_the_rest(backend, family):
    """NUTS sums the discrete latents out by enumeration and samples the shift."""
    model = backend.gs.config_enumerate(with_shift(backend, family))
    draws = backend.nuts(model, seed=0, warmup=150, samples=400)
    assert set(draws) == {"shift"}
    density = lambda s: np.exp(log_joint_of_shift(s))  # noqa: E731
    evidence = integrate.quad(density, -6, 6)[0]
    cdf = np.vectorize(lambda s: integrate.quad(density, -6, s)[0] / evidence)
    assert stats.kstest(draws["shift"][::8], cdf).pvalue > FAILURE_RATE


# --- predictive -----------------------------------------------------------------------------------


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("law", ["OneHotCategorical", "SoftOneHotCategorical"])
def test_numpyros_gibbs_sampler_is_refused(backend, law):
    """It took the three entries of a vector as three integers, and drew (0, 0, 0)."""
    from numpyro.infer import MCMC, NUTS, DiscreteHMCGibbs

    ppl, make = backend.ppl, getattr(backend.gs, law)
    probs = backend.array([0.5, 0.3, 0.2])

    def model():
        ppl.sample("w", backend.native.Normal(0.0, 1.0))
        with ppl.plate("rows", 2):
            ppl.sample("z", make(probs=probs) if law.startswith("One") else make(0.5, probs=probs))

    sampler = MCMC(DiscreteHMCGibbs(NUTS(model)), num_warmup=1, num_samples=1, progress_bar=False)
    message = f"site 'z': NumPyro's Gibbs sampler .* instead of values of {law}"
    with pytest.raises(ValueError, match=message):
        sampler.run(backend.jax.random.key(0))


def test_predictive(backend):
    """Posterior samples of the discrete sites by Predictive: class indices with the exact law."""
    program = by_name("mixture")
    model = backend.gs.config_enumerate(plain(backend, program))
    z = backend.predictive_discrete(model, plates=1, samples=300)["z"]
    assert z.shape == (300, 3)
    assert z.dtype.kind == "i"
    for i in range(3):
        counts = np.bincount(z[:, i], minlength=3)
        expected = 300 * program.marginal(i)
        assert stats.chisquare(counts, expected).pvalue > FAILURE_RATE


@pytest.mark.parametrize("handler", ["plain", "relaxed", "enumerated"])
def test_prior_predictive(backend, handler):
    """Without data: one-hot vectors if plain, soft vectors if relaxed, indices if enumerated."""
    gs = backend.gs
    model = plain(backend, by_name("mixture"))
    program = {
        "plain": model,
        "relaxed": gs.relax(model, 0.5),
        "enumerated": gs.config_enumerate(model),
    }[handler]
    z = backend.predictive(program, samples=400)["z"]
    if handler == "enumerated":
        assert z.shape == (400, 3)
        counts = np.bincount(z.ravel(), minlength=3)
    else:
        assert z.shape == (400, 3, 3)
        np.testing.assert_allclose(z.sum(-1), 1, atol=1e-6)
        counts = np.bincount(z.argmax(-1).ravel(), minlength=3)
    assert stats.chisquare(counts, 1200 * PRIOR).pvalue > FAILURE_RATE


# --- condition ------------------------------------------------------------------------------------


def conditioned_mixture(backend, value, inside):
    """Class indices and one-hot vectors, conditioned outside or inside; the program has one
    number."""
    program, z = by_name("mixture"), np.array([2, 0, 1])
    model, enumerate_ = plain(backend, program), backend.gs.config_enumerate
    data = {"z": backend.array(z, "int64") if value == "indices" else backend.array(np.eye(3)[z])}
    if inside:
        conditioned = enumerate_(backend.condition(model, data))
    else:
        conditioned = backend.condition(enumerate_(model), data)
    return conditioned, program.plates, program.log_joint(*z)


@pytest.mark.parametrize(("value", "inside"), [("indices", False), ("vectors", True)])
def test_condition_inside_of_a_plate(backend, value, inside):
    conditioned, plates, expected = conditioned_mixture(backend, value, inside)
    loss = backend.enumerated_loss(conditioned, empty, plates)
    assert -loss == pytest.approx(expected, rel=1e-10)


@pytest.mark.only("pyro")
def test_vectors_from_outside_of_a_plate(backend):
    conditioned, plates, expected = conditioned_mixture(backend, "vectors", False)
    assert -backend.enumerated_loss(conditioned, empty, plates) == pytest.approx(expected)


@pytest.mark.only("numpyro")
def test_vectors_from_outside_of_a_plate_are_refused(backend):
    conditioned, plates, _ = conditioned_mixture(backend, "vectors", False)
    with pytest.raises(ValueError, match=r"site 'z': .* must give class indices"):
        backend.enumerated_loss(conditioned, empty, plates)
