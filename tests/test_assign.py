"""`assign` gives rows that the guide has not seen the class probabilities of enumeration by
hand."""

import itertools
from functools import partial

import enumerable
import numpy as np
import pytest
from programs import LOCS, PRIOR, TRANSITION, empty, normal
from scipy import stats
from scipy.special import softmax

TRAINED_ON = np.array([-1.0, 0.3, 0.9, 2.0, 0.1, -0.6])
ROWS = np.array([-1.7, 0.4, 1.0, 2.5])
SHIFT = 0.4


def drawn(backend, kind, p, name="z"):
    """A class as an integer or as a one-hot vector."""
    law = backend.native.Categorical if kind == "integer" else backend.gs.OneHotCategorical
    return backend.ppl.sample(name, law(probs=p))


def row_of(backend, kind, table, z):
    if kind == "integer":
        return table[z]
    return backend.gs.select(table, z, **({"axis": 0} if table.ndim > 1 else {}))


def vectors(kind, k, classes=3):
    return k if kind == "integer" else np.eye(classes)[k]


# --- a mixture with a continuous latent of all rows -----------------------------------------------


def mixture(backend, kind="one_hot"):
    ppl, array = backend.ppl, backend.array

    def model(x):
        shift = ppl.sample("shift", backend.native.Normal(array(0.0), 1.0))
        with ppl.plate("data", len(x)):
            z = drawn(backend, kind, array(PRIOR))
            loc = row_of(backend, kind, array(LOCS), z) + shift
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)

    return model


def posterior(shift):
    """Class probabilities of ROWS, shape shift's + (4, 3)."""
    loc = LOCS + np.asarray(shift)[..., None, None]
    return softmax(np.log(PRIOR) + normal(ROWS[:, None], loc), -1)


def delta(backend, model):
    return part(backend, model, "AutoDelta")


def part(backend, model, name, **options):
    start = backend.init_to(shift=backend.array(SHIFT))
    make = partial(getattr(backend.infer.autoguide, name), init_loc_fn=start, **options)
    return backend.gs.auto_relaxed(model, make)


def by_parts(backend, model):
    """A guide of parts that do not see the plate."""
    guide, block = backend.gs.AutoGuideList(model), backend.bare_block
    start = backend.init_to(shift=backend.array(SHIFT))
    auto = backend.infer.autoguide.AutoDelta
    guide.append(backend.gs.AutoGumbelSoftmax(block(model, expose=["z"])))
    guide.append(auto(block(model, expose=["shift"]), init_loc_fn=start))
    return guide


def by_hand(backend, model):
    """A program with logits for any rows, which are not used."""
    ppl, array = backend.ppl, backend.array

    def guide(x):
        ppl.sample("shift", backend.native.Delta(array(SHIFT)))
        with ppl.plate("data", len(x)):
            drawn(backend, "one_hot", array(np.ones(3) / 3))

    return guide


@pytest.mark.parametrize(
    ("make", "kind"),
    [(delta, "one_hot"), (delta, "integer"), (by_parts, "one_hot"), (by_hand, "one_hot")],
)
@pytest.mark.quick("one_hot")
def test_mixture_at_a_point(backend, make, kind):
    model, x = mixture(backend, kind), backend.array(ROWS)
    guide = make(backend, model)
    probs, classes = backend.assign(model, guide, [backend.array(TRAINED_ON)], x, num_samples=2)
    np.testing.assert_allclose(probs["z"], posterior(SHIFT), rtol=1e-5)
    np.testing.assert_array_equal(classes["z"], vectors(kind, posterior(SHIFT).argmax(-1)))


def by_hand_normal(backend, model):
    return lambda x: backend.ppl.sample("shift", backend.native.Normal(backend.array(SHIFT), 1.0))


def auto_normal(backend, model):
    return part(backend, model, "AutoNormal", init_scale=1.0)


def auto_joint(backend, model):
    return part(backend, model, "AutoMultivariateNormal", init_scale=1.0)


@pytest.mark.parametrize("make", [auto_normal, auto_joint, by_hand_normal])
def test_mean_over_the_guide(backend, make):
    """Compared with quadrature; the program is relaxed, and for some rows mean and median
    differ."""
    model, x = mixture(backend), backend.array(ROWS)
    guide = make(backend, model)
    relaxed = backend.gs.relax(model)
    draws = 400
    probs, classes = backend.assign(
        relaxed, guide, [backend.array(TRAINED_ON)], x, num_samples=draws
    )
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    at = posterior(SHIFT + nodes)
    mean = np.tensordot(weights / weights.sum(), at, 1)
    spread = np.sqrt(np.tensordot(weights / weights.sum(), (at - mean) ** 2, 1))
    error = 4.5 * spread / np.sqrt(draws)
    assert (np.abs(probs["z"] - mean) < error).all()
    assert (np.abs(posterior(SHIFT) - mean) > error).any()
    np.testing.assert_allclose(probs["z"].sum(-1), 1.0)
    np.testing.assert_array_equal(classes["z"], np.eye(3)[posterior(SHIFT).argmax(-1)])


@pytest.mark.parametrize("kind", ["one_hot", "integer"])
@pytest.mark.quick("integer")
def test_a_fit_in_place_of_tables(backend, kind):
    """If no table may be made, a fit replaces it; here the posterior factorizes. The guide keeps
    its logits."""
    model, x = mixture(backend, kind), backend.array(ROWS)
    guide = delta(backend, model)
    given = [backend.array(TRAINED_ON)]
    probs, classes = backend.assign(model, guide, given, x, num_samples=2, max_entries=2)
    np.testing.assert_allclose(probs["z"], posterior(SHIFT), atol=0.01)
    np.testing.assert_array_equal(classes["z"], vectors(kind, posterior(SHIFT).argmax(-1)))
    exact, _ = backend.assign(model, guide, given, x, num_samples=2)
    np.testing.assert_allclose(exact["z"], posterior(SHIFT), rtol=1e-5)


@pytest.mark.only("pyro")
def test_a_fit_leaves_the_store(backend):
    """A fit changes no parameters of the model, nor of a trained guide with the name of the fitted
    one."""
    import pyro

    def model(x):
        shift = pyro.param("shift", backend.array(SHIFT))
        with pyro.plate("data", len(x)):
            z = drawn(backend, "integer", backend.array(PRIOR))
            pyro.sample("x", backend.native.Normal(backend.array(LOCS)[z] + shift, 1.0), obs=x)

    guide = backend.gs.AutoGumbelSoftmax(model)
    backend.gs.discretize(guide)(backend.array(TRAINED_ON))
    backend.gs.config_enumerate(model)(backend.array(ROWS))
    before = {name: value.clone() for name, value in pyro.get_param_store().items()}
    probs, _ = backend.gs.assign(model, guide, backend.array(ROWS), max_entries=2)
    np.testing.assert_allclose(backend.numpy(probs["z"]), posterior(SHIFT), atol=0.01)
    after = dict(pyro.get_param_store().items())
    assert set(after) == set(before) >= {"shift"}
    assert all((after[name] == before[name]).all() for name in before)


@pytest.mark.parametrize("trained_on", [None, TRAINED_ON], ids=["fresh", "trained"])
def test_plate_of_components(backend, trained_on):
    """Latents in a plate that is not the data's are shared by all rows."""
    ppl, array, Normal = backend.ppl, backend.array, backend.native.Normal

    def model(x):
        with ppl.plate("components", 3):
            loc = ppl.sample("loc", Normal(array(0.0), 1.0))
            ppl.deterministic("shown", loc)
        with ppl.plate("data", len(x)):
            z = drawn(backend, "integer", array(PRIOR))
            ppl.sample("x", Normal(loc[z], 1.0), obs=x)

    block, auto = backend.bare_block, backend.infer.autoguide.AutoDelta
    guide = backend.gs.AutoGuideList(model)
    with backend.single_precision():  # Pyro's deterministic sites in plates have only this dtype
        start = backend.init_to(loc=array(LOCS))
        guide.append(auto(block(model, expose=["loc"]), init_loc_fn=start))
        guide.append(backend.gs.AutoGumbelSoftmax(block(model, expose=["z"])))
        given = None if trained_on is None else [array(trained_on)]
        probs, classes = backend.assign(model, guide, given, array(ROWS), num_samples=1)
    expected = posterior(0.0)
    np.testing.assert_allclose(probs["z"], expected, rtol=1e-4)
    np.testing.assert_array_equal(classes["z"], expected.argmax(-1))


def test_in_a_fresh_process(backend):
    """The guide may see the new rows first, and the rows of its training later."""
    model, x = mixture(backend), backend.array(ROWS)
    guide = delta(backend, model)
    for trained_on in (None, [backend.array(TRAINED_ON)]):
        probs, _ = backend.assign(model, guide, trained_on, x, num_samples=1)
        np.testing.assert_allclose(probs["z"], posterior(SHIFT), rtol=1e-5)


@pytest.mark.only("numpyro")
def test_parameters_that_are_not_given(backend):
    model, x = mixture(backend), backend.array(ROWS)
    guide = delta(backend, model)
    with pytest.warns(UserWarning, match="^assign: params= does not have shift_auto_loc: these"):
        backend.gs.assign(model, guide, x, params={"loc": backend.array(0.0)}, num_samples=1)
    params = {"shift_auto_loc": backend.array(0.0)}
    probs, _ = backend.gs.assign(model, guide, x, params=params, num_samples=1)
    np.testing.assert_allclose(probs["z"], posterior(0.0), rtol=1e-5)


def without_shift(backend):
    ppl, array = backend.ppl, backend.array

    def model(x):
        with ppl.plate("data", len(x)):
            z = drawn(backend, "one_hot", array(PRIOR))
            loc = backend.gs.select(array(LOCS), z)
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)

    return model


def test_guide_of_discrete_latents_alone(backend):
    """The part for continuous latents is empty, and has no median."""
    model, array = without_shift(backend), backend.array
    guide = backend.gs.auto_relaxed(model, temperature=0.5)
    probs, _ = backend.assign(model, guide, [array(ROWS)], array(ROWS))
    np.testing.assert_allclose(probs["z"], posterior(0.0), rtol=1e-5)


def test_masked_rows(backend):
    model, array = without_shift(backend), backend.array
    mask = np.array([True, False, True, True])
    probs, _ = backend.assign(backend.masked(model, mask), lambda x: None, None, array(ROWS))
    np.testing.assert_allclose(probs["z"][mask], posterior(0.0)[mask], rtol=1e-5)
    assert np.isnan(probs["z"][~mask]).all()


# --- a chain --------------------------------------------------------------------------------------

STEPS = np.array([2.0, -1.2, 3.6, -2.6])


def chain(backend, kind="one_hot"):
    ppl, array = backend.ppl, backend.array

    def model(x):
        z = None
        for t in backend.markov(range(len(x))):
            table = array(TRANSITION)
            p = array(PRIOR) if z is None else row_of(backend, kind, table, z)
            z = drawn(backend, kind, p, f"z_{t}")
            loc = row_of(backend, kind, array(LOCS), z)
            ppl.sample(f"x_{t}", backend.native.Normal(loc, 1.5), obs=x[t])

    return model


def log_joint_of_chain(*z):
    total = np.log(PRIOR[z[0]]) + sum(np.log(TRANSITION[i, j]) for i, j in itertools.pairwise(z))
    return total + sum(stats.norm(LOCS[k], 1.5).logpdf(x) for k, x in zip(z, STEPS, strict=True))


@pytest.mark.parametrize("kind", ["one_hot", "integer"])
@pytest.mark.quick("integer")
def test_chain(backend, kind):
    """Longer than in training; the joint maximum differs from the maximum of each step."""
    model = chain(backend, kind)
    guide = backend.gs.AutoGumbelSoftmax(model)
    found = backend.assign(model, guide, [backend.array(STEPS[:2])], backend.array(STEPS))
    values = itertools.product(range(3), repeat=4)
    joint = np.reshape([log_joint_of_chain(*z) for z in values], (3,) * 4)
    p = np.exp(joint - np.logaddexp.reduce(joint, axis=None))
    marginals = [p.sum(tuple({*range(4)} - {t})) for t in range(4)]
    best = np.unravel_index(joint.argmax(), joint.shape)
    assert (np.argmax(marginals, -1) != best).any()
    for t in range(4):
        np.testing.assert_allclose(found[0][f"z_{t}"], marginals[t], rtol=1e-5)
        np.testing.assert_array_equal(found[1][f"z_{t}"], vectors(kind, best[t]))


# --- bits, in plates ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["factorial", "nested"])
@pytest.mark.quick("factorial")
def test_bits(backend, name):
    program, model = enumerable.by_name(name), enumerable.plain(backend, name)
    probs, classes = backend.assign(model, empty, None)
    joint = program.log_joints()
    best = dict(zip(program.sizes, np.unravel_index(joint.argmax(), joint.shape), strict=True))
    marginals = dict(zip(program.sizes, map(program.marginal, range(joint.ndim)), strict=True))
    for site in program.sites:
        of_site = [v for v in program.sizes if v[0] == site[0] and v.rstrip("0123456789") == site]
        p = np.array([marginals[v] for v in of_site])
        z = np.array([best[v] for v in of_site])
        if site in enumerable.IS_BIT:
            p = p[:, 1]
        else:
            z = np.eye(p.shape[-1])[z]
        np.testing.assert_allclose(probs[site].reshape(p.shape), p, rtol=1e-5)
        np.testing.assert_array_equal(classes[site].reshape(z.shape), z)


# --- what is refused ------------------------------------------------------------------------------


def local(backend):
    """A continuous latent in each row."""
    ppl, normal = backend.ppl, backend.native.Normal

    def model(x):
        with ppl.plate("data", len(x)):
            w = ppl.sample("w", normal(backend.array(0.0), 1.0))
            z = drawn(backend, "one_hot", backend.array(PRIOR))
            loc = backend.gs.select(backend.array(LOCS), z) + w
            ppl.sample("x", normal(loc, 1.0), obs=x)

    return model, backend.gs.auto_relaxed(model)


def not_drawn(backend):
    return mixture(backend), lambda x: None


def of_other_rows(backend):
    """The rows are an event axis of w, without a plate."""

    def model(x):
        w = backend.array(np.zeros(len(x)))
        backend.ppl.sample("w", backend.native.Normal(w, 1.0).to_event(1))
        drawn(backend, "one_hot", backend.array(PRIOR))

    def guide(x):
        w = backend.array(np.zeros(6))
        backend.ppl.sample("w", backend.native.Normal(w, 1.0).to_event(1))

    return model, guide


def of_its_training(backend):
    """A program whose logits belong to the rows of its training."""

    def guide(x):
        backend.ppl.sample("shift", backend.native.Normal(backend.array(0.0), 1.0))
        with backend.ppl.plate("data", len(x)):
            drawn(backend, "one_hot", backend.array(np.full((6, 3), 1 / 3)))

    return mixture(backend), guide


def subsampled(backend):
    def model(x):
        with backend.ppl.plate("data", 4, subsample_size=2):
            drawn(backend, "one_hot", backend.array(PRIOR))

    return model, lambda x: None


def continuous(backend):
    def model(x):
        backend.ppl.sample("w", backend.native.Normal(backend.array(0.0), 1.0))

    return model, lambda x: None


def too_large(backend):
    """Twenty causes of one effect."""

    def model(x):
        total = 0.0
        for i in range(20):
            z = drawn(backend, "one_hot", backend.array(PRIOR), f"z_{i}")
            total = total + backend.gs.select(backend.array(LOCS), z)
        backend.ppl.sample("x", backend.native.Normal(total, 1.0), obs=x[0])

    return model, lambda x: None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (local, r"site 'w' has a value for each row of plate 'data'.*condition\(model, data="),
        (not_drawn, r"site 'shift' is a latent without a finite set of classes, and the guide"),
        (of_other_rows, r"site 'w' has shape \(4,\).*, but the guide draws shape \(6,"),
        (of_its_training, r"does not run on these arguments: give only the part of it that draws"),
        (subsampled, r"plate 'data' has only 2 of its 4 rows"),
        (continuous, r"the program has no discrete latents"),
        (too_large, r"a table over z_0, .* more than max_entries.*give fit_steps="),
    ],
)
def test_refused(backend, make, said):
    model, guide = make(backend)
    with pytest.raises(ValueError, match=said):
        backend.assign(model, guide, None, backend.array(ROWS), fit_steps=0)


def test_draws_are_counted(backend):
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        backend.assign(mixture(backend), empty, None, backend.array(ROWS), num_samples=0)


@pytest.mark.only("pyro")
def test_random_state_is_left(backend):
    model, x = mixture(backend), backend.array(ROWS)
    guide = auto_normal(backend, model)
    backend.gs.discretize(guide)(backend.array(TRAINED_ON))
    backend.torch.manual_seed(3)
    before = backend.torch.get_rng_state()
    backend.gs.assign(model, guide, x, num_samples=2)
    assert (backend.torch.get_rng_state() == before).all()
