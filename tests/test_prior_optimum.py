"""Without data, the loss has its minimum 0 if the guide is the prior; or check refuses the pair.

Each family is tested with each objective under each ELBO. The program is one site in a plate of
rows. Each row has separate logits, so that the gradients of the rows are independent draws. At
other logits the loss is compared with the divergence by enumeration, by quadrature, or by draws in
NumPy.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import integrate

from gs_ppl import reference

TAU = 0.7
ROWS = 2000
DRAWS = 100_000  # for the references
SIGMAS = 5  # for about 500 numbers; seeds are fixed
PRIOR, OTHER = np.log([0.80, 0.15, 0.05]), np.array([0.5, 0.2, -0.3])
BIT_PRIOR, BIT_OTHER = 0.8, -0.4  # log-odds

MEAN_FIELD, RENYI = "TraceMeanField_ELBO", "RenyiELBO"
ELBOS = {  # those of gs_ppl have the prefix gs
    "Trace_ELBO": {},
    MEAN_FIELD: {},
    "TraceGraph_ELBO": {},
    RENYI: {"alpha": 0.5, "num_particles": 2},
    "TraceEnum_ELBO": {"max_plate_nesting": 1},
    "gs.TraceEnum_ELBO": {"max_plate_nesting": 1},
    "gs.RLOO_ELBO": {"num_particles": 2},
    "gs.NVIL_ELBO": {"normalize": False},
    "gs.MuProp_ELBO": {},
    "gs.DARN_ELBO": {},
    "gs.REBAR_ELBO": {},
    "gs.DisARM_ELBO": {},
}
ANALYTIC = MEAN_FIELD, "gs.TraceEnum_ELBO"
SUBSTITUTION = "gs.MuProp_ELBO", "gs.DARN_ELBO", "gs.REBAR_ELBO", "gs.DisARM_ELBO"
# ELBOs with a gradient for discrete sites, in addition to the PPL's score function
SCORE_FUNCTION = {"TraceGraph_ELBO", "TraceEnum_ELBO", "gs.TraceEnum_ELBO", *SUBSTITUTION}
SCORE_FUNCTION |= {"gs.RLOO_ELBO", "gs.NVIL_ELBO"}


@dataclass(frozen=True)
class Cell:
    """A family at a site, and the kind of score of its values."""

    family: str
    kind: str  # density, soft or hard mass, or discrete
    bit: bool
    objective: str = "categorical"
    options: tuple = ()

    def __str__(self):
        return f"{self.family}-{self.objective}"


CELLS = [
    Cell("GumbelSoftmax", "soft", False),
    Cell("GumbelSoftmax", "density", False, "relaxed"),
    Cell("ExpGumbelSoftmax", "density", False, "relaxed"),
    Cell("SoftOneHotCategorical", "soft", False),
    Cell("STGumbelSoftmax", "hard", False),
    Cell("STGumbelSoftmax", "hard", False, "relaxed"),
    Cell("StraightThrough", "hard", False),
    Cell("ReinMax", "hard", False),
    Cell("GumbelRao", "hard", False, options=(("num_samples", 2),)),
    Cell("GappedST", "hard", False),
    Cell("OneHotCategorical", "discrete", False),
    Cell("Categorical", "discrete", False),
    Cell("GumbelSigmoid", "soft", True),
    Cell("GumbelSigmoid", "density", True, "relaxed"),
    Cell("SoftBernoulli", "soft", True),
    Cell("STGumbelSigmoid", "hard", True),
    Cell("STBernoulli", "hard", True),
    Cell("ReinMaxBernoulli", "hard", True),
    Cell("GumbelRaoBernoulli", "hard", True, options=(("num_samples", 2),)),
    Cell("GappedSTBernoulli", "hard", True),
    Cell("Bernoulli", "discrete", True),
]


def refusal(backend, cell, elbo):
    """The message of check, or of the ELBO, for the pair; None if the pair is right."""
    name = elbo.removeprefix("gs.")
    if cell.kind == "soft" and elbo not in ANALYTIC:
        return f"site 'z': {name} has no analytic divergence .*objective='relaxed'"
    if cell.kind == "discrete" and elbo not in SCORE_FUNCTION | {backend.reinforce}:
        return f"site 'z': {name} has no gradient for {cell.family}.* relax model and guide"
    if elbo not in SUBSTITUTION:
        return None
    if cell.kind != "discrete":
        return f"site 'z': {name} takes discrete programs, .* use discretize"
    return f"site 'z': {name} takes .*" if name == "DisARM_ELBO" and not cell.bit else None


# --- references -----------------------------------------------------------------------------------


@functools.cache
def log_ratios(kind, bit):
    """log q - log p at draws of q, and its exact mean."""
    rng = np.random.default_rng(0)
    if kind != "density":
        a, b = (np.array([[x, 0.0] for x in (BIT_OTHER, BIT_PRIOR)])) if bit else (OTHER, PRIOR)
        a, b = (x - np.logaddexp.reduce(x) for x in (a, b))
        classes = rng.choice(len(a), DRAWS, p=np.exp(a))
        return (a - b)[classes], np.exp(a) @ (a - b)
    if bit:
        density = lambda a, x: reference.logistic_log_prob(TAU, a, x)  # noqa: E731
        x = (BIT_OTHER + rng.logistic(size=DRAWS)) / TAU
        integrand = lambda x: (  # noqa: E731
            np.exp(density(BIT_OTHER, x)) * (density(BIT_OTHER, x) - density(BIT_PRIOR, x))
        )
        exact = integrate.quad(integrand, -80, 80, limit=400)[0]
        return density(BIT_OTHER, x) - density(BIT_PRIOR, x), exact
    noise = rng.exponential(size=(DRAWS, len(OTHER)))
    l = reference.exp_gumbel_softmax_sample(TAU, OTHER, noise)
    density = lambda a: reference.exp_gumbel_softmax_log_prob(TAU, a, l)  # noqa: E731
    return density(OTHER) - density(PRIOR), float(reference.exp_gumbel_softmax_kl(OTHER, PRIOR))


def expected(cell, elbo):
    """The loss of a row, its error, and the largest spread of one draw."""
    losses, exact = log_ratios(cell.kind, cell.bit)
    if cell.kind == "soft" or (cell.kind in ("hard", "density") and elbo == MEAN_FIELD):
        return exact, 0.0, 0.0
    if elbo != RENYI:
        return exact, 0.0, losses.std()
    logs = -0.5 * losses.reshape(-1, 2)
    losses = -2 * (np.logaddexp.reduce(logs, -1) - np.log(2))
    return losses.mean(), losses.std() / np.sqrt(len(losses)), losses.std()


# --- the cells ------------------------------------------------------------------------------------


def law(backend, cell, logits):
    if cell.family in ("Categorical", "Bernoulli"):
        return getattr(backend.native, cell.family)(logits=logits)
    if cell.kind == "discrete" or not cell.bit:
        return backend.gs.OneHotCategorical(logits=logits)
    return backend.native.Bernoulli(logits=logits)


def programs(backend, cell, logits, rows=ROWS):
    """Relaxed by the handler; a family of bits has no vectors, and is used directly."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array
    start = array(np.broadcast_to(logits, (rows, *np.shape(logits))))
    own = getattr(gs, cell.family, None)

    def site(logits):
        if cell.bit and cell.kind != "discrete" and cell.family != "GumbelSigmoid":
            ppl.sample("z", own(TAU, logits=logits, **dict(cell.options)))
        else:
            ppl.sample("z", law(backend, cell, logits))

    def model():
        with ppl.plate("rows", rows):
            site(array(BIT_PRIOR if cell.bit else PRIOR))

    def guide():
        with ppl.plate("rows", rows):
            site(ppl.param(f"a {rows}", start))

    if cell.kind == "discrete":
        return model, guide
    family = functools.partial(own, **dict(cell.options)) if cell.options else own
    relax = functools.partial(gs.relax, family=family, objective=cell.objective)
    return relax(model, TAU), relax(guide, TAU)


def make(backend, elbo):
    where = backend.gs if elbo.startswith("gs.") else backend.infer
    return getattr(where, elbo.removeprefix("gs."))(**ELBOS[elbo])


def loss_and_gradient(backend, cell, elbo, logits, rows=ROWS):
    """Loss and gradient of a row, for a pair that check and the ELBO accept."""
    loss, (model, guide) = make(backend, elbo), programs(backend, cell, logits, rows)
    backend.gs.check(model, guide, loss)
    guide = loss.wrap(guide) if hasattr(loss, "wrap") else guide
    value, gradient = backend.loss_and_gradient(loss, model, guide, 0)
    return value / rows, gradient[f"a {rows}"].reshape(rows, -1)


# in the quick suite each family has one ELBO, and each ELBO several families
PAIRS = [
    pytest.param(cell, elbo, id=f"{cell}-{elbo}", marks=[] if quick else [pytest.mark.long])
    for i, cell in enumerate(CELLS)
    for j, elbo in enumerate(ELBOS)
    for quick in [(i - j) % len(ELBOS) == 0]
]


@pytest.mark.parametrize(("cell", "elbo"), PAIRS)
def test_the_prior_is_the_optimum(backend, cell, elbo):
    prior, other = (BIT_PRIOR, BIT_OTHER) if cell.bit else (PRIOR, OTHER)
    refused = refusal(backend, cell, elbo)
    if refused:
        with pytest.raises(ValueError, match=refused):
            loss_and_gradient(backend, cell, elbo, other, rows=2)
        return
    value, gradient = loss_and_gradient(backend, cell, elbo, prior)
    assert value == pytest.approx(0.0, abs=1e-6)
    bound = SIGMAS * gradient.std(0) / np.sqrt(ROWS) + 1e-6
    np.testing.assert_array_less(np.abs(gradient.mean(0)), bound)
    value, gradient = loss_and_gradient(backend, cell, elbo, other)
    wanted, error, spread = expected(cell, elbo)
    noise = SIGMAS * np.hypot(error, spread / np.sqrt(ROWS)) + 1e-5
    assert wanted > noise
    assert value == pytest.approx(wanted, abs=noise)
    step = np.ravel(other - prior)  # from the minimum of the loss
    assert (gradient @ step).mean() > 0
