"""Each benchmark program runs in a short form, and writes a section of one record."""

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parent / "benchmarks"
SECTIONS = ["speed", "steps", "memory", "soft_index", "compare_calls"]


@pytest.mark.quick("memory")
@pytest.mark.parametrize("section", SECTIONS)
def test_program(section, tmp_path):
    command = [sys.executable, BENCHMARKS / f"{section}.py", "--quick", "--output", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "speed.json").read_text())[section]
    assert set(record["sides"]) == {"pyro", "numpyro"}
    if section == "speed":
        check_picture(tmp_path / "speed.png", record)


def check_picture(path, record):
    """Four panels that are not empty, with the digest of this record."""
    with Image.open(path) as image:
        assert image.size == (1100, 770)
        grey = image.convert("L")
        for left, top in itertools.product((0, 550), (0, 385)):
            darkest, brightest = grey.crop((left, top, left + 550, top + 385)).getextrema()
            assert darkest < 100 < 250 < brightest
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        assert image.text["Record"] == digest


def test_record_is_whole():
    record = json.loads((BENCHMARKS / "speed.json").read_text())
    assert set(record) == set(SECTIONS)
    for section in record.values():
        assert "absent" not in section["versions"].values()


def test_loop_by_hand_is_the_objective_in_torch(monkeypatch):
    """With the same random numbers, it has the loss of AnnealedSVI."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import pyro
    import steps_pyro as steps

    pyro.set_rng_seed(0)
    vae = steps.VAE(3, 4, (), 6)
    x = steps.torch.bernoulli(steps.torch.full((5, 6), 0.5))
    loop, svi = steps.Loop(vae, steps.draw), steps.make_svi(vae, steps.TraceMeanField_ELBO())
    pyro.set_rng_seed(1)
    expected = svi.evaluate_loss(x)
    pyro.set_rng_seed(1)
    assert loop.loss(x).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
def test_loop_by_hand_is_the_objective_in_jax(monkeypatch):
    """Equal in the mean, |z| < 5: fails for one in 10^6 seeds."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import jax
    import numpy as np
    import steps_numpyro as steps

    vae = steps.VAE(3, 4, pixels=6, rngs=steps.nnx.Rngs(0))
    x = jax.random.bernoulli(jax.random.key(0), shape=(5, 6)).astype(np.float32)
    loop, svi = steps.Loop(vae), steps.make_svi(vae)
    state, keys = svi.init(jax.random.key(1), x), jax.random.split(jax.random.key(2), 1000)
    by_hand = jax.vmap(lambda key: loop.loss(loop.weights, 1.0, x, key))(keys)
    losses = jax.vmap(lambda key: svi.evaluate(state._replace(rng_key=key), x))(keys)
    error = np.sqrt((np.var(by_hand) + np.var(losses)) / 1000)
    assert abs(np.mean(by_hand) - np.mean(losses)) < 5 * error
    assert error < 0.01 * np.mean(losses)
