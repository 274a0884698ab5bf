"""Programs and guides that are small enough for summation by hand, for the tests of compare."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from programs import BITS, DATA, LOCS, PRIOR, PROGRAMS, WEIGHTS, Program, laws, normal
from scipy.special import log_expit, log_softmax

RNG = np.random.default_rng(4)


# --- programs: those of programs.py, and programs with nested and crossed plates ------------------


def nested(backend, law):
    ppl, array = backend.ppl, backend.array

    def model():
        with ppl.plate("outer", 2, dim=-1):
            z = ppl.sample("z", law("one_hot", PRIOR))
            with ppl.plate("inner", 2, dim=-2):
                h = ppl.sample("h", law("bit", backend.gs.select(array(BITS), z)))
                loc = backend.gs.select(array(WEIGHTS), z) * h
                obs = array(DATA[:4].reshape(2, 2))
                ppl.sample("x", backend.native.Normal(loc, 1.0), obs=obs)

    return model


def nested_joint(*values):
    z, h = values[:2], np.reshape(values[2:], (2, 2))
    total = sum(np.log(PRIOR[k]) for k in z)
    for (i, j), bit in np.ndenumerate(h):
        total += np.log([1 - BITS[z[j]], BITS[z[j]]][bit])
        total += normal(DATA[:4].reshape(2, 2)[i, j], WEIGHTS[z[j]] * bit)
    return total


def crossed(backend, law):
    ppl, array, normal_ = backend.ppl, backend.array, backend.native.Normal

    def model():
        top = ppl.sample("top", law("bit", np.array(0.4)))
        rows, columns = ppl.plate("rows", 2, dim=-1), ppl.plate("columns", 3, dim=-2)
        with rows:
            z = ppl.sample("z", law("one_hot", PRIOR))
        with columns:
            w = ppl.sample("w", law("bit", 0.2 + 0.5 * top))
        x, y = array(DATA.reshape(3, 2)), array(DATA[::-1].reshape(3, 2).copy())
        with rows, columns:
            ppl.sample("x", normal_(backend.gs.select(array(LOCS), z) + top, 1.0), obs=x)
            ppl.sample("y", normal_(w, 1.0), obs=y)

    return model


def crossed_joint(top, *values):
    z, w = np.array(values[:2]), np.array(values[2:])
    p = 0.2 + 0.5 * top
    total = np.log([0.6, 0.4][top]) + np.log(PRIOR[z]).sum() + np.log(np.where(w, p, 1 - p)).sum()
    total += normal(DATA.reshape(3, 2), LOCS[z][None, :] + top).sum()
    return total + normal(DATA[::-1].reshape(3, 2), w[:, None]).sum()


def variables(*names, size):
    return dict.fromkeys(names, size)


ALL_PROGRAMS = [
    *PROGRAMS,
    Program(
        "nested",
        nested,
        nested_joint,
        variables("z0", "z1", size=3) | variables("h00", "h01", "h10", "h11", size=2),
        2,
        ("z", "h"),
    ),
    Program(
        "crossed",
        crossed,
        crossed_joint,
        {"top": 2} | variables("z0", "z1", size=3) | variables("w0", "w1", "w2", size=2),
        2,
        ("top", "z", "w"),
    ),
]

# shape of the logits of each site's mean-field guide, plates + classes; a bit has no last axis
SHAPES = {
    "mixture": {"z": (3, 3)},
    "hidden_markov": {f"z_{t}": (3,) for t in range(4)},
    "factorial": {"a": (3,), "b": (2,), "c": ()},
    "bernoulli_net": {"top": (), "h": (2,)},
    "nested": {"z": (2, 3), "h": (2, 2)},
    "crossed": {"top": (), "z": (2, 3), "w": (3, 1)},
}
IS_BIT = {"c", "top", "h", "w"}


@functools.cache
def log_joints(name):
    return by_name(name).log_joints()


def by_name(name):
    return next(program for program in ALL_PROGRAMS if program.name == name)


def plain(backend, name):
    return by_name(name).build(backend, laws(backend, "OneHotCategorical"))


# --- guides, each with its law in NumPy -----------------------------------------------------------


def log_probs(site, logits):
    """Log probability of each value, shape plates + (K,)."""
    if site in IS_BIT:
        return np.stack([log_expit(-logits), log_expit(logits)], -1)
    return log_softmax(logits, -1)


def outer_sum(tables):
    """Sum of one table for each variable, as an array with one axis for each."""
    return sum(np.ix_(*tables), np.array(0.0))


def mean_field(sites):
    """Log q of each assignment, from the logits of each site."""
    rows = [log_probs(site, logits) for site, logits in sites.items()]
    return outer_sum([row for table in rows for row in table.reshape(-1, table.shape[-1])])


@dataclass(frozen=True)
class Case:
    """A program and a guide; `log_q` of its parameters has one axis for each discrete variable."""

    program: Program
    kind: str
    guide: Callable  # backend, model, parameters -> guide
    parameters: dict[str, np.ndarray]
    log_q: Callable = mean_field

    @property
    def id(self):
        return f"{self.program.name}-{self.kind}"

    def elbo(self, parameters):
        log_q = self.log_q(parameters)
        return (np.exp(log_q) * (log_joints(self.program.name) - log_q)).sum()

    def session(self, backend):
        model = self.program.build(backend, laws(backend, "OneHotCategorical"))
        return backend.session(model, self.guide(backend, model, self.parameters))


def automatic(backend, model, logits):
    init = {site: backend.array(value) for site, value in logits.items()}
    return backend.gs.AutoGumbelSoftmax(model, init_logits=init)


def amortized(backend, model, parameters):
    """The logits of the mixture's classes come from the data; the guide is relaxed by its
    author."""

    def guide():
        weight, bias = (backend.ppl.param(n, backend.array(p)) for n, p in parameters.items())
        with backend.ppl.plate("data", 3):
            logits = backend.array(DATA[:3, None]) * weight + bias
            backend.ppl.sample("z", backend.gs.GumbelSoftmax(0.5, logits=logits))

    return guide


def amortized_log_q(parameters):
    return mean_field({"z": DATA[:3, None] * parameters["weight"] + parameters["bias"]})


def dependent(backend, model, parameters):
    """q(a) q(b | a) q(c | a, b) for the factorial program."""

    def guide():
        tables = {n: backend.ppl.param(n, backend.array(p)) for n, p in parameters.items()}
        law, sample = backend.gs.OneHotCategorical, backend.ppl.sample
        a = sample("a", law(logits=tables["to_a"]))
        b = sample("b", law(logits=(a[..., None] * tables["to_b"]).sum(-2)))
        c = (a[..., None] * b[..., None, :] * tables["to_c"]).sum(-1).sum(-1)
        sample("c", backend.native.Bernoulli(logits=c))

    return guide


def dependent_log_q(parameters):
    a, b = log_softmax(parameters["to_a"]), log_softmax(parameters["to_b"], -1)
    return a[:, None, None] + b[:, :, None] + log_probs("c", parameters["to_c"])


def draw(shapes):
    return {name: np.round(RNG.normal(size=shape), 3) for name, shape in shapes.items()}


CASES = [
    *(Case(p, "automatic", automatic, draw(SHAPES[p.name])) for p in ALL_PROGRAMS),
    Case(
        by_name("mixture"),
        "amortized",
        amortized,
        draw({"weight": (3,), "bias": (3,)}),
        amortized_log_q,
    ),
    Case(
        by_name("factorial"),
        "dependent",
        dependent,
        draw({"to_a": (3,), "to_b": (3, 2), "to_c": (3, 2)}),
        dependent_log_q,
    ),
]


def slopes(f, parameters, step=1e-5):
    """Central differences of f(parameters), for each parameter."""
    result = {name: np.zeros(p.size) for name, p in parameters.items()}
    for name, p in parameters.items():
        for i in range(p.size):
            shift = step * (np.arange(p.size) == i).reshape(p.shape)
            up, down = (f({**parameters, name: p + sign * shift}) for sign in (1, -1))
            result[name][i] = (up - down) / (2 * step)
    return result


def marginals_by_hand(program, log_weights):
    """Marginal of each variable, from an array with one axis for each."""
    joint = np.exp(log_weights - np.logaddexp.reduce(log_weights, axis=None))
    axes = range(joint.ndim)
    return [joint.sum(tuple(i for i in axes if i != variable)) for variable in axes]


def rows(marginals, program):
    """One row for each variable, sites in order."""
    tables = (marginals[site] for site in program.sites)
    return [row for table in tables for row in table.reshape(-1, table.shape[-1])]


# --- pairs whose gradients are known --------------------------------------------------------------


def one_site(backend, prior, logits, temperature=0.5, x=0.4):
    ppl, array, gs = backend.ppl, backend.array, backend.gs

    def model():
        z = ppl.sample("z", gs.OneHotCategorical(logits=array(prior)))
        ppl.sample("x", backend.native.Normal((z * array(LOCS)).sum(-1), 1.0), obs=array(x))

    return model, gs.AutoGumbelSoftmax(model, temperature, init_logits={"z": array(logits)})


def toy_net(backend, copies, scale=2.0):
    """Four latents of eight classes and a net with one hidden layer, copied with common logits.

    The estimates of the copies add up: the relative bias is that of one copy, the noise falls.
    """
    rng = np.random.default_rng(0)
    first, second = scale * rng.normal(size=(4, 8, 16)), scale * rng.normal(size=(16, 16))
    x, logits = rng.random(16) < 0.5, rng.normal(size=(4, 8))
    ppl, array, gs = backend.ppl, backend.array, backend.gs

    def model():
        with ppl.plate("copies", copies):
            layers = [
                ppl.sample(f"z_{i}", gs.OneHotCategorical(logits=array(np.zeros(8))))
                @ array(first[i])
                for i in range(4)
            ]
            out = backend.tanh(sum(layers)) @ array(second)
            pixels = backend.native.Bernoulli(logits=out).to_event(1)
            ppl.sample("x", pixels, obs=array(np.tile(x, (copies, 1))))

    def guide():
        with ppl.plate("copies", copies):
            for i in range(4):
                law = gs.OneHotCategorical(logits=ppl.param(f"logits_{i}", array(logits[i])))
                ppl.sample(f"z_{i}", law)

    return model, guide
