"""The objectives of relax at falling temperature: their limits, and the guides fitted with them.

"categorical" converges to the discrete ELBO, and its guide to the best factorised guide of the
discrete program. "relaxed" does not: its optimum is that of the relaxed KL.
"""

import functools

import numpy as np
import pytest
from programs import DATA, LOCS, PRIOR, by_name, normal, plain
from scipy import optimize, stats

from gs_ppl import reference, temperature

FITS = 100
BIT_SITES = {"c", "top", "h"}
FAILURE_RATE = 1e-7  # for one z-score


def variables(program, probs):
    """Probabilities of the values of each discrete variable, from those of the sites."""
    result = []
    for name in program.sites:
        p = np.asarray(probs[name])
        if name in BIT_SITES:
            result += [np.array([1 - one, one]) for one in p.ravel()]
        else:
            result += list(p.reshape(-1, p.shape[-1]))
    return result


def discrete_elbo(log_joints, q):
    """ELBO of a factorised guide, by summation over all assignments."""
    expected = log_joints
    for p in reversed(q):
        expected = expected @ p
    return expected - sum((p * np.log(p)).sum() for p in q)


def softmax(a):
    return np.exp(a - np.logaddexp.reduce(a))


@functools.cache
def best_factorised(name, starts=8):
    """The guide that maximises the discrete ELBO, over several starts."""
    log_joints = by_name(name).log_joints()
    sizes = log_joints.shape

    def unpack(x):
        return [softmax(a) for a in np.split(x, np.cumsum(sizes)[:-1])]

    rng = np.random.default_rng(0)
    runs = [
        optimize.minimize(
            lambda x: -discrete_elbo(log_joints, unpack(x)), rng.normal(size=sum(sizes))
        )
        for _ in range(starts)
    ]
    return unpack(min(runs, key=lambda run: run.fun).x), sorted(run.fun for run in runs)


def fitted(backend, program, objective, tau):
    """Probabilities of each variable after annealing from 1 to tau: the mean of many fits, which
    are rows of a plate around the program."""
    one = plain(backend, program)

    def model():
        with backend.ppl.plate("fits", FITS, dim=-1 - program.plates):
            one()

    guide = backend.gs.AutoGumbelSoftmax(model, objective=objective)
    _, params = backend.anneal(
        backend.gs.relax(model, objective=objective),
        guide,
        backend.infer.TraceMeanField_ELBO(),
        temperature.exponential(rate=0.01, minimum=tau),
        steps=1500,
        decay=0.998,
    )
    probs = backend.guide_probs(guide, params)
    return variables(program, {name: p.mean(0) for name, p in probs.items()})


def distances(p, q):
    """Total variation for each variable."""
    return np.array([np.abs(a - b).sum() / 2 for a, b in zip(p, q, strict=True)])


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["mixture", *(pytest.param(n, marks=pytest.mark.long) for n in ("factorial", "bernoulli_net"))],
)
def test_categorical_objective_tends_to_the_discrete_elbo(backend, name):
    """The guide is not the prior; all losses have the same random numbers.

    The straight-through loss has the discrete ELBO as its mean at any temperature; the soft loss
    comes closer to it at each lower temperature.
    """
    program = by_name(name)
    rng = np.random.default_rng(0)
    guide = backend.gs.AutoGumbelSoftmax
    model = plain(backend, program)
    shapes = {k: v.shape for k, v in backend.trace(model, 0).items() if k in program.sites}
    logits = {k: backend.array(rng.normal(size=shape)) for k, shape in shapes.items()}
    probs = {
        k: 1 / (1 + np.exp(-backend.numpy(a)))
        if k in BIT_SITES
        else np.apply_along_axis(softmax, -1, backend.numpy(a))
        for k, a in logits.items()
    }
    expected = -discrete_elbo(program.log_joints(), variables(program, probs))

    def losses(family, tau):
        make = getattr(backend.gs, family)
        relaxed = backend.gs.relax(model, tau, family=make)
        one = guide(model, tau, family=make, init_logits=logits)
        return backend.losses(backend.infer.TraceMeanField_ELBO(), relaxed, one, 400)

    hard = losses("STGumbelSoftmax", 1.0)
    z = stats.norm.isf(FAILURE_RATE / 2)
    error = lambda x: x.std() / np.sqrt(len(x))  # noqa: E731
    assert abs(hard.mean() - expected) < z * error(hard)
    gaps = [losses("GumbelSoftmax", tau) - hard for tau in (1.0, 0.3, 0.1, 0.01)]
    sizes = [abs(gap.mean()) for gap in gaps]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > z * error(gaps[0])
    assert sizes[-1] < sizes[0] / 20


# --- guides ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "mixture",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("hidden_markov", "bernoulli_net")),
    ],
)
def test_guide_tends_to_the_best_factorised_one(backend, name):
    best, optima = best_factorised(name)
    assert np.ptp(optima) < 1e-4  # there is one optimum, which any start should find
    far, near = (
        distances(fitted(backend, by_name(name), "categorical", tau), best) for tau in (0.7, 0.1)
    )
    assert near.max() < 0.05
    assert near.sum() < far.sum() / 3


KLS = {"categorical": reference.categorical_kl, "relaxed": reference.exp_gumbel_softmax_kl}


def optimum(objective, x, tau, draws=20_000):
    """Optimum of one row of the mixture: KL by formula, fixed noise for the likelihood."""
    noise = np.random.default_rng(0).exponential(size=(draws, len(PRIOR)))

    def loss(a):
        y = np.exp(reference.exp_gumbel_softmax_sample(tau, a, noise))
        kl = KLS[objective](a, np.log(PRIOR))
        return kl - normal(x, y @ LOCS).mean() + a.sum() ** 2  # the sum of a is free: held at 0

    return softmax(optimize.minimize(loss, np.zeros(len(PRIOR))).x)


@pytest.mark.parametrize("objective", KLS)
@pytest.mark.quick("categorical")
def test_guide_finds_the_optimum_of_its_objective(backend, objective):
    """At low temperature the relaxed optimum is far from the posterior, which is the best guide."""
    tau = 0.1
    fit = fitted(backend, by_name("mixture"), objective, tau)
    expected = [optimum(objective, x, tau) for x in DATA[:3]]
    posterior, _ = best_factorised("mixture")
    assert distances(fit, expected).max() < 0.02
    from_posterior = distances(fit, posterior)
    if objective == "relaxed":
        assert from_posterior.min() > 0.1
    else:
        assert from_posterior.max() < 0.05
