"""Programs with integers, as users write them: the relaxed program is compared with the original.

The log joint of the relaxed program at a vertex is that of the integer program; between vertices
value and gradient are those of the same program written with one-hot vectors.
"""

import numpy as np
import pytest
from indexed import (
    CLASSES,
    LOCS,
    PRIOR,
    PROGRAMS,
    RNG,
    Side,
    T,
    X,
    annotation,
    change_point,
    counted,
    draw,
    ids,
    mixture,
    survival,
)
from scipy.stats import binom, norm


def kinds(trace):
    """Classes and batch shape of each latent, from the draws of a relaxed program."""
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
    """Draws with the same seed, and the gradient in the data."""
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


def in_plates(s):
    """A class for each column, and one for each cell; some columns are masked."""
    table, locs = s.array(T), s.array(LOCS)
    with s.ppl.plate("columns", 2, dim=-1):
        z = draw(s, "z", s.array(PRIOR), False)
        with s.ppl.plate("rows", 3, dim=-2):
            w = draw(s, "w", table[z], False)
            x = s.array(X[:3, None] + X[:2])
            s.ppl.sample("x", s.d.Normal(locs[z] + 2 * locs[w], 1.0), obs=x)


@pytest.mark.parametrize("mask", [[True, True], [True, False]])
def test_nested_scaled_and_masked(backend, mask):
    """Values between vertices, compared with a formula by hand."""
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
    """jit and vmap over keys and data together equal the program at each."""
    s, jax = Side(backend), backend.jax
    data = backend.array(RNG.normal(size=(3, 4)))

    def score(key, x):
        relaxed = backend.gs.relax(lambda: program(s, x), 0.5)
        seeded = backend.ppl.handlers.seed(relaxed, key)
        return backend.infer.util.log_density(seeded, (), {}, {})[0]

    keys = jax.random.split(jax.random.key(1), 3)
    f = jax.jit(jax.value_and_grad(score, 1))
    values, slopes = jax.vmap(f)(keys, data)
    for i in range(3):
        value, slope = f(keys[i], data[i])
        np.testing.assert_allclose(values[i], value, rtol=1e-12)
        np.testing.assert_allclose(slopes[i], slope, rtol=1e-12, atol=1e-14)
    assert len(set(backend.numpy(values).round(6))) == 3


def test_counts(backend):
    """Classes above the total of a row are masked."""
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
    "Multinomial": (  # torch's law refuses it before a site exists
        lambda s, z: s.ppl.sample("k", s.d.Multinomial(z, probs=s.array([0.5, 0.5]))),
        "site '[zk]': .* integer parameter total_count .* write the score as factor",
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


def test_rows_of_counts_are_enumerated(backend):
    """The PPLs do not enumerate rows with different totals; a relaxed program becomes its table."""
    s, x = Side(backend), backend.array(X)
    relaxed = backend.gs.relax(lambda: counted(s, x), 0.5)
    wanted = sum(
        np.log((binom.pmf(np.arange(n + 1), n, 0.3) * norm.pdf(X[i], np.arange(n + 1))).sum())
        for i, n in enumerate([1, 3])
    )
    for program in (relaxed, backend.gs.discretize(relaxed)):
        loss = backend.enumerated_loss(backend.gs.config_enumerate(program), lambda: None, 1)
        np.testing.assert_allclose(-loss, wanted, rtol=1e-10)


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
    """Bits and classes of probability 0 or 1 have these values, and no gradient."""
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
    """Weights of two rows, and the values that the program makes from them."""
    made, probs = [], backend.array(PRIOR).requires_grad_()

    def model():
        with backend.ppl.plate("rows", 2):
            z = backend.ppl.sample("z", backend.native.Categorical(probs=probs))
        made.append(form(backend.lib, z))

    _, weights = backend.sites(backend.gs.relax(model, 0.5), 0)["z"]
    (made[-1] ** 2).sum().backward()  # a tensor changed in place is not needed again
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


def test_relaxed_twice(backend):
    """The inner handler does not change the classes of the outer handler."""
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


def test_many_rows(backend):
    """Beyond 8192 entries a table goes through other code of NumPy; the classes belong to their
    rows."""
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
