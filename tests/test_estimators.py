"""Estimators that run the program several times, compared with the gradient summed by hand.

One run gives many estimates: the program is in an outer plate, whose rows have separate copies of
the guide's parameters, so that row i of the gradient is one estimate.
"""

import numpy as np
import pytest
from enumerable import plain, slopes
from estimates import (
    ALL,
    ESTIMATORS,
    FAILURE_RATE,
    LAYERED,
    ROWS,
    exact,
    in_rows,
    measured,
    model_and_guide,
    moments,
)
from programs import DATA, LOCS, PRIOR, normal
from scipy import stats
from scipy.special import log_softmax

from gs_ppl import temperature

# --- bias and variance ----------------------------------------------------------------------------

RUNS = {  # runs of ROWS each, for a small enough error of the mean
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
    """The loss is that of the discrete program, too."""
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
    """Compared at equal numbers of evaluations of the program."""
    reinforce = measured(backend, "REINFORCE", case).variance
    assert measured(backend, name, case, RUNS[case][name]).variance * evaluations < reinforce


# --- programs that need a score function ----------------------------------------------------------


SHIFTED = {"loc": np.array(0.3), "to_z": np.array([[0.5, -0.2, 0.1], [0.4, 0.0, -0.6]])}


def shifted(backend, size):
    """A continuous latent and integer ones, whose law in the guide depends on it."""
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
    """The ELBO by quadrature over the shift and summation over each class."""
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
    """Two of six rows count three times; all particles and runs share them."""
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


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RLOO", "NVIL", "MuProp", "REBAR", "DisARM", "DARN"])
@pytest.mark.quick("RLOO", "DARN")
def test_training_improves_the_exact_elbo(backend, name):
    """AnnealedSVI checks the pair first; in NumPyro the steps run in one scan."""
    case, elbo = LAYERED, ESTIMATORS[name](backend)
    model = plain(backend, "bernoulli_net")
    guide = case.guide(backend, model, case.parameters)
    guide = elbo.wrap(guide) if name in ("NVIL", "REBAR", "MuProp") else guide
    schedule = temperature.exponential(rate=1e-2, minimum=0.5)
    losses, left = backend.train(elbo, model, guide, "Adam", 0.05, 150, schedule=schedule)
    start, end = case.elbo(case.parameters), case.elbo({n: left[n] for n in case.parameters})
    best = np.logaddexp.reduce(case.program.log_joints(), axis=None)
    assert best - end < 0.5 * (best - start)
    assert np.isfinite(losses).all()


def test_loss_is_that_of_the_discrete_program(backend):
    """The loss without gradients, as in evaluation."""
    elbo, size = backend.gs.MuProp_ELBO(), 20_000
    case = ALL["mixture-automatic"]
    model, guide = model_and_guide(backend, case, size)
    mean = -backend.losses(elbo, model, guide, 1)[0] / size
    assert mean == pytest.approx(case.elbo(case.parameters), abs=0.05)
