"""An automatic guide has the masks, scales and rows of its model."""

import numpy as np
import pytest
from scipy.special import log_softmax

LOGITS = np.array([[0.3, -0.2, 0.9], [1.0, 0.0, -0.5], [0.1, 0.2, -1.0]])
PRIOR = np.array([0.5, 0.3, 0.2])
LOCS = np.array([-1.5, 0.0, 2.0])
X = np.array([[0.5, -1.0, 1.5], [0.1, 0.9, -0.7]])
LENGTHS = np.array([2, 1, 2])
SEEN = np.arange(2)[:, None] < LENGTHS
ROWS = np.array([2, 0])  # the rows of a minibatch


class Masked:
    """Sequences of several lengths, with a mask or a scale of each kind, and a guide with the
    same."""

    def __init__(self, backend, kind):
        self.backend, self.kind = backend, kind

    def site(self, t, law, seen):
        ppl, backend = self.backend.ppl, self.backend
        name, kind = f"z{t}", self.kind
        if kind == "law":
            return ppl.sample(name, backend.mask(law, seen))
        if kind == "scale":
            return backend.scaled(lambda: ppl.sample(name, law), 0.5)()
        return backend.masked(lambda: ppl.sample(name, law), seen)()

    def model(self):
        b = self.backend
        with b.ppl.plate("rows", 3):
            for t in range(2):
                law = b.gs.OneHotCategorical(probs=b.array(PRIOR))
                z = self.site(t, law, SEEN[t])
                x = b.native.Normal(b.gs.select(b.array(LOCS), z), 1.0)
                b.ppl.sample(f"x{t}", b.mask(x, SEEN[t]), obs=b.array(X[t]))

    def guide(self):
        b = self.backend
        with b.ppl.plate("rows", 3):
            for t in range(2):
                a = b.ppl.param(f"a{t}", b.array(LOGITS))
                self.site(t, b.gs.OneHotCategorical(logits=a), SEEN[t])

    def auto(self, **options):
        logits = {f"z{t}": self.backend.array(LOGITS) for t in range(2)}
        return self.backend.gs.AutoGumbelSoftmax(self.model, init_logits=logits, **options)

    def elbo(self):
        """Sum over the classes; a scale applies only to the terms of the latents."""
        log_q = log_softmax(LOGITS, -1)
        kl = (np.exp(log_q) * (log_q - np.log(PRIOR))).sum(-1)
        fit = -0.5 * (X[..., None] - LOCS) ** 2 - 0.5 * np.log(2 * np.pi)
        fit = (np.exp(log_q) * fit).sum(-1)
        weight = 0.5 if self.kind == "scale" else SEEN
        return (SEEN * fit - weight * kl).sum()


KINDS = ["handler", "law", "scale"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.quick("handler")
def test_masks_and_scales_are_the_models(backend, kind):
    """By straight-through draws: loss and gradient of a guide by hand, with the same noise."""
    gs, program = backend.gs, Masked(backend, kind)
    options = {"family": gs.STGumbelSoftmax}
    model = gs.relax(program.model, 0.5, **options)
    auto, hand = program.auto(temperature=0.5, **options), gs.relax(program.guide, 0.5, **options)
    elbo = backend.infer.TraceMeanField_ELBO()
    gs.check(model, auto, elbo)
    seeds = range(200)
    found, expected = (backend.gradients(elbo, model, guide, seeds) for guide in (auto, hand))
    losses, known = (np.array([loss for loss, _ in runs]) for runs in (found, expected))
    error = losses.std() / np.sqrt(len(seeds))
    assert abs(losses.mean() + program.elbo()) < 5 * error  # fails for one in two million seeds
    assert abs(known.mean() + program.elbo()) < 5 * error
    for t in range(2):
        name = backend.auto_logits(f"z{t}")
        ours, theirs = (
            np.mean([gradient[name] for _, gradient in runs], 0)
            for runs, name in ((found, name), (expected, f"a{t}"))
        )
        np.testing.assert_allclose(ours, theirs, atol=0.5)
        unseen = ~SEEN[t] if kind != "scale" else np.zeros(3, bool)
        np.testing.assert_array_equal(ours[unseen], 0.0)


@pytest.mark.parametrize("law", ["one-hot", "integer"])
def test_partly_observed(backend, law):
    """obs_mask: observed rows are scored as data, the others by the guide; observed rows do not
    change."""
    ppl, gs, seen = backend.ppl, backend.gs, np.array([True, False, True])
    classes = np.array([2, 0, 1])
    mask = backend.array(seen, "bool")

    def model():
        with ppl.plate("rows", 3):
            if law == "one-hot":
                given = gs.OneHotCategorical(probs=backend.array(PRIOR))
                obs = backend.array(np.eye(3)[classes])
            else:
                given = backend.native.Categorical(probs=backend.array(PRIOR))
                obs = backend.array(classes, "int64")
            z = ppl.sample("z", given, obs=obs, obs_mask=mask)
            table = backend.array(LOCS)
            loc = gs.select(table, z) if law == "one-hot" else table[z]
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(X[0]))

    log_q = log_softmax(LOGITS, -1)
    fit = np.log(PRIOR) - 0.5 * (X[0][:, None] - LOCS) ** 2 - 0.5 * np.log(2 * np.pi)
    unseen = (np.exp(log_q) * (fit - log_q)).sum(-1)
    elbo = np.where(seen, fit[np.arange(3), classes], unseen).sum()
    init = {"z_unobserved": backend.array(LOGITS)}
    guide = gs.AutoGumbelSoftmax(
        model, family=gs.STGumbelSoftmax, temperature=0.5, init_logits=init
    )
    relaxed = gs.relax(model, 0.5, family=gs.STGumbelSoftmax)
    loss, name = backend.infer.TraceMeanField_ELBO(), backend.auto_logits("z_unobserved")
    gs.check(relaxed, guide, loss)
    losses, gradients = zip(*backend.gradients(loss, relaxed, guide, range(300)), strict=True)
    error = np.std(losses) / np.sqrt(300)
    assert abs(np.mean(losses) + elbo) < 5 * error  # fails for one in two million seeds
    moved = np.abs([g[name] for g in gradients]).max((0, 2))
    np.testing.assert_array_equal(moved > 1e-12, ~seen)


@pytest.mark.only("pyro")  # NumPyro compiles all of them
@pytest.mark.parametrize("kind", KINDS)
def test_masks_under_a_compiled_loss(backend, kind):
    from gs_ppl.pyro.svi import JitTraceMeanField_ELBO

    program, constant = Masked(backend, kind), lambda step: 0.5
    compiled = JitTraceMeanField_ELBO(ignore_jit_warnings=True)
    plain = backend.infer.TraceMeanField_ELBO()
    found, expected = backend.compiled_and_plain_losses(program.model, compiled, plain, constant, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_masks_under_enumeration(backend, kind):
    program, enumerated = Masked(backend, kind), backend.gs.config_enumerate
    loss = backend.enumerated_loss(enumerated(program.model), enumerated(program.auto()), 1)
    assert loss == pytest.approx(-program.elbo(), rel=1e-6)


def test_mask_of_a_latent_is_refused(backend):
    ppl, gs = backend.ppl, backend.gs

    def model():
        with ppl.plate("rows", 2):
            z = ppl.sample("z", gs.OneHotCategorical(probs=backend.array(PRIOR)))
            law = gs.OneHotCategorical(probs=backend.array(PRIOR))
            ppl.sample("w", law.mask(z[..., 0] > 0.5))

    with pytest.raises(ValueError, match="site 'w': its mask depends on the latent 'z'"):
        backend.trace(gs.AutoGumbelSoftmax(model, 0.5), 0)


def test_mask_of_the_rows_of_a_minibatch(backend):
    """Each draw of rows has a different mask, and a masked row always has gradient zero."""
    ppl, gs, seen = backend.ppl, backend.gs, np.array([True, False, True, True, False, True])

    def model():
        with ppl.plate("rows", 6, subsample_size=2) as rows:
            law = gs.OneHotCategorical(probs=backend.array(PRIOR))
            z = ppl.sample("z", backend.mask(law, backend.array(seen, "bool")[rows]))
            loc = gs.select(backend.array(LOCS), z)
            x = backend.native.Normal(loc, 1.0)
            ppl.sample("x", backend.mask(x, backend.array(seen, "bool")[rows]), obs=loc * 0 + 1.0)

    guide = gs.AutoGumbelSoftmax(model, 0.5, init_logits=backend.array([1.0, 0.0, 0.0]))
    elbo, name = backend.infer.TraceMeanField_ELBO(), backend.auto_logits("z")
    relaxed = gs.relax(model, 0.5)
    gradients = [g[name] for _, g in backend.gradients(elbo, relaxed, guide, range(40))]
    moved = (np.array(gradients) != 0).any((0, 2))
    np.testing.assert_array_equal(moved, seen)
    for seed in range(10):
        rows, mask = backend.rows_and_mask(guide, "rows", "z", seed)
        np.testing.assert_array_equal(mask, seen[rows])


@pytest.mark.only("numpyro")
def test_a_masked_plate_inside_of_scan(backend):
    """The plate keeps its size and its mask, which depends on no latent, although all enter the
    scan."""
    import jax.numpy as jnp
    from numpyro.contrib.control_flow import scan

    ppl, native = backend.ppl, backend.native

    def model():
        probs = ppl.sample("probs", native.Dirichlet(jnp.ones((3, 3))).to_event(1))

        def body(carry, x):
            z, t = carry
            with ppl.plate("rows", 3), ppl.handlers.mask(mask=t < LENGTHS):
                z = ppl.sample("z", native.Categorical(probs[z]))
                ppl.sample("x", native.Normal(jnp.asarray(LOCS)[z], 1.0), obs=x)
            return (z, t + 1), None

        scan(body, (jnp.zeros(3, int), 0), jnp.asarray(X))

    guide = backend.gs.auto_relaxed(model, temperature=0.5)
    with ppl.handlers.seed(rng_seed=0):
        site = ppl.handlers.trace(guide).get_trace()["z"]
    assert site["value"].shape == (2, 3, 3)
    scores = site["fn"].log_prob(site["value"])
    np.testing.assert_allclose(scores, np.where(SEEN, -np.log(3), 0.0), rtol=1e-6)


# --- programs of another structure ----------------------------------------------------------------


def test_latents_that_come_and_go(backend):
    """Latents of a sequence that was longer in the first run."""
    b, steps = backend, [3]

    def model():
        with b.ppl.plate("rows", 3):
            for t in range(steps[0]):
                law = b.gs.OneHotCategorical(probs=b.array(PRIOR))
                b.masked(lambda t=t, law=law: b.ppl.sample(f"z{t}", law), np.arange(3) > t)()

    elbo, constant = b.infer.TraceMeanField_ELBO(), lambda step: 0.5
    getattr(b.ppl, "clear_param_store", lambda: None)()  # NumPyro has no store
    guide = b.gs.AutoGumbelSoftmax(model)
    losses, _ = b.anneal(b.gs.relax(model), guide, elbo, constant, 2)
    assert np.isfinite(losses).all()
    steps[0] = 2
    with pytest.raises(ValueError, match="site 'z2': the program has it in some runs and not"):
        b.anneal(b.gs.relax(model), guide, elbo, constant, 1)


@pytest.mark.only("pyro")  # NumPyro has no plate that is a loop
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a continuous latent"])
def test_a_plate_that_is_a_loop(backend, beside):
    """The same ELBO as by hand; random rows have different names, which are refused."""
    b = backend

    def model(rows=None):
        loc = b.ppl.sample("loc", b.native.Normal(b.array(0.0), 1e-4)) if beside else 0.0
        for i in b.ppl.plate("rows", 3, rows):
            z = b.ppl.sample(f"z{i}", b.native.Categorical(probs=b.array(PRIOR)))
            b.ppl.sample(
                f"x{i}", b.native.Normal(b.array(LOCS)[z] + loc, 1.0), obs=b.array(X[0, i])
            )

    def auto():
        b.ppl.clear_param_store()
        logits = {f"z{i}": b.array(LOGITS[i]) for i in range(3)}
        make = b.gs.auto_relaxed if beside else b.gs.AutoGumbelSoftmax
        return make(model, init_logits=logits)

    log_q = log_softmax(LOGITS, -1)
    fit = -0.5 * (X[0][:, None] - LOCS) ** 2 - 0.5 * np.log(2 * np.pi) + np.log(PRIOR)
    elbo = (np.exp(log_q) * (fit - log_q)).sum()
    guide, loss, constant = auto(), b.infer.TraceMeanField_ELBO(), lambda step: 0.5
    if not beside:
        report = b.compare(model, guide, num_samples=2, families=[])
        assert report.elbo.mean == pytest.approx(elbo, rel=1e-5)
    losses, _ = b.anneal(b.gs.relax(model), auto(), loss, constant, 2)
    assert np.isfinite(losses).all()
    with pytest.raises(ValueError, match=r"site 'z.': .* a loop over some rows of the plate"):
        auto()(2)


def test_a_latent_that_comes_later(backend):
    """At equal shapes the guide does not read the model again; the ELBO finds the latent only in
    it."""
    ppl, gs, has_second = backend.ppl, backend.gs, [False]

    def model(x):
        loc = backend.array(LOCS)[
            ppl.sample("z", backend.native.Categorical(probs=backend.array(PRIOR)))
        ]
        if has_second[0]:
            loc = loc + ppl.sample("z2", backend.native.Bernoulli(probs=backend.array(0.3)))
        ppl.sample("x", backend.native.Normal(loc, 1.0), obs=x)

    guide, loss = gs.AutoGumbelSoftmax(model), backend.infer.TraceMeanField_ELBO()
    step = backend.stepper(gs.relax(model), guide, loss, lambda step: 0.5)
    step(backend.array(0.3))
    has_second[0] = True
    with (
        pytest.warns(UserWarning, match="not guide"),
        pytest.raises(ValueError, match=r"site 'z2': .* some runs"),
    ):
        step(backend.array(0.3))
