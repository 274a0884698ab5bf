"""Programs of discrete latents, each with its log joint in NumPy for summation by hand.

`law(kind, p)` makes the discrete law from probabilities; kind is "one_hot" or "bit".
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

RNG = np.random.default_rng(0)
DATA = np.round(RNG.normal(size=6), 3)
PRIOR = np.array([0.5, 0.3, 0.2])
LOCS = np.array([-1.5, 0.0, 2.0])
TRANSITION = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.25, 0.25, 0.5]])
BITS = np.array([0.3, 0.6, 0.8])
WEIGHTS = np.array([-2.0, 1.0, 0.7])


def normal(x, loc):
    return stats.norm(loc).logpdf(x)


@dataclass(frozen=True)
class Program:
    name: str
    build: Callable  # backend, law -> program
    log_joint: Callable  # assignment -> float
    sizes: dict[str, int]  # number of values of each discrete variable, in the order of log_joint
    plates: int = 0  # max_plate_nesting
    sites: tuple = field(default=())  # names of the discrete sites

    def log_joints(self) -> np.ndarray:
        """Log joint of each assignment, as an array with one axis for each discrete variable."""
        sizes = tuple(self.sizes.values())
        values = [self.log_joint(*z) for z in itertools.product(*map(range, sizes))]
        return np.array(values).reshape(sizes)

    def evidence(self) -> float:
        return np.logaddexp.reduce(self.log_joints(), axis=None)

    def marginal(self, variable: int) -> np.ndarray:
        joint = np.exp(self.log_joints() - self.evidence())
        return joint.sum(tuple(i for i in range(joint.ndim) if i != variable))


def mixture(backend, law):
    ppl, array, select = backend.ppl, backend.array, backend.gs.select

    def model():
        with ppl.plate("data", 3):
            z = ppl.sample("z", law("one_hot", PRIOR))
            ppl.sample("x", backend.native.Normal(select(array(LOCS), z), 1.0), obs=array(DATA[:3]))

    return model


def mixture_joint(*z):
    return sum(np.log(PRIOR[k]) + normal(x, LOCS[k]) for k, x in zip(z, DATA, strict=False))


def hidden_markov(backend, law):
    ppl, array = backend.ppl, backend.array

    def model():
        z = None
        for t in backend.markov(range(4)):
            p = array(PRIOR) if z is None else (z[..., None] * array(TRANSITION)).sum(-2)
            z = ppl.sample(f"z_{t}", law("one_hot", p))
            loc = backend.gs.select(array(LOCS), z)
            ppl.sample(f"x_{t}", backend.native.Normal(loc, 1.0), obs=array(DATA[t]))

    return model


def hidden_markov_joint(*z):
    total = np.log(PRIOR[z[0]]) + sum(np.log(TRANSITION[i, j]) for i, j in itertools.pairwise(z))
    return total + sum(normal(DATA[t], LOCS[k]) for t, k in enumerate(z))


def factorial(backend, law):
    """Two one-hot latents and a bit as parents of each observation."""
    ppl, array, select = backend.ppl, backend.array, backend.gs.select

    def model():
        a = ppl.sample("a", law("one_hot", PRIOR))
        b = ppl.sample("b", law("one_hot", PRIOR[:2] / PRIOR[:2].sum()))
        c = ppl.sample("c", law("bit", np.array(0.3)))
        loc = select(array(LOCS), a) + select(array(LOCS[:2]), b) + c
        with ppl.plate("data", 6):
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=array(DATA))

    return model


def factorial_joint(a, b, c):
    prior = np.log(PRIOR[a]) + np.log(PRIOR[b] / 0.8) + np.log([0.7, 0.3][c])
    return prior + normal(DATA, LOCS[a] + LOCS[b] + c).sum()


def bernoulli_net(backend, law):
    """A plate of bits that depend on another bit, and nested plates of data."""
    ppl, array = backend.ppl, backend.array

    def model():
        top = ppl.sample("top", law("bit", np.array(0.4)))
        with ppl.plate("units", 2, dim=-1):
            h = ppl.sample("h", law("bit", array(BITS[:2]) * (1 - top) + array(BITS[1:]) * top))
            with ppl.plate("data", 2, dim=-2):
                loc = array(WEIGHTS[:2]) * h
                x = array(DATA[:4].reshape(2, 2))
                ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)

    return model


def bernoulli_net_joint(top, *h):
    p = BITS[1:] if top else BITS[:2]
    total = np.log([0.6, 0.4][top])
    for unit, bit in enumerate(h):
        total += np.log([1 - p[unit], p[unit]][bit])
        total += normal(DATA[:4].reshape(2, 2)[:, unit], WEIGHTS[unit] * bit).sum()
    return total


PROGRAMS = [
    Program("mixture", mixture, mixture_joint, {"z0": 3, "z1": 3, "z2": 3}, 1, ("z",)),
    Program(
        "hidden_markov",
        hidden_markov,
        hidden_markov_joint,
        {f"z_{t}": 3 for t in range(4)},
        0,
        tuple(f"z_{t}" for t in range(4)),
    ),
    Program("factorial", factorial, factorial_joint, {"a": 3, "b": 2, "c": 2}, 1, ("a", "b", "c")),
    Program(
        "bernoulli_net",
        bernoulli_net,
        bernoulli_net_joint,
        {"top": 2, "h0": 2, "h1": 2},
        2,
        ("top", "h"),
    ),
]


def by_name(name):
    return next(program for program in PROGRAMS if program.name == name)


# --- laws of the programs -------------------------------------------------------------------------

ONE_HOT = ["OneHotCategorical", "GumbelSoftmax", "SoftOneHotCategorical", "STGumbelSoftmax"]
BIT_OF = {
    "OneHotCategorical": "Bernoulli",
    "GumbelSoftmax": "GumbelSigmoid",
    "SoftOneHotCategorical": "SoftBernoulli",
    "STGumbelSoftmax": "STGumbelSigmoid",
    "ExpGumbelSoftmax": "GumbelSigmoid",
}


def laws(backend, family, dtype="float64"):
    """Maps kind and probabilities to a law of the family; a plain program has discrete sites."""

    def law(kind, p):
        name = family if kind == "one_hot" else BIT_OF[family]
        p = backend.array(p, dtype) if isinstance(p, np.ndarray) else p
        if name == "Bernoulli":
            return backend.native.Bernoulli(probs=p)
        make = getattr(backend.gs, name)
        return make(probs=p) if name == "OneHotCategorical" else make(0.5, probs=p)

    return law


def plain(backend, program):
    return program.build(backend, laws(backend, "OneHotCategorical"))


def empty():
    """A guide without sites."""


# --- a program with a continuous latent -----------------------------------------------------------


def with_shift(backend, family, condition=None):
    """A mixture whose locations share a normal shift: discrete and continuous latents together."""
    ppl, gs, Normal = backend.ppl, backend.gs, backend.native.Normal
    law = laws(backend, family)

    def model():
        shift = ppl.sample("shift", Normal(backend.array(0.0), 1.0))
        with ppl.plate("data", 6):
            z = ppl.sample("z", law("one_hot", PRIOR))
            loc = gs.select(backend.array(LOCS), z) + shift
            ppl.sample("x", Normal(loc, 1.0), obs=backend.array(DATA))

    return model


def log_joint_of_shift(shift):
    points = [np.log((PRIOR * stats.norm(LOCS + shift).pdf(x)).sum()) for x in DATA]
    return stats.norm.logpdf(shift) + np.sum(points)
