"""Runs the cells of the paper's tables on MNIST, and compares the results with the paper's figures.

    python examples/reproduce.py tune --data-dir MNIST
    python examples/reproduce.py table1 --data-dir MNIST
    python examples/reproduce.py table2 --data-dir MNIST
    python examples/reproduce.py costs
    python examples/reproduce.py figure5

`tune` searches for the settings of each estimator of Table 1; `table1` then has the long runs with
these settings. `costs` measures a step of each, for the picture of Table 1. A cell with a result in
models/results is not run again. An interrupted cell goes on from its checkpoint in the output
folder. `--only` selects cells by their name. `--recorded` runs no cell and shows the results that
exist. `--quick` tests with a few steps of each on bundled digits.
"""

import argparse
import dataclasses
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _cells import EPOCH, TABLES, Cell, list_tuned, path_of_search, rates_of, read_search
from _costs import measure_costs, show_costs
from _pictures import draw_curves
from _report import TITLES, find_versions, in_words, make_parser, parse, write_report
from _step_cost import draw_step_cost, measure_step_cost
from _tuning import HELD_OUT, choose, in_short, next_trial
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from gs_ppl.models.data import binarize, load_digits, load_mnist, split_labels
from gs_ppl.models.training import (
    RunError,
    SemiSupervisedSettings,
    Trainer,
    augment,
    fit,
)

RESULTS = Path(__file__).parents[1] / "models" / "results"
Data = dict[str, np.ndarray]


# --- running --------------------------------------------------------------------------------------


def load(arguments: argparse.Namespace) -> Data:
    """Grey levels and labels for training and for testing."""
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
    """The cells of the table that were asked for."""
    table = arguments.table
    cells = TABLES[table]() + (list_tuned(results) if table == "table1" else [])
    cells = [cell for cell in cells if cell.backend in arguments.backends]
    cells = [cell for cell in cells if arguments.only in cell.name(table)]
    if not cells:
        raise RunError(f"no cell of {table} has {arguments.only!r} in its name")
    return cells


def run_cells(arguments: argparse.Namespace, results: Path) -> list[dict[str, Any]]:
    """The results of the cells that were asked for; those that do not exist are made."""
    found, data = [], None
    for cell in select_cells(arguments, results):
        name = cell.name(arguments.table)
        path = results / f"{name}.json"
        if not path.exists() and not arguments.recorded:
            data = load(arguments) if data is None else data
            folder = arguments.output / "checkpoints" / name
            result = run(cell, data, folder, arguments.quick)
            command = command_of(arguments.table, name)
            write_record(path, {"name": name, "command": command, **result})
        found += [json.loads(path.read_text())] if path.exists() else []
    return found


def command_of(table: str, name: str) -> str:
    return f"python examples/reproduce.py {table} --only {name}"


def run(cell: Cell, data: Data, folder: Path, quick: bool) -> dict[str, Any]:
    """Trains and evaluates one cell; the result has all that is needed to run it again."""
    settings = cell.settings
    options: dict[str, Any] = {"samples": 1000, "chunk": 500}
    if settings.grey:
        options = {"samples": 1, "chunk": EPOCH}  # the last loss is the mean over the last epoch
    options["evaluate_every"] = settings.steps // 10
    options["checkpoint_every"] = min(10_000, settings.steps // 10)
    if quick:
        settings = replace(settings, steps=20, batch=10)
        options = {"samples": 5, "chunk": 10}
    grey = data["grey"]
    if isinstance(settings, SemiSupervisedSettings):
        grey, labels = grey[:50_000], data["labels"][:50_000]
        rows, _ = split_labels(labels, per_class=10, seed=settings.seed)
        copies = augment(grey[rows], labels[rows], 200, cell.shift, settings.seed)
        options |= {"labelled": copies, "test_labels": data["test_labels"]}
        options["samples"] = min(options["samples"], 100)  # convolutions are slow
    images, test = grey, data["test_grey"]
    if not settings.grey:  # binarized once, with fixed seeds
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
        **({"right": result["right"]} if "right" in result else {}),
        "losses": result["losses"][::-every][::-1],
    }


def run_searches(arguments: argparse.Namespace, results: Path) -> list[dict[str, Any]]:
    """The searches that were asked for; each continues after the last trial of its record."""
    found, data = [], None
    for cell in select_cells(arguments, results):
        path, rates = path_of_search(cell, results), rates_of(cell.settings)
        trials = read_search(cell, results)["trials"]
        while not arguments.recorded and (settings := next_trial(trials, rates)) is not None:
            data = load(arguments) if data is None else data
            trial = dict(zip(("learning_rate", "rate"), settings, strict=True))
            folder = arguments.output / "checkpoints" / "_".join([path.stem, *map(str, settings)])
            trials.append(trial | run_trial(cell, trial, data, folder, arguments.quick))
            path.parent.mkdir(exist_ok=True)
            write_record(path, record_search(cell, path.stem, trials))
        found += [json.loads(path.read_text())] if path.exists() else []
    return found


def record_search(cell: Cell, name: str, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The choice is None as long as there are trials to run."""
    done = next_trial(trials, rates_of(cell.settings)) is None
    return {
        "name": name,
        "command": command_of("tune", name),
        **{part: getattr(cell, part) for part in ("row", "column", "backend")},
        "seed": cell.settings.seed,
        "settings": dataclasses.asdict(cell.settings),
        "versions": find_versions([cell.backend]),
        "trials": trials,
        "choice": choose(trials) if done else None,
    }


def run_trial(
    cell: Cell, trial: dict[str, float], data: Data, folder: Path, quick: bool
) -> dict[str, Any]:
    """A short training; the bound of the last training images, which are held out."""
    settings = in_short(replace(cell.settings, **trial))
    options = {"samples": 50, "chunk": 500}
    if quick:
        settings, options = replace(settings, steps=20, batch=10), {"samples": 5, "chunk": 10}
    images = binarize(data["grey"], seed=0)
    count = len(images) // HELD_OUT
    parts = images[:-count], images[-count:]
    with tqdm(total=settings.steps, unit="step", desc=describe(cell, trial)) as bar:
        try:
            trainer, result = fit(cell.backend, settings, *parts, folder, bar=bar, **options)
        except FloatingPointError as error:
            return {"nats": None, "diverged": str(error).split(";")[0]}
    ms = step_cost(trainer, options["chunk"])
    return {**result["test"], "steps": settings.steps, "ms": ms}


def describe(cell: Cell, trial: dict[str, float]) -> str:
    return f"{cell.row}: {cell.column}, {', '.join(f'{k} {v:g}' for k, v in trial.items())}"


def step_cost(trainer: Trainer, steps: int) -> float:
    """CPU time of a step, in ms, measured after the run, when all is compiled."""
    began = time.process_time()
    trainer.advance(steps)
    return round((time.process_time() - began) / steps * 1e3, 2)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """JSON in which a list of numbers is on one line."""
    text = json.dumps(record, indent=1)
    flat = re.sub(r"\[\s+([-+.,\de\s]*\d)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    path.write_text(flat + "\n")


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


def main() -> None:
    parser = make_parser(__doc__, output="results/reproduce")
    parser.add_argument("table", choices=(*TABLES, *MEASURED))
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of MNIST's files")
    parser.add_argument("--only", default="", metavar="TEXT", help="cells whose name has it")
    parser.add_argument("--recorded", action="store_true", help="no runs: show what there is")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default models/results")
    arguments = parse(parser)
    if arguments.table in MEASURED and (arguments.only or arguments.data_dir):
        parser.error(f"--only and --data-dir have no effect with {arguments.table}")
    with in_words(arguments.output):
        reproduce(arguments)


def reproduce(arguments: argparse.Namespace) -> None:
    results = arguments.results or (arguments.output if arguments.quick else RESULTS)
    results.mkdir(parents=True, exist_ok=True)
    pictures = [arguments.output / f"{arguments.table}.png"]
    found = find_rows(arguments, results)
    if not found:
        raise RunError(f"nothing of {arguments.table} is recorded in {results}")
    if arguments.table == "figure5":
        shown = draw_step_cost(found, *pictures)
    elif arguments.table in SHOWN:
        shown, pictures = SHOWN[arguments.table](found), []
    else:
        shown = show_table(found)
        costs = read_measured("costs", results) if arguments.table == "table1" else []
        draw_curves(found, *pictures, costs)
        found = found + costs
    target = write_report(arguments, pictures, found)
    Console().print(shown)
    Console().print(*pictures, target, sep="\n")


def find_rows(arguments: argparse.Namespace, results: Path) -> list[dict[str, Any]]:
    """The rows to show, measured or read from the records."""
    if arguments.table == "tune":
        return run_searches(arguments, results)
    if arguments.table not in MEASURED:
        return run_cells(arguments, results)
    if arguments.recorded:
        return read_measured(arguments.table, results)
    arguments.json = arguments.json or results / f"{arguments.table}.json"
    measure = MEASURED[arguments.table]
    return measure(arguments.backends, quick=arguments.quick, seed=arguments.seed)


def read_measured(table: str, results: Path) -> list[dict[str, Any]]:
    path = results / f"{table}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


MEASURED = {"figure5": measure_step_cost, "costs": measure_costs}  # these train nothing
SHOWN = {"tune": show_searches, "costs": show_costs}  # in a table alone


if __name__ == "__main__":
    main()
