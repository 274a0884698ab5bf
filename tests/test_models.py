"""The paper's models: alike on both sides, and trainable in every way."""

import numpy as np
import pytest
from networks import make_pair

from gs_ppl.models.training import Settings, make_trainer

RNG = np.random.default_rng(0)
IMAGES = (RNG.random((30, 16)) < RNG.random(16)).astype(np.float32)
HALVES = IMAGES[:5, :8], IMAGES[:5, 8:]

PROGRAMS = {
    "vae, bits": ("vae", "VAE", {"variables": 5, "classes": None, "pixels": 16}),
    "vae, one-hot": ("vae", "VAE", {"variables": 3, "classes": 4, "pixels": 16}),
    "vae, hidden": ("vae", "VAE", {"variables": 3, "classes": 4, "pixels": 16, "hidden": (7, 6)}),
    "structured output, bits": (
        "structured_output",
        "StructuredOutput",
        {"variables": 5, "classes": None, "pixels": 8},
    ),
    "structured output, one-hot": (
        "structured_output",
        "StructuredOutput",
        {"variables": 3, "classes": 4, "pixels": 8},
    ),
}


@pytest.mark.parametrize(("module", "network", "sizes"), PROGRAMS.values(), ids=PROGRAMS)
def test_log_joint_is_the_same_on_both_sides(module, network, sizes):
    inputs = HALVES if module == "structured_output" else (IMAGES[:5],)
    pyro, numpyro, latents = make_pair(module, network, *inputs, **sizes)
    assert latents
    expected = pyro.log_joint(latents, *inputs)
    assert numpyro.log_joint(latents, *inputs) == pytest.approx(expected, rel=1e-5)
    moved = {name: np.roll(value, 1, axis=0) for name, value in latents.items()}
    assert abs(pyro.log_joint(moved, *inputs) - expected) > 1e-2  # it depends on the latents


SETTINGS = {
    "vae, bits": {"variables": 5, "family": "STGumbelSoftmax"},
    "vae, one-hot": {"variables": 3, "classes": 4},
    "vae, hidden": {"variables": 3, "classes": 4, "hidden": (7, 6), "family": "STGumbelSoftmax"},
    "structured output, bits": {"model": "structured_output", "variables": 5},
    "structured output, one-hot": {
        "model": "structured_output",
        "variables": 3,
        "classes": 4,
        "family": "STGumbelSoftmax",
    },
}


@pytest.mark.parametrize("side", ["pyro", "numpyro"])
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_two_steps(side, options):
    settings = Settings(**options, steps=4, batch=10, learning_rate=0.05)
    trainer = make_trainer(side, settings, IMAGES)
    before = trainer.bound(IMAGES, 20, seed=0)
    losses = trainer.advance(2)
    assert trainer.step == len(losses) == 2
    assert np.isfinite(losses).all()
    after = trainer.bound(IMAGES, 20, seed=0)
    assert np.isfinite(after).all()
    assert after.mean() < before.mean()
