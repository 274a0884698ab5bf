"""The paper's models: equal on both sides, and trainable in each way."""

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
    "vae, grey": ("vae", "VAE", {"variables": 3, "classes": 4, "pixels": 16, "grey": True}),
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
    if sizes.get("grey"):
        inputs = (RNG.random((5, 16)).astype(np.float32),)
    pyro, numpyro, latents = make_pair(module, network, *inputs, **sizes)
    assert latents
    expected = pyro.log_joint(latents, *inputs)
    assert numpyro.log_joint(latents, *inputs) == pytest.approx(expected, rel=1e-5)
    moved = {name: np.roll(value, 1, axis=0) for name, value in latents.items()}
    assert abs(pyro.log_joint(moved, *inputs) - expected) > 1e-2  # it depends on the latents


def test_grey_levels_stand_for_a_mean_over_bits():
    """log p(z, x) is linear in each pixel: at grey levels f(0) + sum_i g_i (f(e_i) - f(0))."""
    sizes, levels = {"variables": 3, "classes": 4, "pixels": 16}, RNG.random((1, 16))
    levels = levels.astype(np.float32)
    grey, _, latents = make_pair("vae", "VAE", levels, **sizes, grey=True)
    found = grey.log_joint(latents, levels)
    bits, _, _ = make_pair("vae", "VAE", np.zeros_like(levels), **sizes)  # with the same weights
    f = [bits.log_joint(latents, x[None]) for x in np.eye(17, 16, k=-1, dtype=np.float32)]
    assert found == pytest.approx(f[0] + levels[0] @ (np.array(f[1:]) - f[0]), rel=1e-5)


def test_grey_levels_are_of_the_vae():
    with pytest.raises(ValueError, match="grey levels are for the model vae alone"):
        Settings(model="structured_output", grey=True)


SETTINGS = {
    "vae, grey": {"variables": 3, "classes": 4, "grey": True, "rate": 0.0, "start": 0.7},
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
