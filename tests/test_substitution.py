"""REBAR, DARN and similar estimators: their learned parameters, and formulas by hand."""

import itertools

import numpy as np
import pytest
from enumerable import plain, slopes
from estimates import ALL, ESTIMATORS, Z, estimates, in_rows, model_and_guide, one_site
from programs import LOCS, PRIOR, normal
from scipy.special import expit, log_softmax, logit, softmax

# --- REBAR's temperature and scale ----------------------------------------------------------------


def test_rebar_descends_on_its_variance(backend):
    """The gradient of sum G^2 along one direction of log tau and eta, with the same noise."""
    case, size, h = ALL["mixture-automatic"], 200, 1e-4

    def square(t):
        elbo = backend.gs.REBAR_ELBO(temperature=0.7 * np.exp(t), scale=0.6 + t / 2)
        return (estimates(backend, elbo, case, size=size)[1] ** 2).sum()

    elbo = backend.gs.REBAR_ELBO(temperature=0.7, scale=0.6)
    model, guide = model_and_guide(backend, case, size)
    ((_, gradient),) = backend.gradients(elbo, model, elbo.wrap(guide), [0])
    slope = gradient["z_rebar_log_temperature"] + gradient["z_rebar_scale"] / 2
    assert slope == pytest.approx((square(h) - square(-h)) / (2 * h), rel=1e-4)


def test_rebar_learns_temperature_and_scale(backend):
    """Starts with a temperature too high and a scale too small; the guide does not change."""
    case, size, start = ALL["mixture-automatic"], 500, {"temperature": 3.0, "scale": 0.2}
    model = in_rows(backend, plain(backend, "mixture"), 1, size)

    def guide():
        logits = backend.array(case.parameters["z"])
        with backend.ppl.plate("rows", size, dim=-2), backend.ppl.plate("data", 3):
            backend.ppl.sample("z", backend.gs.OneHotCategorical(logits=logits))

    def spread(**values):
        elbo = backend.gs.REBAR_ELBO(**values)
        return estimates(backend, elbo, case, size=20_000)[1].var(0).sum()

    elbo = backend.gs.REBAR_ELBO(**start)
    _, left = backend.train(elbo, model, elbo.wrap(guide), "Adam", 0.05, 100)
    tau, eta = np.exp(left["z_rebar_log_temperature"]), left["z_rebar_scale"]
    assert spread(temperature=float(tau), scale=float(eta)) < 0.8 * spread(**start)


# --- DARN, by hand --------------------------------------------------------------------------------


def test_darn_at_a_bit(backend):
    """G = r'(b) (b - 1/2) (b - pi); its mean is exact, because r is quadratic."""
    a, b = 0.4, np.array([0.0, 1.0])
    pi = expit(a)
    model, guide = one_site(backend, "bit", a, 200)
    ((_, gradient),) = backend.gradients(backend.gs.DARN_ELBO(), model, guide, [0])
    slope = logit(0.3) - a + 1.4 * (0.6 - 1.4 * b)
    expected = slope * (b - 0.5) * (b - pi)
    np.testing.assert_allclose(np.unique(np.round(-gradient["a"], 12)), np.sort(expected))

    def elbo(a):
        q = np.array([expit(-a), expit(a)])
        return q @ (np.log([0.7, 0.3]) + normal(0.6, 1.4 * b) - np.log(q))

    exact_slope = (elbo(a + 1e-5) - elbo(a - 1e-5)) / 2e-5
    assert expected @ [1 - pi, pi] == pytest.approx(exact_slope, rel=1e-6)


def test_darn_at_a_one_hot_vector(backend):
    """G = r'(b) (b - 1/K) (b - pi)."""
    a = np.array([0.5, -0.3, 0.1])
    model, guide = one_site(backend, "one_hot", a, 200)
    ((_, gradient),) = backend.gradients(backend.gs.DARN_ELBO(), model, guide, [0])
    b = np.eye(3)
    slope = np.log(PRIOR) - log_softmax(a) + LOCS * (0.6 - LOCS)[:, None]
    signal = (slope * (b - 1 / 3)).sum(-1)
    expected = signal[:, None] * (b - softmax(a))
    rows = np.unique(np.round(-gradient["a"], 10), axis=0)
    assert len(rows) == 3
    assert all(np.isclose(rows, row).all(-1).any() for row in expected)


PLAIN = [
    (lambda native: native.Bernoulli(0.3), 0.3, 0.8),
    (lambda native: native.Bernoulli(logits=0.0), 0.5, -1.1),
    (lambda native: native.Bernoulli(np.float64(0.6)), 0.6, 0.5),
    (lambda native: native.Bernoulli(1.0), 1.0, 0.2),
]  # law, its probability, the weight of its bit


@pytest.mark.parametrize("name", ["RLOO", "NVIL", "MuProp", "REBAR", "DisARM", "DARN"])
@pytest.mark.quick("RLOO", "DisARM")
def test_parameters_that_are_plain_numbers(backend, name):
    """A bit w with logit a, and bits of plain numbers, one of them certain; summed by hand."""
    ppl, native, array, rows = backend.ppl, backend.native, backend.array, 20_000

    def plain_bits():
        return [ppl.sample(f"z{i}", law(native)) for i, (law, *_) in enumerate(PLAIN)]

    def model():
        with ppl.plate("rows", rows):
            loc = 1.4 * ppl.sample("w", native.Bernoulli(0.3))
            for z, (*_, weight) in zip(plain_bits(), PLAIN, strict=True):
                loc = loc + weight * z
            ppl.sample("x", native.Normal(loc, 1.0), obs=array(0.6))

    def guide():
        a = ppl.param("a", array(np.full(rows, -0.4)))
        with ppl.plate("rows", rows):
            ppl.sample("w", native.Bernoulli(logits=a))
            plain_bits()

    elbo = ESTIMATORS[name](backend)
    wrapped = elbo.wrap(guide) if hasattr(elbo, "wrap") else guide
    ((_, gradient),) = backend.gradients(elbo, model, wrapped, [0])
    assert all(np.isfinite(backend.numpy(slope)).all() for slope in gradient.values())
    estimates = -backend.numpy(gradient["a"])
    mean = np.zeros(2)  # of log p(x | w, z), for each w
    for z in itertools.product([0, 1], repeat=len(PLAIN)):
        weight = np.prod([p if bit else 1 - p for bit, (_, p, _) in zip(z, PLAIN, strict=True)])
        loc = sum(bit * c for bit, (*_, c) in zip(z, PLAIN, strict=True))
        mean += weight * normal(0.6, loc + 1.4 * np.arange(2))
    q = expit(-0.4)
    r = mean + np.log([0.7, 0.3]) - np.log([1 - q, q])
    error = estimates.std() / np.sqrt(rows)
    assert error < 0.01
    assert abs(estimates.mean() - q * (1 - q) * (r[1] - r[0])) < Z * error


@pytest.mark.parametrize("name", ["RLOO", "MuProp", "REBAR", "DARN"])
def test_masked_categories(backend, name):
    """A category that does not exist has no gradient; the others have their gradient."""
    a = np.array([0.5, -np.inf, 0.1])
    elbo, size = ESTIMATORS[name](backend), 20_000
    model, guide = one_site(backend, "one_hot", a, size)
    guide = elbo.wrap(guide) if hasattr(elbo, "wrap") else guide
    ((loss, gradient),) = backend.gradients(elbo, model, guide, [0])
    x = -gradient["a"]
    assert np.isfinite(loss)
    assert all(np.isfinite(backend.numpy(slope)).all() for slope in gradient.values())
    assert (x[:, 1] == 0).all()
    keep = [0, 2]

    def exact_elbo(parameters):
        log_q = log_softmax(parameters["a"])
        return np.exp(log_q) @ (np.log(PRIOR[keep]) + normal(0.6, LOCS[keep]) - log_q)

    expected = slopes(exact_elbo, {"a": a[keep]})["a"]
    if name != "DARN":
        assert (np.abs(x.mean(0)[keep] - expected) < 4 * x.std(0)[keep] / np.sqrt(size)).all()
