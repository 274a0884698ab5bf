"""Posterior draws of sites that are summed out in NumPyro's scan, compared with the table."""

import itertools

import numpy as np
import pytest
from chains import DATA, LAWS, LOCS, RNG, chain, log_joints
from scipy import stats

pytestmark = pytest.mark.only("numpyro")


def drawn(backend, model, temperature, draws=1):
    """Paths by infer_discrete, which fails in NumPyro alone inside of scan."""
    import jax
    from numpyro.contrib.funsor import infer_discrete

    model = backend.gs.config_enumerate(model)

    def draw(key):
        decode = infer_discrete(model, -2, temperature=temperature, rng_key=key)
        return backend.ppl.handlers.trace(backend.ppl.handlers.seed(decode, key)).get_trace()

    keys = jax.random.split(jax.random.key(0), draws)
    return np.asarray(jax.jit(jax.vmap(lambda key: draw(key)["z"]["value"]))(keys)).astype(int)


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
    """Rows in a plate; one ends early."""
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
