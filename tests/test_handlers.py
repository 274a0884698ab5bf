"""relax, discretize, config_enumerate and select on whole programs, compared with summation by
hand."""

import numpy as np
import programs
import pytest
from programs import DATA, LOCS, ONE_HOT, PRIOR, PROGRAMS, by_name, empty, laws, plain
from scipy import stats

# --- exact enumeration ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*ONE_HOT, "ExpGumbelSoftmax"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
@pytest.mark.quick("factorial", "OneHotCategorical")
def test_enumeration_is_exact(backend, program, family):
    """With any law at the sites, the evidence is that of the discrete program."""
    model = backend.gs.config_enumerate(program.build(backend, laws(backend, family)))
    loss = backend.enumerated_loss(model, empty, program.plates)
    assert -loss == pytest.approx(program.evidence(), rel=1e-12)


@pytest.mark.parametrize("name", ["mixture", "factorial", "bernoulli_net"])
def test_enumeration_of_the_guide(backend, name):
    """If the guide is the prior, the ELBO by hand is the sum of p(z) log p(x | z)."""
    program = by_name(name)
    laws_ = laws(backend, "OneHotCategorical")
    model = backend.gs.config_enumerate(program.build(backend, laws_))
    prior = program.build(backend, laws_)
    guide = backend.gs.config_enumerate(backend.without_observed(prior))
    joint = program.log_joints()
    likelihood = joint - log_prior(program)
    expected = (np.exp(log_prior(program)) * likelihood).sum()
    loss = backend.enumerated_loss(model, guide, program.plates)
    assert -loss == pytest.approx(expected, rel=1e-10)


def log_prior(program):
    """Log joint without the likelihood terms."""
    saved = programs.normal
    programs.normal = lambda x, loc: np.zeros(np.broadcast_shapes(np.shape(x), np.shape(loc)))
    try:
        return program.log_joints()
    finally:
        programs.normal = saved


def test_enumerated_sites_are_class_indices(backend):
    program = by_name("hidden_markov")
    trace = backend.trace(backend.gs.config_enumerate(plain(backend, program)), 0)
    for name in program.sites:
        assert backend.numpy(trace[name]).shape == ()
        assert backend.numpy(trace[name]) in (0, 1, 2)


@pytest.mark.parametrize("name", ["hidden_markov", "factorial"])
def test_condition_takes_indices_and_one_hot_vectors(backend, name):
    """Evidence of the data and the given value, summed over the other latents."""
    program = by_name(name)
    site = program.sites[0]
    expected = np.logaddexp.reduce(program.log_joints()[1], axis=None)
    index, one_hot = backend.array(1, "int64"), backend.array([0.0, 1.0, 0.0])
    model, enumerate_ = plain(backend, program), backend.gs.config_enumerate
    cases = [
        backend.condition(enumerate_(model), {site: index}),
        enumerate_(backend.condition(model, {site: one_hot})),
    ]
    if program.plates == 0:  # NumPyro reads the last axis of a float as that of a plate
        cases.append(backend.condition(enumerate_(model), {site: one_hot}))
    for conditioned in cases:
        loss = backend.enumerated_loss(conditioned, empty, program.plates)
        assert -loss == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "name",
    [
        "mixture",
        pytest.param("hidden_markov", marks=pytest.mark.long),
        pytest.param("factorial", marks=pytest.mark.long),
    ],
)
def test_infer_discrete_samples_the_posterior(backend, name):
    program = by_name(name)
    model = backend.gs.config_enumerate(plain(backend, program))
    site = program.sites[0]
    draws = [
        np.atleast_1d(backend.numpy(backend.infer_discrete(model, program.plates, seed)[site]))[0]
        for seed in range(120)
    ]
    expected = program.marginal(0)
    counts = np.bincount(np.array(draws, int), minlength=3)
    assert stats.chisquare(counts, 120 * expected).pvalue > 1e-4


def test_to_event_is_not_enumerated_silently(backend):
    def model():
        p = backend.array(np.tile(PRIOR, (2, 1)))
        backend.ppl.sample("z", backend.gs.OneHotCategorical(probs=p).to_event(1))

    with pytest.raises(ValueError, match=r"site 'z': to_event joins .* use a plate"):
        backend.trace(backend.gs.config_enumerate(model), 0)


# --- relax ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["categorical", "relaxed"])
@pytest.mark.parametrize("family", ["GumbelSoftmax", "STGumbelSoftmax"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
@pytest.mark.quick("factorial", "bernoulli_net")
def test_relaxed_sites(backend, program, family, objective):
    make = getattr(backend.gs, family)
    model = backend.gs.relax(plain(backend, program), 0.5, family=make, objective=objective)
    fns = backend.sites(model, 0)
    expected = {
        ("GumbelSoftmax", "categorical"): ("SoftOneHotCategorical", "SoftBernoulli"),
        ("GumbelSoftmax", "relaxed"): ("GumbelSoftmax", "GumbelSigmoid"),
    }.get((family, objective), ("STGumbelSoftmax", "STGumbelSigmoid"))
    for site in program.sites:
        fn, value = fns[site]
        assert type(fn).__name__ == expected[fn.event_dims == 0]
        hard = np.isin(backend.numpy(value), (0, 1)).all()
        assert hard == (family == "STGumbelSoftmax")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_discretize_undoes_relax(backend, program):
    model = plain(backend, program)
    relaxed = backend.gs.relax(model, 0.5, objective="relaxed")
    back = backend.gs.discretize(relaxed)
    for site, (fn, value) in backend.sites(back, 0).items():
        if site in program.sites:
            assert type(fn).__name__.startswith(("OneHotCategorical", "Bernoulli"))
            assert np.isin(backend.numpy(value), (0, 1)).all()
    loss = backend.enumerated_loss(backend.gs.config_enumerate(back), empty, program.plates)
    assert -loss == pytest.approx(program.evidence(), rel=1e-10)


def test_relax_is_a_context_manager(backend):
    model = plain(backend, by_name("factorial"))

    def inside():
        with backend.gs.relax(temperature=0.5):
            model()

    for name, (fn, _) in backend.sites(inside, 0).items():
        if name != "x":
            assert type(fn).__name__ in ("SoftOneHotCategorical", "SoftBernoulli")


def test_family_by_site(backend):
    gs = backend.gs
    model = gs.relax(plain(backend, by_name("factorial")), 0.5, family={"b": gs.STGumbelSoftmax})
    names = {name: type(fn).__name__ for name, (fn, _) in backend.sites(model, 0).items()}
    assert names["a"] == "SoftOneHotCategorical"
    assert names["b"] == "STGumbelSoftmax"
    assert names["c"] == "SoftBernoulli"


def test_sites_restrict(backend):
    model = backend.gs.relax(plain(backend, by_name("factorial")), 0.5, sites=["a"])
    names = {name: type(fn).__name__ for name, (fn, _) in backend.sites(model, 0).items()}
    assert names["a"] == "SoftOneHotCategorical"
    assert names["b"] == "OneHotCategorical"


def test_observed_and_continuous_sites_stay(backend):
    ppl = backend.ppl

    def model():
        one_hot = backend.array([0.0, 1.0, 0.0])
        ppl.sample("seen", backend.gs.OneHotCategorical(probs=backend.array(PRIOR)), obs=one_hot)
        ppl.sample("w", backend.native.Normal(backend.array(0.0), 1.0))

    before, after = (backend.sites(m, 0) for m in (model, backend.gs.relax(model, 0.5)))
    assert {k: type(f) for k, (f, _) in before.items()} == {
        k: type(f) for k, (f, _) in after.items()
    }


@pytest.mark.parametrize("wrapper", ["plate", "to_event", "mask", "mask of to_event"])
def test_relax_sees_through_wrappers(backend, wrapper):
    """A handler that only checks the class of the outer law would skip these without an error."""
    ppl = backend.ppl
    keep = np.array([True, False])

    def model():
        law = backend.gs.OneHotCategorical(probs=backend.array(np.tile(PRIOR, (2, 1))))
        if wrapper == "plate":
            with ppl.plate("data", 2):
                return ppl.sample("z", law)
        if wrapper == "to_event":
            return ppl.sample("z", law.to_event(1))
        if wrapper == "mask":
            with ppl.plate("data", 2):
                return ppl.sample("z", backend.mask(law, keep))
        return ppl.sample("z", backend.mask(law.to_event(1), np.array(True)))

    fn, value = backend.sites(backend.gs.relax(model, 0.5), 0)["z"]
    assert type(fn).__name__ == "SoftOneHotCategorical"
    assert value.shape == (2, 3)
    assert (backend.numpy(value) % 1 > 0).all()


def test_masked_categories_survive(backend):
    """A category of probability zero in a native law stays masked."""
    p = np.array([0.5, 0.0, 0.5])
    model = lambda: backend.ppl.sample(  # noqa: E731
        "z", backend.gs.OneHotCategorical(probs=backend.array(p))
    )
    _, value = backend.sites(backend.gs.relax(model, 0.5), 0)["z"]
    assert backend.numpy(value)[1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": None}, "site 'z' has no temperature"),
        ({"sites": ["y"]}, "no discrete latent site is called 'y'; the program has 'z'"),
        ({"family": {"y": "STGumbelSoftmax"}}, "no discrete latent site is called 'y'"),
        (
            {"family": "GumbelSigmoid"},
            "site 'z' is a one-hot vector, which GumbelSigmoid does not relax",
        ),
        ({"family": "SoftOneHotCategorical", "objective": "relaxed"}, "scores densities"),
        (
            {"objective": "discrete"},
            "objective must be one of categorical, relaxed, got 'discrete'",
        ),
        ({"temperature": -1.0}, "temperature must be positive"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_relax_refuses(backend, options, message):
    options = {"temperature": 0.5, **options}
    family = options.get("family")
    if isinstance(family, str):
        options["family"] = getattr(backend.gs, family)
    elif family:
        options["family"] = {k: getattr(backend.gs, v) for k, v in family.items()}
    model = plain(backend, by_name("mixture"))
    with pytest.raises(ValueError, match=message):
        backend.trace(backend.gs.relax(model, **options), 0)


def test_nothing_to_relax(backend):
    assert backend.trace(backend.gs.relax(lambda: None, 0.5), 0) == {}


# --- select ---------------------------------------------------------------------------------------


def test_select(backend):
    table = np.arange(12.0).reshape(4, 3)
    select, array = backend.gs.select, backend.array
    z = np.array([2, 0, 1, 1])
    by_index = backend.numpy(select(array(table), array(z, "int64")))
    np.testing.assert_array_equal(by_index, table[np.arange(4), z])
    np.testing.assert_array_equal(
        backend.numpy(select(array(table), array(np.eye(3)[z]))), by_index
    )
    soft = np.full((4, 3), 1 / 3)
    np.testing.assert_allclose(backend.numpy(select(array(table), array(soft))), table.mean(-1))
    pair = array(table[:, :2])
    bits = np.array([0.0, 1.0, 0.25, 1.0])
    np.testing.assert_allclose(
        backend.numpy(select(pair, array(bits), binary=True)), table[:, 0] + bits
    )
    whole = backend.numpy(select(pair, array(np.array([0, 1, 0, 1]), "int64"), binary=True))
    np.testing.assert_array_equal(whole, table[:, 0] + [0, 1, 0, 1])
    with pytest.raises(
        ValueError, match="select: axis -1 of the table and the classes of z must agree"
    ):
        select(array(LOCS), array(DATA))
