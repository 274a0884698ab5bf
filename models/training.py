"""One training run of a model, on either backend: settings, data, loop. Imports neither PPL."""

import dataclasses
import hashlib
import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sklearn.metrics import confusion_matrix
from tqdm import tqdm

from gs_ppl import temperature
from gs_ppl.models.data import binarize
from gs_ppl.models.training_files import (
    RunError,
    Stored,
    checkpoints,
    newest_checkpoint,
    remove,
    resume,
    save_checkpoint,
)

__all__ = [
    "BACKENDS",
    "FAMILIES",
    "MODELS",
    "OPTIMIZERS",
    "RunError",
    "SemiSupervisedSettings",
    "Settings",
    "Trainer",
    "accuracy",
    "augment",
    "checkpoints",
    "evaluate",
    "fit",
    "make_trainer",
    "newest_checkpoint",
    "remove",
]

BACKENDS = ("pyro", "numpyro")

MODELS = {
    "vae": "VAE",
    "structured_output": "StructuredOutput",
    "semi_supervised": "SemiSupervised",
}
SOFT = (
    *("GumbelSoftmax", "ExpGumbelSoftmax", "SoftOneHotCategorical"),
    *("GumbelSigmoid", "SoftBernoulli"),  # of bits
)
HARD = (
    *("STGumbelSoftmax", "StraightThrough", "ReinMax", "GappedST", "GumbelRao"),
    *("STGumbelSigmoid", "STBernoulli", "ReinMaxBernoulli", "GappedSTBernoulli"),  # of bits
    "GumbelRaoBernoulli",
)
DISCRETE = ("RLOO_ELBO", "NVIL_ELBO", "MuProp_ELBO", "DARN_ELBO", "REBAR_ELBO", "DisARM_ELBO")
FAMILIES = (*SOFT, *HARD, *DISCRETE, "enumerated")
OPTIMIZERS = ("AdamW", "Adam", "RAdam")


@dataclass(frozen=True)
class Settings:
    """Settings of a run; the same settings and data give the same run, bit for bit.

    Attributes:
        model: a key of MODELS.
        variables, classes, hidden: of the latent layer; classes None: bits.
        family: a class of gs_ppl.pyro and gs_ppl.numpyro, such as "ReinMax", or an ELBO that takes
            the discrete program, such as "RLOO_ELBO"; "enumerated", for exact sums.
        objective: "categorical" or, of soft families, "relaxed".
        rate, minimum, every, start: the temperature is max(minimum, start exp(-rate t)), set every
            `every` steps; rate 0: constant.
        optimizer: "AdamW", whose learning rate falls by a cosine to 0 at the last step; "Adam" or
            "RAdam", at a constant rate.
        learning_rate: at the first step.
        weight_decay: of AdamW, relative to the learning rate.
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
    optimizer: str = "AdamW"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    steps: int = 100_000
    batch: int = 100
    seed: int = 0
    grey: bool = False
    baseline: int = 0

    def __post_init__(self) -> None:
        check_choice("model", self.model, MODELS)
        check_choice("family", self.family, FAMILIES)
        check_choice("objective", self.objective, ("categorical", "relaxed"))
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_counts(variables=self.variables, steps=self.steps, batch=self.batch)
        check_counts(**{} if self.classes is None else {"classes": self.classes})
        check_counts(**{f"hidden[{i}]": width for i, width in enumerate(self.hidden)})
        check_counts(least=0, seed=self.seed, baseline=self.baseline)
        check_numbers(learning_rate=self.learning_rate)
        check_numbers(least=0.0, weight_decay=self.weight_decay)
        _ = self.schedule  # which checks its own
        if self.seed >= 2**32 - 1:
            raise ValueError(f"seed must be below 2**32 - 1, got {self.seed}")
        if self.hidden and self.model == "structured_output":
            raise ValueError(f"the model structured_output has no hidden layers, got {self.hidden}")
        if self.grey and self.model != "vae":
            raise ValueError(f"grey levels are for the model vae alone, got {self.model!r}")
        if self.weight_decay and self.optimizer != "AdamW":
            raise ValueError(f"weight decay is for the optimizer AdamW, got {self.optimizer!r}")
        if self.baseline and self.family != "NVIL_ELBO":
            raise ValueError(f"a baseline is for the family NVIL_ELBO alone, got {self.family!r}")
        if self.family == "DisARM_ELBO" and self.classes is not None:
            raise ValueError(f"the family DisARM_ELBO is for bits, got {self.classes} classes")
        if self.objective == "relaxed" and self.family not in SOFT:
            raise ValueError(
                f"the objective 'relaxed' is for {', '.join(SOFT)}, got the family {self.family}"
            )

    @property
    def enumerated(self) -> bool:
        return self.family == "enumerated"

    @property
    def discrete(self) -> bool:
        """Whether it is trained without relaxation, by an ELBO with its own gradient estimator."""
        return self.family in DISCRETE

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that have no effect in this run, and the reason."""
        family = f"the family {self.family}"
        names = {} if self.family in SOFT else {"objective": family}
        if self.enumerated or self.discrete:
            return names | dict.fromkeys(("rate", "minimum", "every", "start"), family)
        return names | (dict.fromkeys(("minimum", "every"), "rate 0") if self.rate == 0 else {})

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
        """The arguments of model and guide: images, or their upper and lower halves."""
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
        labelled: number of labelled images in each minibatch, in addition to `batch` others.
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("model", self.model, ("semi_supervised",))
        if self.classes is None:
            raise ValueError("the model semi_supervised needs a number of classes, got None")
        if len(self.hidden) != 1:
            raise ValueError(f"the model semi_supervised has one hidden width, got {self.hidden}")
        if self.discrete and self.family not in ("RLOO_ELBO", "NVIL_ELBO"):
            raise ValueError(
                f"the family {self.family} is for discrete latents alone, and the model"
                " semi_supervised has normal ones: use RLOO_ELBO"
            )
        check_counts(labelled=self.labelled)
        check_counts(**{} if self.channels is None else {"channels": self.channels})
        check_numbers(least=0.0, alpha=self.alpha)

    def network(self, images: np.ndarray) -> dict[str, Any]:
        (width,) = self.hidden
        sizes = {"classes": self.classes, "style": self.variables, "width": width}
        how = {"channels": self.channels, "alpha": self.alpha, "shared": self.shared}
        return sizes | how | {"pixels": images.shape[-1]}

    def inputs(self, images: Any) -> tuple[Any, ...]:
        """The arguments of model and guide for images without labels."""
        return (images,)


def check_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_counts(least: int = 1, **values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_numbers(least: float | None = None, **values: float) -> None:
    """Refuses numbers that are not finite, or below the least value (without one: not positive)."""
    for name, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {value!r}")
        enough = value > 0 if least is None else value >= least
        if not enough or not math.isfinite(value):
            wanted = "positive" if least is None else f"at least {least:g}"
            raise ValueError(f"{name} must be finite and {wanted}, got {value}")


class Trainer(Stored, Protocol):
    """One run on one backend."""

    def advance(self, steps: int) -> np.ndarray:
        """Takes that many steps; returns their losses, nats per image."""

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
    """The trainer of a backend, at step 0.

    Raises:
        ValueError, TypeError: if the library has no such pairing of model, family and objective.
    """
    check_choice("backend", backend, BACKENDS)
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
        test_labels: classes of the test images, for their accuracy.
        samples: of the importance-weighted bound at the end.
        evaluate_every: steps between evaluations with a single sample, for the curve.
        checkpoint_every: steps between checkpoints, at the ends of chunks.
        chunk: steps between two points of the curve of losses.
        bar: progress bar to move on.

    Returns:
        The trainer, and {"test": evaluation, "losses": curve, "evaluations": curve}, curves as
        [step, nats per image]. With test_labels the evaluation has the accuracy and the confusion,
        by true class how many images were taken for each; and a curve "right" has
        [step, share of each class that is right].

    Raises:
        FloatingPointError: at a loss that is not finite, with the step and the last checkpoint.
        RunError: before the first step, if the settings do not go together or with the data, or if
            the folder has another run or a damaged one; a damaged checkpoint is a warning if an
            older one is whole.
        OSError: if a file cannot be written, with its name, the step and the last checkpoint.
    """
    try:
        check_options(settings, images, test_images, labelled, test_labels)
        check_counts(samples=samples, checkpoint_every=checkpoint_every)
        check_counts(**{} if evaluate_every is None else {"evaluate_every": evaluate_every})
        check_counts(chunk=chunk)
        trainer = make_trainer(backend, settings, images, labelled)
    except (TypeError, ValueError) as error:
        raise RunError(str(error).split("\n")[0]) from error
    run = {"backend": backend, **dataclasses.asdict(settings)}
    curves = resume(trainer, run | {"data": fingerprint(images, *labelled or ())}, folder)
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
            if test_labels is not None:
                found = confusion(trainer.classify(test_images), test_labels)
                shares = found.diagonal() / np.maximum(found.sum(1), 1)
                curves.setdefault("right", []).append([trainer.step, *shares.tolist()])
        if crosses(began, trainer.step, checkpoint_every) or trainer.step == settings.steps:
            save_checkpoint(trainer, curves, folder)
        if bar is not None:
            bar.update(len(losses))
            bar.set_postfix(loss=f"{losses.mean():.2f}", refresh=False)
    test = evaluate(trainer, test_images, samples)
    if test_labels is not None:
        probs = trainer.classify(test_images)
        test["accuracy"] = accuracy(probs, test_labels)
        test["confusion"] = confusion(probs, test_labels).tolist()
    return trainer, {"test": test, **curves}


def crosses(began: int, ended: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (began, ended]."""
    return ended // every > began // every


def check_options(
    settings: Settings,
    images: np.ndarray,
    test_images: np.ndarray,
    labelled: tuple[np.ndarray, np.ndarray] | None,
    test_labels: np.ndarray | None,
) -> None:
    """Refuses data that are not of the model's shape."""
    if images.ndim != 2 or test_images.ndim != 2 or images.shape[1] != test_images.shape[1]:
        shapes = f"{images.shape} and {test_images.shape}"
        raise ValueError(f"images and test_images must be of shape (images, pixels), got {shapes}")
    if len(images) < 1 or len(test_images) < 2:
        sizes = f"{len(images)} and {len(test_images)}"
        raise ValueError(f"an image to train on and two to test on are wanted, got {sizes}")
    semi_supervised = isinstance(settings, SemiSupervisedSettings)
    if semi_supervised == (labelled is None):
        raise ValueError("labelled images are for the model semi_supervised, which needs them")
    if semi_supervised and settings.channels and (images.shape[1] ** 0.5 % 4):
        raise ValueError(
            "convolutions are of square images whose side is a multiple of 4, got"
            f" {images.shape[1]} pixels"
        )
    if settings.model == "structured_output" and images.shape[1] % 2:
        raise ValueError(f"the model structured_output halves images, got {images.shape[1]} pixels")
    for name, labels in (("labelled", labelled and labelled[1]), ("test_labels", test_labels)):
        if labels is not None and not ((labels >= 0) & (labels < settings.classes)).all():
            raise ValueError(
                f"{name}: classes must be from 0 to {settings.classes - 1}, got"
                f" {labels.min()} to {labels.max()}"
            )


def fingerprint(*arrays: np.ndarray) -> str:
    """A checksum of the data of a run: other arrays have another one."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.shape} {array.dtype} ".encode())
        total.update(np.ascontiguousarray(array))
    return total.hexdigest()


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

    Raises:
        ValueError, TypeError: for less than one copy, a negative shift, images that are no squares.

    Example:
        >>> pixels, labels = augment(np.eye(4)[:2], np.array([7, 8]), copies=3, shift=0, seed=0)
        >>> bool((pixels == np.tile(np.eye(4)[:2], (3, 1))).all()), labels
        (True, array([7, 8, 7, 8, 7, 8]))
    """
    check_counts(copies=copies)
    check_counts(least=0, shift=shift, seed=seed)
    rng, side = np.random.default_rng(seed), math.isqrt(images.shape[-1])
    if side**2 != images.shape[-1]:
        raise ValueError(f"images must be squares, got {images.shape[-1]} pixels")
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


def confusion(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many images of each class (row) have each most probable class (column).

    Example:
        >>> confusion(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1])).tolist()
        [[1, 0], [1, 0]]
    """
    return confusion_matrix(labels, probs.argmax(-1), labels=range(probs.shape[-1]))


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
