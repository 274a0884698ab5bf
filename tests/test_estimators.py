"""Estimators that run the program several times, against the gradient summed by hand.

Many estimates come from one run: the program stands in an outer plate, each row of which has its
own copy of the guide's parameters, so that row i of the gradient is one estimate.
"""

import functools

import numpy as np
import pytest
from enumerable import CASES, Case, by_name, draw, log_probs, plain, slopes
from programs import DATA, LOCS, PRIOR, normal
from scipy import stats
from scipy.special import log_softmax

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


def check_unbiased(x, expected):
    """By a z-test along the gradient and of each component; 2 % of the gradient are 4 errors."""
    along = x @ expected / (expected @ expected)
    error = along.std() / np.sqrt(len(x))
    assert 4 * error < 0.02
    assert abs(along.mean() - 1) < Z * error
    errors = x.std(0) / np.sqrt(len(x))
    limit = stats.norm.isf(FAILURE_RATE / 2 / x.shape[1])
    assert (np.abs(x.mean(0) - expected) <= limit * errors + 1e-8).all()


# --- bias and variance ----------------------------------------------------------------------------

RUNS = {  # of ROWS each, that the error of the mean needs
    "mixture-automatic": {
        "REINFORCE": 1,
        "RLOO": 1,
        "RLOO, one by one": 1,
        "MuProp": 1,
        "MuProp, 2": 1,
        "REBAR": 1,
    },
    "factorial-dependent": {"RLOO": 2, "MuProp": 8, "REBAR": 6},
    "bernoulli_net-layered": {
        "REINFORCE": 4,
        "RLOO": 1,
        "MuProp": 1,
        "REBAR": 1,
        "DisARM": 1,
        "DisARM, 2": 1,
    },
}
CELLS = [(case, name, runs) for case, cells in RUNS.items() for name, runs in cells.items()]


@pytest.mark.parametrize(
    ("case", "name", "runs"), CELLS, ids=[f"{case}-{name}" for case, name, _ in CELLS]
)
def test_unbiased(backend, case, name, runs):
    """And the loss is that of the discrete program."""
    elbo, x = estimates(backend, ESTIMATORS[name](backend), ALL[case], range(runs))
    check_unbiased(x, exact(case))
    assert elbo == pytest.approx(ALL[case].elbo(ALL[case].parameters), abs=0.05)


def variance(backend, name, case_id="factorial-automatic"):
    _, x = estimates(backend, ESTIMATORS[name](backend), ALL[case_id], size=20_000)
    return x.var(0).sum()


@pytest.mark.parametrize(("name", "evaluations"), [("RLOO", 4), ("MuProp", 2), ("REBAR", 1)])
def test_less_variance_than_reinforce(backend, name, evaluations):
    """RLOO and MuProp for as many evaluations of the program; REBAR takes one more for a site."""
    plain_variance = variance(backend, "REINFORCE")
    assert variance(backend, name) * evaluations < 0.8 * plain_variance


def test_disarm_has_less_variance_than_reinforce(backend):
    case = "bernoulli_net-layered"
    disarm, reinforce = (variance(backend, name, case) for name in ("DisARM", "REINFORCE"))
    assert 3 * disarm < reinforce  # a run at the samples, and one for each of two sites


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


def test_rloo_beside_continuous_latents(backend):
    """Integer sites that depend on a reparameterized one."""
    size = 4 * ROWS
    elbo = backend.gs.RLOO_ELBO(num_particles=2, vectorize_particles=True)
    ((loss, gradient),) = backend.gradients(elbo, *shifted(backend, size), [0])
    expected = slopes(shifted_elbo, SHIFTED)
    x = np.concatenate([-gradient[name].reshape(size, -1) for name in SHIFTED], -1)
    check_unbiased(x, np.concatenate([expected[name].ravel() for name in SHIFTED]))
    assert -loss / size == pytest.approx(shifted_elbo(SHIFTED), abs=0.02)


SCORE = {"weight": np.array([0.5, -0.4, 0.2]), "bias": np.array([0.1, 0.3, -0.2])}


def amortized_elbo(parameters, data):
    log_q = log_softmax(data[:, None] * parameters["weight"] + parameters["bias"], -1)
    return (np.exp(log_q) * (np.log(PRIOR) + normal(data[:, None], LOCS) - log_q)).sum()


@pytest.mark.parametrize("name", ["RLOO", "RLOO, one by one", "REBAR"])
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


def steps_of_nvil(backend, case, steps, size, rate, **options):
    """Sum of the estimates of as many steps, at parameters that stay; and the state."""
    elbo = backend.gs.NVIL_ELBO(**options)
    model, guide = model_and_guide(backend, case, size)
    _, left = backend.train(elbo, model, elbo.wrap(guide), "SGD", rate, steps)
    start = {n: np.broadcast_to(p, (size, *p.shape)) for n, p in case.parameters.items()}
    named = {n.removesuffix("_auto_logits").split(".")[-1]: x for n, x in left.items()}
    moved = [named[n].reshape(size, -1) - start[n].reshape(size, -1) for n in case.parameters]
    return np.concatenate(moved, -1) / rate, named


@pytest.mark.parametrize("normalize", [False, True])
def test_nvil_after_some_steps(backend, normalize):
    """Unbiased, but for the division, and with far less variance than without a baseline."""
    case, size = ALL["factorial-automatic"], 10_000
    early, late = (
        steps_of_nvil(backend, case, steps, size, 1e-9, decay=0.8, normalize=normalize)
        for steps in (20, 60)
    )
    x, state = (late[0] - early[0]) / 40, late[1]
    expected, before = exact("factorial-automatic"), 0
    for site in case.program.sites:  # one division for each site
        mean, deviation, steps = state[f"{site}_nvil"] ** [1, 0.5, 1]
        assert steps == 60
        assert mean == pytest.approx(case.elbo(case.parameters), abs=0.1)
        columns = slice(before, before := before + case.parameters[site].size)
        x[:, columns] *= max(1, deviation) if normalize else 1
    errors = x.std(0) / np.sqrt(size)
    assert (errors < 0.02 * np.linalg.norm(expected)).all()
    assert (np.abs(x.mean(0) - expected) < Z * errors + 0.01 * normalize).all()
    assert 40 * x.var(0).sum() < 0.5 * variance(backend, "REINFORCE")


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
