"""One training run of a model, on either backend: settings, data, loop. Imports neither PPL."""

import dataclasses
import importlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from gs_ppl import temperature

MODELS = {"vae": "VAE", "structured_output": "StructuredOutput"}


@dataclass(frozen=True)
class Settings:
    """What a run is made of; the same settings and data give the same run, bit for bit.

    Attributes:
        model: a key of MODELS.
        variables, classes, hidden: of the latent layer; classes None: bits.
        family: a class of gs_ppl.pyro and gs_ppl.numpyro.
        objective: "categorical" or "relaxed".
        rate, minimum, every: of the temperature max(minimum, exp(-rate t)), anew every `every`
            steps; rate 0: constant 1.
        learning_rate: of Adam at the first step; falls by a cosine to 0 at the last.
        steps, batch: number and size of minibatches, drawn with replacement.
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
    learning_rate: float = 1e-3
    steps: int = 100_000
    batch: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}, got {self.model!r}")
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps and batch must be at least 1, got {self.steps}, {self.batch}")

    @property
    def schedule(self) -> Callable[[Any], Any]:
        if self.rate == 0:
            return temperature.constant(1.0)
        return temperature.exponential(self.rate, self.minimum, self.every)

    @property
    def network(self) -> dict[str, Any]:
        """The arguments of the model's class."""
        sizes: dict[str, Any] = {"variables": self.variables, "classes": self.classes}
        return sizes | ({"hidden": tuple(self.hidden)} if self.model == "vae" else {})

    def inputs(self, images: Any) -> tuple[Any, ...]:
        """What model and guide take: images, or their upper and lower half."""
        if self.model == "vae":
            return (images,)
        half = images.shape[-1] // 2
        return images[..., :half], images[..., half:]


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


def make_trainer(backend: str, settings: Settings, images: np.ndarray) -> Trainer:
    """The trainer of a backend, at step 0."""
    return importlib.import_module(f"gs_ppl.models.training_{backend}").Trainer(settings, images)


def train(
    trainer: Trainer,
    settings: Settings,
    folder: Path,
    chunk: int = 500,
    checkpoint_every: int = 10_000,
    bar: tqdm | None = None,
) -> Iterator[tuple[int, float]]:
    """Runs to the last step, from the newest checkpoint in the folder if there is one.

    Yields:
        Step and mean loss, after each chunk.

    Raises:
        FloatingPointError: at a loss that is not finite, with the step and the last checkpoint.
        ValueError: if the folder has a run with other settings.
    """
    start_or_resume(trainer, settings, folder)
    if bar is not None:
        bar.update(trainer.step - bar.n)
    while trainer.step < settings.steps:
        began = trainer.step
        losses = trainer.advance(min(chunk, settings.steps - began))
        if not np.isfinite(losses).all():
            first = began + int(np.flatnonzero(~np.isfinite(losses))[0])
            last = newest_checkpoint(folder)
            raise FloatingPointError(
                f"the objective is {losses[first - began]} at step {first}; the last good"
                f" checkpoint is {last or 'none'}"
            )
        if trainer.step % checkpoint_every < chunk or trainer.step == settings.steps:
            save_checkpoint(trainer, folder)
        if bar is not None:
            bar.update(len(losses))
            bar.set_postfix(loss=f"{losses.mean():.2f}", refresh=False)
        yield trainer.step, float(losses.mean())


# --- checkpoints ----------------------------------------------------------------------------------


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, the newest last; one that was being written has another name."""
    return sorted(folder.glob("step_" + "[0-9]" * 9), key=lambda path: path.name)


def newest_checkpoint(folder: Path) -> Path | None:
    return next(reversed(checkpoints(folder)), None)


def save_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Under its name at once, when all of it is written; older ones go."""
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


def start_or_resume(trainer: Trainer, settings: Settings, folder: Path) -> None:
    """Loads the newest checkpoint; the folder keeps the settings of its run."""
    folder.mkdir(parents=True, exist_ok=True)
    path, wanted = folder / "settings.json", json.loads(json.dumps(dataclasses.asdict(settings)))
    if path.exists() and json.loads(path.read_text()) != wanted:
        raise ValueError(f"{folder} has a run with other settings: see {path.name}, or remove it")
    write_atomically(path, json.dumps(wanted, indent=2) + "\n")
    newest = newest_checkpoint(folder)
    if newest is not None:
        trainer.load(newest)


def write_atomically(path: Path, text: str) -> None:
    """All or nothing."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


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
