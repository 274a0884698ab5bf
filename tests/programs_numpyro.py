"""Programs over integers, as a user writes them for NumPyro: see integer_programs.py.

Each takes its tables and its data as the attributes of `t`, and does not use this library.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.contrib.funsor import config_enumerate, markov
from numpyro.handlers import mask
from numpyro.ops.indexing import Vindex

PARALLEL = {"enumerate": "parallel"}


def mixture(t):
    """Vectors; each belongs to one of three clusters."""
    with numpyro.plate("data", len(t.x)):
        z = numpyro.sample("z", dist.Categorical(t.weights))
        law = dist.Normal(t.locs[z], t.scales[z][..., None]).to_event(1)
        numpyro.sample("x", law, obs=t.x)


def hidden_markov(t):
    z = 0
    for i in markov(range(len(t.x))):
        z = numpyro.sample(f"z{i}", dist.Categorical(t.transition[z]), infer=PARALLEL)
        numpyro.sample(f"x{i}", dist.Normal(t.locs[z], 1.0), obs=t.x[i])


@config_enumerate
def second_order(t):
    before, now = 0, 0
    for i in markov(range(len(t.x)), history=2):
        probs = Vindex(t.transition)[before, now]
        before, now = now, numpyro.sample(f"z{i}", dist.Categorical(probs))
        numpyro.sample(f"x{i}", dist.Normal(Vindex(t.locs)[now], 1.0), obs=t.x[i])


@config_enumerate
def factorial(t):
    """Two hidden chains; sequences of different lengths, each note on or off."""
    tones = numpyro.plate("tones", t.notes.shape[-1], dim=-1)
    with numpyro.plate("sequences", len(t.notes), dim=-2) as rows:
        w, x = 0, 0
        for i in markov(range(t.notes.shape[1])):
            with mask(mask=(i < t.lengths)[:, None]):
                w = numpyro.sample(f"w{i}", dist.Categorical(t.to_w[w]))
                x = numpyro.sample(f"x{i}", dist.Categorical(t.to_x[x]))
                with tones as tone:
                    probs = t.on[w.squeeze(-1)[..., None], x.squeeze(-1)[..., None], tone]
                    numpyro.sample(f"y{i}", dist.Bernoulli(probs), obs=t.notes[rows, i])


def annotation(t):
    """Dawid and Skene: annotators confuse the classes, each in a different way."""
    annotators, K = t.confusion.shape[:2]
    with numpyro.plate("annotators", annotators, dim=-2), numpyro.plate("classes", K, dim=-1):
        confusion = numpyro.sample("confusion", dist.Dirichlet(jnp.ones(K)))
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(K)))
    with numpyro.plate("items", t.labels.shape[-1], dim=-1):
        c = numpyro.sample("c", dist.Categorical(weights), infer=PARALLEL)
        with numpyro.plate("positions", len(t.labels), dim=-2):
            probs = Vindex(confusion)[t.annotators, c, :]
            numpyro.sample("y", dist.Categorical(probs), obs=t.labels)


def competence(t):
    """MACE: an annotator knows the class, or gives a label by preference."""
    K = t.liking.shape[-1]
    with numpyro.plate("items", t.labels.shape[-1], dim=-1):
        c = numpyro.sample("c", dist.Categorical(jnp.ones(K) / K))
        with numpyro.plate("positions", len(t.labels), dim=-2):
            s = numpyro.sample("s", dist.Bernoulli(1 - t.knows[t.annotators]))
            probs = jnp.where(s[..., None] == 0, jax.nn.one_hot(c, K), t.liking[t.annotators])
            numpyro.sample("y", dist.Categorical(probs), obs=t.labels)


def capture_recapture(t):
    """Cormack, Jolly and Seber: a dead animal stays dead; no animal dies before it is first
    seen."""
    animals, occasions = t.captures.shape
    with numpyro.plate("animals", animals, dim=-1):
        alive, seen = jnp.ones(animals, int), jnp.zeros(animals, bool)
        for i in markov(range(occasions)):
            survives = jnp.where(seen, t.phi * alive, 1.0)
            alive = numpyro.sample(f"alive{i}", dist.Bernoulli(survives), infer=PARALLEL)
            with mask(mask=seen):
                numpyro.sample(f"y{i}", dist.Bernoulli(t.rho * alive), obs=t.captures[:, i])
            seen = seen | t.captures[:, i].astype(bool)


late_entry = capture_recapture


def topics(t):
    """Latent Dirichlet allocation."""
    number, vocabulary = t.topic_words.shape
    words, documents = t.words.shape
    with numpyro.plate("topics", number):
        topic_words = numpyro.sample("topic_words", dist.Dirichlet(jnp.ones(vocabulary)))
    with numpyro.plate("documents", documents, dim=-1):
        doc_topics = numpyro.sample("doc_topics", dist.Dirichlet(t.phi * jnp.ones(number)))
        with numpyro.plate("words", words, dim=-2):
            z = numpyro.sample("z", dist.Categorical(doc_topics), infer=PARALLEL)
            numpyro.sample("w", dist.Categorical(topic_words[z]), obs=t.words)


def mixed_effects(t):
    """Hidden Markov chains whose transitions depend on discrete random effects."""
    g = numpyro.sample("g", dist.Categorical(t.groups), infer=PARALLEL)
    with numpyro.plate("individuals", len(t.x), dim=-1):
        e = numpyro.sample("e", dist.Categorical(t.effects), infer=PARALLEL)
        shift = t.of_group[g] + t.of_individual[e]
        logits = t.transition + shift[..., None, None] * t.direction
        transition = jax.nn.softmax(logits, -1)
        y = jnp.zeros(len(t.x), int)
        for i in markov(range(t.x.shape[-1])):
            probs = Vindex(transition)[..., y, :]
            y = numpyro.sample(f"y{i}", dist.Categorical(probs), infer=PARALLEL)
            numpyro.sample(f"x{i}", dist.Normal(t.locs[y], 1.0), obs=t.x[:, i])


def imputation(t):
    """Covariates, a class and a bit, that are missing in some rows."""
    with numpyro.plate("rows", len(t.y)):
        with mask(mask=t.no_class):
            drawn = numpyro.sample("a", dist.Categorical(t.weights))
        a = jnp.where(t.no_class, drawn, t.a)
        with mask(mask=t.no_bit):
            drawn = numpyro.sample("b", dist.Bernoulli(t.phi))
        b = jnp.where(t.no_bit, drawn, t.b)
        numpyro.sample("y", dist.Normal(t.locs[a] + t.slope * b, 1.0), obs=t.y)


def switching(t):
    """A hidden regime of a hidden autoregression."""
    s, x = 0, t.start
    for i in markov(range(len(t.y))):
        s = numpyro.sample(f"s{i}", dist.Categorical(t.transition[s]), infer=PARALLEL)
        x = numpyro.sample(f"x{i}", dist.Normal(t.pull[s] * x + t.locs[s], t.scales[s]))
        numpyro.sample(f"y{i}", dist.Normal(x, 0.5), obs=t.y[i])


def stick_breaking(t):
    """A truncated Dirichlet process mixture."""
    K = len(t.locs)
    with numpyro.plate("sticks", K - 1):
        beta = numpyro.sample("beta", dist.Beta(1.0, t.alpha))
    left = jnp.cumprod(1 - beta, -1)
    one = jnp.ones(1)
    weights = jnp.concatenate([beta, one]) * jnp.concatenate([one, left])
    with numpyro.plate("components", K):
        locs = numpyro.sample("locs", dist.Normal(0.0, 3.0))
    with numpyro.plate("data", len(t.x)):
        z = numpyro.sample("z", dist.Categorical(weights), infer=PARALLEL)
        numpyro.sample("x", dist.Normal(locs[z], 1.0), obs=t.x)


def change_point(t):
    """One rate until day tau, another rate from then on."""
    n = len(t.events)
    tau = numpyro.sample("tau", dist.DiscreteUniform(0, n - 1))
    rate = jnp.where(tau > jnp.arange(n), t.rates[0], t.rates[1])
    with numpyro.plate("days", n):
        numpyro.sample("x", dist.Poisson(rate), obs=t.events)


def counts(t):
    """The number of senders, at most so many, if each sends some events."""
    with numpyro.plate("rows", len(t.totals)):
        n = numpyro.sample("n", dist.Binomial(t.totals, t.phi))
        numpyro.sample("x", dist.Poisson((1 + n) * t.rho), obs=t.events)


# --- scan -----------------------------------------------------------------------------------------


def hidden_markov_scan(t):
    def step(z, x):
        z = numpyro.sample("z", dist.Categorical(t.transition[z]), infer=PARALLEL)
        numpyro.sample("x", dist.Normal(t.locs[z], 1.0), obs=x)
        return z, None

    scan(step, 0, t.x)


def second_order_scan(t):
    def step(carry, x):
        before, now = carry
        probs = Vindex(t.transition)[before, now]
        z = numpyro.sample("z", dist.Categorical(probs), infer=PARALLEL)
        numpyro.sample("x", dist.Normal(t.locs[z], 1.0), obs=x)
        return (now, z), None

    scan(step, (0, 0), t.x, history=2)


def factorial_scan(t):
    tones = numpyro.plate("tones", t.notes.shape[-1], dim=-1)

    def step(carry, now):
        w, x = carry
        i, notes = now
        with (
            numpyro.plate("sequences", len(t.notes), dim=-2),
            mask(mask=(i < t.lengths)[:, None]),
        ):
            w = numpyro.sample("w", dist.Categorical(t.to_w[w]), infer=PARALLEL)
            x = numpyro.sample("x", dist.Categorical(t.to_x[x]), infer=PARALLEL)
            with tones as tone:
                numpyro.sample("y", dist.Bernoulli(t.on[w, x, tone]), obs=notes)
        return (w, x), None

    zeros = jnp.zeros((len(t.notes), 1), int)
    scan(step, (zeros, zeros), (jnp.arange(t.notes.shape[1]), jnp.swapaxes(t.notes, 0, 1)))


def capture_recapture_scan(t):
    animals = len(t.captures)

    def step(carry, captures):
        alive, seen = carry
        with numpyro.plate("animals", animals, dim=-1):
            survives = jnp.where(seen, t.phi * alive, 1.0)
            alive = numpyro.sample("alive", dist.Bernoulli(survives), infer=PARALLEL)
            with mask(mask=seen):
                numpyro.sample("y", dist.Bernoulli(t.rho * alive), obs=captures)
        return (alive, seen | captures.astype(bool)), None

    start = jnp.ones(animals, int), jnp.zeros(animals, bool)
    scan(step, start, jnp.swapaxes(t.captures, 0, 1))


# --- programs with no meaning for weights: each ends in an error that names the site --------------


def branches(t):
    """A Python branch on a class."""
    z = numpyro.sample("z", dist.Categorical(t.weights))
    scale = 1.0 if z == 0 else 2.0
    numpyro.sample("x", dist.Normal(t.locs[z], scale), obs=t.x)


def slices(t):
    """The days before the change, as a slice."""
    z = numpyro.sample("z", dist.Categorical(t.weights))
    numpyro.sample("x", dist.Normal(t.locs[:z].sum(), 1.0), obs=t.x)


def counted_from(t):
    """A count that is the total of another count."""
    z = numpyro.sample("z", dist.Binomial(3, t.phi))
    numpyro.sample("x", dist.Binomial(z, t.phi), obs=t.one)


def observes(t):
    """A class as the observed value of another law."""
    z = numpyro.sample("z", dist.Categorical(t.weights))
    numpyro.sample("label", dist.Categorical(t.weights), obs=z)


def chooses_rows(t):
    """The rows of one class, by a mask as an index."""
    with numpyro.plate("rows", len(t.locs)):
        z = numpyro.sample("z", dist.Categorical(t.weights))
    numpyro.sample("x", dist.Normal(t.locs[z == 0].sum(), 1.0), obs=t.x)


def assigns(t):
    """Missing values, assigned to an array of integers."""
    with numpyro.plate("rows", len(t.locs)):
        z = numpyro.sample("z", dist.Categorical(t.weights))
    classes = jnp.zeros(len(t.locs), int).at[:].set(z)
    numpyro.sample("x", dist.Normal(t.locs[classes].sum(), 1.0), obs=t.x)


def counts_members(t):
    """The number of rows in a class."""
    with numpyro.plate("rows", len(t.locs)):
        z = numpyro.sample("z", dist.Categorical(t.weights))
    numpyro.sample("x", dist.Poisson(1.0 + (z == 0).sum()), obs=t.one)


def reads_number(t):
    """A Python number made from a class."""
    z = numpyro.sample("z", dist.Categorical(t.weights))
    numpyro.sample("x", dist.Normal(float(z), 1.0), obs=t.x)


def nests(t):
    """A class among the classes that another class selects."""
    with numpyro.plate("rows", len(t.locs)):
        z = numpyro.sample("z", dist.Categorical(t.weights))
    k = numpyro.sample("k", dist.Categorical(t.weights))
    numpyro.sample("x", dist.Normal(t.locs[z[k]], 1.0), obs=t.x)
