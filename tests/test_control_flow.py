"""Each handler over NumPyro's scan and cond: what is inside is reached, summed by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats

pytestmark = pytest.mark.only("numpyro")

RNG = np.random.default_rng(3)
DATA, LOCS = RNG.normal(size=4), np.array([-1.0, 0.0, 2.0])
TRANSITION = RNG.dirichlet(np.ones(3), 3)
LAWS = ["bit", "Categorical", "OneHotCategorical", "GumbelSoftmax", "STGumbelSoftmax"]


def chain(backend, kind, history=1, guide=None):
    """A hidden Markov model in scan, from state 0, and its number of states."""
    import jax.numpy as jnp
    from numpyro.contrib.control_flow import scan

    K = 2 if kind == "bit" else 3
    table = TRANSITION[:K, :K] / TRANSITION[:K, :K].sum(-1, keepdims=True)
    vectors = kind not in ("bit", "Categorical")

    def law(p):
        if kind == "bit":
            return backend.native.Bernoulli(probs=p[..., 1])
        if kind == "Categorical":
            return backend.native.Categorical(probs=p)
        make = getattr(backend.gs, kind)
        return make(probs=p) if kind == "OneHotCategorical" else make(0.5, probs=p)

    def body(before, x):
        z = backend.ppl.sample("z", law(backend.gs.select(jnp.asarray(table), before, axis=0)))
        loc = backend.gs.select(jnp.asarray(LOCS[:K]), z)
        backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)
        return z, z

    def model():
        first = jnp.eye(K)[0] if vectors else 0
        return scan(body, first, jnp.asarray(DATA), history=history)

    return model, table


def log_joints(table):
    """Of each path."""
    K, values = len(table), []
    for path in itertools.product(range(len(table)), repeat=len(DATA)):
        steps = zip((0, *path), path, strict=False)
        prior = sum(np.log(table[i, j]) for i, j in steps)
        values.append(prior + stats.norm(LOCS[:K][list(path)]).logpdf(DATA).sum())
    return np.array(values)


@pytest.mark.parametrize("kind", LAWS)
def test_enumeration_in_scan_is_exact(backend, kind):
    """TraceEnum_ELBO, which is wrong by itself for any law in scan, and log_density."""
    from numpyro.contrib.funsor import enum, log_density

    model, table = chain(backend, kind)
    model = backend.gs.config_enumerate(model)
    expected = np.logaddexp.reduce(log_joints(table))
    assert -backend.enumerated_loss(model, lambda: None, 0) == pytest.approx(expected, rel=1e-10)
    density, _ = log_density(enum(model, first_available_dim=-1), (), {}, {})
    assert float(density) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kind", ["bit", "Categorical"])
def test_relaxed_integers_in_scan(backend, kind):
    """Enumerated they are the integers again; an automatic guide has one row a step."""
    gs, (model, table) = backend.gs, chain(backend, kind)
    relaxed = gs.relax(model, 0.5)
    expected = np.logaddexp.reduce(log_joints(table))
    for program in (relaxed, gs.discretize(relaxed)):
        loss = backend.enumerated_loss(gs.config_enumerate(program), lambda: None, 0)
        assert -loss == pytest.approx(expected, rel=1e-10)
    guide = gs.AutoGumbelSoftmax(model, 0.5)
    gs.check(relaxed, guide, backend.infer.TraceMeanField_ELBO())
    assert np.shape(backend.trace(guide, 0)["z"]) == ((4,) if kind == "bit" else (4, 3))


def test_a_soft_choice_observes_no_site(backend):
    from numpyro.contrib.control_flow import cond

    def draw(loc):
        return backend.ppl.sample("w", backend.native.Normal(loc, 1.0), obs=0.1)

    def model():
        z = backend.ppl.sample("z", backend.native.Categorical(probs=TRANSITION[0]))
        return cond(z == 1, draw, draw, 0.0)

    with pytest.raises(ValueError, match=r"site 'w' is observed inside of cond, .* jnp\.where"):
        backend.trace(backend.gs.relax(model, 0.5), 0)


def test_gradient_and_plate_and_enumerated_start(backend):
    """A latent before scan, sequences in a plate, a parameter: value and slope by hand."""
    import jax
    import jax.numpy as jnp
    from numpyro.contrib.control_flow import scan

    x = np.stack([DATA, DATA[::-1]], -1)

    shift = []

    def body(before, x):
        with backend.ppl.plate("rows", 2):
            p = backend.gs.select(jnp.asarray(TRANSITION), before, axis=0)
            z = backend.ppl.sample("z", backend.gs.OneHotCategorical(probs=p))
            loc = backend.gs.select(jnp.asarray(LOCS), z) + shift[0]
            backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)
        return z, None

    def model():
        shift[:] = [backend.ppl.param("shift", 0.0)]
        start = backend.ppl.sample("start", backend.native.Categorical(probs=TRANSITION[0]))
        scan(body, jax.nn.one_hot(start, 3) + jnp.zeros((2, 1)), jnp.asarray(x))

    elbo, model = (
        backend.infer.TraceEnum_ELBO(max_plate_nesting=1),
        backend.gs.config_enumerate(model),
    )

    def evidence(shift):
        paths = np.array(list(itertools.product(range(3), repeat=4)))
        total = []
        for start in range(3):
            value = np.log(TRANSITION[0, start])
            for row in x.T:
                before = np.column_stack([np.full(len(paths), start), paths[:, :-1]])
                terms = np.log(TRANSITION[before, paths]) + stats.norm(LOCS[paths] + shift).logpdf(
                    row
                )
                value += np.logaddexp.reduce(terms.sum(-1))
            total.append(value)
        return np.logaddexp.reduce(total)

    loss = lambda shift: elbo.loss(jax.random.key(0), {"shift": shift}, model, lambda: None)  # noqa: E731
    value, slope = jax.value_and_grad(loss)(jnp.asarray(0.2))
    assert -float(value) == pytest.approx(evidence(0.2), rel=1e-10)
    assert -float(slope) == pytest.approx(
        (evidence(0.2 + 1e-5) - evidence(0.2 - 1e-5)) / 2e-5, rel=1e-6
    )


def test_compare_in_scan(backend):
    """The evidence is exact; marginals would need a factor in each step, and there is a note."""
    model, table = chain(backend, "bit")
    guide = backend.gs.AutoGumbelSoftmax(model)
    report = backend.compare(model, guide, num_samples=2, families=[], objectives=[])
    assert report.evidence.mean == pytest.approx(np.logaddexp.reduce(log_joints(table)), rel=1e-10)
    assert report.elbo is None
    assert not report.marginals
    assert any("exact marginals of z: not given: they take a factor" in n for n in report.notes)
    assert any("site 'z': sites inside of scan are not enumerated" in n for n in report.notes)


def test_what_is_summed_out_is_not_used_after(backend):
    model, _ = chain(backend, "OneHotCategorical")

    def after():
        _, z = model()
        backend.ppl.sample("y", backend.native.Normal(z.sum(), 1.0), obs=0.0)

    with pytest.raises(ValueError, match="site 'z' is summed out inside of scan"):
        backend.enumerated_loss(backend.gs.config_enumerate(after), lambda: None, 0)


def test_what_is_not_enumerated_in_scan(backend):
    """A guide's sites inside of scan, and history=0."""
    model, _ = chain(backend, "Categorical")
    model = backend.gs.config_enumerate(model)
    guide = backend.gs.config_enumerate(backend.without_observed(chain(backend, "Categorical")[0]))
    with pytest.raises(ValueError, match="site 'z': sites inside of scan are not enumerated in a"):
        backend.enumerated_loss(model, guide, 0)
    plate_like = backend.gs.config_enumerate(chain(backend, "bit", history=0)[0])
    with pytest.raises(ValueError, match="site 'z': sites inside of scan with history=0"):
        backend.enumerated_loss(plate_like, lambda: None, 0)


@pytest.mark.parametrize("handler", ["relax", "discretize"])
def test_handlers_reach_into_scan(backend, handler):
    kind = "OneHotCategorical" if handler == "relax" else "GumbelSoftmax"
    model = chain(backend, kind)[0]
    model = backend.gs.relax(model, 0.5) if handler == "relax" else backend.gs.discretize(model)
    _, value = backend.sites(model, 0)["z"]
    hard = np.isin(backend.numpy(value), (0, 1)).all()
    assert hard == (handler == "discretize")


# --- cond -----------------------------------------------------------------------------------------


def branching(backend, kind):
    from numpyro.contrib.control_flow import cond

    def branch(p):
        def draw(_):
            make = getattr(backend.gs, kind)
            p_ = backend.array(p)
            law = make(probs=p_) if kind == "OneHotCategorical" else make(0.5, probs=p_)
            return backend.ppl.sample("z", law)

        return draw

    def model():
        w = backend.ppl.sample("w", backend.native.Normal(backend.array(0.0), 1.0))
        z = cond(w > 0, branch([0.5, 0.5, 0.0]), branch([0.0, 0.5, 0.5]), w)
        backend.ppl.sample("x", backend.native.Normal(z @ backend.array(LOCS), 1.0), obs=0.3)
        return z

    return model


@pytest.mark.parametrize("handler", ["relax", "discretize", "config_enumerate"])
def test_handlers_reach_into_both_branches(backend, handler):
    """Each branch keeps its impossible category, whichever is taken."""
    kind = "OneHotCategorical" if handler == "relax" else "GumbelSoftmax"
    model = branching(backend, kind)
    model = (
        backend.gs.relax(model, 0.5) if handler == "relax" else getattr(backend.gs, handler)(model)
    )
    taken = set()
    for seed in range(6):
        trace = backend.trace(model, seed)
        z, first = backend.numpy(trace["z"]), float(trace["w"]) > 0
        taken.add(first)
        if handler == "config_enumerate":
            assert z in ((0, 1) if first else (1, 2))
        else:
            assert z[2 if first else 0] == 0
            assert np.isin(z, (0, 1)).all() == (handler == "discretize")
    assert taken == {True, False}


def test_a_branch_sees_what_the_guide_has_drawn(backend):
    """NumPyro's cond draws anew under replay, and hands that to the program."""
    import jax
    from numpyro import handlers

    model = backend.gs.relax(branching(backend, "OneHotCategorical"), 0.5)
    with handlers.seed(rng_seed=0), handlers.trace() as drawn:
        model()
    with handlers.seed(rng_seed=1), handlers.replay(trace=drawn), handlers.trace() as again:
        z = model()
    np.testing.assert_array_equal(backend.numpy(z), backend.numpy(drawn["z"]["value"]))
    np.testing.assert_array_equal(backend.numpy(z), backend.numpy(again["z"]["value"]))
    assert jax.tree.leaves(again["x"]["fn"])  # the law of x saw it


def test_branches_are_not_enumerated(backend):
    model = backend.gs.config_enumerate(branching(backend, "OneHotCategorical"))
    guide = lambda: backend.ppl.sample("w", backend.native.Normal(backend.array(0.0), 1.0))  # noqa: E731
    with pytest.raises(ValueError, match="site 'z': sites inside of cond are not enumerated"):
        backend.enumerated_loss(model, guide, 0)


def test_cond_beside_an_enumerated_latent(backend):
    """NumPyro refuses cond wherever something is enumerated, were it elsewhere."""
    from numpyro.contrib.control_flow import cond

    def model():
        shift = cond(
            backend.array(1.0) > 0, lambda x: x + 1.0, lambda x: x - 1.0, backend.array(0.5)
        )
        z = backend.ppl.sample(
            "z", backend.gs.OneHotCategorical(probs=backend.array(TRANSITION[0]))
        )
        loc = backend.gs.select(backend.array(LOCS), z) + shift
        backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(0.3))

    expected = np.log((TRANSITION[0] * stats.norm(LOCS + 1.5).pdf(0.3)).sum())
    loss = backend.enumerated_loss(backend.gs.config_enumerate(model), lambda: None, 0)
    assert -loss == pytest.approx(expected, rel=1e-10)


def test_sample_shape_is_not_enumerated_silently(backend):
    def model():
        law = backend.native.Bernoulli(probs=backend.array(0.5))
        z = backend.ppl.sample("z", law, sample_shape=(3,))
        backend.ppl.sample("y", backend.native.Normal(z.sum(-1), 1.0), obs=backend.array(2.0))

    with pytest.raises(ValueError, match=r"site 'z': sample_shape joins \(3,\) discrete"):
        backend.enumerated_loss(backend.gs.config_enumerate(model), lambda: None, 0)


def test_sample_shape_in_reports_and_losses(backend):
    """Log weights of draws are whole; a loss that would count one of three bits is refused."""
    ppl, native, gs = backend.ppl, backend.native, backend.gs

    def model():
        z = ppl.sample("z", native.Bernoulli(probs=backend.array(0.5)), sample_shape=(3,))
        loc = z.sum(-1)
        ppl.sample("y", native.Normal(loc, 1.0), sample_shape=(2,), obs=backend.array([2.0, 1.0]))

    def guide():
        ppl.sample("z", native.Bernoulli(probs=backend.array(0.2)), sample_shape=(3,))

    with pytest.raises(ValueError, match=r"site 'z': sample_shape joins \(3,\) discrete"):
        backend.to_inference_data(model, num_samples=4)
    for how, p in ((gs.AutoGumbelSoftmax(model), 0.5), (guide, 0.2)):
        drawn = backend.to_inference_data(model, how, num_samples=4)
        z = drawn["posterior"]["z"].values
        assert z.shape == (1, 4, 3)
        pointwise = stats.norm(z.sum(-1)[..., None]).logpdf([2.0, 1.0])
        assert drawn["log_likelihood"]["y"].values == pytest.approx(pointwise, rel=1e-6)
        log_q = stats.bernoulli(p).logpmf(z.astype(int)).sum(-1)
        weight = pointwise.sum(-1) + 3 * np.log(0.5) - log_q
        assert drawn["sample_stats"]["log_weight"].values == pytest.approx(weight, rel=1e-6)
    relaxed = [gs.relax(p, 0.5, family=gs.STGumbelSoftmax) for p in (model, guide)]
    with pytest.raises(ValueError, match=r"site 'z': TraceMeanField_ELBO counts .* of one of"):
        gs.check(*relaxed, backend.infer.TraceMeanField_ELBO())
    gs.check(*relaxed, backend.infer.Trace_ELBO())
    for elbo in (gs.RLOO_ELBO(num_particles=2), gs.MuProp_ELBO()):
        with pytest.raises(
            ValueError, match=r"site 'z': axis -1 of its batch shape \(3,\) lies in"
        ):
            backend.elbo_loss(elbo, model, guide)


# --- compare and training -------------------------------------------------------------------------


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("guide", ["automatic", "scanned"])
def test_compare_over_scan(backend, guide):
    """The evidence by brute force over all paths; the time axis of a site lies in no plate."""
    from numpyro.contrib.control_flow import scan

    ppl, gs, jnp = backend.ppl, backend.gs, backend.jnp
    A, x, locs = np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([0.5, -1.0, 1.2]), np.array([-1, 1.0])

    def model():
        def step(z, x):
            z = ppl.sample("z", gs.OneHotCategorical(probs=z @ jnp.array(A)))
            ppl.sample("x", backend.native.Normal(z @ jnp.array(locs), 1.0), obs=x)
            return z, None

        scan(step, jnp.array([1.0, 0.0]), jnp.array(x))

    def scanned():
        def step(carry, a):
            ppl.sample("z", gs.OneHotCategorical(logits=a))
            return carry, None

        scan(step, 0, ppl.param("a", jnp.zeros((3, 2))))

    alpha = np.array([1.0, 0.0])
    for x_t in x:
        alpha = (alpha @ A) * np.exp(-((x_t - locs) ** 2) / 2) / np.sqrt(2 * np.pi)
    guide = gs.AutoGumbelSoftmax(model) if guide == "automatic" else scanned
    report = backend.compare(
        model, guide, num_samples=3, temperatures=[0.5], families=[gs.GumbelSoftmax]
    )
    assert report.evidence.mean == pytest.approx(np.log(alpha.sum()), rel=1e-9)
    assert any("exact marginals of z: not given" in note for note in report.notes)
