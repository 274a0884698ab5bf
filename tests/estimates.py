"""Gradients of estimators in many rows, one draw for each row, compared with the exact gradient."""

import functools
from dataclasses import dataclass

import numpy as np
from enumerable import CASES, Case, by_name, draw, log_probs, plain, slopes
from programs import LOCS, PRIOR
from scipy import stats

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
    """The program in an outer plate; `plates` is the number of plates in the program."""

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
    """The parameters, one copy for each row, with axes of size 1 for the plates of the program."""
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
    """One estimate of the ELBO's gradient in all parameters for each row."""
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
    """Moments of the estimates of a gradient, and the mean ELBO."""

    elbo: float
    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @property
    def variance(self):
        return np.trace(self.covariance)

    def check_unbiased(self, expected):
        """z-tests along the gradient and for each component; 4 standard errors are 2 % of the
        gradient."""
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
    """The moments for a cell below, shared by all tests."""
    return moments(*estimates(backend, ESTIMATORS[name](backend), ALL[case], range(runs)))


def one_site(backend, kind, logits, size, infer=None):
    """A normal observation around weights * z, quadratic in z; each row has the guide's logits."""
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
