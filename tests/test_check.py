"""The table of pairings: guide family x model family x ELBO, each with its reference or its error.

The program is a mixture with one observation, in a plate of many independent rows, each with
separate guide logits: their gradients are independent draws, with a mean and a standard error.
Value and gradient in the logits are compared with references in NumPy, of these kinds:

- "exact": ELBO of the discrete program and its gradient, by summation.
- "straight-through": the same value; the gradient is the expectation of the estimator: the gradient
  of the soft sample times the slope of the loss at the hard one, not the gradient of the value.
- "soft": the loss linear in the soft value, plus, under TraceMeanField_ELBO, the exact categorical
  KL (the paper's objective). The gradient is by finite differences over common noise.
- "relaxed": ELBO of the relaxed program, also by finite differences; its KL agrees with quadrature.

A name is a class, "Native" is Pyro's OneHotCategorical, and "@1" means a temperature other than
TAU. Run as a program, this file prints the table.
"""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from backends import BACKENDS
from programs import LOCS, PRIOR
from scipy import stats
from tables import table

from gs_ppl import reference

TAU = 0.7
X = 0.4
ROWS = 20_000
DRAWS = 200_000  # for the references
FAILURE_RATE = 1e-7  # of one z-score; of all thousand together it is one in 10,000; seeds are fixed

# guide logits, prior, locations; a bit is the second of two categories
ONE_HOT = np.array([0.5, 0.2, -0.3]), np.log(PRIOR), LOCS
BIT = np.array([0.0, 0.5]), np.log([0.7, 0.3]), LOCS[:2]

TRACE, MEAN_FIELD, GRAPH = "Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO"
RENYI, ENUM = "RenyiELBO", "TraceEnum_ELBO"
ELBOS = {
    TRACE: {},
    MEAN_FIELD: {},
    GRAPH: {},
    RENYI: {"alpha": 0.5, "num_particles": 2},
    ENUM: {"max_plate_nesting": 1},
}
VECTORS = [
    "OneHotCategorical",
    "STGumbelSoftmax",
    "SoftOneHotCategorical",
    "GumbelSoftmax",
    "ExpGumbelSoftmax",
    "Categorical",
]
BITS = ["Bernoulli", "STGumbelSigmoid", "SoftBernoulli", "GumbelSigmoid"]

# guide, model, reference: under every ELBO
REPARAMETERIZED = [
    ("STGumbelSoftmax", "STGumbelSoftmax", "straight-through"),
    ("STGumbelSoftmax", "OneHotCategorical", "straight-through"),
    ("STGumbelSoftmax", "SoftOneHotCategorical", "straight-through"),
    ("SoftOneHotCategorical", "SoftOneHotCategorical", "soft"),
    ("SoftOneHotCategorical", "SoftOneHotCategorical@1", "soft"),
    ("GumbelSoftmax", "GumbelSoftmax", "relaxed"),
    ("GumbelSoftmax", "GumbelSoftmax@1", "relaxed"),
    ("ExpGumbelSoftmax", "ExpGumbelSoftmax", "relaxed"),
    ("STGumbelSigmoid", "STGumbelSigmoid", "straight-through"),
    ("STGumbelSigmoid", "Bernoulli", "straight-through"),
    ("STGumbelSigmoid", "SoftBernoulli", "straight-through"),
    ("SoftBernoulli", "SoftBernoulli", "soft"),
    ("GumbelSigmoid", "GumbelSigmoid", "relaxed"),
    ("GumbelSigmoid", "GumbelSigmoid@1", "relaxed"),
]
# guide, model: exact by the score function, under ELBOs that have one
DISCRETE = [
    ("OneHotCategorical", "OneHotCategorical"),
    ("OneHotCategorical", "STGumbelSoftmax"),
    ("OneHotCategorical", "SoftOneHotCategorical"),
    ("Categorical", "Categorical"),
    ("Bernoulli", "Bernoulli"),
    ("Bernoulli", "STGumbelSigmoid"),
    ("Bernoulli", "SoftBernoulli"),
]
SCORE_FUNCTION = {"pyro": (TRACE, GRAPH, ENUM), "numpyro": (GRAPH, ENUM)}
# bad pairings that the PPL itself does not refuse
SILENTLY_WRONG = {"pyro": (RENYI,), "numpyro": (TRACE, MEAN_FIELD, RENYI)}


# --- references -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reference:
    """Loss of a row, spread of its draws, and gradient, each with its standard error."""

    value: float
    value_error: float
    spread: float
    gradient: np.ndarray
    gradient_error: np.ndarray


def split(name):
    family, _, tau = name.partition("@")
    return family, float(tau or TAU)


def setting(family):
    return BIT if family in BITS else ONE_HOT


def log_softmax(a):
    return a - np.logaddexp.reduce(a)


@functools.cache
def draws_of_losses(guide, model, kind, mean_field):
    """Loss and gradient of each draw, for many draws."""
    (guide, tau), (_, tau_p) = split(guide), split(model)
    a, b, locs = setting(guide)
    noise = np.random.default_rng(0).exponential(size=(DRAWS, len(a)))
    log_likelihood = lambda z: stats.norm(z @ locs).logpdf(X)  # noqa: E731
    slope = lambda z: (X - z @ locs)[:, None] * locs  # noqa: E731

    def soft_loss(a):
        l = reference.exp_gumbel_softmax_sample(tau, a, noise)
        y = np.exp(l)
        if kind == "soft":
            linear = y @ (log_softmax(a) - log_softmax(b))
            divergence = reference.categorical_kl(a, b) if mean_field else linear
        elif mean_field and tau == tau_p:
            divergence = reference.exp_gumbel_softmax_kl(a, b)
        else:
            density = reference.exp_gumbel_softmax_log_prob
            divergence = density(tau, a, l) - density(tau_p, b, l)
        return divergence - log_likelihood(y)

    def straight_through():
        l = reference.exp_gumbel_softmax_sample(tau, a, noise)
        y, z = np.exp(l), np.eye(len(a))[l.argmax(-1)]
        log_ratio, pi = log_softmax(a) - log_softmax(b), np.exp(log_softmax(a))
        if mean_field:
            divergence, direct = pi @ log_ratio, pi * (log_ratio - pi @ log_ratio)
            through = -slope(z)
        else:
            divergence, direct = z @ log_ratio, z - pi
            through = log_ratio - slope(z)
        back = y * (through - (y * through).sum(-1, keepdims=True)) / tau
        return divergence - log_likelihood(z), direct + back

    if kind == "straight-through":
        return straight_through()
    steps = 1e-4 * np.eye(len(a))
    slopes = [(soft_loss(a + h) - soft_loss(a - h)) / 2e-4 for h in steps]
    return soft_loss(a), np.stack(slopes, -1)


def exact(guide):
    """By summation; the spread of one draw is the spread of the log weights."""
    a, b, locs = setting(split(guide)[0])
    pi = np.exp(log_softmax(a))
    losses = log_softmax(a) - log_softmax(b) - stats.norm(locs).logpdf(X)
    value = pi @ losses
    spread = np.sqrt(pi @ (losses - value) ** 2)
    return Reference(value, 0.0, spread, pi * (losses - value), np.zeros(len(a)))


def renyi(losses, gradients):
    """Loss of pairs of draws, at alpha = 0.5."""
    logs = -0.5 * losses.reshape(-1, 2)
    weights = np.exp(logs - np.logaddexp.reduce(logs, -1, keepdims=True))
    gradients = gradients.reshape(-1, 2, gradients.shape[-1])
    return (
        -2 * (np.logaddexp.reduce(logs, -1) - np.log(2)),
        (weights[..., None] * gradients).sum(1),
    )


@functools.cache
def reference_of(guide, model, kind, elbo):
    losses, gradients = draws_of_losses(guide, model, kind, elbo == MEAN_FIELD)
    if elbo == RENYI:
        losses, gradients = renyi(losses, gradients)
    n = np.sqrt(len(losses))
    return Reference(
        losses.mean(), losses.std() / n, losses.std(), gradients.mean(0), gradients.std(0) / n
    )


@pytest.mark.parametrize("guide", ["GumbelSoftmax", "GumbelSigmoid"])
def test_references_agree_with_quadrature(guide):
    """KL of relaxed laws and its gradient: sampling of densities agrees with quadrature."""
    by_density = reference_of(guide, guide, "relaxed", TRACE)
    by_quadrature = reference_of(guide, guide, "relaxed", MEAN_FIELD)
    for name, error in [("value", "value_error"), ("gradient", "gradient_error")]:
        difference = getattr(by_density, name) - getattr(by_quadrature, name)
        # the errors are correlated; full correlation is the worst case
        bound = getattr(by_density, error) + getattr(by_quadrature, error)
        assert (np.abs(difference) < threshold() * bound).all()


def test_straight_through_is_biased():
    """The references differ, so that the tests below can distinguish the two gradients."""
    one = reference_of("STGumbelSoftmax", "STGumbelSoftmax", "straight-through", MEAN_FIELD)
    assert one.value == pytest.approx(exact("STGumbelSoftmax").value, abs=5 * one.value_error)
    bias = np.abs(one.gradient - exact("STGumbelSoftmax").gradient)
    assert bias.max() > 50 * one.gradient_error.max()


# --- programs -------------------------------------------------------------------------------------


def law(backend, name, logits):
    family, tau = split(name)
    if family == "Native":
        return backend.native.OneHotCategorical(logits=logits)
    if family in ("Categorical", "Bernoulli"):
        return getattr(backend.native, family)(logits=logits)
    make = getattr(backend.gs, family)
    return make(logits=logits) if family == "OneHotCategorical" else make(tau, logits=logits)


def programs(backend, guide_name, model_name, rows=ROWS):
    ppl, gs, array = backend.ppl, backend.gs, backend.array
    bit = split(model_name)[0] in BITS
    a, b, locs = setting(split(guide_name)[0])
    a, b = (a[1], b[1] - b[0]) if bit else (a, b)
    locs, logits = array(locs), array(np.broadcast_to(a, (rows, *np.shape(a))))

    def model():
        with ppl.plate("rows", rows):
            z = ppl.sample("z", law(backend, model_name, array(b)))
            z = np.e**z if guide_name == model_name == "ExpGumbelSoftmax" else z
            loc = gs.select(locs, z, binary=bit)
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=array(np.full(rows, X)))

    def guide():
        with ppl.plate("rows", rows):
            ppl.sample("z", law(backend, guide_name, ppl.param(f"{guide_name} {rows}", logits)))

    return model, guide


def make_elbo(backend, name):
    return getattr(backend.infer, name)(**ELBOS[name])


def threshold():
    return stats.norm.isf(FAILURE_RATE / 2)


def z_scores(backend, model, guide, elbo, expected, seed=0):
    """z-scores of the mean loss of a row, and of the mean gradient in its logits."""
    loss, gradient = backend.loss_and_gradient(make_elbo(backend, elbo), model, guide, seed)
    rows = next(iter(gradient.values())).reshape(ROWS, -1)
    value_error = np.hypot(expected.value_error, expected.spread / np.sqrt(ROWS))
    target, target_error = expected.gradient, expected.gradient_error
    target, target_error = target[-rows.shape[1] :], target_error[-rows.shape[1] :]
    gradient_error = np.hypot(target_error, rows.std(0) / np.sqrt(ROWS))
    rounding = 1e-9
    return np.append(
        (rows.mean(0) - target) / (gradient_error + rounding),
        (loss / ROWS - expected.value) / (value_error + rounding),
    )


def assert_holds(backend, model, guide, elbo, expected):
    assert np.abs(z_scores(backend, model, guide, elbo, expected)).max() < threshold()


# --- good pairings --------------------------------------------------------------------------------


def reparameterized():
    """Cells of bits, and of other model temperatures, are long under two ELBOs."""
    for pair, elbo in itertools.product(REPARAMETERIZED, ELBOS):
        rare = elbo in (GRAPH, RENYI) and (pair[0] in BITS or pair[1].endswith("@1"))
        marks = [pytest.mark.long] * rare
        yield pytest.param(*pair, elbo, marks=marks, id="-".join((*pair, elbo)))


@pytest.mark.parametrize(("guide", "model", "kind", "elbo"), [*reparameterized()])
@pytest.mark.quick("GumbelSoftmax", "STGumbelSoftmax", "SoftOneHotCategorical", "STBernoulli")
@pytest.mark.quick("TraceMeanField_ELBO", "RenyiELBO")
def test_reparameterized_pairings(backend, guide, model, kind, elbo):
    expected = reference_of(guide, model, kind, elbo)
    if kind == "soft" and elbo != MEAN_FIELD:
        small = programs(backend, guide, model, rows=2)
        with pytest.raises(ValueError, match=f"site 'z': {elbo} has no analytic divergence for"):
            backend.gs.check(*small, make_elbo(backend, elbo))
        return
    model, guide = programs(backend, guide, model)
    backend.gs.check(model, guide, make_elbo(backend, elbo))
    assert_holds(backend, model, guide, elbo, expected)


@pytest.mark.parametrize(("guide", "model"), DISCRETE)
def test_discrete_pairings(backend, guide, model):
    expected = exact(guide)
    model, guide = programs(backend, guide, model)
    for elbo in SCORE_FUNCTION[backend.name]:
        backend.gs.check(model, guide, make_elbo(backend, elbo))
        assert_holds(backend, model, guide, elbo, expected)


@pytest.mark.parametrize("family", [*VECTORS, *BITS])
def test_enumerated_pairings(backend, family):
    """Model and guide are lowered and summed out: no noise."""
    expected = dataclasses.replace(exact(family), spread=0.0)
    # the program takes the simplex, also if the site was in log space
    model, guide = programs(backend, family, family.replace("Exp", ""))
    model, guide = map(backend.gs.config_enumerate, (model, guide))
    backend.gs.check(model, guide, make_elbo(backend, ENUM))
    assert_holds(backend, model, guide, ENUM, expected)


# --- bad pairings ---------------------------------------------------------------------------------

FAMILIES = VECTORS, BITS
DENSITIES = {"GumbelSoftmax", "ExpGumbelSoftmax", "GumbelSigmoid"}
SOFT = {"SoftOneHotCategorical", "SoftBernoulli"}
GOOD = {(guide, model) for guide, model, _ in REPARAMETERIZED} | set(DISCRETE)


def reason(guide, model):
    """Why a pair is in none of the lists of good pairs."""
    if "Categorical" in (guide, model):
        return "mixes class indices with vectors"
    if (guide in DENSITIES) != (model in DENSITIES):
        return "mixes a density with a mass"
    return "gives soft values to a law that is only" if guide in SOFT else "mixes log-space with"


BAD = [
    (*pair, reason(*pair))
    for families in FAMILIES
    for pair in itertools.product(families, families)
    if pair not in GOOD
]


THROUGH = {
    "check": lambda backend, *pair: backend.gs.check(*pair, make_elbo(backend, TRACE)),
    "AnnealedSVI": lambda backend, *pair: backend.anneal(
        *pair, make_elbo(backend, TRACE), lambda t: 0.5, steps=1
    ),
}


@pytest.mark.parametrize("family", ["GumbelSoftmax", "STGumbelSoftmax"])
@pytest.mark.parametrize("through", THROUGH)
def test_model_that_fails_at_the_values_of_its_guide(backend, family, through):
    """A model that is not relaxed cannot index by weights: the pair is named, not the index."""
    table, ppl, gs = backend.array([1.0, 2.0, 4.0]), backend.ppl, backend.gs

    def model():
        z = ppl.sample("z", backend.native.Categorical(probs=backend.array([0.2, 0.3, 0.5])))
        ppl.sample("x", backend.native.Normal(table[z], 1.0), obs=backend.array(1.5))

    guide = gs.AutoGumbelSoftmax(model, 0.5, family=getattr(gs, family))
    with pytest.raises(ValueError, match=r"site 'z': .* mixes class indices with vectors") as error:
        THROUGH[through](backend, model, guide)
    assert isinstance(error.value.__cause__, IndexError | TypeError)


@pytest.mark.parametrize("through", THROUGH)
def test_error_of_the_model_itself(backend, through):
    """An error that the guide's values do not cause stays as it is."""

    def model():
        backend.ppl.sample("z", backend.native.Bernoulli(probs=backend.array(0.5)))
        raise RuntimeError("of the model itself")

    guide = backend.without_observed(lambda: None)
    with pytest.raises(RuntimeError, match="of the model itself"):
        THROUGH[through](backend, model, guide)


def test_cure_of_a_soft_guide(backend):
    """Over a relaxed model it is the family; over a discrete one, relax."""
    model, _ = programs(backend, "OneHotCategorical", "OneHotCategorical")
    soft = backend.gs.relax(model, 0.5)
    hard = backend.gs.relax(model, 0.5, family=backend.gs.STGumbelSoftmax)
    for other, cure in ((hard, "give both the same family="), (model, "relax the model too")):
        with pytest.raises(ValueError, match=f"only for hard ones: {cure}"):
            backend.gs.check(other, soft, make_elbo(backend, TRACE))


@pytest.mark.parametrize(("guide", "model", "message"), BAD)
def test_every_other_pairing_is_refused(backend, guide, model, message):
    """Without the check, some of these report 96 for a KL of 0."""
    model_fn, guide_fn = programs(backend, guide, model, rows=2)
    message = f"site 'z': {guide}.* in the guide over {model}.* in the model {message}"
    for elbo in ELBOS:
        with pytest.raises(ValueError, match=message):
            backend.gs.check(model_fn, guide_fn, make_elbo(backend, elbo))


@pytest.mark.parametrize(("guide", "model"), DISCRETE)
def test_discrete_guide_needs_a_score_function(backend, guide, model):
    model, guide_fn = programs(backend, guide, model, rows=2)
    for elbo in set(ELBOS) - set(SCORE_FUNCTION[backend.name]):
        message = f"site 'z': {elbo} has no gradient for {guide}.* in the guide: relax"
        with pytest.raises(ValueError, match=message):
            backend.gs.check(model, guide_fn, make_elbo(backend, elbo))


def test_why_a_discrete_guide_needs_a_score_function(backend):
    """Without the check, a bare SVI has the right loss and a wrong gradient, without a warning."""
    model, guide = programs(backend, "OneHotCategorical", "OneHotCategorical")
    for elbo in SILENTLY_WRONG[backend.name]:
        _, gradient = backend.loss_and_gradient(make_elbo(backend, elbo), model, guide, 0)
        mean = next(iter(gradient.values())).mean(0)
        assert np.abs(mean - exact("OneHotCategorical").gradient).max() > 0.1


@pytest.mark.only("pyro")
@pytest.mark.parametrize("elbo", [TRACE, GRAPH])
def test_native_one_hot_model(backend, elbo):
    """A discrete guide is right for a model with Pyro's law, as Pyro's guide is for a model with
    ours."""
    for pair in [("OneHotCategorical", "Native"), ("Native", "OneHotCategorical")]:
        model, guide = programs(backend, *pair)
        backend.gs.check(model, guide, make_elbo(backend, elbo))
        assert_holds(backend, model, guide, elbo, exact("OneHotCategorical"))


@pytest.mark.only("pyro")
def test_why_straight_through_over_native_is_refused(backend):
    """The loss is right; the gradient lacks the part through the prior, because Pyro scores by
    argmax."""
    model, guide = programs(backend, "STGumbelSoftmax", "Native")
    with pytest.raises(ValueError, match=r"Pyro scores OneHotCategorical by argmax.*relax the"):
        backend.gs.check(model, guide, make_elbo(backend, TRACE))
    expected = reference_of("STGumbelSoftmax", "STGumbelSoftmax", "straight-through", TRACE)
    *gradient, value = np.abs(z_scores(backend, model, guide, TRACE, expected))
    assert value < threshold() < max(gradient)
    model, guide = programs(backend, "STGumbelSoftmax", "STGumbelSoftmax")
    *gradient, _ = np.abs(z_scores(backend, model, guide, TRACE, expected))
    assert max(gradient) < threshold()


@pytest.mark.parametrize("where", ["law", "handler"])
def test_mask_on_one_side_is_refused(backend, where):
    keep = np.array([True, False])

    def program(masked):
        one = law(backend, "GumbelSoftmax", backend.array(np.tile(ONE_HOT[0], (2, 1))))
        one = backend.mask(one, keep) if masked and where == "law" else one

        def run():
            with backend.ppl.plate("data", 2):
                backend.ppl.sample("z", one)

        return backend.masked(run, keep) if masked and where == "handler" else run

    backend.gs.check(program(True), program(True), make_elbo(backend, TRACE))
    for model, guide in [(True, False), (False, True)]:
        with pytest.raises(ValueError, match=r"is masked only in the"):
            backend.gs.check(program(model), program(guide), make_elbo(backend, TRACE))


@pytest.mark.parametrize("family", [*VECTORS, *BITS])
def test_site_that_nobody_takes_care_of_is_refused(backend, family):
    """A site that is neither in the guide nor summed out would be drawn from the prior."""
    model, _ = programs(backend, family.replace("Exp", ""), family.replace("Exp", ""), rows=2)
    enumerated, empty = backend.gs.config_enumerate(model), lambda: None
    backend.gs.check(enumerated, empty, make_elbo(backend, ENUM))
    for fn, elbo in [(model, ENUM), (model, TRACE), (enumerated, TRACE), (enumerated, GRAPH)]:
        with pytest.raises(ValueError, match="neither in the guide nor enumerated"):
            backend.gs.check(fn, empty, make_elbo(backend, elbo))


@pytest.mark.parametrize("guide", ["STGumbelSoftmax", "SoftOneHotCategorical", "GumbelSoftmax"])
def test_relaxed_guide_over_enumerated_model_is_refused(backend, guide):
    model, guide = programs(backend, guide, "OneHotCategorical", rows=2)
    with pytest.raises(ValueError, match="mixes class indices with vectors"):
        backend.gs.check(backend.gs.config_enumerate(model), guide, make_elbo(backend, ENUM))


def test_annealed_svi_checks(backend):
    """An un-relaxed guide with a relaxed model is found before the first step."""
    model, _ = programs(backend, "OneHotCategorical", "OneHotCategorical", rows=2)
    guide = backend.gs.AutoGumbelSoftmax(model)
    relaxed = backend.gs.relax(model, objective="relaxed")
    with pytest.raises(ValueError, match="mixes a density with a mass"):
        backend.anneal(relaxed, guide, backend.infer.Trace_ELBO(), lambda t: 0.5, steps=1)


def test_check_leaves_the_random_state(backend):
    model, _ = programs(backend, "GumbelSoftmax", "GumbelSoftmax", rows=2)
    guide = backend.without_observed(model)
    first = backend.loss("Trace_ELBO", model, guide, 1, 0)
    backend.gs.check(model, guide, backend.infer.Trace_ELBO())
    assert backend.loss("Trace_ELBO", model, guide, 1, 0) == first


# --- the table for readers ------------------------------------------------------------------------


def outcome(backend, guide, model, elbo):
    """The reference and the largest z-score, or the reason why check refuses the pair."""
    small = programs(backend, guide, model, rows=2)
    try:
        backend.gs.check(*small, make_elbo(backend, elbo))
    except ValueError as error:
        known = (guide, model) in GOOD or "@" in model
        why = "no gradient" if "has no gradient" in str(error) else "no analytic divergence"
        return f"refused: {why if known else reason(guide, model)}"
    kind = {(q, p): kind for q, p, kind in REPARAMETERIZED}.get((guide, model), "exact")
    expected = exact(guide) if kind == "exact" else reference_of(guide, model, kind, elbo)
    scores = z_scores(backend, *programs(backend, guide, model), elbo, expected)
    return f"{kind} ({np.abs(scores).max():.1f})"


def pairing_table(backends):
    """The table in Markdown; in brackets the largest of the z-scores of loss and gradient."""
    header = ["side", "guide", "model", *ELBOS]
    pairs = [pair for names in FAMILIES for pair in itertools.product(names, names)]
    pairs += [(guide, model) for guide, model, _ in REPARAMETERIZED if "@" in model]
    rows = [
        [name, *pair, *(outcome(backend, *pair, elbo) for elbo in ELBOS)]
        for name, backend in backends.items()
        for pair in pairs
    ]
    return table(header, rows)


if __name__ == "__main__":
    print(pairing_table({name: make() for name, make in BACKENDS.items()}))
