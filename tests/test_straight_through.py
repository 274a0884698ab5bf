"""One-hot estimators: all have the same law; the gradient of each has a formula derived by hand.

Seeds are fixed; with a new seed, a z-score of Z or more has a probability of 7e-6.
"""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
from enumerable import one_site, toy_net
from programs import by_name, plain
from scipy.integrate import quad
from scipy.special import expit, softmax
from scipy.stats import logistic

K, DRAWS, GAP = 4, 7, 1.5
RNG = np.random.default_rng(0)
LOGITS, W, T = RNG.normal(size=K), RNG.normal(size=(5, K)), RNG.normal(size=5)
LOGITS[2] += 1.5
Z = 4.5

# one-hot class, binary class, options
FAMILIES = [
    ("STGumbelSoftmax", "STGumbelSigmoid", {}),
    ("StraightThrough", "STBernoulli", {}),
    ("ReinMax", "ReinMaxBernoulli", {}),
    ("GumbelRao", "GumbelRaoBernoulli", {"num_samples": 3}),
    ("GappedST", "GappedSTBernoulli", {"gap": GAP}),
]
WITH_OPTIONS = [row for row in FAMILIES if row[2]]


def each(rows):
    return pytest.mark.parametrize(
        ("vector", "bit", "options"), rows, ids=[vector for vector, *_ in rows]
    )


def make(backend, name, options):
    return partial(getattr(backend.gs, name), **options) if options else getattr(backend.gs, name)


# --- the gradients, at a given sample -------------------------------------------------------------


def loss(backend, z):
    """f(z) = |W z - t|^2, summed over rows."""
    return ((z @ backend.array(W.T) - backend.array(T)) ** 2).sum()


def slope(hard):
    return 2 * W.T @ (W @ hard - T)


def jacobian(p):
    return np.diag(p) - np.outer(p, p)


def st_gumbel_softmax(tau, a, hard, E, Es):
    return jacobian(softmax((a - np.log(E)) / tau)) / tau


def straight_through(tau, a, hard, E, Es):
    return jacobian(softmax(a / tau)) / tau


def reinmax(tau, a, hard, E, Es):
    """The published backward pass."""
    return 2 * jacobian((softmax(a / tau) + hard) / 2) - jacobian(softmax(a)) / 2


def gumbel_rao(tau, a, hard, E, Es):
    k, S = hard.argmax(), np.exp(a).sum()
    result = np.zeros((len(a), len(a)))
    for E in Es:
        z = -np.log(E / np.exp(a) + E[k] / S)
        z[k] = np.log(S) - np.log(E[k])
        assert z.argmax() == k
        result += jacobian(softmax(z / tau)) / tau / len(Es)
    return result


def gapped(tau, a, hard, E, Es):
    k, top = hard.argmax(), a.max()
    v = np.array([top if j == k else min(x, top - GAP) for j, x in enumerate(a)])
    return jacobian(softmax(v / tau)) / tau


FORMULAS = [st_gumbel_softmax, straight_through, reinmax, gumbel_rao, gapped]


def surrogate(backend, formula, tau, a, hard, E, Es, finite=None):
    """The library's estimate, as straight_through gives it."""
    F = backend.F
    if formula is st_gumbel_softmax:
        log = backend.array(np.log(backend.numpy(E)))
        return F.tempered_softmax(tau, a - log, finite)
    if formula is straight_through:
        return F.tempered_softmax(tau, a, finite)
    if formula is reinmax:
        return F.reinmax_surrogate(tau, a, hard, finite)
    if formula is gumbel_rao:
        return F.gumbel_rao_surrogate(tau, a, hard, Es, finite)
    return F.gapped_surrogate(tau, a, hard, GAP, finite)


def samples(a):
    """Noise and samples; the noise of the first K rows is shifted so that each category wins
    once."""
    rng = np.random.default_rng(1)
    E, Es = rng.exponential(size=(9, len(a))), rng.exponential(size=(DRAWS, 9, len(a)))
    E[: len(a)] *= np.where(np.eye(len(a)), 1e-3, 1.0)
    hard = np.eye(len(a))[(a - np.log(E)).argmax(-1)]
    assert (hard.sum(0) > 0).all()
    return hard, E, Es


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: f.__name__)
def test_gradient_on_a_quadratic(backend, formula, tau):
    """For f(z) = |W z - t|^2 at given noise and sample; the value is exact."""
    hard, E, Es = samples(LOGITS)
    arrays = [backend.array(x) for x in (hard, E, Es)]

    def sample(a):
        return backend.F.straight_through(arrays[0], surrogate(backend, formula, tau, a, *arrays))

    a = backend.array(np.tile(LOGITS, (9, 1)))
    np.testing.assert_array_equal(backend.numpy(sample(a)), hard)
    (gradient,) = backend.grad(lambda a: loss(backend, sample(a)), a)
    for row, D in enumerate(hard):
        expected = formula(tau, LOGITS, D, E[row], Es[:, row]) @ slope(D)
        np.testing.assert_allclose(gradient[row], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: f.__name__)
def test_masked_categories_are_none(backend, formula):
    """The gradient equals that without the masked categories, and is 0 at them."""
    keep = np.array([True, False, True, True, False, True])
    inner, E, Es = samples(LOGITS)
    hard, wide_E, wide_Es = (np.ones((*x.shape[:-1], 6)) for x in (inner, E, Es))
    hard[:, ~keep] = 0
    for wide, narrow in ((hard, inner), (wide_E, E), (wide_Es, Es)):
        wide[..., keep] = narrow
    a = np.full(6, -np.inf)
    a[keep] = LOGITS

    def gradient(a, hard, E, Es, slopes, finite=None):
        finite = None if finite is None else backend.array(finite, "bool")
        arrays = [backend.array(x) for x in (hard, E, Es)]
        f = lambda a: (  # noqa: E731
            surrogate(backend, formula, 0.7, a, *arrays, finite) * backend.array(slopes)
        ).sum()
        return backend.grad(f, backend.array(np.tile(a, (9, 1))))[0]

    slopes = RNG.normal(size=(9, 6))
    got = gradient(a, hard, wide_E, wide_Es, slopes, keep)
    expected = gradient(LOGITS, inner, E, Es, slopes[:, keep])
    np.testing.assert_allclose(got[:, keep], expected, rtol=1e-9, atol=1e-12)
    assert (got[:, ~keep] == 0).all()


def drawn(backend, name, options, tau, n, seed=0):
    """Samples of a law with n rows of the same logits, and the gradient of the loss in each row."""
    law, a = make(backend, name, options), backend.array(np.tile(LOGITS, (n, 1)))

    def sample(a):
        return backend.sample(law(tau, logits=a), seed)

    (gradient,) = backend.grad(lambda a: loss(backend, sample(a)), a)
    return backend.numpy(sample(a)), gradient


@pytest.mark.parametrize(
    ("name", "options", "formula"),
    [
        ("STGumbelSoftmax", {}, st_gumbel_softmax),
        ("StraightThrough", {}, straight_through),
        ("ReinMax", {}, reinmax),
        ("GappedST", {"gap": GAP}, gapped),
    ],
)
def test_classes_are_their_formulas(backend, name, options, formula):
    """The sample is argmax(a + g), and its gradient is that of the formula."""
    tau = 1.3
    hard, gradient = drawn(backend, name, options, tau, 20)
    E = backend.numpy(backend.own_noise(0, (20, K), "float64"))
    np.testing.assert_array_equal(hard, np.eye(K)[(LOGITS - np.log(E)).argmax(-1)])
    for row, D in enumerate(hard):
        expected = formula(tau, LOGITS, D, E[row], None) @ slope(D)
        np.testing.assert_allclose(gradient[row], expected, rtol=1e-9, atol=1e-12)


# --- ReinMax --------------------------------------------------------------------------------------


def zgr(a, hard, g):
    """Gumbel-Rao at temperature 0.

    The sampled class k is replaced by j at the rate at which both have the largest perturbed logit,
    given k; that is pi_j, half of it on the side of k.
    """
    pi, k = softmax(a), hard.argmax()
    exchange = np.eye(len(a)) - np.eye(len(a))[k]
    return sum(0.5 * pi[j] * (g[j] - g[k]) * exchange[j] for j in range(len(a)))


def test_reinmax_is_zgr(backend):
    """At tau = 1, for each sample."""
    hard, gradient = drawn(backend, "ReinMax", {}, 1.0, 40)
    assert (hard.sum(0) > 0).all()
    expected = [zgr(LOGITS, D, slope(D)) for D in hard]
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


def test_gumbel_rao_tends_to_reinmax(backend):
    n, tau = 100_000, 0.01
    E = backend.array(np.random.default_rng(2).exponential(size=(1, n, K)))
    a = backend.array(np.tile(LOGITS, (n, 1)))
    for D in np.eye(K):
        hard, g = backend.array(np.tile(D, (n, 1))), backend.array(slope(D))
        soft = partial(backend.F.gumbel_rao_surrogate, tau, hard=hard, noise=E)
        (gradient,) = backend.grad(lambda a: (soft(a) * g).sum(), a)  # noqa: B023
        error, limit = gradient.std(0) / np.sqrt(n), zgr(LOGITS, D, slope(D))
        assert (error < 0.1 * np.abs(limit).max()).all()
        assert (np.abs(gradient.mean(0) - limit) < Z * error + tau * np.abs(limit)).all()


def test_reinmax_has_no_bias_on_a_quadratic(backend):
    """In the sum over the samples; plain straight-through has a bias."""
    pi, values = softmax(LOGITS), ((W - T[:, None]) ** 2).sum(0)
    exact = pi * (values - pi @ values)
    for name, biased in (("ReinMax", False), ("StraightThrough", True)):
        hard, gradient = drawn(backend, name, {}, 1.0, 40)
        of_category = np.stack([gradient[hard[:, k] == 1][0] for k in range(K)])
        bias = np.linalg.norm(pi @ of_category - exact) / np.linalg.norm(exact)
        assert bias > 0.1 if biased else bias < 1e-9


# --- Gumbel-Rao -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.2, 1.0])
@pytest.mark.quick("1.0")
def test_gumbel_rao_averages_st_gumbel_softmax(backend, tau):
    """The same mean, by z-scores, and less variance with more draws."""
    n = 20_000
    _, plain = drawn(backend, "STGumbelSoftmax", {}, tau, n, seed=1)
    variances = [plain.var(0).sum()]
    for num_samples in (1, 10):
        _, averaged = drawn(backend, "GumbelRao", {"num_samples": num_samples}, tau, n, seed=2)
        error = np.sqrt((plain.var(0) + averaged.var(0)) / n)
        assert (np.abs(plain.mean(0) - averaged.mean(0)) < Z * error).all()
        variances.append(averaged.var(0).sum())
    assert variances[1] == pytest.approx(variances[0], rel=0.1)  # one draw: the same law
    assert variances[2] < 0.9 * variances[0]


# --- bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.3, 1.0])
@pytest.mark.parametrize("bit", [0.0, 1.0])
@pytest.mark.parametrize("a", [-3.0, 0.7])
def test_gumbel_rao_of_a_bit(backend, a, bit, tau):
    """Over the quantiles of its noise, compared with quadrature over a + L given the bit."""
    v = (np.arange(200_000) + 0.5) / 200_000
    noise = backend.array(np.log(v) - np.log1p(-v))
    soft = partial(backend.F.gumbel_rao_bit_surrogate, tau, hard=backend.array(bit), noise=noise)
    value, (slope_by_a,) = soft(backend.array(a)), backend.grad(soft, backend.array(a))
    ends = (0, 40) if bit else (-40, 0)
    mass = expit(a if bit else -a)

    def mean(f):
        density = lambda x: logistic.pdf(x - a) * f(expit(x / tau)) / mass  # noqa: E731
        return quad(density, *ends, epsabs=1e-12, points=[np.clip(a, *ends)])[0]

    np.testing.assert_allclose(backend.numpy(value), mean(lambda y: y), rtol=1e-5)
    np.testing.assert_allclose(slope_by_a, mean(lambda y: y * (1 - y) / tau), rtol=1e-5)


@each(FAMILIES)
@pytest.mark.quick("GumbelRao", "ReinMax")
def test_bits_are_the_first_of_two_classes(backend, vector, bit, options):
    """Given the value, each draw has the same gradient; for Gumbel-Softmax, with its noise, the
    mean."""
    n, a, tau = 4000, 0.8, 0.6
    by_law = []
    for name, logits in ((vector, np.tile([a, 0.0], (n, 1))), (bit, np.full(n, a))):

        def sample(x):
            z = backend.sample(make(backend, name, options)(tau, logits=x), 3)  # noqa: B023
            return z[:, 0] if z.ndim == 2 else z

        x = backend.array(logits)
        (gradient,) = backend.grad(lambda x: sample(x).sum(), x)
        by_law.append((backend.numpy(sample(x)), gradient.reshape(n, -1)[:, 0]))
    for value in (0.0, 1.0):
        one, two = (gradient[values == value] for values, gradient in by_law)
        assert min(len(one), len(two)) > n / 5
        error = np.sqrt(one.var() / len(one) + two.var() / len(two))
        assert (error > 1e-4) == ("Gumbel" in vector)
        assert abs(one.mean() - two.mean()) < Z * error + 1e-12
        assert one.mean() > 0.01


# --- transformations ------------------------------------------------------------------------------


@each(FAMILIES)
def test_gradients_under_vmap(backend, vector, bit, options):
    """Each lane has a separate draw and gradient; the gradient of a softmax sums to 0."""
    law = make(backend, vector, options)

    def gradient(a, seed):
        f = lambda a: loss(backend, backend.sample(law(0.7, logits=a), seed))  # noqa: E731
        return backend.functional_grad(f)(a)

    a, seeds = backend.array(np.tile(LOGITS, (32, 1))), backend.array(np.arange(32), "int64")
    got = backend.vmap(lambda a, s: gradient(a, backend.traced_seed(s)))(a, seeds)
    got = backend.numpy(got)
    assert got.shape == (32, K)
    assert 1 < len(np.unique(got.round(9), axis=0)) <= 32
    assert (np.abs(got).max(-1) > 1e-6).all()
    np.testing.assert_allclose(got.sum(-1), 0, atol=1e-9)


@each(FAMILIES)
@pytest.mark.quick("STGumbelSoftmax", "ReinMax")
def test_second_derivatives(backend, vector, bit, options):
    """All are finite, and not all are 0."""
    for name, a, weights in ((vector, LOGITS, T[:K]), (bit, np.array(0.8), 1.0)):
        law = make(backend, name, options)

        def f(a):
            return (backend.array(weights) * backend.sample(law(0.7, logits=a), 0) ** 3).sum()  # noqa: B023

        def size(a):
            return (backend.functional_grad(f)(a) ** 2).sum()

        second = backend.numpy(backend.functional_grad(size)(backend.array(a)))
        assert np.isfinite(second).all()
        assert np.abs(second).max() > 0


@each(WITH_OPTIONS)
def test_options_survive(backend, vector, bit, options):
    ((option, value),) = options.items()
    for name, event in ((vector, (K,)), (bit, ())):
        d = make(backend, name, options)(0.5, logits=backend.array(np.zeros((2, *event))))
        others = [d.expand((5, 2)), copy.copy(d), copy.deepcopy(d), pickle.loads(pickle.dumps(d))]
        assert [getattr(other, option) for other in (d, *others)] == [value] * 5
        assert backend.numpy(backend.sample(others[0], 0)).shape == (5, 2, *event)


@pytest.mark.only("numpyro")
@each(WITH_OPTIONS)
def test_options_are_static_in_a_pytree(backend, vector, bit, options):
    ((option, value),) = options.items()
    tree = backend.jax.tree_util
    for name in (vector, bit):
        d = make(backend, name, options)(0.5, logits=backend.array(LOGITS))
        leaves, structure = tree.tree_flatten(d)
        assert [leaf.shape for leaf in leaves] == [(K,)]
        assert getattr(structure.unflatten(leaves), option) == value
        other = getattr(backend.gs, name)(0.5, logits=backend.array(LOGITS))
        assert tree.tree_structure(other) != structure


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("GumbelRao", {"num_samples": 0}, "num_samples must be a positive integer, got 0"),
        ("GumbelRaoBernoulli", {"num_samples": 2.5}, "must be a positive integer, got 2.5"),
        ("GappedST", {"gap": -1.0}, "gap must be a finite number of at least 0, got -1.0"),
        ("GappedST", {"gap": np.inf}, "gap must be a finite number of at least 0, got inf"),
        ("GappedSTBernoulli", {"gap": np.nan}, "at least 0, got nan"),
    ],
)
def test_bad_options(backend, name, options, message):
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        make(backend, name, options)(0.5, logits=backend.array(LOGITS))


# --- programs -------------------------------------------------------------------------------------


@each(FAMILIES)
@pytest.mark.quick("GumbelRao", "ReinMax")
def test_families_of_a_program(backend, vector, bit, options):
    """relax and AutoGumbelSoftmax use the class for vectors, and its binary class for bits."""
    gs, family = backend.gs, make(backend, vector, options)
    program = plain(backend, by_name("factorial"))
    model, guide = (f(program, 0.7, family=family) for f in (gs.relax, gs.AutoGumbelSoftmax))
    for fn in (model, guide):
        laws = backend.sites(fn, 0)
        for site, name in {"a": vector, "b": vector, "c": bit}.items():
            law, value = laws[site]
            assert type(law) is getattr(gs, name)
            assert {key: getattr(law, key) for key in options} == options
            assert np.isin(backend.numpy(value), (0, 1)).all()
    elbo = backend.infer.TraceMeanField_ELBO()
    value, gradient = backend.loss_and_gradient(elbo, model, guide, 0)
    assert np.isfinite(value)
    assert all((np.isfinite(g) & (g != 0)).any() for g in gradient.values())
    evidence = -backend.enumerated_loss(gs.config_enumerate(model), lambda: None, 1)
    assert evidence == pytest.approx(by_name("factorial").evidence(), rel=1e-10)


def test_families_with_options_by_site(backend):
    gs = backend.gs
    family = {"b": partial(gs.GumbelRao, num_samples=4), "c": partial(gs.GappedST, gap=2.0)}
    model = gs.relax(plain(backend, by_name("factorial")), 0.5, family=family)
    laws = {site: law for site, (law, _) in backend.sites(model, 0).items()}
    assert type(laws["a"]) is gs.SoftOneHotCategorical
    assert (type(laws["b"]), laws["b"].num_samples) == (gs.GumbelRao, 4)
    assert (type(laws["c"]), laws["c"].gap) == (gs.GappedSTBernoulli, 2.0)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (lambda gs: partial(gs.GumbelRao, 0.5), "site 'a': give the options of GumbelRao.. by key"),
        (lambda gs: partial(gs.GumbelRaoBernoulli, num_samples=2), "site 'a' is a one-hot vector"),
    ],
    ids=["positional", "bit"],
)
def test_refused_families(backend, family, message):
    model = backend.gs.relax(plain(backend, by_name("factorial")), 0.5, family=family(backend.gs))
    with pytest.raises(ValueError, match=message):
        backend.trace(model, 0)


@pytest.mark.long
def test_compare_shows_options(backend):
    """All families have the same objective, with the same noise."""
    families = [make(backend, vector, options) for vector, _, options in FAMILIES]
    pair = one_site(backend, np.zeros(3), np.ones(3))
    report = backend.compare(*pair, families=families, temperature=0.5, num_samples=20)
    assert [row.family for row in report.estimates] == [
        "STGumbelSoftmax",
        "StraightThrough",
        "ReinMax",
        "GumbelRao(num_samples=3)",
        f"GappedST(gap={GAP})",
    ]
    assert {row.objective for row in report.estimates} == {"discrete"}
    assert len({row.elbo for row in report.estimates}) == 1
    assert len({row.gradient.variance for row in report.estimates}) == 5
    assert "GumbelRao(num_samples=3)" in str(report)


@pytest.mark.long
@pytest.mark.parametrize(("scale", "factor"), [(2.0, 0.8), (0.25, 0.5)], ids=["sharp", "smooth"])
def test_reinmax_has_less_bias_than_st_gumbel_softmax(backend, scale, factor):
    """At its tau = 1 compared with tau = 0.5, on a net of four latents with eight classes.

    It is of second order: the bias is less than half if the net is smooth; the gain is smaller if
    not.
    """
    gs, taus = backend.gs, {"STGumbelSoftmax": 0.5, "ReinMax": 1.0}
    report = backend.compare(
        *toy_net(backend, 100, scale),
        families=[getattr(gs, family) for family in taus],
        temperatures=list(taus.values()),
        num_samples=60,
    )
    rows = {
        row.family: row.gradient for row in report.estimates if row.temperature == taus[row.family]
    }
    assert all(row.floor < row.bias / 2 for row in rows.values())
    assert rows["ReinMax"].bias < factor * rows["STGumbelSoftmax"].bias


@pytest.mark.parametrize("base", ["OneHotEstimator", "BitEstimator"])
def test_a_family_without_a_surrogate_says_so(backend, base):
    mine = type("Mine", (getattr(backend.gs.straight_through, base),), {})
    with pytest.raises(NotImplementedError, match=r"^Mine must define surrogate$"):
        backend.sample(mine(0.5, logits=backend.array([0.0, 1.0])), 0)
