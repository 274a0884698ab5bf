"""Programs over integers, as a user writes them for Pyro: see integer_programs.py.

Each takes its tables and its data as the attributes of `t`, and does not use this library.
"""

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex

PARALLEL = {"enumerate": "parallel"}


def mixture(t):
    """Vectors; each belongs to one of three clusters."""
    with pyro.plate("data", len(t.x)):
        z = pyro.sample("z", dist.Categorical(t.weights))
        law = dist.Normal(t.locs[z], t.scales[z].unsqueeze(-1)).to_event(1)
        pyro.sample("x", law, obs=t.x)


def hidden_markov(t):
    z = 0
    for i in pyro.markov(range(len(t.x))):
        z = pyro.sample(f"z{i}", dist.Categorical(t.transition[z]), infer=PARALLEL)
        pyro.sample(f"x{i}", dist.Normal(t.locs[z], 1.0), obs=t.x[i])


@config_enumerate
def second_order(t):
    before, now = torch.tensor(0), torch.tensor(0)
    for i in pyro.markov(range(len(t.x)), history=2):
        probs = Vindex(t.transition)[before, now]
        before, now = now, pyro.sample(f"z{i}", dist.Categorical(probs))
        pyro.sample(f"x{i}", dist.Normal(Vindex(t.locs)[now], 1.0), obs=t.x[i])


@config_enumerate
def factorial(t):
    """Two hidden chains; sequences of different lengths, each note on or off."""
    tones = pyro.plate("tones", t.notes.shape[-1], dim=-1)
    with pyro.plate("sequences", len(t.notes), dim=-2) as rows:
        w, x = 0, 0
        for i in pyro.markov(range(t.notes.shape[1])):
            with poutine.mask(mask=(i < t.lengths).unsqueeze(-1)):
                w = pyro.sample(f"w{i}", dist.Categorical(t.to_w[w]))
                x = pyro.sample(f"x{i}", dist.Categorical(t.to_x[x]))
                with tones as tone:
                    probs = t.on[w.squeeze(-1)[..., None], x.squeeze(-1)[..., None], tone]
                    pyro.sample(f"y{i}", dist.Bernoulli(probs), obs=t.notes[rows, i])


def annotation(t):
    """Dawid and Skene: annotators confuse the classes, each in a different way."""
    annotators, K = t.confusion.shape[:2]
    with pyro.plate("annotators", annotators, dim=-2), pyro.plate("classes", K, dim=-1):
        confusion = pyro.sample("confusion", dist.Dirichlet(torch.ones(K).to(t.x)))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K).to(t.x)))
    with pyro.plate("items", t.labels.shape[-1], dim=-1):
        c = pyro.sample("c", dist.Categorical(weights), infer=PARALLEL)
        with pyro.plate("positions", len(t.labels), dim=-2):
            probs = Vindex(confusion)[t.annotators, c, :]
            pyro.sample("y", dist.Categorical(probs), obs=t.labels)


def competence(t):
    """MACE: an annotator knows the class, or gives a label by preference."""
    K = t.liking.shape[-1]
    with pyro.plate("items", t.labels.shape[-1], dim=-1):
        c = pyro.sample("c", dist.Categorical(torch.ones(K).to(t.liking) / K))
        with pyro.plate("positions", len(t.labels), dim=-2):
            s = pyro.sample("s", dist.Bernoulli(1 - t.knows[t.annotators]))
            probs = torch.where(
                s[..., None] == 0, F.one_hot(c, K).to(t.liking), t.liking[t.annotators]
            )
            pyro.sample("y", dist.Categorical(probs), obs=t.labels)


def capture_recapture(t):
    """Cormack, Jolly and Seber: a dead animal stays dead; no animal dies before it is first
    seen."""
    animals, occasions = t.captures.shape
    with pyro.plate("animals", animals, dim=-1):
        alive = torch.ones(animals).to(t.captures)
        seen = torch.zeros(animals, dtype=torch.bool)
        for i in pyro.markov(range(occasions)):
            survives = seen.to(t.captures) * t.phi * alive + (~seen).to(t.captures)
            alive = pyro.sample(f"alive{i}", dist.Bernoulli(survives), infer=PARALLEL)
            with poutine.mask(mask=seen):
                pyro.sample(f"y{i}", dist.Bernoulli(t.rho * alive), obs=t.captures[:, i])
            seen = seen | t.captures[:, i].bool()


late_entry = capture_recapture


def topics(t):
    """Latent Dirichlet allocation."""
    number, vocabulary = t.topic_words.shape
    words, documents = t.words.shape
    with pyro.plate("topics", number):
        topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(vocabulary).to(t.phi)))
    with pyro.plate("documents", documents, dim=-1):
        doc_topics = pyro.sample("doc_topics", dist.Dirichlet(t.phi * torch.ones(number).to(t.phi)))
        with pyro.plate("words", words, dim=-2):
            z = pyro.sample("z", dist.Categorical(doc_topics), infer=PARALLEL)
            pyro.sample("w", dist.Categorical(topic_words[z]), obs=t.words)


def mixed_effects(t):
    """Hidden Markov chains whose transitions depend on discrete random effects."""
    g = pyro.sample("g", dist.Categorical(t.groups), infer=PARALLEL)
    with pyro.plate("individuals", len(t.x), dim=-1):
        e = pyro.sample("e", dist.Categorical(t.effects), infer=PARALLEL)
        shift = t.of_group[g] + t.of_individual[e]
        transition = (t.transition + shift[..., None, None] * t.direction).softmax(-1)
        y = torch.zeros(len(t.x), dtype=torch.long)
        for i in pyro.markov(range(t.x.shape[-1])):
            probs = Vindex(transition)[..., y, :]
            y = pyro.sample(f"y{i}", dist.Categorical(probs), infer=PARALLEL)
            pyro.sample(f"x{i}", dist.Normal(t.locs[y], 1.0), obs=t.x[:, i])


def imputation(t):
    """Covariates, a class and a bit, that are missing in some rows."""
    with pyro.plate("rows", len(t.y)):
        with poutine.mask(mask=t.no_class):
            drawn = pyro.sample("a", dist.Categorical(t.weights))
        a = torch.where(t.no_class, drawn, t.a)
        with poutine.mask(mask=t.no_bit):
            drawn = pyro.sample("b", dist.Bernoulli(t.phi.expand(len(t.y))))
        b = torch.where(t.no_bit, drawn, t.b)
        pyro.sample("y", dist.Normal(t.locs[a] + t.slope * b, 1.0), obs=t.y)


def switching(t):
    """A hidden regime of a hidden autoregression."""
    s, x = 0, t.start
    for i in pyro.markov(range(len(t.y))):
        s = pyro.sample(f"s{i}", dist.Categorical(t.transition[s]), infer=PARALLEL)
        x = pyro.sample(f"x{i}", dist.Normal(t.pull[s] * x + t.locs[s], t.scales[s]))
        pyro.sample(f"y{i}", dist.Normal(x, 0.5), obs=t.y[i])


def stick_breaking(t):
    """A truncated Dirichlet process mixture."""
    K = len(t.locs)
    with pyro.plate("sticks", K - 1):
        beta = pyro.sample("beta", dist.Beta(1.0, t.alpha))
    left = (1 - beta).cumprod(-1)
    weights = F.pad(beta, (0, 1), value=1.0) * F.pad(left, (1, 0), value=1.0)
    with pyro.plate("components", K):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(t.x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=PARALLEL)
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=t.x)


def change_point(t):
    """A rate until day tau, another one from it on."""
    n = len(t.events)
    tau = pyro.sample("tau", dist.Categorical(torch.ones(n).to(t.rates) / n))
    rate = torch.where(tau > torch.arange(n), t.rates[0], t.rates[1])
    with pyro.plate("days", n):
        pyro.sample("x", dist.Poisson(rate), obs=t.events)


def counts(t):
    """How many are there, of at most so many, if each sends some events."""
    with pyro.plate("rows", len(t.totals)):
        n = pyro.sample("n", dist.Binomial(t.totals, t.phi))
        pyro.sample("x", dist.Poisson((1 + n) * t.rho), obs=t.events)


# --- programs with no meaning for weights: each ends in an error that names the site --------------


def branches(t):
    """A Python branch on a class."""
    z = pyro.sample("z", dist.Categorical(t.weights))
    scale = 1.0 if z == 0 else 2.0
    pyro.sample("x", dist.Normal(t.locs[z], scale), obs=t.x)


def slices(t):
    """The days before the change, as a slice."""
    z = pyro.sample("z", dist.Categorical(t.weights))
    pyro.sample("x", dist.Normal(t.locs[:z].sum(), 1.0), obs=t.x)


def counted_from(t):
    """A count that is the total of another count."""
    z = pyro.sample("z", dist.Binomial(3, t.phi))
    pyro.sample("x", dist.Binomial(z, t.phi), obs=t.one)


def observes(t):
    """A class as the observed value of another law."""
    z = pyro.sample("z", dist.Categorical(t.weights))
    pyro.sample("label", dist.Categorical(t.weights), obs=z)


def chooses_rows(t):
    """The rows of one class, by a mask as an index."""
    with pyro.plate("rows", len(t.locs)):
        z = pyro.sample("z", dist.Categorical(t.weights))
    pyro.sample("x", dist.Normal(t.locs[z == 0].sum(), 1.0), obs=t.x)


def assigns(t):
    """Missing values, assigned to an array of integers."""
    with pyro.plate("rows", len(t.locs)):
        z = pyro.sample("z", dist.Categorical(t.weights))
    classes = torch.zeros(len(t.locs), dtype=torch.long)
    classes[:] = z
    pyro.sample("x", dist.Normal(t.locs[classes].sum(), 1.0), obs=t.x)


def counts_members(t):
    """The number of rows in a class."""
    with pyro.plate("rows", len(t.locs)):
        z = pyro.sample("z", dist.Categorical(t.weights))
    pyro.sample("x", dist.Poisson(1.0 + (z == 0).sum()), obs=t.one)


def reads_number(t):
    """A Python number made from a class."""
    z = pyro.sample("z", dist.Categorical(t.weights))
    pyro.sample("x", dist.Normal(float(z), 1.0), obs=t.x)


def nests(t):
    """A class among the classes that another class selects."""
    with pyro.plate("rows", len(t.locs)):
        z = pyro.sample("z", dist.Categorical(t.weights))
    k = pyro.sample("k", dist.Categorical(t.weights))
    pyro.sample("x", dist.Normal(t.locs[z[k]], 1.0), obs=t.x)
