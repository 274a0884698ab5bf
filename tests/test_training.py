"""Training runs of the models: resumed after a kill, stopped at a NaN, evaluated alike."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from gs_ppl.models import training
from gs_ppl.models.training import Settings, evaluate, fit, make_trainer

ROOT = Path(__file__).parents[1]
SIDES = ["pyro", "numpyro"]
RNG = np.random.default_rng(0)
IMAGES = (RNG.random((200, 16)) < RNG.random(16)).astype(np.float32)
SMALL = Settings(variables=3, classes=4, steps=40, batch=10, rate=0.05, every=5)
MODELS = {
    "vae, one-hot": SMALL,
    "vae, bits, hidden": Settings(variables=5, hidden=(6,), steps=40, batch=10),
    **{
        family: dataclasses.replace(SMALL, family=family)
        for family in ("ReinMax", "RLOO_ELBO", "NVIL_ELBO", "MuProp_ELBO", "REBAR_ELBO")
    },
    "structured output": Settings("structured_output", variables=3, classes=4, steps=40, batch=10),
    "structured output, learned baseline": Settings(
        "structured_output",
        variables=3,
        steps=40,
        batch=10,
        family="NVIL_ELBO",
        baseline=5,
    ),
}


@pytest.fixture(params=SIDES)
def side(request):
    return request.param


def run(side, settings, folder, images=IMAGES, **options):
    options = {"samples": 10, "chunk": 10, "checkpoint_every": 10, **options}
    return fit(side, settings, images, IMAGES[:20], folder, **options)


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_trains(side, settings, tmp_path):
    """Of three starts each, the least gain in the bound was .4 nats."""
    settings = dataclasses.replace(settings, learning_rate=0.02)
    trainer, result = run(side, settings, tmp_path, evaluate_every=20)
    assert trainer.step == 40
    assert [step for step, _ in result["losses"]] == [10, 20, 30, 40]
    assert [step for step, _ in result["evaluations"]] == [20, 40]
    fresh = make_trainer(side, settings, IMAGES)
    gain = fresh.bound(IMAGES, 10, seed=0).mean() - trainer.bound(IMAGES, 10, seed=0).mean()
    assert gain > 0.2
    means = trainer.means(IMAGES[:7], from_guide=True, seed=0)
    assert means.shape == (7, 16 if settings.model == "vae" else 8)
    assert ((means > 0) & (means < 1)).all()


@pytest.mark.parametrize("settings", [SMALL, MODELS["structured output"]], ids=lambda s: s.model)
def test_resumes_bit_for_bit(side, settings, tmp_path):
    """A run that broke off between two checkpoints ends as one that did not."""
    _, whole = run(side, settings, tmp_path / "whole")

    class Break(Exception):
        pass

    def advance(self, steps):
        if self.step >= 30:
            raise Break
        return original(self, steps)

    Trainer = type(make_trainer(side, settings, IMAGES))
    original = Trainer.advance
    Trainer.advance = advance
    try:
        with pytest.raises(Break):
            run(side, settings, tmp_path / "broken", checkpoint_every=20)
    finally:
        Trainer.advance = original
    _, resumed = run(side, settings, tmp_path / "broken", checkpoint_every=20)
    for result in (whole, resumed):
        result["test"].pop("seconds")
    assert resumed == whole


def test_a_nan_stops_the_run(side, tmp_path):
    trainer = make_trainer(side, SMALL, IMAGES)
    Trainer, advance = type(trainer), type(trainer).advance

    def poisoned(self, steps):
        losses = advance(self, steps)
        return np.where(np.arange(self.step - steps, self.step) == 23, np.nan, losses)

    Trainer.advance = poisoned
    try:
        with pytest.raises(FloatingPointError, match=r"is nan at step 23; .*step_000000020"):
            run(side, SMALL, tmp_path)
    finally:
        Trainer.advance = advance


@pytest.mark.filterwarnings("ignore:Encountered")  # Pyro says so as well
def test_a_loss_that_overflows_is_found(side, tmp_path):
    """Without any help: a learning rate that throws the weights out of float32."""
    wild = Settings(variables=3, classes=4, steps=40, batch=10, learning_rate=1e37)
    with pytest.raises(FloatingPointError, match=r"the objective is \S+ at step"):
        run(side, wild, tmp_path)


def test_another_run_in_the_folder_is_refused(side, tmp_path):
    run(side, SMALL, tmp_path)
    other = Settings(variables=3, classes=4, steps=50, batch=10)
    with pytest.raises(ValueError, match="has a run with other settings"):
        run(side, other, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gan"}, "model must be one of vae, structured_output.*got 'gan'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
    ids=str,
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_bound_is_the_evidence_in_the_limit(side):
    """One variable of four classes: log p(x) by summation, and the m-sample bound below it."""
    settings = Settings(variables=1, classes=4, steps=1, batch=10)
    trainer = make_trainer(side, settings, IMAGES)
    trainer.advance(1)
    images = IMAGES[:20]
    weight, bias = decoder(side, trainer)
    logits = np.eye(4) @ weight + bias
    joint = images @ logits.T - np.logaddexp(0, logits).sum(-1) + np.log(0.25)
    exact = -np.logaddexp.reduce(joint, -1)
    many, one = (trainer.bound(images, m, seed=0) for m in (2_000, 1))
    assert np.abs(many - exact).max() < 0.2  # that of 2,000 draws
    assert abs((many - exact).mean()) < 0.03
    assert one.mean() > exact.mean()
    found = evaluate(trainer, images, 2_000)
    assert found["nats"] == pytest.approx(many.mean())
    assert found["error"] == pytest.approx(many.std(ddof=1) / np.sqrt(20))


def decoder(side, trainer):
    if side == "pyro":
        linear = trainer.network.decoder[0]
        return linear.weight.detach().numpy().T.astype(float), linear.bias.detach().numpy()
    params = trainer.params["decoder$params"]["layers"][0]
    return np.asarray(params["kernel"], float), np.asarray(params["bias"])


def test_killed_at_any_moment(side, tmp_path):
    """SIGKILL, several times, at moments that no code chose; the end is that of a whole run."""
    command = [sys.executable, ROOT / "examples" / "train.py", "--backend", side]
    command += [
        "--variables",
        "4",
        "--classes",
        "3",
        "--steps",
        "3000",
        "--checkpoint-every",
        "500",
    ]
    command += ["--samples", "5", "--test-images", "20", "--batch", "10"]

    def start(folder):
        return subprocess.Popen(
            [*command, "--output", folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    whole = start(tmp_path / "whole")
    broken = tmp_path / "broken"
    kills = 0
    for moment in np.random.default_rng(0).uniform(0, 0.4, 2):
        process = start(broken)
        while not list(broken.glob("checkpoints/*/step_*")) and process.poll() is None:
            time.sleep(0.01)  # the first checkpoint is being written, or is
        time.sleep(moment)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    assert start(broken).wait() == 0
    assert whole.wait() == 0
    reports = [
        json.loads((folder / "report.json").read_text()) for folder in (tmp_path / "whole", broken)
    ]
    for report in reports:
        report["rows"][0].pop("seconds")
    assert reports[0]["rows"] == reports[1]["rows"]
    assert reports[0]["curves"] == reports[1]["curves"]


def test_half_written_checkpoints_do_not_count(tmp_path):
    (tmp_path / "step_000000010").write_bytes(b"whole")
    (tmp_path / "step_000000020.partial").write_bytes(b"half")
    assert training.newest_checkpoint(tmp_path).name == "step_000000010"


# --- evaluation -----------------------------------------------------------------------------------


def linear(trainer, name):
    """Weights, (inputs, outputs), and biases of a linear map of the trained model."""
    if hasattr(trainer, "params"):
        ((layer),) = trainer.params[f"{name}$params"]["layers"].values()
        return np.asarray(layer["kernel"]), np.asarray(layer["bias"])
    module = trainer.network.layers[int(name[-1])] if "_" in name else trainer.network.decoder
    weight, bias = module[0].parameters()
    return weight.detach().numpy().T, bias.detach().numpy()


def log_bernoulli(x, logits):
    """Of each image in each state: shape (images, states)."""
    return (x[:, None] * logits - np.logaddexp(0, logits)).sum(-1)


def evidence_of_vae(trainer, images):
    weight, bias = linear(trainer, "decoder")
    log_p = log_bernoulli(images, STATES @ weight + bias)
    return np.logaddexp.reduce(log_p, -1) - np.log(len(STATES))


def evidence_of_structured_output(trainer, images):
    (w0, b0), (w1, b1), (w2, b2) = (linear(trainer, f"layer_{i}") for i in range(3))
    upper, lower = images[:, :8], images[:, 8:]
    first = log_mass(upper @ w0 + b0)  # (images, states)
    second = log_mass(STATES @ w1 + b1)  # (states of the first, states)
    output = log_bernoulli(lower, STATES @ w2 + b2)
    joint = first[:, :, None] + second + output[:, None]
    return np.logaddexp.reduce(joint, (1, 2))


def log_mass(logits):
    """Log probability of each state, from logits of shape (..., variables * classes)."""
    parts = log_softmax(logits.reshape(*logits.shape[:-1], 2, 3), -1)
    return parts.reshape(*logits.shape[:-1], 6) @ STATES.T


STATES = np.array([[*a, *b] for a in np.eye(3) for b in np.eye(3)])
EVIDENCE = {"vae": evidence_of_vae, "structured_output": evidence_of_structured_output}


@pytest.mark.parametrize("model", EVIDENCE)
def test_bound_tends_to_the_evidence(side, model):
    """Summed over all states by hand, on either side."""
    settings = Settings(model, variables=2, classes=3, steps=200, batch=20, learning_rate=0.05)
    trainer = make_trainer(side, settings, IMAGES)
    trainer.advance(200)
    exact = -EVIDENCE[model](trainer, IMAGES[:60])
    single, many = (trainer.bound(IMAGES[:60], m, seed=0) for m in (1, 5000))
    assert np.abs(many - exact).max() < 0.1
    assert abs((many - exact).mean()) < 0.01
    # A single sample is far off: its deviation is some sqrt(5000) times as large.
    assert (single - exact).std() > 10 * (many - exact).std()
