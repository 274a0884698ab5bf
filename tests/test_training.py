"""Training runs of the models: resumed after a kill, stopped at a NaN, evaluated equally."""

import dataclasses
import importlib
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
from gs_ppl.models.training import SemiSupervisedSettings, Settings, evaluate, fit, make_trainer

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
@pytest.mark.quick("vae, one-hot", "structured output", "ReinMax")
def test_trains(side, settings, tmp_path):
    """The smallest gain in the bound, for three starts each, was .4 nats."""
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
@pytest.mark.quick("vae")
def test_resumes_bit_for_bit(side, settings, tmp_path):
    """An interrupted run ends like a run without interruption."""
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


@pytest.mark.filterwarnings("ignore:Encountered")  # Pyro warns as well
def test_a_loss_that_overflows_is_found(side, tmp_path):
    """A learning rate that makes the weights overflow float32."""
    wild = Settings(variables=3, classes=4, steps=40, batch=10, learning_rate=1e37)
    with pytest.raises(FloatingPointError, match=r"the objective is \S+ at step"):
        run(side, wild, tmp_path)


def test_another_run_in_the_folder_is_refused(side, tmp_path):
    run(side, SMALL, tmp_path)
    other = Settings(variables=3, classes=4, steps=50, batch=10)
    with pytest.raises(ValueError, match="has a run with other settings"):
        run(side, other, tmp_path)


REFUSED = {
    "model": ({"model": "gan"}, "model must be one of vae, structured_output.*got 'gan'"),
    "family": ({"family": "Concrete"}, "family must be one of GumbelSoftmax.*got 'Concrete'"),
    "objective": ({"objective": "exact"}, "objective must be one of categorical, relaxed, got"),
    **{
        f"{name} {value}": ({name: value}, f"{name} must be at least 1, got {value}")
        for name in ("variables", "classes", "steps", "batch", "every")
        for value in (0, -3)
    },
    "no steps": ({"steps": 0}, "steps must be at least 1, got 0"),
    "width": ({"hidden": (5, 0)}, r"hidden\[1\] must be at least 1, got 0"),
    "seed": ({"seed": -1}, "seed must be at least 0, got -1"),
    "large seed": ({"seed": 2**32}, r"seed must be below 2\*\*32 - 1, got 4294967296"),
    "baseline": ({"baseline": -1}, "baseline must be at least 0, got -1"),
    **{
        f"learning rate {value}": (
            {"learning_rate": value},
            f"learning_rate must be finite and positive, got {value}",
        )
        for value in (0, -0.1, float("inf"), float("nan"))
    },
    "decay": ({"weight_decay": -0.1}, "weight_decay must be finite and at least 0, got -0.1"),
    "optimizer": ({"optimizer": "SGD"}, "optimizer must be one of AdamW, Adam, RAdam, got 'SGD'"),
    "no decay": ({"optimizer": "RAdam", "weight_decay": 0.1}, "for the optimizer AdamW, got 'RAd"),
    "rate": ({"rate": -1e-3}, "rate must be finite and at least 0, got -0.001"),
    "minimum": ({"minimum": 0.0}, "minimum must be .*positive.*, got 0.0"),
    "minimum above start": ({"minimum": 2.0}, "minimum must be at most start, 1.0, got 2.0"),
    "start": ({"rate": 0.0, "start": -1.0}, "temperature must be .*positive.*, got -1.0"),
    "grey halves": ({"model": "structured_output", "grey": True}, "for the model vae alone"),
    "hidden halves": ({"model": "structured_output", "hidden": (5,)}, "has no hidden layers"),
    "no baseline": ({"baseline": 5}, "for the family NVIL_ELBO alone, got 'GumbelSoftmax'"),
    "pairs": ({"family": "DisARM_ELBO", "classes": 4}, "DisARM_ELBO is for bits, got 4 classes"),
    "hard": ({"family": "ReinMax", "objective": "relaxed"}, "'relaxed' is for GumbelSoftmax, "),
    "summed": ({"family": "enumerated", "objective": "relaxed"}, "got the family enumerated"),
}
SEMI_SUPERVISED = {
    "model": ({"model": "vae"}, "model must be one of semi_supervised, got 'vae'"),
    "classes": ({"classes": None}, "needs a number of classes, got None"),
    "widths": ({"hidden": (5, 6)}, r"has one hidden width, got \(5, 6\)"),
    "channels": ({"channels": 0}, "channels must be at least 1, got 0"),
    "normal latents": ({"family": "MuProp_ELBO"}, "MuProp_ELBO is for discrete latents alone"),
    "labelled": ({"labelled": 0}, "labelled must be at least 1, got 0"),
    "alpha": ({"alpha": -1.0}, "alpha must be finite and at least 0, got -1.0"),
    "batch": ({"batch": 0}, "batch must be at least 1, got 0"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


@pytest.mark.parametrize(("options", "message"), SEMI_SUPERVISED.values(), ids=SEMI_SUPERVISED)
def test_bad_semi_supervised_settings(options, message):
    with pytest.raises(ValueError, match=message):
        SemiSupervisedSettings(**options)


@pytest.mark.parametrize("value", [2.0, True, "3", None], ids=repr)
@pytest.mark.parametrize("name", ["variables", "steps", "batch", "seed"])
def test_settings_that_are_no_integers(name, value):
    with pytest.raises(TypeError, match=rf"{name} must be an integer, got {value!r}"):
        Settings(**{name: value})


@pytest.mark.parametrize("value", [True, "3", None], ids=repr)
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_settings_that_are_no_numbers(name, value):
    with pytest.raises(TypeError, match=rf"{name} must be a number, got {value!r}"):
        Settings(**{name: value})


def take_steps(side, settings, gradients):
    """The path of one parameter from 1, with these gradients."""
    module = importlib.import_module(f"gs_ppl.models.training_{side}")
    optimizer, path = module.make_optimizer(settings), []
    if side == "numpyro":
        optax, x = pytest.importorskip("optax"), np.float32(1.0)
        state = optimizer.init(x)
        for g in gradients:
            update, state = optimizer.update(np.float32(g), state, x)
            path.append(x := optax.apply_updates(x, update))
    else:
        torch = pytest.importorskip("torch")
        x = torch.nn.Parameter(torch.tensor(1.0))
        for g in gradients:
            x.grad = torch.tensor(float(g))
            optimizer([x])
            optimizer.step()  # of the learning rate
            path.append(x.item())
    return np.array(path, float)


def test_steps_of_the_optimizers(side):
    """At a constant gradient g Adam's step is the learning rate, and the first five of RAdam's are
    plain ones, rate * g, since the variance is not known yet; AdamW has a cosine and a decay."""
    options, constant = {"learning_rate": 0.01, "steps": 20}, np.full(20, -0.5)
    count = np.arange(20)
    adam = take_steps(side, Settings(**options, optimizer="Adam"), constant)
    np.testing.assert_allclose(adam, 1 + 0.01 * (count + 1), rtol=1e-5)
    radam = take_steps(side, Settings(**options, optimizer="RAdam"), constant[:5])
    np.testing.assert_allclose(radam, 1 + 0.005 * (count[:5] + 1), rtol=1e-5)
    adamw, x = [], 1.0
    for rate in 0.01 * (1 + np.cos(np.pi * count / 20)) / 2:
        adamw.append(x := x + rate * (1 - 0.3 * x))
    found = take_steps(side, Settings(**options, weight_decay=0.3), constant)
    np.testing.assert_allclose(found, adamw, rtol=1e-5)


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_optimizers_agree(optimizer):
    """Both sides have the same path."""
    settings = Settings(steps=100, learning_rate=0.01, optimizer=optimizer)
    gradients = np.random.default_rng(1).normal(size=100)
    pyro, numpyro = (take_steps(side, settings, gradients) for side in SIDES)
    np.testing.assert_allclose(pyro, numpyro, rtol=1e-5)


FEW = IMAGES[:20]
LABELLED = IMAGES[:4], np.array([0, 1, 2, 3])
SEMI = SemiSupervisedSettings(classes=4, variables=2, hidden=(3,), steps=2, batch=4, labelled=2)
UNFIT = {
    # settings and other arguments of fit, and the message before a trainer is made
    "samples": (SMALL, {"samples": 0}, "samples must be at least 1, got 0"),
    "chunk": (SMALL, {"chunk": 0}, "chunk must be at least 1, got 0"),
    "evaluate": (SMALL, {"evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
    "checkpoint": (SMALL, {"checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
    "a cube": (SMALL, {"images": FEW[None]}, r"of shape \(images, pixels\), got \(1, 20, 16\)"),
    "pixels": (SMALL, {"test_images": FEW[:, 1:]}, r"got \(20, 16\) and \(20, 15\)"),
    "no images": (SMALL, {"images": FEW[:0]}, "an image to train on and two to test on .* got 0"),
    "one to test on": (SMALL, {"test_images": FEW[:1]}, "are wanted, got 20 and 1"),
    "odd halves": (
        MODELS["structured output"],
        {"images": FEW[:, 1:], "test_images": FEW[:, 1:]},
        "structured_output halves images, got 15 pixels",
    ),
    "labels for a VAE": (SMALL, {"labelled": LABELLED}, "are for the model semi_supervised"),
    "no labels": (SEMI, {}, "are for the model semi_supervised, which needs them"),
    "labels": (SEMI, {"labelled": (IMAGES[:1], np.array([4]))}, "labelled: classes must be from 0"),
    "test labels": (
        SEMI,
        {"labelled": LABELLED, "test_labels": np.array([-1, 3])},
        "test_labels: classes must be from 0 to 3, got -1 to 3",
    ),
    "no squares": (
        dataclasses.replace(SEMI, channels=2),
        {"labelled": LABELLED, "images": FEW[:, 1:], "test_images": FEW[:, 1:]},
        "whose side is a multiple of 4, got 15 pixels",
    ),
}


@pytest.mark.parametrize(("settings", "options", "message"), UNFIT.values(), ids=UNFIT)
def test_refused_before_the_first_step(settings, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "make_trainer", None)  # must not be called
    images = options.get("images", FEW), options.get("test_images", FEW)
    others = {name: value for name, value in options.items() if not name.endswith("images")}
    with pytest.raises(training.RunError, match=message):
        fit("pyro", settings, *images, tmp_path / "run", **others)
    assert not (tmp_path / "run").exists()


def test_families(backend):
    """All families of relax and all ELBOs of discrete programs; soft families have two
    objectives."""
    public = {name: getattr(backend.gs, name) for name in backend.gs.__all__}
    relaxing = {name: x for name, x in public.items() if getattr(x, "has_temperature", False)}
    assert {*training.HARD} == {name for name, x in relaxing.items() if x.is_hard}
    assert {*training.SOFT} == {name for name, x in relaxing.items() if not x.is_hard}
    elbos = {name for name in public if name.endswith("_ELBO")} - {"TraceEnum_ELBO"}
    assert {*training.DISCRETE} == elbos


def test_settings_without_effect():
    """Exactly the settings that change nothing in the run, with the reason."""
    tau = ("rate", "minimum", "every", "start")
    for changes, names in (
        ({}, ()),
        ({"rate": 0.0}, ("minimum", "every")),
        ({"family": "ReinMax"}, ("objective",)),
        ({"family": "ReinMax", "rate": 0.0}, ("objective", "minimum", "every")),
        ({"family": "RLOO_ELBO"}, ("objective", *tau)),
        ({"family": "enumerated"}, ("objective", *tau)),
    ):
        assert Settings(**changes).without_effect.keys() == {*names}
    assert Settings(rate=0.0).without_effect["every"] == "rate 0"
    assert Settings(family="RLOO_ELBO").without_effect["rate"] == "the family RLOO_ELBO"


def test_bound_is_the_evidence_in_the_limit(side):
    """One variable of four classes: log p(x) by summation is above the m-sample bound."""
    settings = Settings(variables=1, classes=4, steps=1, batch=10)
    trainer = make_trainer(side, settings, IMAGES)
    trainer.advance(1)
    images = IMAGES[:20]
    weight, bias = decoder(side, trainer)
    logits = np.eye(4) @ weight + bias
    joint = images @ logits.T - np.logaddexp(0, logits).sum(-1) + np.log(0.25)
    exact = -np.logaddexp.reduce(joint, -1)
    many, one = (bound(trainer, images, *m) for m in ((100, 20), (1, 1)))
    assert np.abs(many - exact).max() < 0.2  # the error of 2,000 draws
    assert abs((many - exact).mean()) < 0.03
    assert one.mean() > exact.mean()
    found, bounds = evaluate(trainer, images, 10), trainer.bound(images, 10, seed=0)
    assert found["nats"] == pytest.approx(bounds.mean())
    assert found["error"] == pytest.approx(bounds.std(ddof=1) / np.sqrt(20))


def bound(trainer, images, samples, copies):
    """The bound with samples * copies: each image has several rows, because a pass costs most."""
    bounds = trainer.bound(np.repeat(images, copies, 0), samples, seed=0).reshape(-1, copies)
    return np.log(copies) - np.logaddexp.reduce(-bounds, -1)


def decoder(side, trainer):
    if side == "pyro":
        linear = trainer.network.decoder[0]
        return linear.weight.detach().numpy().T.astype(float), linear.bias.detach().numpy()
    params = trainer.params["decoder$params"]["layers"][0]
    return np.asarray(params["kernel"], float), np.asarray(params["bias"])


@pytest.mark.long
def test_killed_at_any_moment(side, tmp_path):
    """SIGKILL at several random moments; the end is that of an uninterrupted run."""
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
            time.sleep(0.01)  # until the first checkpoint is written, or nearly
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
    """Log probability of each image in each state: shape (images, states)."""
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
@pytest.mark.quick("vae")
def test_bound_tends_to_the_evidence(side, model):
    """Compared with the sum over all states by hand, on each side."""
    settings = Settings(model, variables=2, classes=3, steps=200, batch=20, learning_rate=0.05)
    trainer = make_trainer(side, settings, IMAGES)
    trainer.advance(200)
    exact = -EVIDENCE[model](trainer, IMAGES[:60])
    single, many = (bound(trainer, IMAGES[:60], *m) for m in ((1, 1), (250, 20)))
    assert np.abs(many - exact).max() < 0.1
    assert abs((many - exact).mean()) < 0.01
    # a single sample has a deviation about sqrt(5000) times as large
    assert (single - exact).std() > 10 * (many - exact).std()
