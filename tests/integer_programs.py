"""Small instances of the programs over integers in programs_pyro.py and programs_numpyro.py.

Each has its tables and data, the draws of its sites, and the one-hot way: the log joint by hand as
a function of vectors of weights (for a bit, the weight of 1). The continuous parts are laws `d` of
the PPL.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

RNG = np.random.default_rng(11)


def simplex(*shape):
    return RNG.dirichlet(np.full(shape[-1], 3.0), size=shape[:-1])


def normal(*shape):
    return np.round(RNG.normal(size=shape), 3)


@dataclass(frozen=True)
class Site:
    classes: int
    shape: tuple[int, ...] = ()
    bit: bool = False
    highest: tuple[int, ...] | None = None  # highest class of each draw, if the draws differ in it

    def tops(self) -> list[int]:
        """Number of classes of each draw."""
        draws = int(np.prod(self.shape))
        return [self.classes] * draws if self.highest is None else [k + 1 for k in self.highest]

    def weights(self, z: np.ndarray) -> np.ndarray:
        """The vertices of the classes."""
        return z.astype(float) if self.bit else np.eye(self.classes)[z]

    def soft(self, rng: np.random.Generator) -> np.ndarray:
        if self.bit:
            return rng.uniform(0.1, 0.9, self.shape)
        draws = [np.pad(rng.dirichlet(np.ones(k)), (0, self.classes - k)) for k in self.tops()]
        return np.reshape(draws, (*self.shape, self.classes))


@dataclass(frozen=True)
class Instance:
    way: Callable  # (lib, d, y, t) -> log joint, y by site
    sites: dict[str, Site]
    tables: dict[str, np.ndarray]  # the gradient is taken in these
    data: dict[str, np.ndarray] = field(default_factory=dict)
    given: tuple[str, ...] = ()  # continuous latents, whose values are in tables
    counts: tuple[str, ...] = ()  # data that set the highest count of a law
    sure: dict[str, np.ndarray] = field(default_factory=dict)  # draws that are certainly 1
    masked: dict[str, np.ndarray] = field(default_factory=dict)  # draws that a mask leaves out
    zeros: bool = False  # whether some cells have probability 0

    def cells(self) -> dict[str, np.ndarray]:
        """All combinations of classes, by site, with the cells along the first axis."""
        tops = [top for site in self.sites.values() for top in site.tops()]
        rows, start, found = np.array(list(itertools.product(*map(range, tops)))), 0, {}
        for name, site in self.sites.items():
            stop = start + len(site.tops())
            found[name] = rows[:, start:stop].reshape(-1, *site.shape)
            start = stop
        return found

    def vertices(self) -> dict[str, np.ndarray]:
        cells = self.cells()
        return {name: site.weights(cells[name]) for name, site in self.sites.items()}

    def soft(self, count: int) -> dict[str, np.ndarray]:
        """Random points between the vertices."""
        rng = np.random.default_rng(3)
        points = {
            name: np.stack([s.soft(rng) for _ in range(count)]) for name, s in self.sites.items()
        }
        for name, sure in self.sure.items():
            points[name] = np.where(sure, 1.0, points[name])
        return points


def log_cat(lib, y, p):
    return (y * lib.log(p / p.sum(-1)[..., None])).sum(-1)


def cat(lib, y, p):
    return log_cat(lib, y, p).sum()


def bits(lib, y, p):
    return (y * lib.log(p) + (1 - y) * lib.log(1 - p)).sum()


def chain(sites: dict[str, Site], steps: int) -> dict[str, Site]:
    """The sites of each step, numbered."""
    return {f"{name}{i}": site for i in range(steps) for name, site in sites.items()}


CAPTURES = np.array([[1.0, 0, 1], [1, 1, 0]])
LATE = np.array([[1.0, 0, 1], [0, 1, 0]])  # an animal that is not seen at first

# --- the one-hot ways -----------------------------------------------------------------------------


def mixture(lib, d, y, t):
    z = y["z"]
    law = d.Normal(z @ t.locs, (z @ t.scales)[:, None])
    return cat(lib, z, t.weights) + law.log_prob(t.x).sum()


def hidden_markov(lib, d, y, t):
    total, p = 0.0, t.transition[0]
    for i, x in enumerate(t.x):
        z = y[f"z{i}"]
        total = total + cat(lib, z, p) + d.Normal(z @ t.locs, 1.0).log_prob(x)
        p = z @ t.transition
    return total


def second_order(lib, d, y, t):
    first = lib.eye(3, dtype=t.x.dtype)[0]
    zs = [first, first, *(y[f"z{i}"] for i in range(len(t.x)))]
    total = 0.0
    for a, b, c, x in zip(zs, zs[1:], zs[2:], t.x):  # noqa: B905
        p = lib.einsum("a,b,abc->c", a, b, t.transition)
        total = total + cat(lib, c, p) + d.Normal(c @ t.locs, 1.0).log_prob(x)
    return total


def factorial(lib, d, y, t):
    total, to_w, to_x = 0.0, t.to_w[0], t.to_x[0]
    for i in range(t.notes.shape[1]):
        w, x = y[f"w{i}"][:, 0], y[f"x{i}"][:, 0]
        alive = t.lengths > i
        on = lib.einsum("sw,sx,wxn->sn", w, x, t.on)
        notes = d.Bernoulli(on).log_prob(t.notes[:, i]).sum(-1)
        each = log_cat(lib, w, to_w) + log_cat(lib, x, to_x) + notes
        total = total + (each * alive).sum()
        to_w, to_x = w @ t.to_w, x @ t.to_x
    return total


def annotation(lib, d, y, t):
    c, one = y["c"], lib.ones(3, dtype=t.x.dtype)
    p = lib.einsum("ik,pkl->pil", c, t.confusion[t.annotators[:, 0]])
    prior = d.Dirichlet(one).log_prob(t.confusion).sum() + d.Dirichlet(one).log_prob(t.weights)
    return prior + cat(lib, c, t.weights) + d.Categorical(probs=p).log_prob(t.labels).sum()


def competence(lib, d, y, t):
    c, s = y["c"], y["s"]
    p = (1 - s)[..., None] * c + s[..., None] * t.liking[t.annotators]
    total = -np.log(3) * c.sum() + bits(lib, s, (1 - t.knows)[t.annotators])
    return total + d.Categorical(probs=p).log_prob(t.labels).sum()


def capture_recapture(lib, d, y, t, captures=CAPTURES):
    total, before, first = 0.0, None, captures.argmax(1)
    for i in range(captures.shape[1]):
        alive = y[f"alive{i}"]
        for n in np.flatnonzero(i > first):  # the others are certainly alive
            total = total + bits(lib, alive[n], t.phi * before[n])
            total = total + d.Bernoulli(t.rho * alive[n]).log_prob(t.captures[n, i])
        before = alive
    return total


def topics(lib, d, y, t):
    z = y["z"]
    one = lib.ones(3, dtype=t.phi.dtype)
    total = d.Dirichlet(one).log_prob(t.topic_words).sum()
    total = total + d.Dirichlet(t.phi * one[:2]).log_prob(t.doc_topics).sum()
    words = d.Categorical(probs=z @ t.topic_words).log_prob(t.words).sum()
    return total + cat(lib, z, t.doc_topics) + words


def mixed_effects(lib, d, y, t):
    g, e = y["g"], y["e"]
    shift = g @ t.of_group + e @ t.of_individual
    logits = t.transition + shift[:, None, None] * t.direction
    transition = lib.exp(logits)
    transition = transition / transition.sum(-1)[..., None]
    total, p = cat(lib, g, t.groups) + cat(lib, e, t.effects), transition[:, 0]
    for i in range(t.x.shape[1]):
        s = y[f"y{i}"]
        total = total + cat(lib, s, p) + d.Normal(s @ t.locs, 1.0).log_prob(t.x[:, i]).sum()
        p = lib.einsum("ns,nst->nt", s, transition)
    return total


def imputation(lib, d, y, t):
    eye = lib.eye(3, dtype=t.y.dtype)
    a = lib.where(t.no_class[:, None], y["a"], eye[t.a])
    b = lib.where(t.no_bit, y["b"], t.b)
    total = (log_cat(lib, y["a"], t.weights) * t.no_class).sum()
    each = y["b"] * lib.log(t.phi) + (1 - y["b"]) * lib.log(1 - t.phi)
    return (
        total
        + (each * t.no_bit).sum()
        + d.Normal(a @ t.locs + t.slope * b, 1.0).log_prob(t.y).sum()
    )


def switching(lib, d, y, t):
    total, p, before = 0.0, t.transition[0], t.start
    for i, seen in enumerate(t.y):
        s, x = y[f"s{i}"], getattr(t, f"x{i}")
        law = d.Normal((s @ t.pull) * before + s @ t.locs, s @ t.scales)
        total = total + cat(lib, s, p) + law.log_prob(x) + d.Normal(x, 0.5).log_prob(seen)
        p, before = s @ t.transition, x
    return total


def stick_breaking(lib, d, y, t):
    z, (b0, b1) = y["z"], t.beta
    weights = lib.stack([b0, b1 * (1 - b0), (1 - b0) * (1 - b1)])
    prior = d.Beta(1.0, t.alpha).log_prob(t.beta).sum() + d.Normal(0.0, 3.0).log_prob(t.locs).sum()
    return prior + cat(lib, z, weights) + d.Normal(z @ t.locs, 1.0).log_prob(t.x).sum()


def change_point(lib, d, y, t):
    tau, n = y["tau"], len(t.events)
    early = 1 - lib.cumsum(tau, 0)  # the probability that tau is after the day
    rate = early * t.rates[0] + (1 - early) * t.rates[1]
    return -np.log(n) * tau.sum() + d.Poisson(rate).log_prob(t.events).sum()


def counts(lib, d, y, t):
    n = y["n"]
    total = 0.0
    for row, top in enumerate([1, 3]):
        ways = np.array([[1, 1], [1, 3, 3, 1]][row])
        for k in range(top + 1):
            log = np.log(ways[k]) + k * lib.log(t.phi) + (top - k) * lib.log(1 - t.phi)
            total = total + n[row, k] * log
    mean = n[:, 1] + 2 * n[:, 2] + 3 * n[:, 3]
    return total + d.Poisson((1 + mean) * t.rho).log_prob(t.events).sum()


# --- the instances --------------------------------------------------------------------------------


def capturing(way, captures):
    alive = Site(2, captures.shape[:1], bit=True)
    return Instance(
        way,
        chain({"alive": alive}, captures.shape[1]),
        {"phi": np.array(0.8), "rho": np.array(0.6)},
        {"captures": captures},
        sure={f"alive{i}": i <= captures.argmax(1) for i in range(captures.shape[1])},
        zeros=True,
    )


PROGRAMS = {
    "mixture": Instance(
        mixture,
        {"z": Site(3, (4,))},
        {"weights": simplex(3), "locs": normal(3, 2), "scales": RNG.uniform(0.5, 1.5, 3)}
        | {"x": normal(4, 2)},
    ),
    "hidden_markov": Instance(
        hidden_markov,
        chain({"z": Site(3)}, 4),
        {"transition": simplex(3, 3), "locs": normal(3), "x": normal(4)},
    ),
    "second_order": Instance(
        second_order,
        chain({"z": Site(3)}, 4),
        {"transition": simplex(3, 3, 3), "locs": normal(3), "x": normal(4)},
    ),
    "factorial": Instance(
        factorial,
        chain({"w": Site(2, (2, 1)), "x": Site(2, (2, 1))}, 2),
        {"to_w": simplex(2, 2), "to_x": simplex(2, 2), "on": RNG.uniform(0.2, 0.8, (2, 2, 3))},
        {"notes": RNG.integers(2, size=(2, 2, 3)) * 1.0, "lengths": np.array([2, 1])},
        masked={name: np.array([[False], [True]]) for name in ("w1", "x1")},
    ),
    "annotation": Instance(
        annotation,
        {"c": Site(3, (4,))},
        {"confusion": simplex(2, 3, 3), "weights": simplex(3), "x": normal(1)},
        {"labels": RNG.integers(3, size=(3, 4)), "annotators": np.array([[0], [1], [1]])},
        given=("confusion", "weights"),
    ),
    "competence": Instance(
        competence,
        {"c": Site(3, (2,)), "s": Site(2, (2, 2), bit=True)},
        {"knows": RNG.uniform(0.3, 0.7, 2), "liking": simplex(2, 3)},
        {"labels": np.array([[0, 1], [2, 1]]), "annotators": np.array([[0], [1]])},
        zeros=True,
    ),
    "capture_recapture": capturing(capture_recapture, CAPTURES),
    "late_entry": capturing(partial(capture_recapture, captures=LATE), LATE),
    "topics": Instance(
        topics,
        {"z": Site(2, (3, 2))},
        {"topic_words": simplex(2, 3), "doc_topics": simplex(2, 2), "phi": np.array(1.5)},
        {"words": RNG.integers(3, size=(3, 2))},
        given=("topic_words", "doc_topics"),
    ),
    "mixed_effects": Instance(
        mixed_effects,
        {"g": Site(2), "e": Site(2, (2,)), **chain({"y": Site(2, (2,))}, 2)},
        {"groups": simplex(2), "effects": simplex(2), "of_group": normal(2)}
        | {"of_individual": normal(2), "transition": normal(2, 2), "direction": normal(2, 2)}
        | {"locs": normal(2), "x": normal(2, 2)},
    ),
    "imputation": Instance(
        imputation,
        {"a": Site(3, (3,)), "b": Site(2, (3,), bit=True)},
        {"weights": simplex(3), "phi": np.array(0.4), "locs": normal(3), "slope": normal()}
        | {"y": normal(3), "b": np.array([1.0, 0, 0])},
        {"a": np.array([2, 0, 1]), "no_class": np.array([True, True, False])}
        | {"no_bit": np.array([False, True, True])},
        masked={"a": np.array([False, False, True]), "b": np.array([True, False, False])},
    ),
    "switching": Instance(
        switching,
        chain({"s": Site(3)}, 4),
        {"transition": simplex(3, 3), "pull": normal(3), "locs": normal(3), "start": normal()}
        | {"scales": RNG.uniform(0.5, 1.5, 3), "y": normal(4)}
        | {f"x{i}": normal() for i in range(4)},
        given=tuple(f"x{i}" for i in range(4)),
    ),
    "stick_breaking": Instance(
        stick_breaking,
        {"z": Site(3, (4,))},
        {"alpha": np.array(1.3), "beta": np.array([0.3, 0.6]), "locs": normal(3), "x": normal(4)},
        given=("beta", "locs"),
    ),
    "change_point": Instance(
        change_point,
        {"tau": Site(6)},
        {"rates": np.array([1.0, 4.0])},
        {"events": np.array([0.0, 2, 1, 5, 3, 4])},
    ),
    "counts": Instance(
        counts,
        {"n": Site(4, (2,), highest=(1, 3))},
        {"phi": np.array(0.3), "rho": np.array(1.2)},
        {"totals": np.array([1, 3]), "events": np.array([2.0, 5.0])},
        counts=("totals",),
    ),
}

# programs with NumPyro's scan: the equal program with a Python loop, whose sites are stacked in
# time
SCANS = {
    "hidden_markov_scan": "hidden_markov",
    "second_order_scan": "second_order",
    "factorial_scan": "factorial",
    "capture_recapture_scan": "capture_recapture",
}

# programs that are refused, and the operation that the message names
REFUSED = {
    "branches": "if|branch|bool",
    "slices": "a slice that|Python integer",
    "counted_from": "integer parameter total_count",
    "observes": "obs",
    "chooses_rows": "mask as an index|boolean",
    "assigns": "assignment",
    "counts_members": "sum over",
    "reads_number": r"float\(\)|reading one value",
    "nests": "index by a soft index|index of an index",
}


def stacked(values: dict, stack: Callable) -> dict:
    """Stacks the values of z0, z1, ... to one value of z."""
    names = dict.fromkeys(name.rstrip("0123456789") for name in values)
    return {
        name: stack([x for key, x in values.items() if key.rstrip("0123456789") == name])
        for name in names
    }


def rows(values: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for i in range(len(next(iter(values.values())))):
        yield {name: x[i] for name, x in values.items()}
