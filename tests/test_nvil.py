"""NVIL and MuProp: running moments and learned baseline."""

import numpy as np
import pytest
from enumerable import by_name, mean_field
from estimates import ALL, FAILURE_RATE, by_row, exact, model_and_guide, one_site
from programs import normal
from scipy import stats
from scipy.special import expit, softmax


def test_nvil_after_some_steps(backend):
    """The sum of 40 estimates, while parameters hardly change, is unbiased with less variance than
    without a baseline; the moments are those of all steps."""
    case, size, steps, rate = ALL["factorial-automatic"], 10_000, 40, 1e-9
    elbo = backend.gs.NVIL_ELBO(decay=0.8, normalize=False)
    model, guide = model_and_guide(backend, case, size)
    _, left = backend.train(elbo, model, elbo.wrap(guide), "SGD", rate, steps)
    named = {n.removesuffix("_auto_logits").split(".")[-1]: x for n, x in left.items()}
    start = {n: np.broadcast_to(p, (size, *p.shape)) for n, p in case.parameters.items()}
    moved = {n: named[n].reshape(start[n].shape) - start[n] for n in case.parameters}
    x = by_row(case, {n: -x / rate / steps for n, x in moved.items()}, size)
    expected, errors = exact("factorial-automatic"), x.std(0) / np.sqrt(size)
    assert (errors < 0.02 * np.linalg.norm(expected)).all()
    limit = stats.norm.isf(FAILURE_RATE / 2 / x.shape[1])
    assert (np.abs(x.mean(0) - expected) < limit * errors).all()
    q, r = np.exp(mean_field(case.parameters)), by_name("factorial").log_joints()
    r = r - np.log(q)
    mean = case.elbo(case.parameters)
    variance = (q * (r - mean) ** 2).sum()
    score = sum(1 - (softmax(a) ** 2).sum() for a in (case.parameters[n] for n in "ab"))
    score += expit(case.parameters["c"]) * expit(-case.parameters["c"])
    without = (variance + mean**2) * score  # roughly: r and the score are not independent
    assert steps * x.var(0).sum() < 0.5 * without
    for site in case.program.sites:
        found = named[f"{site}_nvil"] ** [1, 0.5, 1]
        assert found == pytest.approx([mean, np.sqrt(variance), steps], rel=0.02)


def test_nvil_keeps_the_weighted_moments(backend):
    """Moments of all estimates so far; each step has `decay` times the weight of the next one."""
    elbo, rng = backend.gs.NVIL_ELBO(decay=0.8), np.random.default_rng(0)
    seen = rng.normal(size=(4, 3, 5)) + np.arange(4.0)[:, None, None]
    state = {"z_nvil": backend.array(np.zeros(3))}
    for r in seen:
        state = elbo.update({"z": backend.array(r)}, state)
    weights = np.broadcast_to(0.8 ** np.arange(4)[::-1, None], (4, 15))
    mean = np.average(seen.reshape(4, 15), weights=weights)
    variance = np.average((seen.reshape(4, 15) - mean) ** 2, weights=weights)
    np.testing.assert_allclose(backend.numpy(state["z_nvil"]), [mean, variance, 4], rtol=1e-5)


def test_nvil_at_a_logit_of_zero(backend):
    """The first step is REINFORCE with score b - pi, also at the kinks of NumPyro's Bernoulli."""
    elbo, b = backend.gs.NVIL_ELBO(), np.array([0.0, 1.0])
    model, guide = one_site(backend, "bit", 0.0, 200)
    ((_, gradient),) = backend.gradients(elbo, model, elbo.wrap(guide), [0])
    r = np.log([0.7, 0.3]) + normal(0.6, 1.4 * b) - np.log(0.5)
    expected = np.sort(r * (b - 0.5))
    np.testing.assert_allclose(np.unique(np.round(-gradient["a"], 10)), expected)


@pytest.mark.parametrize("deviation", [0.3, 5.0])
def test_nvil_divides_by_a_deviation_above_one(backend, deviation):
    r, mean = np.array([[1.0, 4.0], [-2.0, 3.0]]), 2.5
    state = {"z_nvil": backend.array([mean, deviation**2, 7.0])}
    signal = backend.gs.NVIL_ELBO().center({"z": backend.array(r)}, state)["z"]
    np.testing.assert_allclose(backend.numpy(signal), (r - mean) / max(1, deviation), rtol=1e-6)


@pytest.mark.parametrize("particles", [1, 3])
def test_nvil_subtracts_and_learns_a_baseline(backend, particles):
    """C = w x for each row: G = (r - w x) (b - 1/2), and w descends on sum (r - w x)^2 / 2."""
    size, w = 50, 0.7
    x, b = np.linspace(-2, 1, size), np.array([[0.0], [1.0]])

    def infer():
        weight = backend.ppl.param("w", backend.array(w))
        nets = {"nn_baseline": lambda x: weight * x, "nn_baseline_input": backend.array(x)}
        return {"baseline": nets}

    elbo = backend.gs.NVIL_ELBO(particles, normalize=False)
    model, guide = one_site(backend, "bit", 0.0, size, infer)
    ((_, gradient),) = backend.gradients(elbo, model, elbo.wrap(guide), [0])
    r = np.log([[0.7], [0.3]]) + normal(0.6, 1.4 * b) - np.log(0.5)
    terms = (r - w * x) * (b - 0.5)  # for each b and row
    ones = np.arange(particles + 1)[:, None]  # of the particles
    sums = (ones * terms[1] + (particles - ones) * terms[0]) / particles
    found = np.abs(sums + gradient["a"]).argmin(0)
    np.testing.assert_allclose(-gradient["a"], sums[found, np.arange(size)], rtol=1e-9)
    mean_r = (found * r[1] + (particles - found) * r[0]) / particles
    assert gradient["w"] == pytest.approx(((w * x - mean_r) * x).sum(), rel=1e-9)


def test_nvil_learns_a_baseline(backend):
    """Each row has a constant: least squares finds them, while the ELBO improves."""
    size = 200
    x = np.linspace(-20, 20, size)

    def model():
        with backend.ppl.plate("rows", size):
            z = backend.ppl.sample("z", backend.native.Bernoulli(probs=backend.array(0.3)))
            backend.ppl.factor("evidence", 0.1 * z + backend.array(x))

    def guide():
        a = backend.ppl.param("a", backend.array(np.zeros(size)))
        w = backend.ppl.param("w", backend.array(np.zeros(2)))
        nets = {"nn_baseline": lambda x: w[0] + w[1] * x, "nn_baseline_input": backend.array(x)}
        with backend.ppl.plate("rows", size):
            law = backend.native.Bernoulli(logits=a)
            backend.ppl.sample("z", law, infer={"baseline": nets})

    elbo = backend.gs.NVIL_ELBO()
    _, left = backend.train(elbo, model, elbo.wrap(guide), "Adam", 0.02, 300)
    assert left["w"][1] == pytest.approx(1, abs=0.05)
    assert left["a"].mean() < -0.2  # on the way to logit(0.3) + 0.1


def test_nvil_refuses_a_baseline_of_another_shape(backend):
    def infer():
        x = backend.array(np.zeros((5, 1)))
        return {"baseline": {"nn_baseline": lambda x: x, "nn_baseline_input": x}}

    elbo = backend.gs.NVIL_ELBO()
    model, guide = one_site(backend, "bit", 0.0, 5, infer)
    with pytest.raises(
        ValueError, match=r"site 'z': the baseline must have the shape \(5,\) of .*"
    ):
        backend.gradients(elbo, model, elbo.wrap(guide), [0])


# --- MuProp ---------------------------------------------------------------------------------------


def by_hand(a, b):
    """The signal of MuProp at a bit whose guide has the logit a, and its slope at the mean."""
    pi = expit(a)
    log_p, log_q = np.log([0.7, 0.3]), np.log([1 - pi, pi])

    def r(m):
        return m * np.diff(log_p - log_q) + (log_p - log_q)[0] + normal(0.6, 1.4 * m)

    slope = np.diff(log_p - log_q) + 1.4 * (0.6 - 1.4 * pi)
    return r(b) - r(pi) - slope * (b - pi), slope


def moved_rows(backend, elbo, a, rate, steps):
    """The sum of the first estimates of each row, and the state of the running mean."""
    model, guide = one_site(backend, "bit", a, 200)
    _, left = backend.train(elbo, model, elbo.wrap(guide), "SGD", rate, steps)
    return (left["a"] - a) / rate, left["z_muprop"]


def test_muprop_is_centered(backend):
    """c is 0 in the first step, and in the second step the mean signal of the first."""
    rate, a, b = 1e-8, 0.8, np.array([0.0, 1.0])
    (signal, slope), pi = by_hand(a, b), expit(a)
    pathwise = slope * pi * (1 - pi)

    def check(found, c):
        expected = (signal - c) * (b - pi) + pathwise
        drawn = np.abs(found[:, None] - expected).argmin(-1)
        np.testing.assert_allclose(found, expected[drawn], rtol=1e-6)
        return signal[drawn].mean()

    first, state = moved_rows(backend, backend.gs.MuProp_ELBO(decay=0.5), a, rate, 1)
    c = check(first, 0.0)
    np.testing.assert_allclose(state, [c, 1], rtol=1e-6)
    both, state = moved_rows(backend, backend.gs.MuProp_ELBO(decay=0.5), a, rate, 2)
    second = check(both - first, c)
    np.testing.assert_allclose(state, [c / 3 + second * 2 / 3, 2], rtol=1e-6)
    assert second != c


@pytest.mark.parametrize("vectorized", [False, True], ids=["by turns", "vectorized"])
def test_muprop_of_particles(backend, vectorized):
    """The new c is the mean over particles."""
    options = {"num_particles": 4, "vectorize_particles": vectorized}
    elbo, a, b = backend.gs.MuProp_ELBO(decay=0.0, **options), 0.8, np.array([0.0, 1.0])
    _, (c, steps) = moved_rows(backend, elbo, a, 1e-8, 3)
    (signal, _), q = by_hand(a, b), np.array([1 - expit(a), expit(a)])
    mean = q @ signal
    error = np.sqrt(q @ (signal - mean) ** 2 / 800)
    assert steps == 3
    assert abs(c - mean) < stats.norm.isf(FAILURE_RATE / 2) * error


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("name", ["MuProp", "DARN", "REBAR"])
def test_mutable_state_of_the_guide_is_kept(backend, name, particles):
    """Of a network, for example; it counts the steps here."""
    elbo = getattr(backend.gs, f"{name}_ELBO")(particles)
    model, guide = one_site(backend, "bit", 0.8, 4)

    def counting():
        state = backend.ppl.primitives.mutable(
            "steps", {"of the guide": backend.jax.numpy.zeros(())}
        )
        guide()
        state["of the guide"] += 1

    program = elbo.wrap(counting) if hasattr(elbo, "wrap") else counting
    svi = backend.infer.SVI(model, program, backend.ppl.optim.Adam(0.01), elbo)
    state = svi.run(backend.jax.random.key(0), 5, progress_bar=False).state
    assert state.mutable_state["steps"]["of the guide"] == 6  # one of them is the start
    assert ("z_muprop" in state.mutable_state) == (name == "MuProp")
