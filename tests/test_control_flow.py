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


@pytest.mark.parametrize("kind", [pytest.param("bit", marks=pytest.mark.long), "OneHotCategorical"])
def test_an_enumerated_start_without_plates(backend, kind):
    """The start has the last axis in what is summed out; some steps are impossible."""
    from numpyro.contrib.control_flow import scan

    ppl, gs, jnp, K = backend.ppl, backend.gs, backend.jnp, 2 if kind == "bit" else 3
    start, table = np.full(K, 1 / K), np.triu(TRANSITION[:K, :K])
    table /= table.sum(-1, keepdims=True)

    def law(p):
        if kind == "bit":
            return backend.native.Bernoulli(probs=p[..., 1])
        return gs.OneHotCategorical(probs=p)

    def body(before, x):
        z = ppl.sample("z", law(gs.select(jnp.asarray(table), before, axis=0)))
        ppl.sample("x", backend.native.Normal(gs.select(jnp.asarray(LOCS[:K]), z), 1.0), obs=x)
        return z, None

    def model():
        scan(body, ppl.sample("first", law(jnp.asarray(start))), jnp.asarray(DATA))

    alpha = start
    for x in DATA:
        alpha = (alpha @ table) * stats.norm(LOCS[:K]).pdf(x)
    assert enumerated(backend, model) == pytest.approx(np.log(alpha.sum()), rel=1e-6)


@pytest.mark.parametrize("kind", ["bit", "OneHotCategorical", "GumbelSoftmax"])
def test_compare_in_scan(backend, kind):
    """The evidence and the marginals of each step, from all paths."""
    model, table = chain(backend, kind)
    guide = backend.gs.AutoGumbelSoftmax(model)
    report = backend.compare(model, guide, num_samples=2, families=[], objectives=[])
    values, K = log_joints(table), len(table)
    evidence = np.logaddexp.reduce(values)
    assert report.evidence.mean == pytest.approx(evidence, rel=1e-10)
    paths = np.array(list(itertools.product(range(K), repeat=len(DATA))))
    exact = (np.exp(values - evidence)[:, None, None] * np.eye(K)[paths]).sum(0)
    np.testing.assert_allclose(report.marginals["z"].exact, exact, atol=1e-12)
    assert report.elbo is None
    assert any("site 'z': sites inside of scan are not enumerated" in n for n in report.notes)


def enumerated(backend, model, guide=lambda: None, plates=0):
    return -backend.enumerated_loss(backend.gs.config_enumerate(model), guide, plates)


@pytest.mark.parametrize("steps", [2, 3, 4])
@pytest.mark.parametrize("start", ["fixed", "drawn"])
def test_a_continuous_latent_beside(backend, start, steps):
    """Its axis of time lies where an enumerated site, or a row of the guide, has its own."""
    from numpyro import distributions as dist
    from numpyro.contrib.control_flow import scan

    ppl, jnp, table = backend.ppl, backend.jnp, TRANSITION
    y = np.array([0.3, -0.4, 0.9, 0.1])[:steps]

    def model():
        z = jnp.eye(3)[0]
        if start == "drawn":
            z = ppl.sample("w", backend.gs.OneHotCategorical(probs=jnp.asarray(table[0])))

        def body(z, x):
            y = ppl.sample("y", dist.Normal(0.0, 1.0))
            z = ppl.sample("z", backend.gs.OneHotCategorical(probs=z @ jnp.asarray(table)))
            ppl.sample("x", dist.Normal(z @ jnp.asarray(LOCS) + y, 1.0), obs=x)
            return z, None

        scan(body, z, jnp.asarray(DATA[:steps]))

    alpha = table[0] if start == "drawn" else np.eye(3)[0]
    for t in range(steps):
        alpha = (alpha @ table) * stats.norm(LOCS + y[t]).pdf(DATA[t])
    guide = lambda: ppl.sample("y", dist.Delta(jnp.asarray(y)))  # noqa: E731
    expected = np.log(alpha.sum()) + stats.norm.logpdf(y).sum()
    assert enumerated(backend, model, guide) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.quick("1")
def test_a_start_in_the_plate_of_scan(backend, rows):
    """Each row has its own start, which is summed out by row."""
    from numpyro.contrib.control_flow import scan

    ppl, gs, jnp = backend.ppl, backend.gs, backend.jnp
    x = np.random.default_rng(0).normal(size=(4, rows))

    def model():
        with ppl.plate("rows", rows):
            w = ppl.sample("w", gs.OneHotCategorical(probs=jnp.asarray(TRANSITION[1])))

        def body(z, x):
            with ppl.plate("rows", rows):
                z = ppl.sample("z", gs.OneHotCategorical(probs=z @ jnp.asarray(TRANSITION)))
                ppl.sample("x", backend.native.Normal(z @ jnp.asarray(LOCS), 1.0), obs=x)
            return z, None

        scan(body, w, jnp.asarray(x))

    alpha = np.tile(TRANSITION[1], (rows, 1))
    for t in range(4):
        alpha = (alpha @ TRANSITION) * stats.norm(LOCS).pdf(x[t][:, None])
    expected = np.log(alpha.sum(-1)).sum()
    assert enumerated(backend, model, plates=1) == pytest.approx(expected, rel=1e-10)
    guide = gs.AutoGumbelSoftmax(model)
    report = backend.compare(model, guide, num_samples=2, families=[], objectives=[])
    assert report.evidence.mean == pytest.approx(expected, rel=1e-10)
    last = report.marginals["z"].exact[-1]
    np.testing.assert_allclose(last, alpha / alpha.sum(-1, keepdims=True), atol=1e-12)


def test_a_masked_step_is_worth_one(backend):
    """As in a loop and as Pyro's: the law of what is summed out stays a law."""
    from numpyro.contrib.control_flow import scan

    ppl, gs, jnp = backend.ppl, backend.gs, backend.jnp
    model, _ = chain(backend, "OneHotCategorical")

    def ragged(steps):
        def body(z, given):
            x, mask = given
            with ppl.handlers.mask(mask=mask):
                z = ppl.sample("z", gs.OneHotCategorical(probs=z @ jnp.asarray(TRANSITION)))
                ppl.sample("x", backend.native.Normal(z @ jnp.asarray(LOCS), 1.0), obs=x)
            return z, None

        scan(body, jnp.eye(3)[0], (jnp.asarray(DATA), jnp.arange(4) < steps))

    alpha = np.eye(3)[0]
    for x in DATA[:2]:
        alpha = (alpha @ TRANSITION) * stats.norm(LOCS).pdf(x)
    assert enumerated(backend, lambda: ragged(2)) == pytest.approx(np.log(alpha.sum()), rel=1e-10)
    assert enumerated(backend, lambda: ragged(4)) == pytest.approx(enumerated(backend, model))


def test_a_scaled_scan(backend):
    """What is summed out and what is seen have one scale, as the evidence then has."""
    from numpyro.contrib.control_flow import scan

    ppl, gs, jnp, scale = backend.ppl, backend.gs, backend.jnp, backend.ppl.handlers.scale

    def model(of_data):
        def body(z, x):
            with scale(scale=2.5):
                z = ppl.sample("z", gs.OneHotCategorical(probs=z @ jnp.asarray(TRANSITION)))
            with scale(scale=of_data):
                ppl.sample("x", backend.native.Normal(z @ jnp.asarray(LOCS), 1.0), obs=x)
            return z, None

        scan(body, jnp.eye(3)[0], jnp.asarray(DATA))

    alpha = np.eye(3)[0]
    for x in DATA:
        alpha = (alpha @ TRANSITION) * stats.norm(LOCS).pdf(x)
    expected = pytest.approx(2.5 * np.log(alpha.sum()), rel=1e-10)
    assert enumerated(backend, lambda: model(2.5)) == expected
    with pytest.raises(ValueError, match="site 'z' is summed out inside of scan, where all sites"):
        enumerated(backend, lambda: model(1.0))


def test_values_by_a_function_of_time(backend):
    """A condition that reads the step, in what is summed out and in what is drawn from it."""
    import jax
    from numpyro import distributions as dist
    from numpyro.contrib.control_flow import scan
    from numpyro.contrib.funsor import infer_discrete

    ppl, gs, jnp = backend.ppl, backend.gs, backend.jnp
    y = np.array([2.0, -1.5, 0.3, 1.0])

    def program():
        def body(z, x):
            y = ppl.sample("y", dist.Normal(0.0, 1.0))
            z = ppl.sample("z", gs.OneHotCategorical(probs=z @ jnp.asarray(TRANSITION)))
            ppl.sample("x", dist.Normal(z @ jnp.asarray(LOCS) + y, 1.0), obs=x)
            return z, None

        scan(body, jnp.eye(3)[0], jnp.asarray(DATA))

    def given(site):
        return jnp.asarray(y)[site["infer"]["_scan_current_index"]] if site["name"] == "y" else None

    def log_joint(path):
        prior = np.log(TRANSITION[[0, *path[:-1]], path]).sum()
        return prior + stats.norm(LOCS[list(path)] + y).logpdf(DATA).sum()

    paths = list(itertools.product(range(3), repeat=4))
    values = np.array([log_joint(path) for path in paths])
    model = ppl.handlers.condition(program, condition_fn=given)
    expected = np.logaddexp.reduce(values) + stats.norm.logpdf(y).sum()
    assert enumerated(backend, model) == pytest.approx(expected, rel=1e-10)
    key = jax.random.key(0)
    decode = infer_discrete(gs.config_enumerate(model), -1, temperature=0, rng_key=key)
    trace = ppl.handlers.trace(ppl.handlers.seed(decode, key)).get_trace()
    best = np.asarray(trace["z"]["value"]).astype(int)
    np.testing.assert_array_equal(best, paths[values.argmax()])


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_a_factor_in_scan(backend, weight):
    """Data that come in by a factor, in the ELBO and in log_density."""
    from numpyro.contrib.control_flow import scan
    from numpyro.contrib.funsor import enum, log_density

    ppl, gs, jnp = backend.ppl, backend.gs, backend.jnp

    def model():
        def body(z, x):
            z = ppl.sample("z", gs.OneHotCategorical(probs=z @ jnp.asarray(TRANSITION)))
            ppl.factor("f", weight * backend.native.Normal(z @ jnp.asarray(LOCS), 1.0).log_prob(x))
            return z, None

        scan(body, jnp.eye(3)[0], jnp.asarray(DATA))

    alpha = np.eye(3)[0]
    for x in DATA:
        alpha = (alpha @ TRANSITION) * stats.norm(LOCS).pdf(x) ** weight
    expected = pytest.approx(np.log(alpha.sum()), rel=1e-10, abs=1e-12)
    assert enumerated(backend, model) == expected
    lazy = enum(gs.config_enumerate(model), first_available_dim=-1)
    assert float(log_density(lazy, (), {}, {})[0]) == expected


def test_what_is_summed_out_is_not_used_after(backend):
    model, _ = chain(backend, "OneHotCategorical")

    def after():
        _, z = model()
        backend.ppl.sample("y", backend.native.Normal(z.sum(), 1.0), obs=0.0)

    with pytest.raises(ValueError, match="site 'z' is summed out inside of scan"):
        backend.enumerated_loss(backend.gs.config_enumerate(after), lambda: None, 0)


def test_what_the_guide_draws_is_used_after(backend):
    """It is not summed out, though the model is enumerated."""
    model, table = chain(backend, "Categorical")
    path = np.array([1, 2, 0, 2])

    def after():
        _, z = model()
        backend.ppl.sample("y", backend.native.Normal(z.sum(), 1.0), obs=0.4)

    def guide():
        law = backend.native.Categorical(logits=backend.array(1e4 * np.eye(3)[path]))
        backend.ppl.sample("z", law.to_event(1))

    prior = np.log(table[[0, *path[:-1]], path]).sum()
    expected = prior + stats.norm(LOCS[path]).logpdf(DATA).sum() + stats.norm(5.0).logpdf(0.4)
    assert enumerated(backend, after, guide) == pytest.approx(expected, rel=1e-6)


def test_what_is_not_enumerated_in_scan(backend):
    """A guide's sites inside of scan, marked or drawn, and history=0."""
    model, _ = chain(backend, "Categorical")
    guide, model = backend.without_observed(model), backend.gs.config_enumerate(model)
    with pytest.raises(ValueError, match="site 'z': sites inside of scan are not enumerated in a"):
        backend.enumerated_loss(model, backend.gs.config_enumerate(guide), 0)
    with pytest.raises(ValueError, match="site 'z': sites inside of scan are taken apart in a gui"):
        backend.enumerated_loss(model, guide, 0)
    plate_like = backend.gs.config_enumerate(chain(backend, "bit", history=0)[0])
    with pytest.raises(ValueError, match="site 'z': sites inside of scan with history=0"):
        backend.enumerated_loss(plate_like, lambda: None, 0)


@pytest.mark.parametrize("history", [0, 1])
def test_a_guide_in_scan_under_enumeration(backend, history):
    """Whole with history=0 within config_enumerate; NumPyro's own dies of the first, loses the
    second."""
    from numpyro import distributions as dist
    from numpyro.contrib.control_flow import scan

    ppl, gs, jnp, y = backend.ppl, backend.gs, backend.jnp, np.array([0.3, -0.4, 0.9, 0.1])

    def model():
        def body(carry, x):
            y = ppl.sample("y", dist.Normal(0.0, 1.0))
            z = ppl.sample("z", gs.OneHotCategorical(probs=jnp.asarray(TRANSITION[0])))
            ppl.sample("x", dist.Normal(z @ jnp.asarray(LOCS) + y, 1.0), obs=x)
            return carry, None

        scan(body, 0.0, jnp.asarray(DATA))

    def guide():
        def body(carry, y):
            ppl.sample("y", dist.Delta(y))
            return carry, None

        scan(body, 0.0, jnp.asarray(y), history=history)

    model, elbo = gs.config_enumerate(model), backend.infer.TraceEnum_ELBO(max_plate_nesting=0)
    with pytest.raises(ValueError, match=r"site 'y': .* taken apart in a guide.* history=0 and"):
        gs.check(model, guide, elbo)
    whole = gs.config_enumerate(guide)
    if history:
        with pytest.raises(ValueError, match=r"site 'y': .* taken apart in a guide"):
            backend.elbo_loss(elbo, model, whole)
        return
    gs.check(model, whole, elbo)
    fit = (TRANSITION[0] * stats.norm(LOCS + y[:, None]).pdf(DATA[:, None])).sum(-1)
    expected = np.log(fit).sum() + stats.norm.logpdf(y).sum()
    assert -backend.elbo_loss(elbo, model, whole) == pytest.approx(expected, rel=1e-10)


def drawn(backend, model, temperature, draws=1):
    """Paths by infer_discrete, at which NumPyro itself dies inside of scan."""
    import jax
    from numpyro.contrib.funsor import infer_discrete

    model = backend.gs.config_enumerate(model)

    def draw(key):
        decode = infer_discrete(model, -2, temperature=temperature, rng_key=key)
        return backend.ppl.handlers.trace(backend.ppl.handlers.seed(decode, key)).get_trace()

    keys = jax.random.split(jax.random.key(0), draws)
    return np.asarray(jax.vmap(lambda key: draw(key)["z"]["value"])(keys)).astype(int)


def is_law(paths, log_joint):
    """Whether paths are draws of a law on the cells of a table."""
    counts = np.bincount(np.ravel_multi_index(paths.T, log_joint.shape), minlength=log_joint.size)
    p = np.exp(log_joint - np.logaddexp.reduce(log_joint, axis=None)).ravel()
    return stats.chisquare(counts, len(paths) * p).pvalue > 1e-4


@pytest.mark.parametrize(
    "kind", ["bit", *(pytest.param(k, marks=pytest.mark.long) for k in LAWS[1:])]
)
def test_draws_from_scan(backend, kind):
    model, table = chain(backend, kind)
    log_joint = log_joints(table).reshape([len(table)] * 4)
    paths = drawn(backend, model, 0)
    assert log_joint[tuple(paths[0])] == log_joint.max()
    assert is_law(drawn(backend, model, 1, 4000), log_joint)


@pytest.mark.long
def test_draws_from_a_second_order_scan_of_several_lengths(backend):
    """Rows in a plate, of which one ends early."""
    from numpyro.contrib.control_flow import scan

    ppl, jnp = backend.ppl, backend.jnp
    second = RNG.dirichlet(np.ones(2), (2, 2))
    x, ends = np.stack([DATA[:3], -DATA[:3]], -1), np.array([3, 2])

    def model():
        def body(before, given):
            (p, q), (t, x) = before, given
            with ppl.plate("rows", 2), ppl.handlers.mask(mask=t < ends):
                z = ppl.sample("z", backend.native.Categorical(probs=jnp.asarray(second)[p, q]))
                ppl.sample("x", backend.native.Normal(jnp.asarray(LOCS)[z], 1.0), obs=x)
            return (q, z), z

        zeros = jnp.zeros(2, int)
        return scan(body, (zeros, zeros), (jnp.arange(3), jnp.asarray(x)), history=2)

    cells = list(itertools.product(range(2), repeat=3))
    paths = drawn(backend, model, 1, 4000)
    for row in range(2):
        log_joint = np.empty((2, 2, 2))
        for a, b, c in cells:
            prior = second[0, 0, a] * second[0, a, b] * second[a, b, c]
            fit = stats.norm(LOCS[[a, b, c]]).logpdf(x[:, row])[: ends[row]].sum()
            log_joint[a, b, c] = np.log(prior) + fit
        assert is_law(paths[:, :, row], log_joint)
        best = drawn(backend, model, 0)[0, :, row]
        assert log_joint[tuple(best)] == log_joint.max()


@pytest.mark.long
def test_draws_from_scan_as_a_data_set(backend):
    model, table = chain(backend, "OneHotCategorical")
    data = backend.to_inference_data(model, num_samples=2000)
    paths = data.posterior["z"].values[0].astype(int)
    assert is_law(paths, log_joints(table).reshape(3, 3, 3, 3))


def test_reverse_is_refused(backend):
    """NumPyro sums a reversed scan in the wrong order."""
    from numpyro.contrib.control_flow import scan

    def backwards():
        def body(z, x):
            z = backend.ppl.sample("z", backend.gs.OneHotCategorical(probs=z))
            return z, None

        scan(body, backend.jnp.ones(3) / 3, backend.jnp.asarray(DATA), reverse=True)

    with pytest.raises(ValueError, match="site 'z': sites inside of scan with reverse=True"):
        enumerated(backend, backwards)


def test_time_in_the_place_of_another_axis(backend):
    """NumPyro's log_density takes the one for the other, and gave -9.84 for -12.60."""
    from numpyro.contrib.control_flow import scan
    from numpyro.contrib.funsor import enum, log_density

    ppl, gs, jnp = backend.ppl, backend.gs, backend.jnp

    def model():
        w = ppl.sample("w", gs.OneHotCategorical(probs=jnp.asarray(TRANSITION[0])))

        def body(carry, x):
            y = ppl.sample("y", backend.native.Normal(0.0, 1.0))
            ppl.sample("x", backend.native.Normal(w @ jnp.asarray(LOCS) + y, 1.0), obs=x)
            return carry, None

        scan(body, 0.0, jnp.asarray(DATA))

    lazy = enum(gs.config_enumerate(model), first_available_dim=-1)
    with pytest.raises(ValueError, match="site 'y': sites inside of scan have time where 'w'"):
        log_density(lazy, (), {}, {"y": jnp.asarray(DATA)})


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


@pytest.mark.parametrize("handler", ["relax", "discretize", "config_enumerate"])
def test_branches_without_latents(backend, handler):
    """A predicate of a latent, and a deterministic site in each branch."""
    from numpyro import handlers
    from numpyro.contrib.control_flow import cond

    ppl, gs = backend.ppl, backend.gs

    def model():
        w = ppl.sample("w", backend.native.Normal(backend.array(0.0), 1.0))
        yes, no = (lambda x, shift=s: ppl.deterministic("a", x + shift) for s in (1.0, -2.0))
        y = cond(w > 0, yes, no, w)
        z = ppl.sample("z", gs.OneHotCategorical(probs=backend.array(TRANSITION[0])))
        loc = y + gs.select(backend.array(LOCS), z)
        ppl.sample("x", backend.native.Normal(loc, 1.0), obs=0.3)

    handled = getattr(gs, handler)(model, *([0.5] if handler == "relax" else []))
    taken = set()
    for seed in range(6):
        with handlers.seed(rng_seed=seed), handlers.trace() as trace:
            handled()
        w, a = (float(trace[name]["value"]) for name in "wa")
        assert a == pytest.approx(w + (1.0 if w > 0 else -2.0))
        taken.add(w > 0)
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


def drawn_in_branches(backend, read, observed, chosen=None):
    """A class is drawn in a branch, with a law of its own in each; `read` makes its location."""
    from numpyro.contrib.control_flow import cond

    ppl, native, array = backend.ppl, backend.native, backend.array

    def branch(p):
        return lambda _: read(ppl.sample("z", native.Categorical(probs=array(p))))

    def model():
        drawn = chosen is None
        w = ppl.sample("w", native.Normal(array(0.0), 1.0)) if drawn else array(chosen)
        loc = cond(w > 0, branch(TRANSITION[0]), branch(TRANSITION[1]), w)
        if observed:
            ppl.sample("x", native.Normal(loc, 1.0), obs=0.3)

    return model


def divergence(q, p):
    return (q * np.log(q / p)).sum()


def test_branches_under_check(backend):
    """The divergence is that from the law of the branch taken; what a branch reads is probed."""
    ppl, native, array, gs = backend.ppl, backend.native, backend.array, backend.gs
    q, locs = np.array([0.2, 0.5, 0.3]), array(LOCS)

    def guide(classes=True):
        ppl.sample("w", native.Normal(array(0.2), 1.0))
        if classes:
            ppl.sample("z", native.Categorical(probs=array(q)))

    elbo, own = backend.infer.TraceMeanField_ELBO(), gs.relax(guide, 0.5)
    model = gs.relax(drawn_in_branches(backend, lambda z: locs[z], False), 0.5)
    gs.check(model, own, elbo)
    run = backend.jax.jit(lambda key: elbo.loss(key, {}, model, own))
    found = {round(float(run(backend.jax.random.key(seed))), 6) for seed in range(9)}
    assert found == {round(0.02 + divergence(q, TRANSITION[row]), 6) for row in (0, 1)}
    jump = lambda z: backend.where(locs[z] > 0.5, 1.0, -1.0)  # noqa: E731
    with pytest.raises(ValueError, match="site 'z': the model reads its relaxed value in a way"):
        gs.check(gs.relax(drawn_in_branches(backend, jump, True), 0.5), own, elbo)
    with pytest.raises(ValueError, match=r"site 'z': Categorical.* in the model is neither in"):
        gs.check(drawn_in_branches(backend, lambda z: locs[z], True), lambda: guide(False), elbo)


@pytest.mark.long
def test_branches_under_compare(backend):
    """What cannot be enumerated is a note; the estimates are there, and right."""
    read = lambda z: backend.array(LOCS)[z]  # noqa: E731
    model = drawn_in_branches(backend, read, True, chosen=-1.0)
    guide, ST = backend.gs.AutoGumbelSoftmax(model), backend.gs.STGumbelSoftmax
    report = backend.compare(model, guide, num_samples=200, temperatures=[0.5], families=[ST])
    assert (report.evidence, report.elbo) == (None, None)
    for note in report.notes:
        assert "site 'z': sites inside of cond are not enumerated: draw it before, and" in note
    fit = stats.norm(LOCS).logpdf(0.3).mean()
    elbo, (found,) = fit - divergence(np.full(3, 1 / 3), TRANSITION[1]), report.estimates
    assert abs(found.elbo.mean - elbo) < 4 * found.elbo.error < 1


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
        loc = z.astype(float).sum(-1)  # of integers over draws it is refused
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
@pytest.mark.quick("automatic")
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
    assert report.marginals["z"].exact.shape == (3, 2)


# --- control flow of JAX, which holds no site -----------------------------------------------------


def fori(lax, x):
    return lax.fori_loop(0, 3, lambda i, total: total + x, 0.0 * x)


def until(lax, x):
    return lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] + x), (0, 0.0 * x))[1]


def scanned(lax, x):
    return lax.scan(lambda total, _: (total + x, None), 0.0 * x, None, length=3)[0]


def chosen(lax, x):
    return lax.cond(x.ndim < 9, lambda x: 3 * x, lambda x: x, x)


def switched(lax, x):
    return lax.switch(1, [lambda x: x, lambda x: 3 * x], x)


@pytest.mark.parametrize("integer", [False, True], ids=["one-hot", "integer"])
@pytest.mark.parametrize("flow", [fori, until, scanned, chosen, switched])
@pytest.mark.quick("integer")
def test_flow_of_jax(backend, flow, integer):
    """Three times the location, under each handler and report; JAX has no gradient of a while."""
    from jax import lax

    gs, ppl, locs = backend.gs, backend.ppl, backend.array(LOCS)
    prior, x = backend.array(TRANSITION[0]), DATA[0]
    law = backend.native.Categorical if integer else gs.OneHotCategorical

    def model():
        z = ppl.sample("z", law(probs=prior))
        loc = locs[z] if integer else gs.select(locs, z)
        ppl.sample("x", backend.native.Normal(flow(lax, loc), 1.0), obs=x)

    joints = np.log(TRANSITION[0]) + stats.norm(3 * LOCS).logpdf(x)
    relaxed = gs.relax(model, 0.5)
    for k, vertex in enumerate(np.eye(3)):
        at = backend.given(relaxed, {"z": backend.array(vertex)})
        assert backend.seeded_log_joint(at, 0) == pytest.approx(joints[k], rel=1e-10)
    evidence = np.logaddexp.reduce(joints)
    for program in (model, gs.discretize(relaxed)):
        loss = backend.enumerated_loss(gs.config_enumerate(program), lambda: None, 0)
        assert -loss == pytest.approx(evidence, rel=1e-10)
    if flow is until:
        return
    guide = gs.AutoGumbelSoftmax(model, 0.5)
    gs.check(relaxed, guide, backend.infer.TraceMeanField_ELBO())
    report = backend.compare(model, gs.AutoGumbelSoftmax(model), num_samples=2, temperature=0.5)
    assert report.evidence.mean == pytest.approx(evidence, rel=1e-6)
