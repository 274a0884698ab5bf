"""The semi-supervised model: the same source relaxed, straight-through, enumerated and discrete."""

import dataclasses

import numpy as np
import pytest
from networks import NETWORKS, make_pair

from gs_ppl.models.training import SemiSupervisedSettings, accuracy, augment, fit, make_trainer

RNG = np.random.default_rng(0)
CLASSES, PIXELS = 3, 64
LABELS = RNG.permutation(np.arange(90) % CLASSES)
INK = RNG.choice([0.1, 0.9], (CLASSES, PIXELS))
IMAGES = (RNG.random((90, PIXELS)) < INK[LABELS]).astype(np.float32)
INPUTS = IMAGES[:5], IMAGES[5:9], np.eye(CLASSES, dtype=np.float32)[LABELS[5:9]]
SIZES = {"classes": CLASSES, "style": 2, "width": 8, "pixels": PIXELS}
VARIANTS = {
    "mlp": SIZES,
    "mlp, features anew for each y": {**SIZES, "shared": False},
    "convolutions": {**SIZES, "channels": 2},
}
MODEL = "semi_supervised", "SemiSupervised"


@pytest.fixture(params=NETWORKS)
def side(request):
    return request.param


@pytest.fixture(params=["GumbelSoftmax", "STGumbelSoftmax", "enumerated"])
def settings(request):
    return SemiSupervisedSettings(
        family=request.param,
        classes=CLASSES,
        variables=2,
        hidden=(8,),
        alpha=5.0,
        steps=200,
        batch=10,
        labelled=6,
        learning_rate=0.02,
    )


def make(side, settings):
    return make_trainer(side, settings, IMAGES, (IMAGES[:9], LABELS[:9]))


@pytest.mark.parametrize("channels", [None, 2], ids=["mlp", "convolutions"])
@pytest.mark.quick("mlp")
def test_two_steps(side, settings, channels):
    settings = dataclasses.replace(settings, channels=channels)
    trainer = make(side, settings)
    before = trainer.classify(IMAGES)
    assert np.isfinite(trainer.advance(2)).all()
    assert trainer.step == 2
    assert np.abs(trainer.classify(IMAGES) - before).max() > 1e-3


@pytest.mark.quick("STGumbelSoftmax")
def test_learns_the_classes(side, settings, tmp_path):
    """The better of two starts learns; a few seeds end in a worse optimum."""
    labelled = IMAGES[:9], LABELS[:9]
    options = {"labelled": labelled, "test_labels": LABELS, "samples": 5, "chunk": 100}
    options["evaluate_every"] = 100
    for seed in (0, 1):
        start = dataclasses.replace(settings, seed=seed)
        trainer, result = fit(side, start, IMAGES, IMAGES, tmp_path / str(seed), **options)
        (_, first), (_, last) = result["losses"]
        assert last < first
        if result["test"]["accuracy"] > 0.9:
            break
    right = result["test"]["accuracy"]
    assert right > 0.9
    confusion = np.array(result["test"]["confusion"])
    np.testing.assert_array_equal(confusion.sum(1), np.bincount(LABELS, minlength=CLASSES))
    assert confusion.trace() == pytest.approx(right * len(IMAGES))
    step, *shares = result["right"][-1]
    assert step == settings.steps
    assert shares @ confusion.sum(1) == pytest.approx(confusion.trace())
    probs = trainer.classify(IMAGES[:4])
    assert probs.shape == (4, CLASSES)
    assert probs.sum(-1) == pytest.approx(1, abs=1e-5)


def test_accuracy():
    probs = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.5, 0.1, 0.4], [0.1, 0.1, 0.8]])
    assert accuracy(probs, np.array([0, 1, 2, 2])) == 0.75


def test_augment():
    """A single dot moves by at most the shift, to each place within it; grey levels are drawn."""
    dot = np.zeros((1, 49), np.float32)
    dot[0, 24] = 1.0
    pixels, labels = augment(dot, np.array([4]), copies=500, shift=2, seed=0)
    assert (labels == 4).all()
    assert (pixels.sum(-1) == 1).all()
    rows, columns = np.divmod(pixels.argmax(-1), 7)
    assert {*zip(rows - 3, columns - 3, strict=True)} == {
        (i, j) for i in range(-2, 3) for j in range(-2, 3)
    }
    grey, _ = augment(np.full((1, 49), 0.3, np.float32), np.array([0]), 500, shift=0, seed=1)
    assert {*np.unique(grey)} == {0, 1}
    assert grey.mean() == pytest.approx(0.3, abs=0.02)  # 6 standard errors


@pytest.mark.quick("mlp")
@pytest.mark.parametrize("sizes", VARIANTS.values(), ids=VARIANTS)
def test_log_joint_is_the_same_on_both_sides(sizes):
    pyro, numpyro, latents = make_pair(*MODEL, *INPUTS, **sizes, alpha=3.0)
    assert {*latents} == {"y", "z", "z_labelled"}
    expected = pyro.log_joint(latents, *INPUTS)
    assert numpyro.log_joint(latents, *INPUTS) == pytest.approx(expected, rel=1e-5)
    moved = {name: np.roll(value, 1, axis=0) for name, value in latents.items()}
    assert abs(pyro.log_joint(moved, *INPUTS) - expected) > 1e-2


def draw_noise(shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def fix_noise(side, monkeypatch):
    """The guide's z is mean + deviation * noise; the noise depends only on the shape."""
    Normal = side.program.Normal

    class FixedNormal(Normal):
        arg_constraints, support = Normal.arg_constraints, Normal.support

        def rsample(self, shape=()):
            return self.loc + self.scale * side.arrays(draw_noise(self.loc.shape))[0]

        def sample(self, key, sample_shape=()):
            return self.loc + self.scale * draw_noise(self.loc.shape)

    monkeypatch.setattr(side.program, "Normal", FixedNormal)


def loss_by_hand(xp, networks, x, labelled_x, labels):
    """-sum_y q(y | x) [log p(x, y, z_y) - log q(y | x) - log q(z_y | x, y)], and the labelled
    terms."""
    encoder, decoder = networks["encoder"], networks["decoder"]

    def log_softmax(a):
        return a - xp.log(xp.exp(a).sum(-1))[..., None]

    def log_ratio(x, y, noise):
        """log p(x, y, z) - log q(z | x, y)."""
        h = encoder(x, y)
        loc, log_scale = h[..., :2], h[..., 2:]
        noise = xp.asarray(noise)
        z = loc + xp.exp(log_scale) * noise
        logits = decoder(z, y)
        pixels = x * logits - xp.logaddexp(xp.zeros_like(logits), logits)
        styles = (noise**2 - z**2) / 2 + log_scale
        return pixels.sum(-1) + styles.sum(-1) - np.log(CLASSES)

    log_q = log_softmax(networks["classifier"](x))
    noise = draw_noise((CLASSES, len(x), 2))
    total = 0
    for k in range(CLASSES):
        y = xp.asarray(np.tile(np.eye(CLASSES, dtype=np.float32)[k], (len(x), 1)))
        total += (xp.exp(log_q[:, k]) * (log_ratio(x, y, noise[k]) - log_q[:, k])).sum()
    total += log_ratio(labelled_x, labels, draw_noise((len(labels), 2))).sum()
    total += 3.0 * (labels * log_softmax(networks["classifier"](labelled_x))).sum()
    return -total


@pytest.mark.quick("mlp")
@pytest.mark.parametrize("sizes", VARIANTS.values(), ids=VARIANTS)
def test_enumerated_objective_is_the_sum_over_classes(side, sizes, monkeypatch):
    """Value and gradient, on both sides, with the same weights."""
    pair = dict(zip(NETWORKS, make_pair(*MODEL, *INPUTS, **sizes, alpha=3.0), strict=False))
    networks = pair[side]
    fix_noise(networks, monkeypatch)
    expected, expected_gradient = networks.by_hand(loss_by_hand, *INPUTS)
    loss, gradient = networks.enumerated(*INPUTS)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradient.keys() == expected_gradient.keys()
    for name, g in gradient.items():
        assert np.abs(expected_gradient[name]).max() > 0
        np.testing.assert_allclose(g, expected_gradient[name], rtol=1e-3, atol=1e-4)
