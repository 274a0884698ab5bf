"""Programs as they are written for the PPLs, with integers, against what they say at each class.

The log joint of the relaxed program at a vertex is that of the integer program; between vertices
value and gradient are those of the same program written with one-hot vectors.
"""

import itertools
from functools import partial

import numpy as np
import pytest
from scipy.stats import binom, norm, poisson

RNG = np.random.default_rng(5)
X = RNG.normal(size=4)
LOCS = np.array([-1.5, 0.2, 1.4])
PRIOR = np.array([0.2, 0.3, 0.5])
T = RNG.dirichlet(np.ones(3), size=3)
RATERS = RNG.dirichlet(np.ones(3), size=(2, 3))  # Dawid-Skene: rater, true class, label
LABELS = np.array([[0, 1], [2, 2], [1, 0], [2, 1]])
SPAM = RNG.dirichlet(np.ones(3), size=2)  # MACE: the label of a rater who does not care


class Side:
    """The names that a program uses."""

    def __init__(self, backend):
        self.ppl, self.d, self.array = backend.ppl, backend.native, backend.array
        self.lib, self.markov, self.backend = backend.lib, backend.markov, backend
        self.vindex, self.ints = backend.vindex, lambda x: backend.array(x, "int64")
        self.totals = backend.totals


def mixture(s, x, hot=False):
    locs = s.array(LOCS)
    with s.ppl.plate("data", 4):
        z = draw(s, "z", s.array(PRIOR), hot)
        s.ppl.sample("x", s.d.Normal(z @ locs if hot else locs[z], 1.0), obs=x)


def draw(s, name, probs, hot):
    law = s.backend.gs.OneHotCategorical if hot else s.d.Categorical
    return s.ppl.sample(name, law(probs=probs))


def markov_chain(s, x, hot=False):
    table, locs = s.array(T), s.array(LOCS)
    z = None
    for i in s.markov(range(3)):
        step = s.array(PRIOR) if z is None else z @ table if hot else table[z]
        z = draw(s, f"z{i}", step, hot)
        s.ppl.sample(f"x{i}", s.d.Normal(z @ locs if hot else locs[z], 1.0), obs=x[i])


def annotation(s, x, hot=False):
    """Dawid and Skene: two raters of four items."""
    table, labels = s.array(RATERS), s.ints(LABELS)
    with s.ppl.plate("items", 4, dim=-1):
        c = draw(s, "c", s.array(PRIOR), hot)
        loc = c @ s.array(LOCS) if hot else s.array(LOCS)[c]
        s.ppl.sample("x", s.d.Normal(loc, 1.0), obs=x)
        for r in range(2):
            p = c @ table[r] if hot else s.vindex(table)[r, c]
            s.ppl.sample(f"y{r}", s.d.Categorical(probs=p), obs=labels[:, r])


def competence(s, x, hot=False):
    """MACE: a rater gives the true class, or spams."""
    spam, labels = s.array(SPAM), s.ints(LABELS)
    eye = s.array(0.02 / 3 + 0.98 * np.eye(3))
    with s.ppl.plate("items", 4, dim=-1):
        c = draw(s, "c", s.array(PRIOR), hot)
        loc = c @ s.array(LOCS) if hot else s.array(LOCS)[c]
        s.ppl.sample("x", s.d.Normal(loc, 1.0), obs=x)
        for r in range(2):
            b = s.ppl.sample(f"b{r}", s.d.Bernoulli(probs=s.array(0.4)))
            if hot:
                p = b[..., None] * spam[r] + (1 - b[..., None]) * (c @ eye)
            else:
                p = s.lib.where(b[..., None] == 1, spam[r], eye[c])
            s.ppl.sample(f"y{r}", s.d.Categorical(probs=p), obs=labels[:, r])


def change_point(s, x, hot=False):
    """Two rates; the second from day t on."""
    days = s.ints(np.arange(4))
    t = draw(s, "t", s.array([0.1, 0.2, 0.3, 0.4]), hot)
    early = s.array(np.arange(4)[None, :] < np.arange(4)[:, None])
    loc = t @ early if hot else s.lib.where(days < t, s.array(1.0), s.array(0.0))
    with s.ppl.plate("days", 4):
        s.ppl.sample("x", s.d.Normal(loc, 1.0), obs=x)


def survival(s, x, hot=False):
    """Capture and recapture: who has died stays dead."""
    alive = s.array(1.0)
    with s.ppl.plate("animals", 4):
        for i in range(2):
            alive = s.ppl.sample(f"alive{i}", s.d.Bernoulli(probs=0.8 * alive + 0.01))
            s.ppl.sample(f"x{i}", s.d.Normal(alive * 1.0, 0.5), obs=x + i)


PROGRAMS = [mixture, markov_chain, annotation, competence, change_point, survival]
CLASSES = {"z": 3, "c": 3, "t": 4, "b": 2, "alive": 2}
ids = {"ids": lambda p: p.__name__}


def kinds(trace):
    """Classes and batch shape by latent, from what a relaxed program draws."""
    return {
        name: (CLASSES[name.rstrip("0123456789")], np.shape(value)) for name, value in trace.items()
    }


@pytest.mark.parametrize("program", PROGRAMS, **ids)
def test_vertices_are_the_integer_program(backend, program):
    s, x = Side(backend), backend.array(X)
    relaxed = backend.gs.relax(lambda: program(s, x), 0.5)
    latents = kinds(backend.trace(relaxed, 0))
    rng = np.random.default_rng(0)
    for _ in range(3):
        ints, soft = {}, {}
        for name, (k, shape) in latents.items():
            bit = name[0] in "ba"
            z = rng.integers(k, size=shape if bit else shape[:-1])
            ints[name] = backend.array(z) if bit else s.ints(z)
            soft[name] = backend.array(z if bit else np.eye(k)[z])
        wanted = backend.log_joint(lambda: program(s, x), ints)
        np.testing.assert_allclose(backend.log_joint(relaxed, soft), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("program", PROGRAMS[:-1], **ids)
@pytest.mark.parametrize("family", ["GumbelSoftmax", "STGumbelSoftmax"])
@pytest.mark.quick("STGumbelSoftmax")
def test_between_vertices_as_one_hot(backend, program, family):
    """Draws from one seed, and the gradient in the data."""
    s, gs = Side(backend), backend.gs

    def total(hot):
        def score(x):
            relaxed = gs.relax(lambda: program(s, x, hot), 0.5, family=getattr(gs, family))
            value = backend.seeded_log_joint(relaxed, 3)
            return value, value

        return score

    x = backend.array(X)
    value, gradient = backend.value_and_grad(total(False))(x)
    wanted, slope = backend.value_and_grad(total(True))(x)
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-12)


def best_mean_field(table):
    """Best ELBO of q1 x ... x qn on an enumerated log joint, by coordinate ascent."""
    best = -np.inf
    for seed in range(20):
        rng = np.random.default_rng(seed)
        q = [rng.dirichlet(np.ones(k)) for k in table.shape]
        for _ in range(200):
            for i in range(len(q)):
                mean = table
                for j in reversed([j for j in range(len(q)) if j != i]):
                    mean = np.tensordot(mean, q[j], ([j], [0]))
                q[i] = np.exp(mean - mean.max())
                q[i] /= q[i].sum()
        best = max(best, elbo(table, q))
    return best


def elbo(table, q):
    mean = table
    for p in reversed(q):
        mean = mean @ p
    return mean - sum((p * np.log(np.maximum(p, 1e-300))).sum() for p in q)


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


def test_integers_from_outside(backend):
    s, x, gs = Side(backend), backend.array(X), backend.gs
    t = {"t": s.ints(2)}
    wanted = backend.log_joint(lambda: change_point(s, x), t)
    around = backend.condition(gs.relax(lambda: change_point(s, x), 0.5), t)
    np.testing.assert_allclose(backend.seeded_log_joint(around, 0), wanted, rtol=0, atol=1e-12)
    z = {"z": s.ints(np.array([0, 2, 1, 1]))}
    wanted = backend.log_joint(lambda: mixture(s, x), z)
    within = gs.relax(backend.condition(lambda: mixture(s, x), z), 0.5)
    np.testing.assert_allclose(backend.seeded_log_joint(within, 0), wanted, rtol=0, atol=1e-12)


def test_deterministic_records_the_largest_class(backend):
    def program():
        z = backend.ppl.sample("z", backend.native.Categorical(probs=backend.array(PRIOR)))
        backend.ppl.deterministic("class", z)
        backend.ppl.deterministic("loc", backend.array(LOCS)[z])
        return z

    relaxed = backend.gs.relax(program, 0.5)
    values = backend.recorded(relaxed, 1)
    y = backend.numpy(values["z"])
    assert int(values["class"]) == y.argmax()
    np.testing.assert_allclose(backend.numpy(values["loc"]), y @ LOCS, rtol=1e-12)


def counted(s, x):
    """A total that varies by row."""
    totals = s.totals(np.array([1, 3]))
    with s.ppl.plate("rows", 2):
        n = s.ppl.sample("n", s.d.Binomial(totals, probs=s.array(0.3)))
        s.ppl.sample("x", s.d.Normal(n * 1.0, 1.0), obs=x[:2])


def in_plates(s):
    """A class for each column, one for each cell; some columns do not count."""
    table, locs = s.array(T), s.array(LOCS)
    with s.ppl.plate("columns", 2, dim=-1):
        z = draw(s, "z", s.array(PRIOR), False)
        with s.ppl.plate("rows", 3, dim=-2):
            w = draw(s, "w", table[z], False)
            x = s.array(X[:3, None] + X[:2])
            s.ppl.sample("x", s.d.Normal(locs[z] + 2 * locs[w], 1.0), obs=x)


@pytest.mark.parametrize("mask", [[True, True], [True, False]])
def test_nested_scaled_and_masked(backend, mask):
    """Between vertices, by hand."""
    s, rng = Side(backend), np.random.default_rng(2)
    z, w = rng.dirichlet(np.ones(3), 2), rng.dirichlet(np.ones(3), (3, 2))
    program = backend.masked(backend.scaled(lambda: in_plates(s), 2.5), np.array(mask))
    values = {"z": backend.array(z), "w": backend.array(w)}
    found = backend.log_joint(backend.gs.relax(program, 0.5), values)
    cells = (w * np.log(z @ T)).sum(-1) + norm.logpdf(
        X[:3, None] + X[:2], z @ LOCS + 2 * (w @ LOCS), 1
    )
    columns = z @ np.log(PRIOR) + cells.sum(0)
    np.testing.assert_allclose(found, 2.5 * columns[mask].sum(), rtol=1e-12)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("program", [annotation, survival], **ids)
def test_compiled_over_keys(backend, program):
    """jit and vmap over keys and data at once are the program at each."""
    s, jax = Side(backend), backend.jax
    data = backend.array(RNG.normal(size=(3, 4)))

    def score(key, x):
        relaxed = backend.gs.relax(lambda: program(s, x), 0.5)
        seeded = backend.ppl.handlers.seed(relaxed, key)
        return backend.infer.util.log_density(seeded, (), {}, {})[0]

    keys = jax.random.split(jax.random.key(1), 3)
    f = jax.value_and_grad(score, 1)
    values, slopes = jax.jit(jax.vmap(f))(keys, data)
    for i in range(3):
        value, slope = f(keys[i], data[i])
        np.testing.assert_allclose(values[i], value, rtol=1e-12)
        np.testing.assert_allclose(slopes[i], slope, rtol=1e-12, atol=1e-14)
    assert len(set(backend.numpy(values).round(6))) == 3


def test_counts(backend):
    """Classes above a row's own total are masked."""
    s, x = Side(backend), backend.array(X)
    relaxed = backend.gs.relax(lambda: counted(s, x), 0.5)
    y = backend.numpy(backend.trace(relaxed, 0)["n"])
    assert y.shape == (2, 4)
    assert (y[0, 2:] == 0).all()
    assert (y[1] > 0).all()
    for n in ([0, 3], [1, 2]):
        ints = {"n": s.totals(np.array(n))}
        value = backend.log_joint(relaxed, {"n": backend.array(np.eye(4)[n])})
        wanted = backend.log_joint(lambda: counted(s, x), ints)
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12)


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


def test_returned_class_leaves_as_weights(backend):
    law = backend.native.Categorical(probs=backend.array(PRIOR))
    program = backend.gs.relax(lambda: backend.ppl.sample("z", law), 0.5)
    out = {}
    value = backend.trace(lambda: out.update(z=program()), 0)["z"]
    np.testing.assert_array_equal(backend.numpy(out["z"]), backend.numpy(value))


REFUSED = {
    "branch": (lambda s, z: 1 if z == 0 else 2, "site 'z': .*is not defined for a soft index"),
    "obs": (
        lambda s, z: s.ppl.sample("k", s.d.Categorical(probs=s.array(PRIOR)), obs=z),
        "site 'k': obs is a soft index",
    ),
    "mask": (
        lambda s, z: s.ppl.sample("k", s.d.Normal(0.0, 1.0).mask(z == 0), obs=s.array(0.0)),
        "site 'k': its mask is a soft index",
    ),
    "integer parameter": (
        lambda s, z: s.ppl.sample("k", s.d.Binomial(z, probs=s.array(0.5))),
        "site 'k': its integer parameter total_count is a soft index",
    ),
    "Multinomial": (  # torch's law refuses it before there is a site
        lambda s, z: s.ppl.sample("k", s.d.Multinomial(z, probs=s.array([0.5, 0.5]))),
        "site '[zk]': .* integer parameter total_count .* use a table of laws",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(backend, case):
    use, message = REFUSED[case]
    s = Side(backend)

    def program():
        use(s, s.ppl.sample("z", s.d.Categorical(probs=s.array(PRIOR))))

    with pytest.raises(ValueError, match=message):
        backend.trace(backend.gs.relax(program, 0.5), 0)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("observed", [False, True])
def test_a_soft_total_is_refused_where_its_bound_is_given(backend, observed):
    s = Side(backend)

    def program():
        z = s.ppl.sample("z", s.d.Categorical(probs=s.array(PRIOR)))
        law = s.d.Multinomial(z, logits=s.array([0.5, 0.5]), total_count_max=2)
        s.ppl.sample("k", law, obs=s.totals(np.array([1, 1])) if observed else None)

    with pytest.raises(ValueError, match="site 'k': its integer parameter total_count"):
        backend.trace(backend.gs.relax(program, 0.5), 0)


def test_as_a_context_manager_integers_are_refused(backend):
    def program():
        with backend.gs.relax(temperature=0.5):
            backend.ppl.sample("z", backend.native.Categorical(probs=backend.array(PRIOR)))

    with pytest.raises(ValueError, match=r"site 'z' draws an integer.*relax\(program\)"):
        backend.trace(program, 0)


def test_compare(backend):
    """The exact numbers against the enumerated table of log joints."""
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


# --- options of relax and of the automatic guide --------------------------------------------------


def marked(s):
    """Two classes that the PPL's own enumeration would sum out."""
    enumerate_ = {"infer": {"enumerate": "parallel"}}
    law = s.d.Categorical(probs=s.array(PRIOR))
    z, w = (s.ppl.sample(name, law, **enumerate_) for name in "zw")
    s.ppl.sample("x", s.d.Normal(s.array(LOCS)[z] + s.array(LOCS)[w], 1.0), obs=s.array(0.3))


def test_sites_on_both_sides(backend):
    """The others are enumerated as they are marked."""
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
        "site 'w': the guide gives weights of its classes, .* same sites=",
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


RATE = np.array([0.7, 2.0])


def arrivals(s):
    """Counts without end."""
    with s.ppl.plate("rows", 2):
        n = s.ppl.sample("n", s.d.Poisson(s.array(RATE)))
        s.ppl.sample("x", s.d.Normal(n * 1.0, 1.0), obs=s.array([0.5, 2.5]))


def test_truncated_counts(backend):
    """Vertices agree up to the mass that is left out; the exact evidence is that of the table."""
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
        getattr(backend.ppl, "clear_param_store", lambda: None)()  # NumPyro keeps none
        relaxed = gs.relax(lambda: arrivals(s), 0.5, truncate={"n": largest}, **options)
        gs.check(relaxed, gs.AutoGumbelSoftmax(relaxed, 0.5), loss)

    check(8)
    check(3, max_tail=0.2)
    tail = f"{1 - poisson.cdf(3, 2.0):.2g}"  # of the worst row
    with pytest.raises(ValueError, match=rf"'n': its counts above 3 .* {tail}, more than .*0\.001"):
        check(3)


def test_the_tail_is_checked_after_a_run(backend):
    """The rate has grown past what the truncation holds."""
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


def test_rows_of_counts_are_enumerated(backend):
    """Neither PPL does it where the totals differ; a relaxed one is lowered to its table."""
    s, x = Side(backend), backend.array(X)
    relaxed = backend.gs.relax(lambda: counted(s, x), 0.5)
    wanted = sum(
        np.log((binom.pmf(np.arange(n + 1), n, 0.3) * norm.pdf(X[i], np.arange(n + 1))).sum())
        for i, n in enumerate([1, 3])
    )
    for program in (relaxed, backend.gs.discretize(relaxed)):
        loss = backend.enumerated_loss(backend.gs.config_enumerate(program), lambda: None, 1)
        np.testing.assert_allclose(-loss, wanted, rtol=1e-10)


# --- guides, estimators, partly observed sites ----------------------------------------------------


def hand_written(s, make):
    def guide():
        a = s.ppl.param("a", s.array(np.random.default_rng(1).normal(size=(4, 3))))
        with s.ppl.plate("data", 4):
            s.ppl.sample("z", make(a))

    return guide


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
    """Of a single draw, which no plate gives away."""
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
        getattr(backend.ppl, "clear_param_store", lambda: None)()  # NumPyro keeps none
        found.append(backend.loss_and_gradient(loss, relaxed, guide, 2))
    (value, gradient), (wanted, slope) = found
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient["a"], slope["a"], rtol=0, atol=1e-12)


ESTIMATORS = ["MuProp_ELBO", "DARN_ELBO", "REBAR_ELBO"]


@pytest.mark.parametrize("elbo", ESTIMATORS)
def test_estimators_as_one_hot(backend, elbo):
    """Loss and gradient of one draw, from one seed."""
    s, gs, x = Side(backend), backend.gs, backend.array(X)
    laws = {False: s.d.Categorical, True: gs.OneHotCategorical}
    found = []
    for hot, law in laws.items():
        getattr(backend.ppl, "clear_param_store", lambda: None)()  # NumPyro keeps none
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
    """The gradient by the logits of each row, against that of the sum over the classes."""
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


def partly_observed(s, hot=False):
    seen, mask = np.array([0, 1, 2, 1]), s.array([True, False, True, False], "bool")
    law = s.backend.gs.OneHotCategorical if hot else s.d.Categorical
    with s.ppl.plate("data", 4):
        z = s.ppl.sample(
            "z",
            law(probs=s.array(PRIOR)),
            obs=s.array(np.eye(3)[seen]) if hot else s.ints(seen),
            obs_mask=mask,
        )
        loc = z @ s.array(LOCS) if hot else s.array(LOCS)[z]
        s.ppl.sample("x", s.d.Normal(loc, 1.0), obs=s.array(X))


def test_partly_observed(backend):
    s, gs = Side(backend), backend.gs
    value, wanted = (
        float(backend.seeded_log_joint(gs.relax(lambda hot=hot: partly_observed(s, hot), 0.5), 1))
        for hot in (False, True)
    )
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12)
    model = lambda: partly_observed(s)  # noqa: E731
    guide = gs.AutoGumbelSoftmax(model, 0.5)
    gs.check(gs.relax(model, 0.5), guide, backend.infer.TraceMeanField_ELBO())
    recorded = backend.recorded(gs.relax(model, 0.5), 1)
    y = backend.numpy(recorded["z_unobserved"]).argmax(-1)
    np.testing.assert_array_equal(backend.numpy(recorded["z"]), [0, y[1], 2, y[3]])


@pytest.mark.parametrize("family", ["GumbelSoftmax", "STGumbelSoftmax"])
def test_what_is_certain(backend, family):
    """Bits and classes of probability 0 or 1 are those values, and have no gradient."""
    s = Side(backend)

    def total(p, q):
        def program():
            b = s.ppl.sample("b", s.d.Bernoulli(probs=p))
            z = s.ppl.sample("z", s.d.Categorical(probs=q))
            return b * 1.0, s.array(LOCS)[z]

        relaxed = backend.gs.relax(program, 0.5, family=getattr(backend.gs, family))
        out = {}
        backend.trace(lambda: out.update(value=relaxed()), 0)
        b, loc = out["value"]
        return b.sum() + loc.sum(), backend.stack([b[0], b[1], loc])

    p, q = backend.array([0.0, 1.0]), backend.array([0.0, 1.0, 0.0])
    value, gradient = backend.value_and_grad(total)(p, q)
    np.testing.assert_allclose(value, [0, 1, LOCS[1]], rtol=1e-15)
    for g in gradient:
        np.testing.assert_allclose(g, 0, rtol=0, atol=1e-15)


def test_what_the_model_excludes(backend):
    """A parent makes a bit certain, and the guide does not know of it."""
    s, gs = Side(backend), backend.gs

    def model():
        b = s.ppl.sample("b", s.d.Bernoulli(probs=s.array(0.3)))
        s.ppl.sample("c", s.d.Bernoulli(probs=0 * b + s.array(1.0)))

    relaxed, loss = gs.relax(model, 0.5), backend.infer.TraceMeanField_ELBO()
    with pytest.raises(ValueError, match=r"site 'c': SoftBernoulli .* divergence is infinite"):
        gs.check(relaxed, gs.AutoGumbelSoftmax(model, 0.5), loss)
    getattr(backend.ppl, "clear_param_store", lambda: None)()  # NumPyro keeps none
    known = gs.AutoGumbelSoftmax(model, 0.5, init_logits={"c": np.inf})
    gs.check(relaxed, known, loss)


@pytest.mark.parametrize("handler", [True, False])
def test_what_the_model_excludes_under_a_mask(backend, handler):
    """Of masked rows nothing is counted: infinite there is no fault."""
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
        getattr(backend.ppl, "clear_param_store", lambda: None)()  # NumPyro keeps none
        relaxed, guide = gs.relax(fixed, 0.5), gs.AutoGumbelSoftmax(fixed, 0.5)
        if not mask[0]:
            gs.check(relaxed, guide, loss)
            losses, _ = backend.anneal(gs.relax(fixed), guide, loss, lambda step: 0.5, 2)
            assert np.isfinite(losses).all()
            continue
        with pytest.raises(ValueError, match=r"site 'c': SoftBernoulli .* divergence is infinite"):
            gs.check(relaxed, guide, loss)


SCATTERS = {
    "one-hot vectors": ("scatter_", 0.0, 1, lambda y: y),
    "of several rows": ("scatter", 2.0, [[5.0], [-1.0]], lambda y: 2 - 2 * y + y * [[5.0], [-1.0]]),
}
NO_SCATTERS = {
    "integers": (lambda lib, z: lib.zeros(2, 3).long().scatter_(-1, z[:, None], 1), "plain floats"),
    "places": (lambda lib, z: lib.zeros(1, 3).scatter_(-1, z[None], 1), "one place for each slice"),
    "beyond": (lambda lib, z: lib.zeros(2, 2).scatter_(-1, z[:, None], 1), "beyond the 2 places"),
}


def scattered(backend, form):
    """Weights of two rows, and what the program makes of them."""
    made, probs = [], backend.array(PRIOR).requires_grad_()

    def model():
        with backend.ppl.plate("rows", 2):
            z = backend.ppl.sample("z", backend.native.Categorical(probs=probs))
        made.append(form(backend.lib, z))

    _, weights = backend.sites(backend.gs.relax(model, 0.5), 0)["z"]
    (made[-1] ** 2).sum().backward()  # what is changed in place is not needed again
    assert probs.grad.abs().min() > 0
    return backend.numpy(weights), backend.numpy(made[-1])


@pytest.mark.only("pyro")
@pytest.mark.parametrize("name", SCATTERS)
def test_scatter(backend, name):
    method, start, source, wanted = SCATTERS[name]
    source = source if isinstance(source, int) else backend.array(source)

    def form(lib, z):
        t = backend.array(np.full((2, 3), start))
        made = getattr(t, method)(-1, z[:, None], source)
        assert (made is t) == (method == "scatter_")
        return made

    weights, made = scattered(backend, form)
    np.testing.assert_allclose(made, wanted(weights), rtol=1e-6)


@pytest.mark.only("pyro")
@pytest.mark.parametrize("name", NO_SCATTERS)
def test_scatter_is_refused(backend, name):
    form, words = NO_SCATTERS[name]
    with pytest.raises((ValueError, IndexError), match=words):
        scattered(backend, form)


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
    """Pyro has floats for counts, NumPyro integers."""
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


def test_relaxed_twice(backend):
    """The inner handler leaves the classes as the outer one has handed them over."""
    s, x = Side(backend), backend.array(X)
    once = backend.gs.relax(lambda: change_point(s, x), 0.5)
    twice = backend.gs.relax(backend.gs.discretize(once), 0.5)
    y = {"t": backend.array([0.1, 0.2, 0.3, 0.4])}
    found, wanted = (backend.log_joint(program, y) for program in (twice, once))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_shown(backend):
    law, seen = backend.native.Categorical(probs=backend.array(PRIOR)), []
    program = lambda: seen.append(str(backend.ppl.sample("z", law)))  # noqa: E731
    backend.trace(backend.gs.relax(program, 0.5), 0)
    assert "'z'" in seen[0]


# --- many rows ------------------------------------------------------------------------------------


def test_many_rows(backend):
    """Beyond 8192 places a table goes through other code of NumPy's; the classes are the rows'."""
    rng, rows = np.random.default_rng(0), 5000
    tables, bits = rng.normal(size=(rows, 1, 2, 2)), rng.integers(0, 2, size=(rows, 1, 1))
    ppl, array = backend.ppl, backend.array

    def program():
        with ppl.plate("rows", rows, dim=-3):
            b = ppl.sample("b", backend.native.Bernoulli(probs=array(np.full((rows, 1, 1), 0.5))))
            with ppl.plate("units", 2, dim=-1):
                ppl.deterministic("entry", backend.gs.select(array(tables), b, binary=True))

    relaxed = backend.gs.relax(program, 1.0, family=backend.gs.SoftOneHotCategorical)
    found = backend.recorded(backend.given(relaxed, {"b": array(bits.astype(float))}), 0)["entry"]
    expected = np.take_along_axis(tables, bits[..., None].repeat(2, 2), -1)[..., 0]
    np.testing.assert_array_equal(backend.numpy(found), expected)
