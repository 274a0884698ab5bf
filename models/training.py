"""One training run of a model, on either backend: settings, data, loop. Imports neither PPL."""

import dataclasses
import importlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from gs_ppl import temperature
from gs_ppl.models.data import binarize

MODELS = {
    "vae": "VAE",
    "structured_output": "StructuredOutput",
    "semi_supervised": "SemiSupervised",
}
Curves = dict[str, list[list[float]]]  # points [step, nats per image]


@dataclass(frozen=True)
class Settings:
    """What a run is made of; the same settings and data give the same run, bit for bit.

    Attributes:
        model: a key of MODELS.
        variables, classes, hidden: of the latent layer; classes None: bits.
        family: a class of gs_ppl.pyro and gs_ppl.numpyro, such as "ReinMax", or an ELBO that takes
            the discrete program, such as "RLOO_ELBO"; "enumerated", for exact sums.
        objective: "categorical" or "relaxed".
        rate, minimum, every, start: of the temperature max(minimum, start exp(-rate t)), anew every
            `every` steps; rate 0: constant.
        learning_rate: of AdamW at the first step; falls by a cosine to 0 at the last.
        weight_decay: of AdamW, relative to the learning rate; 0: Adam.
        steps, batch: number and size of minibatches, drawn with replacement.
        grey: whether the VAE's pixels are grey levels, compared by cross-entropy.
        baseline: units in the hidden layer of NVIL_ELBO's learned baseline; 0: none.
    """

    model: str = "vae"
    variables: int = 200
    classes: int | None = None
    hidden: tuple[int, ...] = ()
    family: str = "GumbelSoftmax"
    objective: str = "categorical"
    rate: float = 1e-4
    minimum: float = 0.5
    every: int = 500
    start: float = 1.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    steps: int = 100_000
    batch: int = 100
    seed: int = 0
    grey: bool = False
    baseline: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}, got {self.model!r}")
        if self.grey and self.model != "vae":
            raise ValueError(f"grey levels are for the model vae alone, got {self.model!r}")
        if self.baseline and self.family != "NVIL_ELBO":
            raise ValueError(f"a baseline is for the family NVIL_ELBO alone, got {self.family!r}")
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps and batch must be at least 1, got {self.steps}, {self.batch}")

    @property
    def enumerated(self) -> bool:
        return self.family == "enumerated"

    @property
    def discrete(self) -> bool:
        """Trained without relaxation, by an ELBO that has a gradient all the same."""
        return self.family.endswith("_ELBO")

    @property
    def schedule(self) -> Callable[[Any], Any]:
        if self.rate == 0:
            return temperature.constant(self.start)
        return temperature.exponential(self.rate, self.minimum, self.every, self.start)

    def network(self, images: np.ndarray) -> dict[str, Any]:
        """The arguments of the model's class."""
        sizes = {"variables": self.variables, "classes": self.classes}
        sizes["pixels"] = self.inputs(images)[0].shape[-1]
        if self.model == "vae":
            sizes |= {"hidden": tuple(self.hidden), "grey": self.grey}
        return sizes

    def inputs(self, images: Any) -> tuple[Any, ...]:
        """What model and guide take: images, or their upper and lower half."""
        if self.model == "vae":
            return (images,)
        half = images.shape[-1] // 2
        return images[..., :half], images[..., half:]


@dataclass(frozen=True)
class SemiSupervisedSettings(Settings):
    """A run with labels for a few of the images.

    Attributes:
        variables, classes, hidden: size of z, classes of y, and the width of the hidden layers.
        channels: of the first convolution; None: no convolutions.
        alpha: weight of log q(y | x) of the labelled images.
        labelled: of them in each minibatch, beside `batch` of the others.
        shared: whether the encoder computes the features of x once for all classes.
    """

    model: str = "semi_supervised"
    variables: int = 50
    classes: int = 10
    hidden: tuple[int] = (256,)
    rate: float = 3e-5
    every: int = 2_000
    channels: int | None = None
    alpha: float = 1.0
    labelled: int = 100
    shared: bool = True

    def network(self, images: np.ndarray) -> dict[str, Any]:
        (width,) = self.hidden
        sizes = {"classes": self.classes, "style": self.variables, "width": width}
        how = {"channels": self.channels, "alpha": self.alpha, "shared": self.shared}
        return sizes | how | {"pixels": images.shape[-1]}

    def inputs(self, images: Any) -> tuple[Any, ...]:
        """What model and guide take of images without labels."""
        return (images,)


class Trainer(Protocol):
    """One run on one backend."""

    step: int

    def advance(self, steps: int) -> np.ndarray:
        """Takes that many steps; returns their losses, nats per image."""

    def save(self, path: Path) -> None:
        """Writes the state, all or nothing."""

    def load(self, path: Path) -> None: ...

    def bound(self, images: np.ndarray, samples: int, seed: int) -> np.ndarray:
        """Negative importance-weighted bound of the discrete program by image, in nats."""

    def means(self, images: np.ndarray, from_guide: bool, seed: int) -> np.ndarray:
        """Ink probabilities of the observed pixels, latents from the guide or from the prior."""

    def classify(self, images: np.ndarray) -> np.ndarray:
        """q(y | x) of the semi-supervised model, shape (images, classes)."""


def make_trainer(
    backend: str,
    settings: Settings,
    images: np.ndarray,
    labelled: tuple[np.ndarray, np.ndarray] | None = None,
) -> Trainer:
    """The trainer of a backend, at step 0."""
    make = importlib.import_module(f"gs_ppl.models.training_{backend}").Trainer
    if labelled is None:
        return make(settings, images)
    pixels, labels = labelled
    return make(settings, images, (pixels, np.eye(settings.classes, dtype=pixels.dtype)[labels]))


def fit(
    backend: str,
    settings: Settings,
    images: np.ndarray,
    test_images: np.ndarray,
    folder: Path,
    *,
    labelled: tuple[np.ndarray, np.ndarray] | None = None,
    test_labels: np.ndarray | None = None,
    samples: int = 1000,
    evaluate_every: int | None = None,
    checkpoint_every: int = 10_000,
    chunk: int = 500,
    bar: tqdm | None = None,
) -> tuple[Trainer, dict[str, Any]]:
    """Trains to the last step, going on from the folder's newest checkpoint, and evaluates.

    Args:
        backend: "pyro" or "numpyro".
        settings: of the run.
        images: binary pixels to train on, floating, shape (images, pixels).
        test_images: likewise, to evaluate on.
        folder: of the checkpoints; that of another run is refused.
        labelled: for the semi-supervised model, images with a label and their classes, integers.
        test_labels: classes of the test images, whose accuracy is then evaluated too.
        samples: of the importance-weighted bound at the end.
        evaluate_every: steps between evaluations with a single sample, for the curve.
        checkpoint_every: steps between checkpoints, at the ends of chunks.
        chunk: steps between two points of the curve of losses.
        bar: progress bar to move on.

    Returns:
        The trainer, and {"test": evaluation, "losses": curve, "evaluations": curve}, curves as
        [step, nats per image].

    Raises:
        FloatingPointError: at a loss that is not finite, with the step and the last checkpoint.
        ValueError: if the folder has a run with other settings.
    """
    trainer = make_trainer(backend, settings, images, labelled)
    curves = resume(trainer, backend, settings, folder)
    if bar is not None:
        bar.update(trainer.step)
    while trainer.step < settings.steps:
        began = trainer.step
        losses = trainer.advance(min(chunk - began % chunk, settings.steps - began))
        if not np.isfinite(losses).all():
            first = int(np.flatnonzero(~np.isfinite(losses))[0])
            raise FloatingPointError(
                f"the objective is {losses[first]} at step {began + first}; the last good"
                f" checkpoint is {newest_checkpoint(folder) or 'none'}"
            )
        curves["losses"].append([trainer.step, float(losses.mean())])
        if evaluate_every and crosses(began, trainer.step, evaluate_every):
            nats = trainer.bound(test_images, 1, seed=0).mean()
            curves["evaluations"].append([trainer.step, float(nats)])
        if crosses(began, trainer.step, checkpoint_every) or trainer.step == settings.steps:
            save_checkpoint(trainer, curves, folder)
        if bar is not None:
            bar.update(len(losses))
            bar.set_postfix(loss=f"{losses.mean():.2f}", refresh=False)
    test = evaluate(trainer, test_images, samples)
    if test_labels is not None:
        test["accuracy"] = accuracy(trainer.classify(test_images), test_labels)
    return trainer, {"test": test, **curves}


def crosses(began: int, ended: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (began, ended]."""
    return ended // every > began // every


# --- checkpoints ----------------------------------------------------------------------------------


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, the newest last; one that was being written has another name."""
    return sorted(folder.glob("step_" + "[0-9]" * 9), key=lambda path: path.name)


def newest_checkpoint(folder: Path) -> Path | None:
    return next(reversed(checkpoints(folder)), None)


def save_checkpoint(trainer: Trainer, curves: Curves, folder: Path) -> None:
    """Under its name at once, when all of it is written; older ones go."""
    write_atomically(folder / "curves.json", json.dumps(curves))
    path = folder / f"step_{trainer.step:09d}"
    if not path.exists():
        trainer.save(path)
    for old in checkpoints(folder)[:-2]:
        remove(old)


def remove(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            remove(child)
        path.rmdir()
    else:
        path.unlink()


def resume(trainer: Trainer, backend: str, settings: Settings, folder: Path) -> Curves:
    """Loads the newest checkpoint, if there is one, and the curves up to it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    wanted = json.loads(json.dumps({"backend": backend, **dataclasses.asdict(settings)}))
    if path.exists() and json.loads(path.read_text()) != wanted:
        raise ValueError(f"{folder} has a run with other settings: see {path.name}, or remove it")
    write_atomically(path, json.dumps(wanted, indent=2) + "\n")
    newest = newest_checkpoint(folder)
    if newest is None:
        return {"losses": [], "evaluations": []}
    trainer.load(newest)
    curves = json.loads((folder / "curves.json").read_text())
    return {name: [p for p in curve if p[0] <= trainer.step] for name, curve in curves.items()}


def write_atomically(path: Path, text: str) -> None:
    """All or nothing."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def augment(
    images: np.ndarray, labels: np.ndarray, copies: int, shift: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Binary copies of a few images, each shifted and drawn by itself, with their labels.

    Args:
        images: grey levels from 0 to 1 of squares, shape (images, pixels).
        labels: shape (images,).
        copies: of each image.
        shift: the most pixels that a copy moves, either way; what comes in is blank.
        seed: of shifts and draws.

    Example:
        >>> pixels, labels = augment(np.eye(4)[:2], np.array([7, 8]), copies=3, shift=0, seed=0)
        >>> bool((pixels == np.tile(np.eye(4)[:2], (3, 1))).all()), labels
        (True, array([7, 8, 7, 8, 7, 8]))
    """
    rng, side = np.random.default_rng(seed), math.isqrt(images.shape[-1])
    squares = np.tile(images.reshape(-1, side, side), (copies, 1, 1))
    padded = np.pad(squares, ((0, 0), (shift, shift), (shift, shift)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))
    rows, columns = rng.integers(0, 2 * shift + 1, (2, len(squares)))
    moved = windows[np.arange(len(squares)), rows, columns]
    return binarize(moved.reshape(len(squares), -1), rng), np.tile(labels, copies)


def accuracy(probs: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose most probable class is the right one.

    Example:
        >>> accuracy(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]))
        0.5
    """
    return float((probs.argmax(-1) == labels).mean())


def evaluate(
    trainer: Trainer, images: np.ndarray, samples: int, seed: int = 0
) -> dict[str, float | int]:
    """Mean of the negative importance-weighted bound over images, with its standard error."""
    began = time.perf_counter()
    bounds = trainer.bound(images, samples, seed)
    return {
        "nats": float(bounds.mean()),
        "error": float(bounds.std(ddof=1) / math.sqrt(len(bounds))),
        "images": len(images),
        "samples": samples,
        "seconds": round(time.perf_counter() - began, 1),
    }
