"""Programs over integers under plates, scales, masks, particles and compiled ELBOs.

Loss and gradient of a run from one seed are those of the same program with one-hot vectors.
"""

import importlib

import numpy as np
import pytest
from scipy import stats

RNG = np.random.default_rng(4)
WEIGHTS, LOCS = np.array([0.2, 0.3, 0.5]), np.array([-1.5, 0.2, 1.4])
TRANSITION, X = RNG.dirichlet(np.ones(3), size=3), RNG.normal(size=(2, 5))


def law(backend, hot, probs):
    return (backend.gs.OneHotCategorical if hot else backend.native.Categorical)(probs=probs)


def grid(backend, hot, size=None):
    """Nested plates; the inner one may be subsampled."""
    ppl, locs, x = backend.ppl, backend.array(LOCS), backend.array(X)

    def program():
        with ppl.plate("rows", 2, dim=-2), ppl.plate("columns", 5, subsample_size=size) as columns:
            z = ppl.sample("z", law(backend, hot, backend.array(WEIGHTS)))
            loc = z @ locs if hot else locs[z]
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x[:, columns])

    return program


def chain(backend, hot):
    """A Markov chain whose emission depends on two states."""
    ppl, locs, x = backend.ppl, backend.array(LOCS), backend.array(X)
    table = backend.array(TRANSITION)

    def program():
        probs, before = backend.array(WEIGHTS), None
        for i in backend.markov(range(3)):
            z = ppl.sample(f"z{i}", law(backend, hot, probs))
            loc = z @ locs if hot else locs[z]
            if before is not None:
                both = before * (z @ table.T) if hot else table[before, z]
                loc = loc + (both.sum(-1) if hot else both)
            ppl.sample(f"x{i}", backend.native.Normal(loc, 1.0), obs=x[0, i])
            probs, before = z @ table if hot else table[z], z

    return program


PROGRAMS = {
    "grid": grid,
    "subsampled": lambda backend, hot: grid(backend, hot, 3),
    "scaled": lambda backend, hot: backend.scaled(grid(backend, hot), 2.5),
    "masked": lambda backend, hot: backend.masked(grid(backend, hot), X > 0),
    "chain": chain,
}
FAMILIES = {"soft": "GumbelSoftmax", "straight": "STGumbelSoftmax"}
ELBOS = {  # name of the class, its options, and the families that it takes
    "mean_field": ("TraceMeanField_ELBO", {}, ("soft", "straight")),
    "particles": ("TraceMeanField_ELBO", {"num_particles": 3}, ("soft",)),
    "vectorized": (
        "Trace_ELBO",
        {"num_particles": 3, "vectorize_particles": True},
        ("straight",),
    ),
    "jit": ("JitTraceMeanField_ELBO", {}, ("soft",)),
    "jit_trace": ("JitTrace_ELBO", {"num_particles": 2}, ("straight",)),
}
CASES = [
    (program, elbo, family)
    for elbo, (_, _, families) in ELBOS.items()
    for family in families
    for program in (PROGRAMS if elbo == "mean_field" and family == "soft" else ("grid", "chain"))
]


@pytest.mark.parametrize(("program", "elbo", "family"), CASES, ids=map("-".join, CASES))
@pytest.mark.quick("chain", "subsampled")
def test_as_with_one_hot_vectors(backend, program, elbo, family):
    name, options, _ = ELBOS[elbo]
    compiled = {"ignore_jit_warnings": True} if hasattr(backend.infer, name) else {}
    found = getattr(backend.infer, name, None) or getattr(backend.infer, name.removeprefix("Jit"))
    options = options | (compiled if name.startswith("Jit") else {})
    family = getattr(backend.gs, FAMILIES[family])

    def run(hot):
        model = PROGRAMS[program](backend, hot)
        guide = backend.gs.AutoGumbelSoftmax(model, 0.6, family=family)
        relaxed = backend.gs.relax(model, 0.6, family=family)
        return backend.gradients(found(**options), relaxed, guide, [7])[0]

    loss, gradient = run(hot=False)
    wanted, expected = run(hot=True)
    assert loss == pytest.approx(wanted, rel=1e-12)
    assert gradient.keys() == expected.keys()
    for key, slope in gradient.items():
        assert np.abs(slope).max() > 1e-3
        np.testing.assert_allclose(slope, expected[key], rtol=0, atol=1e-11)


def test_single_precision(backend):
    """All values stay float32, and agree with float64."""

    def loss(dtype):
        program = PROGRAMS["chain"](backend, hot=False)
        relaxed = backend.gs.relax(program, 0.6)
        values = {f"z{i}": backend.array(TRANSITION[i]) for i in range(3)}
        value = backend.seeded_log_joint(backend.given(relaxed, values), 0)
        assert backend.dtype(value) == dtype
        return float(value)

    wanted = loss("float64")
    with backend.single_precision():
        assert loss("float32") == pytest.approx(wanted, rel=1e-5)


@pytest.mark.only("numpyro")
def test_cond_takes_both_branches(backend):
    """Each branch has its weight, as in `where`; at a vertex it is the integer program."""
    cond = importlib.import_module("numpyro.contrib.control_flow").cond
    locs = backend.array(LOCS)

    def program():
        z = backend.ppl.sample("z", law(backend, False, backend.array(WEIGHTS)))
        loc = cond(z == 1, lambda k: 2 * locs[k], lambda k: locs[k] - 1, z)
        backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(0.3))

    relaxed = backend.gs.relax(program, 0.6)
    for k in range(3):
        wanted = backend.log_joint(program, {"z": backend.array(k, "int64")})
        value = backend.log_joint(relaxed, {"z": backend.array(np.eye(3)[k])})
        assert value == pytest.approx(wanted, abs=1e-12)
    y = np.array([0.1, 0.2, 0.7])
    mean = y @ LOCS
    loc = y[1] * 2 * mean + (1 - y[1]) * (mean - 1)
    wanted = y @ np.log(WEIGHTS) + stats.norm(loc).logpdf(0.3)
    value = backend.log_joint(relaxed, {"z": backend.array(y)})
    assert value == pytest.approx(wanted, abs=1e-12)
