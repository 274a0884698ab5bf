"""Guides with sparse=True: rows are trained separately, each with its own optimizer state."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from gs_ppl import temperature

ROWS, K, RATE = 12, 3, 0.05
RNG = np.random.default_rng(0)
PRIOR = RNG.normal(size=(ROWS, K))
START = RNG.normal(size=(ROWS, K))
# Rows with different numbers of visits; one is twice in a batch, some are never visited.
BATCHES = [[0, 1, 2], [2, 0, 3], [4, 4, 0], [7, 2, 0], [1, 5, 4], [0, 8, 2]]
SCHEDULE = temperature.constant(0.5)


def of_rows(backend, shared=True):
    """A program whose divergence is exact, so that its gradient has no noise."""

    def model(rows):
        zeros = backend.array(np.zeros(K))
        shift = backend.ppl.param("shift", zeros) if shared else zeros
        with backend.plate_of_rows("data", ROWS, rows) as rows:
            logits = backend.array(PRIOR)[rows] + shift
            backend.ppl.sample("z", backend.gs.OneHotCategorical(logits=logits))

    return model


def trained(backend, model, batches=BATCHES, **options):
    """The guide's logits, and other parameters, after a step on each batch."""
    options = {"init_logits": {"z": backend.array(START)}} | options
    guide = backend.gs.AutoGumbelSoftmax(model, **options)
    elbo = backend.infer.TraceMeanField_ELBO()
    batches = [backend.array(batch, "int64") for batch in batches]
    return backend.trained_by_adam(backend.gs.relax(model), guide, elbo, SCHEDULE, batches, RATE)


class Adam:
    """Adam for one parameter, as in the paper (arXiv 1412.6980, algorithm 1)."""

    def __init__(self, x):
        self.x, self.m, self.v, self.t = x.copy(), np.zeros_like(x), np.zeros_like(x), 0

    def step(self, g):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        self.x = self.x - RATE * m / (np.sqrt(v) + 1e-8)


def by_hand(batches=BATCHES):
    """Each row has a separate Adam, and the parameter that all rows share has another."""
    rows, shift = [Adam(a) for a in START], Adam(np.zeros(K))
    for batch in batches:
        gradients, shared = {r: np.zeros(K) for r in batch}, np.zeros(K)
        for r in batch:
            prior = PRIOR[r] + shift.x
            difference = log_softmax(rows[r].x) - log_softmax(prior)
            q, scale = softmax(rows[r].x), ROWS / len(batch)
            gradients[r] += scale * q * (difference - (q * difference).sum())
            shared += scale * (softmax(prior) - q)
        for r, g in gradients.items():
            rows[r].step(g)
        shift.step(shared)
    return np.array([row.x for row in rows]), shift.x


def test_each_row_runs_adam_on_its_own_visits(backend):
    logits, others = trained(backend, of_rows(backend), sparse=True)
    expected, shift = by_hand()
    np.testing.assert_allclose(logits, expected, atol=1e-9, rtol=0)
    np.testing.assert_allclose(others["shift"], shift, atol=1e-9, rtol=0)
    never = sorted({*range(ROWS)} - {r for batch in BATCHES for r in batch})
    np.testing.assert_array_equal(logits[never], START[never])


def structured(backend):
    """A bit that depends on a class, and data that depend on both."""
    locs, on = backend.array([-1.0, 0.0, 2.0]), backend.array([-1.0, 0.5, 1.0])
    x = backend.array(np.linspace(-1, 2, ROWS))

    def model(rows):
        with backend.plate_of_rows("data", ROWS, rows) as rows:
            logits = backend.array(PRIOR)[rows]
            z = backend.ppl.sample("z", backend.gs.OneHotCategorical(logits=logits))
            b = backend.ppl.sample("b", backend.native.Bernoulli(logits=backend.gs.select(on, z)))
            law = backend.native.Normal(backend.gs.select(locs, z) + b, 1.0)
            backend.ppl.sample("x", law, obs=x[rows])

    return model


def inner_plate(backend):
    def model(rows):
        with backend.ppl.plate("data", ROWS, dim=-2), backend.ppl.plate("inner", 2, dim=-1):
            logits = backend.array(np.stack([PRIOR, -PRIOR], 1))
            backend.ppl.sample("z", backend.gs.OneHotCategorical(logits=logits))

    return model


WHOLE = [np.arange(ROWS)] * 4


@pytest.mark.quick("pyro", "inner_plate")
@pytest.mark.parametrize("make", [structured, inner_plate])
def test_with_all_rows_in_each_batch_it_is_the_dense_guide(backend, make):
    """Tables with parents, bits, whole plates with the plate of rows; equal noise."""
    options = {"parents": "model", "init_logits": 0.3}
    dense, sparse = (
        trained(backend, make(backend), WHOLE, **options, sparse=sparse) for sparse in (False, True)
    )
    np.testing.assert_allclose(sparse[0], dense[0], atol=1e-9, rtol=0)
    for name, value in dense[1].items():
        np.testing.assert_allclose(sparse[1][name], value, atol=1e-9, rtol=0)
    assert np.abs(dense[0] - 0.3).max() > 0.1


LOCS, DATA = np.array([-1.0, 0.0, 2.0]), np.linspace(-1, 2, ROWS)
POSTERIOR = softmax(-0.5 * (DATA[:, None] - LOCS) ** 2, -1)


def of_size(backend):
    """A program that draws its rows, with a continuous latent shared by all rows."""

    def model():
        shift = backend.ppl.sample("shift", backend.native.Normal(backend.array(0.0), 0.1))
        with backend.ppl.plate("data", ROWS, subsample_size=6) as rows:
            z = backend.ppl.sample(
                "z", backend.gs.OneHotCategorical(logits=backend.array(np.zeros(K)))
            )
            law = backend.native.Normal(backend.gs.select(backend.array(LOCS), z) + shift, 1.0)
            backend.ppl.sample("x", law, obs=backend.array(DATA)[rows])

    return model


def test_rows_that_the_plate_draws(backend):
    """Two particles, a continuous part, progress reports; then functions that read a trained
    guide."""
    gs, seen = backend.gs, []
    model = of_size(backend)
    guide = gs.AutoGuideList(model)
    part = gs.AutoGumbelSoftmax(backend.bare_block(model, expose=["z"]), sparse=True)
    guide.append(backend.infer.autoguide.AutoNormal(backend.bare_block(model, hide=["z"])))
    guide.append(part)
    elbo = backend.infer.TraceMeanField_ELBO(num_particles=2)
    watching = {"callback": lambda *at: seen.append(at), "callback_every": 30}
    result = backend.run(
        gs.relax(model), guide, elbo, SCHEDULE, 90, RATE, **watching, progress_bar=False
    )
    assert len(seen) == 3
    params = getattr(result, "params", None)
    probs = backend.guide_probs(part, params)["z"]
    assert np.abs(probs - POSTERIOR).max() < 0.3
    np.testing.assert_array_equal(
        backend.guide_mode(part, params)["z"], np.eye(K)[probs.argmax(-1)]
    )


@pytest.mark.quick("pyro")
def test_compare_takes_gradients_of_all_rows(backend):
    model, logits = of_rows(backend, shared=False), {"z": backend.array(START)}
    rows, found = backend.array(np.arange(ROWS), "int64"), []
    for sparse in (False, True):
        guide = backend.gs.AutoGumbelSoftmax(model, init_logits=logits, sparse=sparse)
        report = backend.compare(model, guide, rows, temperatures=[0.5], num_samples=5)
        found.append([report.elbo.mean, report.estimates[0].logits.bias])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)


# --- refusals -------------------------------------------------------------------------------------


def no_plate(backend):
    def model(rows):
        backend.ppl.sample("z", backend.gs.OneHotCategorical(logits=backend.array(np.zeros(K))))

    return model


def rows_inside(backend):
    def model(rows):
        law = backend.gs.OneHotCategorical(logits=backend.array(np.zeros(K)))
        with (
            backend.ppl.plate("data", ROWS, subsample_size=2, dim=-1),
            backend.ppl.plate("inner", 2, dim=-2),
        ):
            backend.ppl.sample("z", law)

    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_plate, "sparse=True is for rows of a plate, but no discrete latent is in a"),
        (rows_inside, r"site 'z': with sparse=True .* plate\('data', ..., dim=-2\)"),
    ],
)
def test_programs_without_rows_on_the_first_axis(backend, make, message):
    guide = backend.gs.AutoGumbelSoftmax(make(backend), sparse=True)
    with pytest.raises(ValueError, match=message):
        backend.trace(lambda: backend.gs.discretize(guide)(None), 0)


OTHERS = {
    "pyro": {
        "SGD": (lambda optim: optim.SGD({"lr": 0.1}), "SGD .* Adam or ClippedAdam"),
        "decay": (lambda optim: optim.Adam({"weight_decay": 0.1}), "do not set weight_decay"),
        "clipped": (lambda optim: optim.Adam({}, {"clip_norm": 1.0}), "do not set clip_args"),
        "schedule": (
            lambda optim: optim.ExponentialLR(
                {"optimizer": optim.Adam({}).pt_optim_constructor, "optim_args": {}, "gamma": 0.9}
            ),
            "ExponentialLR .* Adam or ClippedAdam",
        ),
    },
    "numpyro": {"Minimize": (lambda optim: optim.Minimize(), "Minimize .* more than once")},
}


def test_optimizers_that_rows_cannot_have(backend):
    model, rows = of_rows(backend), backend.array([0, 1], "int64")
    for make, message in OTHERS[backend.name].values():
        guide = backend.gs.AutoGumbelSoftmax(model, sparse=True)
        programs, elbo = (backend.gs.relax(model), guide), backend.infer.TraceMeanField_ELBO()
        optim = make(backend.ppl.optim)
        with pytest.raises(ValueError, match=f"sparse=True cannot use .*{message}"):
            backend.gs.AnnealedSVI(*programs, optim, elbo, SCHEDULE).step(rows)


# --- what one side has ----------------------------------------------------------------------------


@pytest.mark.only("pyro")
@pytest.mark.parametrize("kind", ["ClippedAdam", "function", "optimizer"])
def test_torch_optimizers(backend, kind):
    """An optimizer works for the rows unchanged: with all rows in each batch the results are
    equal."""
    from functools import partial

    torch, model = backend.torch, of_rows(backend)
    makes = {
        "ClippedAdam": lambda: backend.ppl.optim.ClippedAdam(
            {"lr": 0.1, "lrd": 0.9, "clip_norm": 0.05, "betas": (0.8, 0.9)}
        ),
        "function": lambda: partial(torch.optim.Adam, lr=0.1, eps=1e-3),
        "optimizer": lambda: torch.optim.Adam(
            [p for _, p in backend.ppl.get_param_store().named_parameters()], lr=0.1
        ),
    }
    found = []
    for sparse in (False, True):
        backend.ppl.clear_param_store()
        start = {"z": backend.array(START)}
        guide = backend.gs.AutoGumbelSoftmax(model, init_logits=start, sparse=sparse)
        rows = backend.array(WHOLE[0], "int64")
        model(rows), backend.gs.discretize(guide)(rows)  # makes the parameters
        elbo = backend.infer.TraceMeanField_ELBO()
        svi = backend.gs.AnnealedSVI(backend.gs.relax(model), guide, makes[kind](), elbo, SCHEDULE)
        for batch in WHOLE:
            svi.step(backend.array(batch, "int64"))
            svi.set_state(svi.get_state())
        found.append({n: backend.numpy(x) for n, x in backend.ppl.get_param_store().items()})
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, atol=1e-9, rtol=0)


@pytest.mark.only("pyro")
def test_compiled(backend):
    from gs_ppl.pyro.svi import JitTraceMeanField_ELBO

    model, start = of_rows(backend), {"z": backend.array(START)}
    guide = backend.gs.AutoGumbelSoftmax(model, init_logits=start, sparse=True)
    elbo = JitTraceMeanField_ELBO(ignore_jit_warnings=True)
    batches = [backend.array(batch, "int64") for batch in BATCHES]
    programs = backend.gs.relax(model), guide
    logits, _ = backend.trained_by_adam(*programs, elbo, SCHEDULE, batches, RATE)
    np.testing.assert_allclose(logits, by_hand()[0], atol=1e-9, rtol=0)


@pytest.mark.only("numpyro")
def test_optax(backend):
    """Its counts and schedules are kept for each row; steps that are not finite change nothing."""
    import optax

    adam = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(RATE))
    expected, _ = by_hand()
    model, jax = of_rows(backend), backend.jax
    guide = backend.gs.AutoGumbelSoftmax(
        model, init_logits={"z": backend.array(START)}, sparse=True
    )
    elbo = backend.infer.TraceMeanField_ELBO()
    svi = backend.gs.AnnealedSVI(backend.gs.relax(model), guide, adam, elbo, SCHEDULE)
    batches = [backend.array(batch, "int64") for batch in BATCHES]
    state = svi.init(jax.random.key(0), batches[0])
    update = jax.jit(svi.stable_update)
    for batch in batches:
        state, _ = update(state, batch)
    found = svi.get_params(state)["z_auto_logits"]
    np.testing.assert_allclose(found, expected, atol=1e-9, rtol=0)
