"""What check says about the order of sites, given rows, and partly observed or rewritten sites."""

import numpy as np
import pytest
from scipy.special import rel_entr

from gs_ppl import temperature

PRIOR = np.array([0.80, 0.15, 0.05])
ROWS = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])
MEAN_FIELD = "TraceMeanField_ELBO"

# --- order ----------------------------------------------------------------------------------------

# sites in their order, each with the site on which its law depends
CHAIN = {"z": None, "w": "z", "v": "w"}
GUIDES = {  # the sites that the refusal names: in the model, and in the guide
    "alike": ({"z": None, "w": "z", "v": "w"}, None),
    "independent, in another order": ({"v": None, "w": None, "z": None}, None),
    "two of three, in the model's order": ({"v": None, "z": None, "w": "z"}, None),
    "the last before the first alone": ({"v": None, "z": "v", "w": None}, None),
    "reversed": ({"v": None, "w": "v", "z": "w"}, ("[wv]", "[zw]")),
    "the first pair": ({"w": None, "z": "w", "v": "w"}, ("w", "z")),
    "the last pair": ({"v": None, "w": "v", "z": None}, ("v", "w")),
    "by way of the third": ({"v": None, "z": "v", "w": "z"}, ("v", "w")),
}


def chain(backend, parents, *, place):
    """A chain of classes; `place` is between a site and the law of the next one."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array

    def run():
        values = {}
        for name, parent in parents.items():
            probs = array(PRIOR)
            if parent:
                probs = values[parent] @ array(ROWS)
                if place == "deterministic":
                    probs = ppl.deterministic(f"{parent} of {name}", probs)
            if place == "plate" and name == "v":
                with ppl.plate("rows", 4):
                    value = ppl.sample(name, gs.OneHotCategorical(probs=probs))
                value = value.mean(0)
            else:
                value = ppl.sample(name, gs.OneHotCategorical(probs=probs))
            values[name] = value

    return gs.relax(run, 0.5)


@pytest.mark.parametrize("place", ["bare", "deterministic", "plate"])
@pytest.mark.parametrize("case", GUIDES)
def test_order_in_a_chain(backend, case, place):
    order, refused = GUIDES[case]
    pair = chain(backend, CHAIN, place=place), chain(backend, order, place=place)
    loss = getattr(backend.infer, MEAN_FIELD)()
    if refused is None:
        backend.gs.check(*pair, loss)
        return
    site, given = refused
    message = f"site '{site}': the model draws it given '{given}', but the guide draws '{given}' gi"
    with pytest.raises(ValueError, match=message):
        backend.gs.check(*pair, loss)


def test_order_in_single_precision(backend):
    order, (site, given) = GUIDES["reversed"]
    with backend.single_precision():
        pair = chain(backend, CHAIN, place="bare"), chain(backend, order, place="bare")
        with pytest.raises(ValueError, match=f"'{site}': the model draws it given '{given}'"):
            backend.gs.check(*pair, getattr(backend.infer, MEAN_FIELD)())


def test_order_under_another_loss(backend):
    """Another loss takes both scores at the same values, so that any order is right."""
    family = {"family": backend.gs.STGumbelSoftmax}

    def program(parents):
        return backend.gs.relax(chain(backend, parents, place="bare"), 0.5, **family)

    pair = program(CHAIN), program(GUIDES["reversed"][0])
    hard = [backend.gs.relax(backend.gs.discretize(fn), 0.5, **family) for fn in pair]
    backend.gs.check(*hard, backend.infer.Trace_ELBO())
    with pytest.raises(ValueError, match="draw them in the guide in the order of"):
        backend.gs.check(*hard, getattr(backend.infer, MEAN_FIELD)())


# --- rows given by the program --------------------------------------------------------------------


def in_rows(backend, plate):
    """The rows of the minibatch, of twenty."""
    gs, array = backend.gs, backend.array

    def model(x, rows):
        with plate(rows):
            z = backend.ppl.sample("z", gs.OneHotCategorical(probs=array(PRIOR)))
            loc = gs.select(array([0.0, 3.0, 6.0]), z)
            backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)

    return model


def guide_in_rows(backend, plate):
    logits = backend.array(np.linspace(-1, 1, 60).reshape(20, 3))

    def guide(x, rows):
        with plate(rows) as own:
            law = backend.gs.SoftOneHotCategorical(0.5, logits=logits[own])
            backend.ppl.sample("z", law)

    return guide


@pytest.mark.only("pyro")
@pytest.mark.parametrize("given", [True, False])
def test_rows_given_in_the_plate(backend, given):
    gs, rows = backend.gs, backend.torch.tensor([3, 11, 7, 19])
    plate = lambda rows: backend.ppl.plate("data", 20, subsample=rows)  # noqa: E731
    model = in_rows(backend, plate)
    own = lambda rows: backend.ppl.plate("data", 20, subsample_size=len(rows))  # noqa: E731
    guide = guide_in_rows(backend, plate if given else own)
    args = backend.infer.TraceMeanField_ELBO(), backend.array(np.zeros(4)), rows
    if given:
        gs.check(gs.relax(model, 0.5), guide, *args)
        return
    with pytest.raises(ValueError, match="plate 'data': the model is given its rows, but the gui"):
        gs.check(gs.relax(model, 0.5), guide, *args)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("given", ["both", "model", "neither"])
def test_rows_given_by_substitute(backend, given):
    gs, rows = backend.gs, backend.jnp.array([3, 11, 7, 19])
    plate = lambda rows: backend.ppl.plate("data", 20, subsample_size=len(rows))  # noqa: E731
    model, guide = in_rows(backend, plate), guide_in_rows(backend, plate)
    put = lambda fn: backend.ppl.handlers.substitute(fn, data={"data": rows})  # noqa: E731
    relaxed = gs.relax(model, 0.5)
    relaxed = relaxed if given == "neither" else put(relaxed)
    guide = put(guide) if given == "both" else guide
    args = backend.infer.TraceMeanField_ELBO(), backend.array(np.zeros(4)), rows
    if given != "model":
        gs.check(relaxed, guide, *args)
        return
    with pytest.raises(ValueError, match="plate 'data': the model is given its rows, but the gui"):
        gs.check(relaxed, guide, *args)


# --- partly observed sites ------------------------------------------------------------------------

SEEN = np.array([True, False, True, False])


def test_partly_observed_bits(backend):
    """obs_mask: only rows that are not observed have a divergence, both in model and guide."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array
    seen = array(SEEN.astype(float)) > 0
    p, q, bits = 0.3, 0.6, np.array([1.0, 0.0, 0.0, 1.0])

    def model():
        with ppl.plate("rows", 4):
            law = backend.native.Bernoulli(probs=array(p))
            ppl.sample("z", law, obs=array(bits), obs_mask=seen)

    def unmasked():
        with ppl.plate("rows", 4):
            ppl.sample("z_unobserved", gs.SoftBernoulli(0.5, probs=array(q)))

    guide = backend.masked(unmasked, ~SEEN)

    loss = getattr(backend.infer, MEAN_FIELD)()
    relaxed = gs.relax(model, 0.5)
    gs.check(relaxed, guide, loss)
    divergence = rel_entr([q, 1 - q], [p, 1 - p]).sum()
    wanted = 2 * divergence - np.log([p, 1 - p]).sum()
    found = backend.losses(loss, relaxed, guide, 1)[0]
    assert found == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match=r"site 'z_unobserved': .* is masked only in the model"):
        gs.check(relaxed, unmasked, loss)


@pytest.mark.parametrize("seen", [0, 1])
def test_latent_without_a_score(backend, seen):
    """A latent that is masked in all rows needs no guide; one that is masked in some rows does."""
    ppl, law = backend.ppl, backend.gs.OneHotCategorical(probs=backend.array(PRIOR))

    def model():
        with ppl.plate("rows", 4):
            ppl.sample("z", law)

    masked = backend.masked(model, np.arange(4) < seen)
    loss = backend.infer.Trace_ELBO()
    if not seen:
        backend.gs.check(masked, lambda: None, loss)
        return
    with pytest.raises(ValueError, match=r"site 'z': .* neither in the guide nor enumerated"):
        backend.gs.check(masked, lambda: None, loss)


@pytest.mark.only("numpyro")
def test_latent_without_a_score_below_another_mask(backend):
    law = backend.gs.OneHotCategorical(probs=backend.array(PRIOR)).expand([4])

    def model():
        with backend.ppl.plate("rows", 4):
            backend.ppl.sample("z", backend.mask(backend.mask(law, [False] * 4), np.arange(4) < 3))

    backend.gs.check(model, lambda: None, backend.infer.Trace_ELBO())


# --- rewritten sites ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noise", "transform"])
def test_reparameterized_sites(backend, kind):
    """The guide must have the site that replaces z."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array
    density = gs.GumbelSoftmax(0.5, probs=array(PRIOR))
    model = backend.reparam(lambda: ppl.sample("z", density), {"z": kind})
    base = {"noise": "z_gumbel", "transform": "z_base"}[kind]
    law, _ = backend.sites(model, 0)[base]
    law = law.to_event(1) if not law.event_shape else law
    loss = backend.infer.Trace_ELBO()
    gs.check(model, lambda: ppl.sample(base, law), loss)
    with pytest.raises(ValueError, match=f"site '{base}': .* neither in the guide nor enumerated"):
        gs.check(model, lambda: ppl.sample("z", density), loss)


# --- a second signature ---------------------------------------------------------------------------


def batches(backend):
    ppl, gs, array = backend.ppl, backend.gs, backend.array

    def model(x):
        with ppl.plate("rows", len(x)):
            z = ppl.sample("z", gs.OneHotCategorical(probs=array(PRIOR)))
            loc = gs.select(array([0.0, 3.0, 6.0]), z)
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)

    def guide(x):
        with ppl.plate("rows", 6):
            logits = ppl.param("a", array(np.zeros((6, 3))))
            ppl.sample("z", gs.SoftOneHotCategorical(0.5, logits=logits))

    loss = getattr(backend.infer, MEAN_FIELD)()
    programs = gs.relax(model, 0.5), guide, backend.optimizer(), loss, temperature.constant(0.5)
    return gs.AnnealedSVI(*programs), array(np.zeros(6)), array(np.zeros(1))


OTHER_ROWS = "site 'z': .*plate 'rows' of the guide has 6 rows"


@pytest.mark.only("pyro")
def test_evaluation_of_other_shapes_is_checked(backend):
    svi, six, one = batches(backend)
    svi.step(six)
    assert np.isfinite(svi.evaluate_loss(six))
    for run in (svi.evaluate_loss, svi.step):
        with pytest.raises(ValueError, match=OTHER_ROWS):
            run(one)


@pytest.mark.only("numpyro")
def test_evaluation_of_other_shapes_is_checked_under_jit(backend):
    svi, six, one = batches(backend)
    state = svi.init(backend.jax.random.key(0), six)
    evaluate = backend.jax.jit(svi.evaluate)
    assert np.isfinite(evaluate(state, six))
    for run in (evaluate, svi.evaluate, svi.update, svi.stable_update):
        with pytest.raises(ValueError, match=OTHER_ROWS):
            run(state, one)


# --- model and guide exchanged --------------------------------------------------------------------


def mixture(backend):
    ppl, native = backend.ppl, backend.native

    def model():
        with ppl.plate("rows", 4):
            z = ppl.sample("z", native.Categorical(probs=backend.array(PRIOR)))
            law = native.Normal(backend.array(np.arange(3.0))[z], 1.0)
            ppl.sample("x", law, obs=backend.array(np.zeros(4)))

    return model


@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide")
@pytest.mark.parametrize("door", ["check", "AnnealedSVI", "compare", "to_inference_data"])
def test_exchanged_model_and_guide(backend, door):
    model, elbo = mixture(backend), getattr(backend.infer, MEAN_FIELD)()
    guide = backend.gs.AutoGumbelSoftmax(model, temperature=0.5)
    pair, schedule = (guide, backend.gs.relax(model, 0.5)), temperature.constant(0.5)
    calls = {
        "check": lambda: backend.gs.check(*pair, elbo),
        "AnnealedSVI": lambda: backend.anneal(*pair, elbo, schedule, steps=1),
        "compare": lambda: backend.compare(*pair, num_samples=3),
        "to_inference_data": lambda: backend.to_inference_data(guide, model, num_samples=3),
    }
    with pytest.raises(ValueError, match="site 'x' is observed in the guide, and not in the model"):
        calls[door]()


def test_a_factor_in_the_guide_is_no_data(backend):
    model, gs = mixture(backend), backend.gs
    part = gs.AutoGumbelSoftmax(model, temperature=0.5)

    def guide():
        unit = backend.native.Unit(backend.array(0.3))
        backend.ppl.sample("term", unit, obs=backend.array(np.zeros(0)))
        return part()

    gs.check(gs.relax(model, 0.5), guide, getattr(backend.infer, MEAN_FIELD)())


# --- automatic guides in the order of the model ---------------------------------------------------


def interleaved(backend):
    """A discrete latent between two continuous ones, one of which depends on it."""
    ppl, native, array = backend.ppl, backend.native, backend.array

    def model():
        z = ppl.sample("z", native.Categorical(probs=array(PRIOR)))
        mu = ppl.sample("mu", native.Normal(array(np.arange(3.0))[z], 1.0))
        b = ppl.sample("b", native.Bernoulli(probs=array(0.3)))
        nu = ppl.sample("nu", native.Normal(mu + b, 1.0))
        ppl.sample("x", native.Normal(nu, 1.0), obs=array(0.5))

    return model


def test_auto_relaxed_has_the_order_of_the_model(backend):
    """The warning of the ELBO would be an error here."""
    model, elbo = interleaved(backend), getattr(backend.infer, MEAN_FIELD)()
    guide = backend.gs.auto_relaxed(model)
    relaxed, schedule = backend.gs.relax(model), temperature.constant(0.5)
    losses, _ = backend.anneal(relaxed, guide, elbo, schedule, steps=2)
    assert np.isfinite(losses).all()
    trace = backend.trace(backend.gs.discretize(guide), 0)
    assert [name for name in trace if name in ("z", "mu", "b", "nu")] == ["z", "mu", "b", "nu"]


def test_a_part_by_hand_keeps_its_order(backend):
    """It may depend on the order that it has: check must see it."""
    model, ppl, native, array = interleaved(backend), backend.ppl, backend.native, backend.array
    guide = backend.gs.AutoGuideList(model)

    def by_hand():
        nu = ppl.sample("nu", native.Normal(array(0.0), 1.0))
        return {"nu": nu, "mu": ppl.sample("mu", native.Normal(nu, 1.0))}

    guide.append(by_hand)
    guide.append(backend.gs.AutoGumbelSoftmax(backend.bare_block(model, expose=["z", "b"]), 0.5))
    with pytest.raises(ValueError, match="'nu'"):
        backend.gs.check(backend.gs.relax(model, 0.5), guide, getattr(backend.infer, MEAN_FIELD)())
