"""Estimators that run the program several times, against the gradient summed by hand.

Many estimates come from one run: the program stands in an outer plate, each row of which has its
own copy of the guide's parameters, so that row i of the gradient is one estimate.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from enumerable import CASES, Case, by_name, draw, log_probs, mean_field, plain, slopes
from programs import DATA, LOCS, PRIOR, normal
from scipy import stats
from scipy.special import expit, log_softmax, logit, softmax

from gs_ppl import temperature

ROWS = 100_000  # of one run
FAILURE_RATE = 1e-3  # of one case; seeds are fixed
Z = stats.norm.isf(FAILURE_RATE / 2)

ESTIMATORS = {
    "REINFORCE": lambda backend: getattr(backend.infer, backend.reinforce)(),
    "RLOO": lambda backend: backend.gs.RLOO_ELBO(num_particles=4, vectorize_particles=True),
    "RLOO, one by one": lambda backend: backend.gs.RLOO_ELBO(2, vectorize_particles=False),
    "NVIL": lambda backend: backend.gs.NVIL_ELBO(normalize=False),
    "MuProp": lambda backend: backend.gs.MuProp_ELBO(),
    "MuProp, 2": lambda backend: backend.gs.MuProp_ELBO(2, vectorize_particles=True),
    "REBAR": lambda backend: backend.gs.REBAR_ELBO(temperature=0.5, scale=0.8),
    "DisARM": lambda backend: backend.gs.DisARM_ELBO(),
    "DisARM, 2": lambda backend: backend.gs.DisARM_ELBO(2, vectorize_particles=False),
    "DARN": lambda backend: backend.gs.DARN_ELBO(),
}

# --- programs and guides in rows ------------------------------------------------------------------


def in_rows(backend, program, plates, size):
    """The program in an outer plate; `plates` is how many it has itself."""

    def run():
        with backend.ppl.plate("rows", size, dim=-1 - plates):
            program()

    return run


def layered(backend, model, parameters):
    """q(top) q(h | top) for the net of bits."""

    def guide():
        tables = {n: backend.ppl.param(n, backend.array(p)) for n, p in parameters.items()}
        Bernoulli, sample = backend.native.Bernoulli, backend.ppl.sample
        top = sample("top", Bernoulli(logits=tables["to_top"]))
        with backend.ppl.plate("units", 2, dim=-1):
            logits = backend.gs.select(tables["to_h"], top, binary=True)
            sample("h", Bernoulli(logits=logits))

    return guide


def layered_log_q(parameters):
    top, h = log_probs("top", parameters["to_top"]), log_probs("h", parameters["to_h"])
    return top[:, None, None] + h[0][:, :, None] + h[1][:, None, :]


LAYERED = Case(
    by_name("bernoulli_net"),
    "layered",
    layered,
    draw({"to_top": (), "to_h": (2, 2)}),
    layered_log_q,
)
ALL = {case.id: case for case in [*CASES, LAYERED]}


def copies(case, size):
    """The parameters, once for each row; then axes that the program's plates leave to them."""
    ones = (1,) * case.program.plates
    shapes = {n: (size, *ones, *p.shape) for n, p in case.parameters.items()}
    if case.kind == "layered":  # an axis of the table is that of the plate "units"
        shapes["to_h"] = (size, 1, 2, 2)
    return {n: np.broadcast_to(p, shapes[n]) for n, p in case.parameters.items()}


def model_and_guide(backend, case, size):
    plates = case.program.plates
    model = in_rows(backend, plain(backend, case.program.name), plates, size)
    if case.kind == "automatic":
        logits = {n: backend.array(p) for n, p in case.parameters.items()}
        guide = backend.gs.AutoGumbelSoftmax(model, 1.0, init_logits=logits)
        return model, backend.gs.discretize(guide)
    guide = case.guide(backend, model, copies(case, size))
    return model, in_rows(backend, guide, plates, size)


def by_row(case, gradient, size):
    """One estimate of the ELBO's gradient by all parameters in each row."""
    named = {n.removesuffix("_auto_logits").split(".")[-1]: -g for n, g in gradient.items()}
    return np.concatenate([named[n].reshape(size, -1) for n in case.parameters], -1)


def estimates(backend, elbo, case, seeds=(0,), size=ROWS):
    """Mean ELBO over the seeds, and estimates of its gradient."""
    pairs = backend.gradients(elbo, *model_and_guide(backend, case, size), seeds)
    losses, gradients = zip(*pairs, strict=True)
    return -np.mean(losses) / size, np.concatenate([by_row(case, g, size) for g in gradients])


@functools.cache
def exact(case_id):
    gradient = slopes(ALL[case_id].elbo, ALL[case_id].parameters)
    return np.concatenate([gradient[n].ravel() for n in ALL[case_id].parameters])


@dataclass(frozen=True)
class Moments:
    """Of estimates of a gradient, and the mean ELBO."""

    elbo: float
    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @property
    def variance(self):
        return np.trace(self.covariance)

    def check_unbiased(self, expected):
        """z-tests along the gradient and of each component; 2 % of the gradient are 4 errors."""
        u = expected / (expected @ expected)
        along, error = self.mean @ u, np.sqrt(u @ self.covariance @ u / self.count)
        assert 4 * error < 0.02
        assert abs(along - 1) < Z * error
        errors = np.sqrt(np.diag(self.covariance) / self.count)
        limit = stats.norm.isf(FAILURE_RATE / 2 / len(expected))
        assert (np.abs(self.mean - expected) <= limit * errors + 1e-8).all()


def moments(elbo, x):
    return Moments(elbo, x.mean(0), np.cov(x.T), len(x))


@functools.cache
def measured(backend, name, case, runs=1):
    """Of a cell below, for all tests that ask."""
    return moments(*estimates(backend, ESTIMATORS[name](backend), ALL[case], range(runs)))


# --- bias and variance ----------------------------------------------------------------------------

RUNS = {  # of ROWS each, that the error of the mean needs
    "mixture-automatic": {
        "REINFORCE": 1,
        "RLOO": 1,
        "RLOO, one by one": 1,
        "MuProp, 2": 1,
        "REBAR": 1,
    },
    "factorial-dependent": {"RLOO": 2, "MuProp": 8, "REBAR": 6},
    "bernoulli_net-layered": {
        "RLOO": 1,
        "MuProp": 1,
        "REBAR": 1,
        "DisARM, 2": 1,
    },
}
CELLS = [(case, name, runs) for case, cells in RUNS.items() for name, runs in cells.items()]


@pytest.mark.parametrize(
    ("case", "name", "runs"),
    [
        pytest.param(
            *cell,
            id="-".join(cell[:2]),
            marks=[pytest.mark.long] * cell[0].startswith("factorial-d"),
        )
        for cell in CELLS
    ],
)
@pytest.mark.quick("bernoulli_net")
def test_unbiased(backend, case, name, runs):
    """And the loss is that of the discrete program."""
    found = measured(backend, name, case, runs)
    found.check_unbiased(exact(case))
    assert found.elbo == pytest.approx(ALL[case].elbo(ALL[case].parameters), abs=0.05)


LESS = {
    "factorial-dependent": {"RLOO": 4, "MuProp": 2, "REBAR": 1},  # and one more for each site
    "bernoulli_net-layered": {"RLOO": 4, "MuProp": 2, "REBAR": 1, "DisARM, 2": 6},
}


@pytest.mark.parametrize(
    ("case", "name", "evaluations"),
    [
        pytest.param(case, name, n, marks=[pytest.mark.long] * case.startswith("factorial"))
        for case, cells in LESS.items()
        for name, n in cells.items()
    ],
)
def test_less_variance_than_reinforce(backend, case, name, evaluations):
    """For as many evaluations of the program."""
    reinforce = measured(backend, "REINFORCE", case).variance
    assert measured(backend, name, case, RUNS[case][name]).variance * evaluations < reinforce


# --- programs that only a score function can serve ------------------------------------------------


SHIFTED = {"loc": np.array(0.3), "to_z": np.array([[0.5, -0.2, 0.1], [0.4, 0.0, -0.6]])}


def shifted(backend, size):
    """A continuous latent above integer ones, whose law in the guide depends on it."""
    ppl, array, Normal = backend.ppl, backend.array, backend.native.Normal

    def model():
        shift = ppl.sample("shift", Normal(array(0.0), 1.0))
        with ppl.plate("data", 3):
            z = ppl.sample("z", backend.native.Categorical(probs=array(PRIOR)))
            loc = backend.gs.select(array(LOCS), z) + shift
            ppl.sample("x", Normal(loc, 1.0), obs=array(DATA[:3]))

    def guide():
        loc = ppl.param("loc", array(np.full((size, 1), SHIFTED["loc"])))
        table = ppl.param("to_z", array(np.broadcast_to(SHIFTED["to_z"], (size, 1, 2, 3))))
        shift = ppl.sample("shift", Normal(loc, 0.5))
        with ppl.plate("data", 3):
            logits = table[..., 0, :] + shift[..., None] * table[..., 1, :]
            ppl.sample("z", backend.native.Categorical(logits=logits))

    return [in_rows(backend, program, 1, size) for program in (model, guide)]


def shifted_elbo(parameters):
    """By quadrature over the shift, and summation over each class."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    shift = parameters["loc"] + 0.5 * nodes
    log_q = log_softmax(parameters["to_z"][0] + shift[:, None] * parameters["to_z"][1], -1)
    terms = normal(shift, 0) - stats.norm(parameters["loc"], 0.5).logpdf(shift)
    for x in DATA[:3]:
        joint = np.log(PRIOR) + normal(x, LOCS + shift[:, None])
        terms += (np.exp(log_q) * (joint - log_q)).sum(-1)
    return weights @ terms / np.sqrt(2 * np.pi)


@pytest.mark.long
def test_rloo_beside_continuous_latents(backend):
    """Integer sites that depend on a reparameterized one."""
    size = 4 * ROWS
    elbo = backend.gs.RLOO_ELBO(num_particles=2, vectorize_particles=True)
    ((loss, gradient),) = backend.gradients(elbo, *shifted(backend, size), [0])
    expected = slopes(shifted_elbo, SHIFTED)
    x = np.concatenate([-gradient[name].reshape(size, -1) for name in SHIFTED], -1)
    found = moments(-loss / size, x)
    found.check_unbiased(np.concatenate([expected[name].ravel() for name in SHIFTED]))
    assert found.elbo == pytest.approx(shifted_elbo(SHIFTED), abs=0.02)


SCORE = {"weight": np.array([0.5, -0.4, 0.2]), "bias": np.array([0.1, 0.3, -0.2])}


def amortized_elbo(parameters, data):
    log_q = log_softmax(data[:, None] * parameters["weight"] + parameters["bias"], -1)
    return (np.exp(log_q) * (np.log(PRIOR) + normal(data[:, None], LOCS) - log_q)).sum()


@pytest.mark.parametrize("name", ["RLOO, one by one", "MuProp"])
@pytest.mark.quick("MuProp")
def test_subsampling(backend, name):
    """Two of six rows, which all particles and runs share, and which count three times."""
    ppl, array, seen, size = backend.ppl, backend.array, [], 20_000

    def model():
        with ppl.plate("data", 6, subsample_size=2) as rows:
            z = ppl.sample("z", backend.gs.OneHotCategorical(probs=array(PRIOR)))
            x = backend.native.Normal(backend.gs.select(array(LOCS), z), 1.0)
            ppl.sample("x", x, obs=array(DATA)[rows])

    def guide():
        weight, bias = (
            ppl.param(n, array(np.broadcast_to(p, (size, 1, 3)))) for n, p in SCORE.items()
        )
        with ppl.plate("data", 6, subsample_size=2) as rows:
            seen.append(rows)
            logits = array(DATA)[rows][:, None] * weight + bias
            ppl.sample("z", backend.gs.OneHotCategorical(logits=logits))

    elbo = ESTIMATORS[name](backend)
    programs = [in_rows(backend, program, 1, size) for program in (model, guide)]
    with backend.uncompiled():
        _, gradient = backend.loss_and_gradient(elbo, *programs, seed=3)
    data = DATA[backend.numpy(seen[-1])]
    expected = slopes(lambda parameters: 3 * amortized_elbo(parameters, data), SCORE)
    for parameter, value in expected.items():
        x = -gradient[parameter].reshape(size, -1)
        errors = x.std(0) / np.sqrt(size)
        assert (errors < 0.1 * np.linalg.norm(value)).all()
        limit = stats.norm.isf(FAILURE_RATE / 2 / x.shape[1])
        assert (np.abs(x.mean(0) - value) < limit * errors).all()


# --- NVIL -----------------------------------------------------------------------------------------


def test_nvil_after_some_steps(backend):
    """The sum of 40 estimates, at parameters that hardly move: unbiased, with less variance than
    without a baseline; and the moments that it has seen."""
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
    """Those of all that it has seen, each step with `decay` times the weight of the next."""
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
    """The first step is REINFORCE, of score b - pi, also where NumPyro's Bernoulli has kinks."""
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
    """C = w x of each row: G = (r - w x) (b - 1/2), and w descends on sum (r - w x)^2 / 2."""
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
    terms = (r - w * x) * (b - 0.5)  # by b and row
    ones = np.arange(particles + 1)[:, None]  # of the particles
    sums = (ones * terms[1] + (particles - ones) * terms[0]) / particles
    found = np.abs(sums + gradient["a"]).argmin(0)
    np.testing.assert_allclose(-gradient["a"], sums[found, np.arange(size)], rtol=1e-9)
    mean_r = (found * r[1] + (particles - found) * r[0]) / particles
    assert gradient["w"] == pytest.approx(((w * x - mean_r) * x).sum(), rel=1e-9)


def test_nvil_learns_a_baseline(backend):
    """Rows with a constant each: least squares finds them, beside the descent of the ELBO."""
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


# --- REBAR's temperature and scale ----------------------------------------------------------------


def test_rebar_descends_on_its_variance(backend):
    """The slope of sum G^2 along one direction of log tau and eta, for the same noise."""
    case, size, h = ALL["mixture-automatic"], 200, 1e-4

    def square(t):
        elbo = backend.gs.REBAR_ELBO(temperature=0.7 * np.exp(t), scale=0.6 + t / 2)
        return (estimates(backend, elbo, case, size=size)[1] ** 2).sum()

    elbo = backend.gs.REBAR_ELBO(temperature=0.7, scale=0.6)
    model, guide = model_and_guide(backend, case, size)
    ((_, gradient),) = backend.gradients(elbo, model, elbo.wrap(guide), [0])
    slope = gradient["z_rebar_log_temperature"] + gradient["z_rebar_scale"] / 2
    assert slope == pytest.approx((square(h) - square(-h)) / (2 * h), rel=1e-4)


def test_rebar_learns_temperature_and_scale(backend):
    """From a start that is too hot and too small, for a guide that stays."""
    case, size, start = ALL["mixture-automatic"], 500, {"temperature": 3.0, "scale": 0.2}
    model = in_rows(backend, plain(backend, "mixture"), 1, size)

    def guide():
        logits = backend.array(case.parameters["z"])
        with backend.ppl.plate("rows", size, dim=-2), backend.ppl.plate("data", 3):
            backend.ppl.sample("z", backend.gs.OneHotCategorical(logits=logits))

    def spread(**values):
        elbo = backend.gs.REBAR_ELBO(**values)
        return estimates(backend, elbo, case, size=20_000)[1].var(0).sum()

    elbo = backend.gs.REBAR_ELBO(**start)
    _, left = backend.train(elbo, model, elbo.wrap(guide), "Adam", 0.05, 100)
    tau, eta = np.exp(left["z_rebar_log_temperature"]), left["z_rebar_scale"]
    assert spread(temperature=float(tau), scale=float(eta)) < 0.8 * spread(**start)


# --- DARN, by hand --------------------------------------------------------------------------------


def one_site(backend, kind, logits, size, infer=None):
    """A normal observation around weights * z, quadratic in z; the guide's logits for each row."""
    ppl, array = backend.ppl, backend.array
    bits = kind == "bit"

    def model():
        with ppl.plate("rows", size):
            if bits:
                z = ppl.sample("z", backend.native.Bernoulli(probs=array(0.3)))
                loc = 1.4 * z
            else:
                z = ppl.sample("z", backend.gs.OneHotCategorical(probs=array(PRIOR)))
                loc = backend.gs.select(array(LOCS), z)
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=array(0.6))

    def guide():
        a = ppl.param("a", array(np.broadcast_to(logits, (size, *np.shape(logits)))))
        law = backend.native.Bernoulli if bits else backend.gs.OneHotCategorical
        with ppl.plate("rows", size):
            ppl.sample("z", law(logits=a), infer=infer() if infer else {})

    return model, guide


def test_darn_at_a_bit(backend):
    """G = r'(b) (b - 1/2) (b - pi); its mean is exact, since r is quadratic."""
    a, b = 0.4, np.array([0.0, 1.0])
    pi = expit(a)
    model, guide = one_site(backend, "bit", a, 200)
    ((_, gradient),) = backend.gradients(backend.gs.DARN_ELBO(), model, guide, [0])
    slope = logit(0.3) - a + 1.4 * (0.6 - 1.4 * b)
    expected = slope * (b - 0.5) * (b - pi)
    np.testing.assert_allclose(np.unique(np.round(-gradient["a"], 12)), np.sort(expected))

    def elbo(a):
        q = np.array([expit(-a), expit(a)])
        return q @ (np.log([0.7, 0.3]) + normal(0.6, 1.4 * b) - np.log(q))

    exact_slope = (elbo(a + 1e-5) - elbo(a - 1e-5)) / 2e-5
    assert expected @ [1 - pi, pi] == pytest.approx(exact_slope, rel=1e-6)


def test_darn_at_a_one_hot_vector(backend):
    """G = r'(b) (b - 1/K) (b - pi)."""
    a = np.array([0.5, -0.3, 0.1])
    model, guide = one_site(backend, "one_hot", a, 200)
    ((_, gradient),) = backend.gradients(backend.gs.DARN_ELBO(), model, guide, [0])
    b = np.eye(3)
    slope = np.log(PRIOR) - log_softmax(a) + LOCS * (0.6 - LOCS)[:, None]
    signal = (slope * (b - 1 / 3)).sum(-1)
    expected = signal[:, None] * (b - softmax(a))
    rows = np.unique(np.round(-gradient["a"], 10), axis=0)
    assert len(rows) == 3
    assert all(np.isclose(rows, row).all(-1).any() for row in expected)


PLAIN = [
    (lambda native: native.Bernoulli(0.3), 0.3, 0.8),
    (lambda native: native.Bernoulli(logits=0.0), 0.5, -1.1),
    (lambda native: native.Bernoulli(np.float64(0.6)), 0.6, 0.5),
    (lambda native: native.Bernoulli(1.0), 1.0, 0.2),
]  # law, its probability, the weight of its bit


@pytest.mark.parametrize("name", ["RLOO", "NVIL", "MuProp", "REBAR", "DisARM", "DARN"])
@pytest.mark.quick("RLOO", "DisARM")
def test_parameters_that_are_plain_numbers(backend, name):
    """A bit w with logit a beside bits of plain numbers, one of them sure; summed by hand."""
    ppl, native, array, rows = backend.ppl, backend.native, backend.array, 20_000

    def plain_bits():
        return [ppl.sample(f"z{i}", law(native)) for i, (law, *_) in enumerate(PLAIN)]

    def model():
        with ppl.plate("rows", rows):
            loc = 1.4 * ppl.sample("w", native.Bernoulli(0.3))
            for z, (*_, weight) in zip(plain_bits(), PLAIN, strict=True):
                loc = loc + weight * z
            ppl.sample("x", native.Normal(loc, 1.0), obs=array(0.6))

    def guide():
        a = ppl.param("a", array(np.full(rows, -0.4)))
        with ppl.plate("rows", rows):
            ppl.sample("w", native.Bernoulli(logits=a))
            plain_bits()

    elbo = ESTIMATORS[name](backend)
    wrapped = elbo.wrap(guide) if hasattr(elbo, "wrap") else guide
    ((_, gradient),) = backend.gradients(elbo, model, wrapped, [0])
    assert all(np.isfinite(backend.numpy(slope)).all() for slope in gradient.values())
    estimates = -backend.numpy(gradient["a"])
    mean = np.zeros(2)  # of log p(x | w, z), by w
    for z in itertools.product([0, 1], repeat=len(PLAIN)):
        weight = np.prod([p if bit else 1 - p for bit, (_, p, _) in zip(z, PLAIN, strict=True)])
        loc = sum(bit * c for bit, (*_, c) in zip(z, PLAIN, strict=True))
        mean += weight * normal(0.6, loc + 1.4 * np.arange(2))
    q = expit(-0.4)
    r = mean + np.log([0.7, 0.3]) - np.log([1 - q, q])
    error = estimates.std() / np.sqrt(rows)
    assert error < 0.01
    assert abs(estimates.mean() - q * (1 - q) * (r[1] - r[0])) < Z * error


@pytest.mark.parametrize("name", ["RLOO", "MuProp", "REBAR", "DARN"])
def test_masked_categories(backend, name):
    """A category that does not exist has no gradient; the others have theirs."""
    a = np.array([0.5, -np.inf, 0.1])
    elbo, size = ESTIMATORS[name](backend), 20_000
    model, guide = one_site(backend, "one_hot", a, size)
    guide = elbo.wrap(guide) if hasattr(elbo, "wrap") else guide
    ((loss, gradient),) = backend.gradients(elbo, model, guide, [0])
    x = -gradient["a"]
    assert np.isfinite(loss)
    assert all(np.isfinite(backend.numpy(slope)).all() for slope in gradient.values())
    assert (x[:, 1] == 0).all()
    keep = [0, 2]

    def exact_elbo(parameters):
        log_q = log_softmax(parameters["a"])
        return np.exp(log_q) @ (np.log(PRIOR[keep]) + normal(0.6, LOCS[keep]) - log_q)

    expected = slopes(exact_elbo, {"a": a[keep]})["a"]
    if name != "DARN":
        assert (np.abs(x.mean(0)[keep] - expected) < 4 * x.std(0)[keep] / np.sqrt(size)).all()


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RLOO", "NVIL", "MuProp", "REBAR", "DisARM", "DARN"])
@pytest.mark.quick("RLOO", "DARN")
def test_training_improves_the_exact_elbo(backend, name):
    """Under AnnealedSVI, which checks the pair first; in NumPyro inside of one scan."""
    case, elbo = LAYERED, ESTIMATORS[name](backend)
    model = plain(backend, "bernoulli_net")
    guide = case.guide(backend, model, case.parameters)
    guide = elbo.wrap(guide) if name in ("NVIL", "REBAR") else guide
    schedule = temperature.exponential(rate=1e-2, minimum=0.5)
    losses, left = backend.train(elbo, model, guide, "Adam", 0.05, 150, schedule=schedule)
    start, end = case.elbo(case.parameters), case.elbo({n: left[n] for n in case.parameters})
    best = np.logaddexp.reduce(case.program.log_joints(), axis=None)
    assert best - end < 0.5 * (best - start)
    assert np.isfinite(losses).all()


def test_loss_is_that_of_the_discrete_program(backend):
    """Without a gradient, as in evaluation."""
    elbo, size = backend.gs.MuProp_ELBO(), 20_000
    case = ALL["mixture-automatic"]
    model, guide = model_and_guide(backend, case, size)
    mean = -backend.losses(elbo, model, guide, 1)[0] / size
    assert mean == pytest.approx(case.elbo(case.parameters), abs=0.05)


# --- refusals -------------------------------------------------------------------------------------


LAWS = {
    "one-hot": lambda gs, native, array: gs.OneHotCategorical(logits=array(np.zeros(3))),
    "bit": lambda gs, native, array: native.Bernoulli(logits=array(0.0)),
    "integer": lambda gs, native, array: native.Categorical(logits=array(np.zeros(3))),
    "normal": lambda gs, native, array: native.Normal(array(0.0), 1.0),
    "relaxed": lambda gs, native, array: gs.GumbelSoftmax(0.5, logits=array(np.zeros(3))),
    "straight-through": lambda gs, native, array: gs.STGumbelSoftmax(
        0.5, logits=array(np.eye(3)[0])
    ),
}
REFUSED = [
    ("NVIL", "one-hot", r"site 'z': NVIL_ELBO keeps its running mean in the guide: .* elbo.wrap"),
    *(
        ("DisARM", law, r"site 'z': DisARM_ELBO takes bits, .* use REBAR_ELBO or RLOO_ELBO")
        for law in ("one-hot", "integer")
    ),
    *(
        (name, law, rf"site 'z': {name}_ELBO takes {what}")
        for name in ("MuProp", "REBAR", "DARN", "DisARM")
        for law, what in {
            "normal": "guides of discrete sites .* not Normal: use RLOO_ELBO",
            "relaxed": r"the discrete program, and GumbelSoftmax is relaxed: .* discretize",
            "straight-through": "the discrete program, and STGumbelSoftmax is relaxed",
        }.items()
    ),
]


@pytest.mark.parametrize(("name", "law", "message"), REFUSED)
def test_refused_guides(backend, name, law, message):
    def program():
        backend.ppl.sample("z", LAWS[law](backend.gs, backend.native, backend.array))

    with pytest.raises(ValueError, match=message):
        backend.loss_and_gradient(ESTIMATORS[name](backend), program, program, 0)


def test_refuses_a_latent_without_a_guide(backend):
    def model():
        for name in ("z", "w"):
            backend.ppl.sample(name, LAWS["bit"](backend.gs, backend.native, backend.array))

    def guide():
        backend.ppl.sample("z", LAWS["bit"](backend.gs, backend.native, backend.array))

    with pytest.raises(ValueError, match="site 'w': MuProp_ELBO needs it in the guide as well"):
        backend.loss_and_gradient(backend.gs.MuProp_ELBO(), model, guide, 0)


OPTIONS = {
    "RLOO_ELBO: num_particles must be at least 2, got 1": ("RLOO_ELBO", {"num_particles": 1}),
    r"NVIL_ELBO: decay must be in \[0, 1\), got 1": ("NVIL_ELBO", {"decay": 1.0}),
    "REBAR_ELBO: temperature must be positive, got 0": ("REBAR_ELBO", {"temperature": 0.0}),
}


@pytest.mark.parametrize("message", OPTIONS)
def test_refused_options(backend, message):
    name, options = OPTIONS[message]
    with pytest.raises(ValueError, match=message):
        getattr(backend.gs, name)(**options)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("name", ["RLOO", "MuProp"])
def test_refuses_an_axis_in_no_plate(backend, name):
    """NumPyro itself lets it pass, and the costs would be summed in the wrong places."""

    def program():
        backend.ppl.sample("z", backend.native.Bernoulli(logits=backend.array(np.zeros(3))))

    with pytest.raises(ValueError, match=r"site 'z': axis -1 of its batch shape \(3,\) lies in no"):
        backend.loss_and_gradient(ESTIMATORS[name](backend), program, program, 0)


@pytest.mark.only("numpyro")
def test_refuses_scan_in_the_guide(backend):
    from numpyro.contrib.control_flow import scan

    def program():
        def step(carry, _):
            law = backend.native.Bernoulli(logits=backend.array(0.0))
            return carry, backend.ppl.sample("z", law)

        scan(step, None, None, length=3)

    with pytest.raises(ValueError, match="site 'z': MuProp_ELBO does not reach into scan"):
        backend.loss_and_gradient(backend.gs.MuProp_ELBO(), program, program, 0)


@pytest.mark.only("pyro")
@pytest.mark.parametrize("name", ["RLOO", "MuProp", "REBAR", "DARN"])
@pytest.mark.quick("RLOO")
def test_pyros_own_one_hot_law(backend, name):
    """It scores by argmax, without a gradient; here it is scored by its mass like ours."""
    gradients = []
    for law in (backend.gs.OneHotCategorical, backend.native.OneHotCategorical):

        def program(logits, law=law):
            z = backend.ppl.sample("z", law(logits=logits))
            loc = backend.gs.select(backend.array(LOCS), z)
            backend.ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(0.6))

        def guide(law=law):
            a = backend.ppl.param("a", backend.array([0.5, -0.3, 0.1]))
            backend.ppl.sample("z", law(logits=a))

        model = functools.partial(program, backend.array(np.log(PRIOR)))
        pairs = backend.gradients(ESTIMATORS[name](backend), model, guide, range(200))
        gradients.append(np.array([gradient["a"] for _, gradient in pairs]))
    if name == "RLOO":  # Pyro draws from it in another way
        error = gradients[0].std() * np.sqrt(2 / 200)
        assert np.abs(gradients[0].mean(0) - gradients[1].mean(0)).max() < 4 * error
    else:
        np.testing.assert_allclose(*gradients, atol=1e-12)
