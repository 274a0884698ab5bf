"""Each handler with NumPyro's scan: sites inside are reached; compared with summation by hand."""

import itertools

import numpy as np
import pytest
from chains import DATA, LAWS, LOCS, TRANSITION, chain, enumerated, log_joints
from scipy import stats

pytestmark = pytest.mark.only("numpyro")


@pytest.mark.parametrize("kind", LAWS)
def test_enumeration_in_scan_is_exact(backend, kind):
    """TraceEnum_ELBO, which alone is wrong for any law in scan, and log_density."""
    from numpyro.contrib.funsor import enum, log_density

    model, table = chain(backend, kind)
    model = backend.gs.config_enumerate(model)
    expected = np.logaddexp.reduce(log_joints(table))
    assert -backend.enumerated_loss(model, lambda: None, 0) == pytest.approx(expected, rel=1e-10)
    lazy = enum(model, first_available_dim=-1)
    density = backend.jax.jit(lambda: log_density(lazy, (), {}, {})[0])()
    assert float(density) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kind", ["bit", "Categorical"])
def test_relaxed_integers_in_scan(backend, kind):
    """Enumerated, they are the integers again; an automatic guide has one row for each step."""
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
    """The branches observe two different values; one constant may be the same object in both."""
    from numpyro.contrib.control_flow import cond

    def draw(loc, x):
        return backend.ppl.sample("w", backend.native.Normal(loc, 1.0), obs=x)

    def model():
        z = backend.ppl.sample("z", backend.native.Categorical(probs=TRANSITION[0]))
        return cond(z == 1, lambda loc: draw(loc, 0.1), lambda loc: draw(loc, 0.2), 0.0)

    with pytest.raises(ValueError, match=r"site 'w' is observed inside of cond, .* jnp\.where"):
        backend.trace(backend.gs.relax(model, 0.5), 0)


def test_gradient_and_plate_and_enumerated_start(backend):
    """A latent before scan, sequences in a plate, a parameter: value and gradient by hand."""
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
    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.asarray(0.2))
    assert -float(value) == pytest.approx(evidence(0.2), rel=1e-10)
    assert -float(slope) == pytest.approx(
        (evidence(0.2 + 1e-5) - evidence(0.2 - 1e-5)) / 2e-5, rel=1e-6
    )


@pytest.mark.parametrize("kind", [pytest.param("bit", marks=pytest.mark.long), "OneHotCategorical"])
def test_an_enumerated_start_without_plates(backend, kind):
    """The start has the last enumerated axis; some steps are impossible."""
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
    """The evidence and the marginals of each step, compared with sums over all paths."""
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


@pytest.mark.parametrize("steps", [2, 3, 4])
@pytest.mark.parametrize("start", ["fixed", "drawn"])
def test_a_continuous_latent_beside(backend, start, steps):
    """Its axis of time is at the position of an enumerated axis, or of a row of the guide."""
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
    """Each row has a separate start, which is summed out for each row."""
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
    """As in a loop, and as in Pyro: under a mask the enumerated law still sums to one."""
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
    """Enumerated and observed sites have the same scale, and so does the evidence."""
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
    """A condition that reads the step, for an enumerated site and a site that depends on it."""
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
    """Data enter by a factor, in the ELBO and in log_density."""
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
    """A latent that the guide draws is not summed out, although the model is enumerated."""
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
    """The guide is whole with history=0 in config_enumerate. NumPyro alone fails with history=0,
    and loses sites with history=1."""
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
    """NumPyro's log_density confuses the two axes, and gave -9.84 instead of -12.60."""
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
    with pytest.raises(ValueError, match=r"site 'y': .* have their time axis where 'w'"):
        log_density(lazy, (), {}, {"y": jnp.asarray(DATA)})


@pytest.mark.parametrize("handler", ["relax", "discretize"])
def test_handlers_reach_into_scan(backend, handler):
    kind = "OneHotCategorical" if handler == "relax" else "GumbelSoftmax"
    model = chain(backend, kind)[0]
    model = backend.gs.relax(model, 0.5) if handler == "relax" else backend.gs.discretize(model)
    _, value = backend.sites(model, 0)["z"]
    hard = np.isin(backend.numpy(value), (0, 1)).all()
    assert hard == (handler == "discretize")


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
