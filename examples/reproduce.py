"""Runs the cells of the paper's tables on MNIST, and puts the results beside the paper's figures.

    python examples/reproduce.py tune --data-dir MNIST
    python examples/reproduce.py table1 --data-dir MNIST
    python examples/reproduce.py table2 --data-dir MNIST
    python examples/reproduce.py figure5

`tune` searches for the settings of each estimator of Table 1, which then has the long runs at them.
A cell that has its result in models/results is not run again, one that broke off goes on from its
checkpoint in the output folder; `--only` selects cells by their name. `--quick` runs a few steps of
each on the bundled digits: does it work?
"""

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from _report import TITLES, find_versions, in_words, make_parser, parse, write_report
from _step_cost import draw_step_cost, measure_step_cost
from _tuning import HELD_OUT, choose, in_short, next_trial
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from gs_ppl.models.data import binarize, load_digits, load_mnist, split_labels
from gs_ppl.models.training import (
    RunError,
    SemiSupervisedSettings,
    Settings,
    Trainer,
    augment,
    fit,
)

RESULTS = Path(__file__).parents[1] / "models" / "results"
Data = dict[str, np.ndarray]


@dataclass(frozen=True)
class Cell:
    """One run: where it stands in its table, the paper's figure, how it is run."""

    row: str
    column: str
    paper: float | None  # nats
    settings: Settings
    backend: str
    paper_accuracy: float | None = None
    shift: int = 0  # the most that a labelled image's copies move, pixels

    def name(self, table: str) -> str:
        """Of the file of its result."""
        words = " ".join([table, self.row, self.column, self.backend, f"seed{self.settings.seed}"])
        return words.lower().replace(",", "").replace(".", "").replace(" ", "_")


# --- Table 1: nats of the discrete program --------------------------------------------------------

ONE_HOT = {"variables": 20, "classes": 10, "steps": 60_000}
BITS = {"variables": 200, "steps": 60_000}
LINEAR = {"learning_rate": 1e-2, "weight_decay": 0.03}
LONGER = {"steps": 150_000, "learning_rate": 2e-2, "minimum": 0.3}
SBN = {"model": "structured_output", "rate": 0.0}  # temperature 1 throughout, as in the paper
COLUMNS = {  # the paper's, in its order, and others
    "SF": {"family": "NVIL_ELBO", "baseline": 200, "learning_rate": 3e-3},
    "DARN": {"family": "DARN_ELBO", "learning_rate": 3e-3},
    "MuProp": {"family": "MuProp_ELBO"},
    "ST": {"family": "StraightThrough", "rate": 0.0},
    "Annealed ST": {"family": "StraightThrough", "rate": 1e-4},
    "Gumbel-S.": {"family": "GumbelSoftmax"},
    "ST Gumbel-S.": {"family": "STGumbelSoftmax"},
    "ReinMax": {"family": "ReinMax", "rate": 0.0},
    "Gumbel-Rao": {"family": "GumbelRao"},
    "RLOO": {"family": "RLOO_ELBO"},
}
ROWS = {
    "SBN, bits": Settings(**SBN, **BITS, **LINEAR),
    "SBN, categorical": Settings(**SBN, **ONE_HOT, **LINEAR),
    "VAE, bits": Settings(**BITS, **LINEAR),
    "VAE, categorical": Settings(**ONE_HOT, **LINEAR),
    "VAE, bits, 150,000 steps": Settings(**BITS | LINEAR | LONGER),
    "VAE, categorical, 150,000 steps": Settings(**ONE_HOT | {"steps": 150_000}, **LINEAR),
    "VAE, bits, hidden layer": Settings(**BITS, hidden=(200,)),
    "VAE, categorical, hidden layer": Settings(**ONE_HOT, hidden=(200,), learning_rate=3e-3),
}
PAPER = {
    "SBN, bits": (72.0, 59.7, 58.9, 58.9, 58.7, 58.5, 59.3),
    "SBN, categorical": (73.1, 67.9, 63.0, 61.8, 61.1, 59.0, 59.7),
    "VAE, bits": (112.2, 110.9, 109.7, 116.0, 111.5, 105.0, 111.5),
    "VAE, categorical": (110.6, 128.8, 107.0, 110.9, 107.8, 101.5, 107.8),
}

COLUMNS_OF = {  # the rows that the paper does not have
    "VAE, bits, 150,000 steps": ("Gumbel-S.",),
    "VAE, categorical, 150,000 steps": ("Gumbel-S.",),
    "VAE, bits, hidden layer": ("Gumbel-S.", "ST Gumbel-S."),
    "VAE, categorical, hidden layer": ("Gumbel-S.", "ST Gumbel-S."),
}


def list_table1() -> list[Cell]:
    return [
        Cell(row, column, figure, replace(settings, **changes), backend)
        for backend in TITLES
        for row, settings in ROWS.items()
        for (column, changes), figure in zip_longest(
            COLUMNS.items(), PAPER[", ".join(row.split(", ")[:2])]
        )
        if column in COLUMNS_OF.get(row, COLUMNS)
    ]


# --- Table 1, each estimator with its own settings ------------------------------------------------

LONG = {"vae": 200_000, "structured_output": 100_000}  # steps
RATES = (1e-4, 1e-5)  # of the temperature, the paper's
MORE_COLUMNS = {
    "GappedST": {"family": "GappedST"},
    "REBAR": {"family": "REBAR_ELBO"},
    "DisARM": {"family": "DisARM_ELBO"},
}
TUNED_SEEDS = {"Gumbel-S.": (0, 1, 2), "ST Gumbel-S.": (0, 1, 2)}  # the others have one


def list_searches() -> list[Cell]:
    """The cells that are tuned, as they are before it; on one side: its choice serves both."""
    return [
        Cell(row, column, figure, settings, "numpyro")
        for row, figures in PAPER.items()
        for (column, changes), figure in zip_longest({**COLUMNS, **MORE_COLUMNS}.items(), figures)
        if column != "DisARM" or ROWS[row].classes is None
        for settings in [replace(ROWS[row], **changes)]
        for settings in [replace(settings, steps=LONG[settings.model])]
    ]


def rates_of(settings: Settings) -> tuple[float, ...]:
    """Of the temperature, those to choose from."""
    scheduled = settings.rate > 0 and "rate" not in settings.without_effect
    return RATES if scheduled else (settings.rate,)


def read_search(search: Cell, results: Path) -> dict[str, Any]:
    """The trials so far, and the choice, None until they are complete."""
    path = results / "tuning" / f"{search.name('tune')}.json"
    return json.loads(path.read_text()) if path.exists() else {"trials": [], "choice": None}


def list_tuned(results: Path) -> list[Cell]:
    """The long runs of which the settings are found."""
    return [
        replace(search, row=f"{search.row}, tuned", backend=backend, settings=settings)
        for backend in TITLES
        for search in list_searches()
        for choice in [read_search(search, results)["choice"]]
        if choice is not None
        for seed in TUNED_SEEDS.get(search.column, (0,))
        for settings in [replace(search.settings, **choice, seed=seed)]
    ]


# --- Table 2: semi-supervised, 100 labels ---------------------------------------------------------

SEEDS = (0, 1, 2)
SEMI_SUPERVISED = {"variables": 10, "labelled": 20, "alpha": 10.0}
COLD = {"minimum": 0.2, "rate": 10.0, "every": 1}  # from the second step on
SUMMED = {"family": "enumerated", "channels": 8, "batch": 25, "learning_rate": 2e-3}
SOFT = {"family": "GumbelSoftmax", "channels": 16, "batch": 50, **COLD}
HARD = {"family": "STGumbelSoftmax", "channels": 16, "batch": 50, **COLD}
METHODS = {
    # column: settings, the paper's nats and accuracy
    "Marginalization": (
        SemiSupervisedSettings(**SEMI_SUPERVISED, **SUMMED, steps=6000),
        106.8,
        0.926,
    ),
    "Gumbel-S.": (SemiSupervisedSettings(**SEMI_SUPERVISED, **SOFT, steps=6000), 109.6, 0.924),
    "ST Gumbel-S.": (
        SemiSupervisedSettings(**SEMI_SUPERVISED | HARD | {"alpha": 30.0}, steps=8000),
        110.7,
        0.936,
    ),
}


def list_table2() -> list[Cell]:
    return [
        Cell("M2", column, nats, replace(settings, seed=seed), backend, right, shift=2)
        for backend in TITLES
        for seed in SEEDS
        for column, (settings, nats, right) in METHODS.items()
    ]


# --- grey levels: nats of the training images, another family of figures --------------------------

EPOCH = 600  # steps
GREY = {"hidden": (512, 256), "steps": 160 * EPOCH, "rate": 0.0, "grey": True}
LATENTS = {
    # row: settings, and by column the published figure, temperature and learning rate
    "8 x 16": (
        Settings(**GREY, classes=8, variables=16),
        {
            "ST Gumbel-S.": (99.2, "STGumbelSoftmax", 0.5, 5e-4),
            "ReinMax": (97.8, "ReinMax", 1.5, 7e-4),
            "Gumbel-Rao": (99.6, "GumbelRao", 0.7, 7e-4),
        },
    ),
    "10 x 30": (
        Settings(**GREY, classes=10, variables=30),
        {
            "ST Gumbel-S.": (99.8, "STGumbelSoftmax", 0.5, 5e-4),
            "ReinMax": (98.5, "ReinMax", 1.3, 5e-4),
            "Gumbel-Rao": (102.3, "GumbelRao", 1.0, 5e-4),
        },
    ),
}


def list_grey() -> list[Cell]:
    cells = []
    for backend in TITLES:
        for row, (settings, columns) in LATENTS.items():
            for column, (figure, family, tau, rate) in columns.items():
                changes = {"family": family, "start": tau, "learning_rate": rate}
                cells.append(Cell(row, column, figure, replace(settings, **changes), backend))
    return cells


TABLES: dict[str, Callable[[], list[Cell]]] = {
    "tune": list_searches,
    "table1": list_table1,
    "table2": list_table2,
    "grey": list_grey,
}


# --- running --------------------------------------------------------------------------------------


def load(arguments: argparse.Namespace) -> Data:
    """Grey levels and labels to train and to test on."""
    if arguments.quick and not arguments.data_dir:
        counts, labels = load_digits()
        grey = (counts / 16).astype(np.float32)
        train, test = slice(1500), slice(1500, 1520)
        return {"grey": grey[train], "labels": labels[train]} | {
            "test_grey": grey[test],
            "test_labels": labels[test],
        }
    try:
        parts = load_mnist(arguments.data_dir)
    except (ValueError, OSError) as error:
        raise RunError(str(error)) from error
    (grey, labels), (test_grey, test_labels) = parts["train"], parts["test"]
    some = slice(20 if arguments.quick else None)
    return {"grey": grey, "labels": labels} | {
        "test_grey": test_grey[some],
        "test_labels": test_labels[some],
    }


def select_cells(arguments: argparse.Namespace, results: Path) -> list[Cell]:
    """Those of the table that were asked for."""
    table = arguments.table
    cells = TABLES[table]() + (list_tuned(results) if table == "table1" else [])
    cells = [cell for cell in cells if cell.backend in arguments.backends]
    cells = [cell for cell in cells if arguments.only in cell.name(table)]
    if not cells:
        raise RunError(f"no cell of {table} has {arguments.only!r} in its name")
    return cells


def run_cells(arguments: argparse.Namespace, results: Path) -> list[dict[str, Any]]:
    """The results of the cells that were asked for, made where there are none yet."""
    found, data = [], None
    for cell in select_cells(arguments, results):
        name = cell.name(arguments.table)
        path = results / f"{name}.json"
        if not path.exists():
            data = load(arguments) if data is None else data
            folder = arguments.output / "checkpoints" / name
            result = run(cell, data, folder, arguments.quick)
            write_record(
                path, {"name": name, "command": command_of(arguments.table, name), **result}
            )
        found.append(json.loads(path.read_text()))
    return found


def command_of(table: str, name: str) -> str:
    return f"python examples/reproduce.py {table} --only {name}"


def run(cell: Cell, data: Data, folder: Path, quick: bool) -> dict[str, Any]:
    """Trains and evaluates one cell; the result, with what it takes to run it again."""
    settings = cell.settings
    options: dict[str, Any] = {"samples": 1000, "chunk": 500}
    if settings.grey:
        options = {"samples": 1, "chunk": EPOCH}  # the last loss: the mean over the last epoch
    options["evaluate_every"] = settings.steps // 10
    if quick:
        settings = replace(settings, steps=20, batch=10)
        options = {"samples": 5, "chunk": 10}
    grey = data["grey"]
    if isinstance(settings, SemiSupervisedSettings):
        grey, labels = grey[:50_000], data["labels"][:50_000]
        rows, _ = split_labels(labels, per_class=10, seed=settings.seed)
        copies = augment(grey[rows], labels[rows], 200, cell.shift, settings.seed)
        options |= {"labelled": copies, "test_labels": data["test_labels"]}
        options["samples"] = min(options["samples"], 100)  # convolutions take their time
    images, test = grey, data["test_grey"]
    if not settings.grey:  # each pixel is drawn once
        images, test = binarize(images, seed=0), binarize(test, seed=1)
    with tqdm(total=settings.steps, unit="step", desc=f"{cell.row}: {cell.column}") as bar:
        trainer, result = fit(cell.backend, settings, images, test, folder, bar=bar, **options)
    every = max(1, len(result["losses"]) // 50)
    return {
        **{key: value for key, value in vars(cell).items() if key != "settings"},
        "seed": settings.seed,
        "settings": dataclasses.asdict(settings),
        "versions": find_versions([cell.backend]),
        **({"train": {"nats": result["losses"][-1][1]}} if settings.grey else {}),
        "test": result["test"],
        "ms": step_cost(trainer, options["chunk"]),
        "evaluations": result["evaluations"],
        "losses": result["losses"][::-every][::-1],
    }


def run_searches(arguments: argparse.Namespace, results: Path) -> list[dict[str, Any]]:
    """The searches that were asked for, each taken up after the last trial of its record."""
    found, data = [], None
    for cell in select_cells(arguments, results):
        name = cell.name("tune")
        path = results / "tuning" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        search, rates = read_search(cell, results), rates_of(cell.settings)
        while (settings := next_trial(search["trials"], rates)) is not None:
            data = load(arguments) if data is None else data
            trial = dict(zip(("learning_rate", "rate"), settings, strict=True))
            folder = arguments.output / "checkpoints" / f"{name}_{'_'.join(map(str, settings))}"
            trial |= run_trial(cell, trial, data, folder, arguments.quick)
            trials = [*search["trials"], trial]
            done = next_trial(trials, rates) is None
            search = {
                "name": name,
                "command": command_of("tune", name),
                **{part: getattr(cell, part) for part in ("row", "column", "backend")},
                "seed": cell.settings.seed,
                "settings": dataclasses.asdict(cell.settings),
                "versions": find_versions([cell.backend]),
                "trials": trials,
                "choice": choose(trials) if done else None,
            }
            write_record(path, search)
        found.append(search)
    return found


def run_trial(
    cell: Cell, trial: dict[str, float], data: Data, folder: Path, quick: bool
) -> dict[str, Any]:
    """Trains in short; the bound of the last training images, which are held out."""
    settings = in_short(replace(cell.settings, **trial))
    samples, chunk = 50, 500
    if quick:
        settings, samples, chunk = replace(settings, steps=20, batch=10), 5, 10
    images = binarize(data["grey"], seed=0)
    count = len(images) // HELD_OUT
    train, held_out = images[:-count], images[-count:]
    with tqdm(total=settings.steps, unit="step", desc=describe(cell, trial)) as bar:
        try:
            trainer, result = fit(
                cell.backend,
                settings,
                train,
                held_out,
                folder,
                bar=bar,
                samples=samples,
                chunk=chunk,
            )
        except FloatingPointError as error:
            return {"nats": None, "diverged": str(error).split(";")[0]}
    found = result["test"]
    return {**found, "steps": settings.steps, "ms": step_cost(trainer, chunk)}


def describe(cell: Cell, trial: dict[str, float]) -> str:
    return f"{cell.row}: {cell.column}, {', '.join(f'{k} {v:g}' for k, v in trial.items())}"


def step_cost(trainer: Trainer, steps: int) -> float:
    """CPU time of a step, ms, after the run's last one: all is compiled."""
    began = time.process_time()
    trainer.advance(steps)
    return round((time.process_time() - began) / steps * 1e3, 2)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """As JSON, a point of a curve on a line."""
    text = json.dumps(record, indent=1)
    path.write_text(re.sub(r"\[\s+(\S+),\s+(\S+)\s+\]", r"[\1, \2]", text) + "\n")


# --- what is shown --------------------------------------------------------------------------------


def show_table(results: list[dict[str, Any]]) -> Table:
    table = Table(title="Negative log likelihood, or bound of it, nats")
    for column in ("model", "PPL", "column", "seed", "paper", "here", "right"):
        table.add_column(
            column, justify="left" if column in ("model", "PPL", "column") else "right"
        )
    for result in results:
        test, train = result["test"], result.get("train")
        table.add_row(
            result["row"],
            TITLES[result["backend"]],
            result["column"],
            str(result["seed"]),
            f"{result['paper']:.1f}" if result["paper"] is not None else "",
            f"{train['nats']:.1f}" if train else f"{test['nats']:.1f} ± {test['error']:.1f}",
            f"{test['accuracy']:.1%}" if "accuracy" in test else "",
        )
    return table


def show_searches(searches: list[dict[str, Any]]) -> Table:
    table = Table(title="Bound of held-out images, nats")
    for column in ("model", "column", "learning rate", "tau's rate", "nats", "ms a step", "chosen"):
        table.add_column(column, justify="left" if column in ("model", "column") else "right")
    for search in searches:
        for trial in search["trials"]:
            settings = trial["learning_rate"], trial["rate"]
            chosen = search["choice"] and settings == tuple(search["choice"].values())
            diverged = trial["nats"] is None
            table.add_row(
                *(search["row"], search["column"], *(f"{x:g}" for x in settings)),
                "diverged" if diverged else f"{trial['nats']:.1f}",
                "" if diverged else f"{trial['ms']:.1f}",
                "*" if chosen else "",
            )
    return table


def draw_curves(results: list[dict[str, Any]], path: Path) -> None:
    """The discrete bound of test images during training, one set of axes for each row."""
    rows = list(dict.fromkeys(result["row"] for result in results))
    columns = list(dict.fromkeys(result["column"] for result in results))
    across = min(2, len(rows))
    down = -(-len(rows) // across)
    figure = Figure(figsize=(5.5 * across, 3.5 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flat
    for ax, row in zip(axes, rows, strict=False):
        for result in (r for r in results if r["row"] == row):
            curve = result["evaluations"] or result["losses"]
            column, backend = result["column"], result["backend"]
            label = f"{column}, {TITLES[backend]}" if backend == "pyro" else column
            style = ":" if backend == "pyro" else "-"
            color = f"C{columns.index(column)}"
            ax.plot(*np.array(curve).T, style, color=color, label=label)
        ax.set(xlabel="step", ylabel="nats of a test image, one sample", title=row)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=7, ncols=2)
    for ax in axes:
        ax.remove()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = make_parser(__doc__, output="results/reproduce")
    parser.add_argument("table", choices=(*TABLES, "figure5"))
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of MNIST's files")
    parser.add_argument("--only", default="", metavar="TEXT", help="cells whose name has it")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default models/results")
    arguments = parse(parser)
    if arguments.table == "figure5" and (arguments.only or arguments.data_dir):
        parser.error("--only and --data-dir have no effect with figure5")
    with in_words(arguments.output):
        reproduce(arguments)


def reproduce(arguments: argparse.Namespace) -> None:
    results = arguments.results or (arguments.output if arguments.quick else RESULTS)
    results.mkdir(parents=True, exist_ok=True)
    picture = arguments.output / f"{arguments.table}.png"
    if arguments.table == "figure5":
        arguments.json = arguments.json or results / "figure5.json"
        found = measure_step_cost(arguments.backends, quick=arguments.quick, seed=arguments.seed)
        shown = draw_step_cost(found, picture)
    elif arguments.table == "tune":
        found = run_searches(arguments, results)
        shown, picture = show_searches(found), None
    else:
        found = run_cells(arguments, results)
        shown = show_table(found)
        draw_curves(found, picture)
    pictures = [picture] if picture else []
    target = write_report(arguments, pictures, found)
    Console().print(shown)
    Console().print(*pictures, target, sep="\n")


if __name__ == "__main__":
    main()
