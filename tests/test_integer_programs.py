"""Programs as they are written for the PPLs, with integers, against what they say at each class.

The log joint of the relaxed program at a vertex is that of the integer program; between vertices
value and gradient are those of the same program written with one-hot vectors.
"""

import itertools

import numpy as np
import pytest

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
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(backend, case):
    use, message = REFUSED[case]
    s = Side(backend)

    def program():
        use(s, s.ppl.sample("z", s.d.Categorical(probs=s.array(PRIOR))))

    with pytest.raises(ValueError, match=message):
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
