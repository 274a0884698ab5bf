"""Trains one of the paper's models, on the bundled digits or on MNIST, and draws its images.

    python examples/train.py --model vae --classes 10 --variables 20 --data-dir MNIST --output run

    python examples/train.py --model semi_supervised --alpha 10 --data-dir MNIST --output run

MNIST is a folder with the four IDX files; `--data mnist` without a folder downloads them. The run
writes checkpoints to the output folder, and goes on from the newest one when it is started again.
At the end it writes report.json, images.png and curves.png.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from _report import TITLES, in_words, make_parser, parse, write_report
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from gs_ppl.models.data import binarize, load_digits, load_mnist, split_labels
from gs_ppl.models.training import (
    MODELS,
    OPTIMIZERS,
    RunError,
    SemiSupervisedSettings,
    Settings,
    Trainer,
    augment,
    fit,
)

Images = tuple[np.ndarray, np.ndarray]  # grey levels from 0 to 1, labels
COPIES = 200  # of each labelled image, each binarized separately
SHOWN = 10  # images in a row of the picture
DEFAULTS = {"samples": 1000, "evaluate_every": 2_000, "checkpoint_every": 2_000}
QUICK = {"samples": 20, "evaluate_every": 20, "batch": 20, "test_images": 50}
STEPS, QUICK_STEPS = 20_000, 40
OF_LABELS = {"per_class": 10, "shift": 0}  # options and their defaults


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, output="results/train", steps=STEPS)
    parser.set_defaults(backend="numpyro")
    parser.add_argument("--model", choices=MODELS, default="vae")
    of_run = parser.add_argument_group("of the run; the model's own defaults unless given")
    of_run.add_argument(
        "--variables", type=int, help="latent variables; semi-supervised: size of z"
    )
    of_run.add_argument("--classes", type=int, help="of each variable; bits unless given")
    of_run.add_argument("--hidden", type=int, nargs="*", help="widths; linear if none")
    of_run.add_argument("--family", help="a class of gs_ppl; or enumerated, for exact sums")
    of_run.add_argument("--objective", choices=("categorical", "relaxed"))
    of_run.add_argument("--rate", type=float, help="tau = exp(-rate t)")
    of_run.add_argument("--minimum", type=float, help="of tau")
    of_run.add_argument("--every", type=int, help="steps for each tau")
    of_run.add_argument("--optimizer", choices=OPTIMIZERS)
    of_run.add_argument("--learning-rate", type=float)
    of_run.add_argument("--batch", type=int)
    of_run.add_argument("--channels", type=int, help="semi-supervised: of the first convolution")
    of_run.add_argument("--alpha", type=float, help="semi-supervised: weight of log q(label | x)")
    of_run.add_argument("--labelled", type=int, help="semi-supervised: of them in a minibatch")
    of_run.add_argument("--per-class", type=int, help="semi-supervised: labels of each class")
    of_run.add_argument("--shift", type=int, help="semi-supervised: pixels that their copies move")
    parser.add_argument("--data", choices=("digits", "mnist"), help="digits, unless --data-dir")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of MNIST's files")
    parser.add_argument("--samples", type=int, help="of the bound at the end; default 1000")
    parser.add_argument("--test-images", type=int, help="how many to evaluate on; all unless given")
    parser.add_argument("--evaluate-every", type=int, help="steps; default 2000")
    parser.add_argument("--checkpoint-every", type=int, help="steps; default 2000")
    arguments = parse(parser)
    if len(arguments.backends) > 1 and not arguments.quick:
        parser.error("it trains on one backend: pass --backend pyro or --backend numpyro")
    return arguments


def make_settings(arguments: argparse.Namespace) -> Settings:
    """Settings from the options; an option without effect is refused."""
    semi_supervised = arguments.model == "semi_supervised"
    kind = SemiSupervisedSettings if semi_supervised else Settings
    names = {field.name for field in dataclasses.fields(kind)}
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    if "hidden" in given:
        given["hidden"] = tuple(given["hidden"])
    settings = kind(**{name: value for name, value in given.items() if name in names})
    others = {field.name for field in dataclasses.fields(SemiSupervisedSettings)} | {*OF_LABELS}
    unused = {} if semi_supervised else dict.fromkeys(others - names, f"the model {settings.model}")
    unused |= settings.without_effect
    unused |= {"data_dir": "--data digits"} if arguments.data == "digits" else {}
    for name in given:
        if name in unused:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} has no effect with {unused[name]}")
    return settings


def load_images(arguments: argparse.Namespace) -> tuple[Images, Images]:
    """Grey levels and labels, for training and for testing."""
    if arguments.data == "mnist" or (arguments.data is None and arguments.data_dir):
        parts = load_mnist(arguments.data_dir)
        return parts["train"], parts["test"]
    counts, labels = load_digits()
    grey = (counts / 16).astype(np.float32)
    return (grey[:1500], labels[:1500]), (grey[1500:], labels[1500:])


def draw_images(trainer: Trainer, settings: Settings, images: np.ndarray, path: Path) -> None:
    """Test images, their reconstructions, and images from the prior."""
    side = round(images.shape[1] ** 0.5)
    given = images[:SHOWN]
    if settings.model != "structured_output":
        rows = {"image": given, "model": trainer.means(given, from_guide=True, seed=0)}
        rows["prior"] = trainer.means(given, from_guide=False, seed=0)
    else:  # the lower half, for three draws
        upper, _ = settings.inputs(given)
        draws = [trainer.means(given, from_guide=True, seed=seed) for seed in range(3)]
        rows = {"image": given} | {
            f"draw {i + 1}": np.concatenate([upper, lower], 1) for i, lower in enumerate(draws)
        }
    figure = Figure(figsize=(SHOWN, 1.05 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), SHOWN, squeeze=False)
    for line, (name, pixels) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, pixels, strict=True):
            ax.imshow(image.reshape(side, side), cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    figure.savefig(path, dpi=110)


def draw_curves(result: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.subplots()
    for name, label in (("losses", "training loss"), ("evaluations", "test, one discrete sample")):
        if result[name]:
            ax.plot(*np.array(result[name]).T, label=label)
    nats, samples = result["test"]["nats"], result["test"]["samples"]
    ax.axhline(nats, color="black", ls=":", label=f"test, {samples} discrete samples: {nats:.1f}")
    values = [point[1] for point in result["losses"]]
    top = np.quantile(values, 0.95) if len(values) > 20 else max(values)
    ax.set(xlabel="step", ylabel="nats per image", ylim=(nats * 0.9, top * 1.02))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    figure.savefig(path, dpi=110)


Prepared = tuple[Settings, np.ndarray, np.ndarray, dict[str, Any]]


def prepare(arguments: argparse.Namespace) -> Prepared:
    """Settings, training and test images, and the other arguments of `fit`; or an error."""
    if arguments.quick:
        arguments.steps = min(arguments.steps, QUICK_STEPS)
        for name, value in QUICK.items():
            if getattr(arguments, name) is None:
                setattr(arguments, name, value)
    settings = make_settings(arguments)
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    options = DEFAULTS | OF_LABELS | given
    limits = {name: options[name] for name in DEFAULTS}
    limits["chunk"] = min(500, limits["evaluate_every"], limits["checkpoint_every"])
    (grey, labels), (test_grey, test_labels) = load_images(arguments)
    count = len(test_grey) if arguments.test_images is None else arguments.test_images
    if not SHOWN <= count <= len(test_grey):
        raise ValueError(
            f"--test-images must be from {SHOWN}, which the picture shows, to {len(test_grey)},"
            f" which there are, got {count}"
        )
    if isinstance(settings, SemiSupervisedSettings):
        rows, _ = split_labels(labels, options["per_class"], seed=settings.seed)
        copies = augment(grey[rows], labels[rows], COPIES, options["shift"], settings.seed)
        limits |= {"labelled": copies, "test_labels": test_labels[:count]}
    return settings, binarize(grey, seed=0), binarize(test_grey[:count], seed=1), limits


def train(arguments: argparse.Namespace) -> None:
    try:
        settings, images, test, limits = prepare(arguments)
    except (TypeError, ValueError, OSError) as error:
        raise RunError(str(error)) from error
    table = Table(title=f"{settings.model}: negative log likelihood of test images")
    for column in ("backend", "nats per image", "samples", "images", "right"):
        table.add_column(column, justify="right")
    rows, pictures, curves = [], [], {}
    for backend in arguments.backends:
        folder = arguments.output / "checkpoints" / backend
        # delay: no bar for a run that is refused
        with tqdm(total=settings.steps, unit="step", desc=TITLES[backend], delay=0.1) as bar:
            trainer, result = fit(backend, settings, images, test, folder, bar=bar, **limits)
        found = result.pop("test")
        rows.append({"backend": backend, **found})
        curves[backend] = result
        cells = f"{found['nats']:.2f} ± {found['error']:.2f}", found["samples"], found["images"]
        right = f"{found['accuracy']:.1%}" if "accuracy" in found else ""
        table.add_row(TITLES[backend], *map(str, cells), right)
        paths = [arguments.output / f"{what}_{backend}.png" for what in ("images", "curves")]
        draw_images(trainer, settings, test, paths[0])
        draw_curves({"test": found, **result}, paths[1])
        pictures += paths
    target = write_report(
        arguments, pictures, rows, settings=dataclasses.asdict(settings), curves=curves
    )
    console = Console()
    console.print(table)
    console.print(*pictures, target, sep="\n")


def main() -> None:
    arguments = parse_arguments()
    with in_words(arguments.output):
        train(arguments)


if __name__ == "__main__":
    main()
