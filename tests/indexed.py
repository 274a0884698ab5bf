"""Programs in the usual form of the PPLs: classes are integers that index tables."""

import numpy as np

RNG = np.random.default_rng(5)
X = RNG.normal(size=4)
LOCS = np.array([-1.5, 0.2, 1.4])
PRIOR = np.array([0.2, 0.3, 0.5])
T = RNG.dirichlet(np.ones(3), size=3)
RATERS = RNG.dirichlet(np.ones(3), size=(2, 3))  # Dawid-Skene: rater, true class, label
LABELS = np.array([[0, 1], [2, 2], [1, 0], [2, 1]])
SPAM = RNG.dirichlet(np.ones(3), size=2)  # MACE: the label of a rater who does not care


class Side:
    """The names that a program uses."""

    def __init__(self, backend):
        self.ppl, self.d, self.array = backend.ppl, backend.native, backend.array
        self.lib, self.markov, self.backend = backend.lib, backend.markov, backend
        self.vindex, self.ints = backend.vindex, lambda x: backend.array(x, "int64")
        self.totals = backend.totals


def mixture(s, x, hot=False):
    locs = s.array(LOCS)
    with s.ppl.plate("data", 4):
        z = draw(s, "z", s.array(PRIOR), hot)
        s.ppl.sample("x", s.d.Normal(z @ locs if hot else locs[z], 1.0), obs=x)


def draw(s, name, probs, hot):
    law = s.backend.gs.OneHotCategorical if hot else s.d.Categorical
    return s.ppl.sample(name, law(probs=probs))


def markov_chain(s, x, hot=False):
    table, locs = s.array(T), s.array(LOCS)
    z = None
    for i in s.markov(range(3)):
        step = s.array(PRIOR) if z is None else z @ table if hot else table[z]
        z = draw(s, f"z{i}", step, hot)
        s.ppl.sample(f"x{i}", s.d.Normal(z @ locs if hot else locs[z], 1.0), obs=x[i])


def annotation(s, x, hot=False):
    """Dawid and Skene: two raters of four items."""
    table, labels = s.array(RATERS), s.ints(LABELS)
    with s.ppl.plate("items", 4, dim=-1):
        c = draw(s, "c", s.array(PRIOR), hot)
        loc = c @ s.array(LOCS) if hot else s.array(LOCS)[c]
        s.ppl.sample("x", s.d.Normal(loc, 1.0), obs=x)
        for r in range(2):
            p = c @ table[r] if hot else s.vindex(table)[r, c]
            s.ppl.sample(f"y{r}", s.d.Categorical(probs=p), obs=labels[:, r])


def competence(s, x, hot=False):
    """MACE: a rater gives the true class, or spams."""
    spam, labels = s.array(SPAM), s.ints(LABELS)
    eye = s.array(0.02 / 3 + 0.98 * np.eye(3))
    with s.ppl.plate("items", 4, dim=-1):
        c = draw(s, "c", s.array(PRIOR), hot)
        loc = c @ s.array(LOCS) if hot else s.array(LOCS)[c]
        s.ppl.sample("x", s.d.Normal(loc, 1.0), obs=x)
        for r in range(2):
            b = s.ppl.sample(f"b{r}", s.d.Bernoulli(probs=s.array(0.4)))
            if hot:
                p = b[..., None] * spam[r] + (1 - b[..., None]) * (c @ eye)
            else:
                p = s.lib.where(b[..., None] == 1, spam[r], eye[c])
            s.ppl.sample(f"y{r}", s.d.Categorical(probs=p), obs=labels[:, r])


def change_point(s, x, hot=False):
    """Two rates; the second one starts at day t."""
    days = s.ints(np.arange(4))
    t = draw(s, "t", s.array([0.1, 0.2, 0.3, 0.4]), hot)
    early = s.array(np.arange(4)[None, :] < np.arange(4)[:, None])
    loc = t @ early if hot else s.lib.where(days < t, s.array(1.0), s.array(0.0))
    with s.ppl.plate("days", 4):
        s.ppl.sample("x", s.d.Normal(loc, 1.0), obs=x)


def survival(s, x, hot=False):
    """Capture and recapture: a dead animal stays dead."""
    alive = s.array(1.0)
    with s.ppl.plate("animals", 4):
        for i in range(2):
            alive = s.ppl.sample(f"alive{i}", s.d.Bernoulli(probs=0.8 * alive + 0.01))
            s.ppl.sample(f"x{i}", s.d.Normal(alive * 1.0, 0.5), obs=x + i)


PROGRAMS = [mixture, markov_chain, annotation, competence, change_point, survival]
CLASSES = {"z": 3, "c": 3, "t": 4, "b": 2, "alive": 2}
ids = {"ids": lambda p: p.__name__}


def counted(s, x):
    """A total that differs between rows."""
    totals = s.totals(np.array([1, 3]))
    with s.ppl.plate("rows", 2):
        n = s.ppl.sample("n", s.d.Binomial(totals, probs=s.array(0.3)))
        s.ppl.sample("x", s.d.Normal(n * 1.0, 1.0), obs=x[:2])


RATE = np.array([0.7, 2.0])


def arrivals(s):
    """Counts without an upper bound."""
    with s.ppl.plate("rows", 2):
        n = s.ppl.sample("n", s.d.Poisson(s.array(RATE)))
        s.ppl.sample("x", s.d.Normal(n * 1.0, 1.0), obs=s.array([0.5, 2.5]))


def hand_written(s, make):
    def guide():
        a = s.ppl.param("a", s.array(np.random.default_rng(1).normal(size=(4, 3))))
        with s.ppl.plate("data", 4):
            s.ppl.sample("z", make(a))

    return guide
