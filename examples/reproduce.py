"""Runs the cells of the paper's tables on MNIST, and puts the results beside the paper's figures.

    python examples/reproduce.py table1 --data-dir MNIST

A cell that has its result in models/results is not run again, one that broke off goes on from its
checkpoint in the output folder; `--only` selects cells by their name. `--quick` runs a few steps of
each on the bundled digits: does it work?
"""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _report import TITLES, find_versions, make_parser, parse, write_report
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from gs_ppl.models.data import binarize, load_digits, load_mnist
from gs_ppl.models.training import Settings, fit

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "models" / "results"
SAMPLES, TEST_IMAGES = 1000, 1000  # of the bound


@dataclass(frozen=True)
class Cell:
    """One cell: where it stands, the paper's figure, how it is run."""

    name: str
    row: str
    column: str
    paper: float | None  # nats
    settings: Settings
    backend: str = "numpyro"


# --- Table 1 --------------------------------------------------------------------------------------

ONE_HOT = {"variables": 20, "classes": 10}
BITS = {"variables": 200, "classes": None}
ROWS = {
    # row: sizes, paper's Gumbel-Softmax, ST Gumbel-Softmax
    "SBN, bits": (Settings("structured_output", **BITS), 58.5, 59.3),
    "SBN, categorical": (Settings("structured_output", **ONE_HOT), 59.0, 59.7),
    "VAE, bits": (Settings("vae", **BITS), 105.0, 111.5),
    "VAE, categorical": (Settings("vae", **ONE_HOT), 101.5, 107.8),
    "VAE, bits, hidden layer": (Settings("vae", **BITS, hidden=(200,)), None, None),
    "VAE, categorical, hidden layer": (Settings("vae", **ONE_HOT, hidden=(200,)), None, None),
}
COLUMNS = {"Gumbel-S.": "GumbelSoftmax", "ST Gumbel-S.": "STGumbelSoftmax"}


def list_table1() -> list[Cell]:
    cells = []
    for row, (sizes, *paper) in ROWS.items():
        for (column, family), figure in zip(COLUMNS.items(), paper, strict=True):
            constant = {"rate": 0.0} if sizes.model == "structured_output" else {}
            settings = dataclasses.replace(sizes, family=family, **constant)
            name = f"table1_{row}_{column}".replace(",", "").replace(" ", "_").replace(".", "")
            cells.append(Cell(name.lower(), row, column, figure, settings))
    return cells


TABLES = {"table1": list_table1}


# --- running --------------------------------------------------------------------------------------


def run(cell: Cell, data: tuple[np.ndarray, np.ndarray], folder: Path, quick: bool) -> dict:
    """Trains and evaluates one cell; the result, with what it takes to run it again."""
    settings = cell.settings
    limits: dict[str, Any] = {"samples": SAMPLES, "evaluate_every": 10_000}
    if quick:
        settings = dataclasses.replace(settings, steps=20, batch=10)
        limits = {"samples": 5, "chunk": 10}
    with tqdm(total=settings.steps, unit="step", desc=f"{cell.row}: {cell.column}") as bar:
        _, result = fit(cell.backend, settings, *data, folder / cell.name, bar=bar, **limits)
    every = max(1, len(result["losses"]) // 50)
    return {
        "row": cell.row,
        "column": cell.column,
        "paper": cell.paper,
        "backend": cell.backend,
        "seed": settings.seed,
        "settings": dataclasses.asdict(settings),
        "versions": find_versions([cell.backend]),
        "test": result["test"],
        "evaluations": result["evaluations"],
        "losses": result["losses"][every - 1 :: every],
    }


def load(arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Images to train and to test on, each pixel drawn once."""
    if arguments.quick and not arguments.data_dir:
        grey = (load_digits()[0] / 16).astype(np.float32)
        return binarize(grey[:1500], seed=0), binarize(grey[1500:1520], seed=1)
    parts = load_mnist(arguments.data_dir)
    test = binarize(parts["test"][0], seed=1)
    return binarize(parts["train"][0], seed=0), test[: 20 if arguments.quick else TEST_IMAGES]


# --- what is shown --------------------------------------------------------------------------------


def draw_curves(results: list[dict], path: Path) -> None:
    figure = Figure(figsize=(10, 5), layout="constrained")
    for ax, model in zip(figure.subplots(1, 2), ("structured_output", "vae"), strict=True):
        for i, result in enumerate(r for r in results if r["settings"]["model"] == model):
            label = f"{result['row']}, {result['column']}"
            style = "--" if result["column"].startswith("ST") else "-"
            ax.plot(*np.array(result["losses"]).T, style, color=f"C{i // 2}", label=label)
        ax.set(xlabel="step", ylabel="training loss, nats per image", title=model)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.lines:
            ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = make_parser(__doc__, output="results/reproduce")
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of MNIST's files")
    parser.add_argument("--only", default="", metavar="TEXT", help="cells whose name has it")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default models/results")
    arguments = parse(parser)
    results = arguments.results or (arguments.output if arguments.quick else RESULTS)
    results.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in TABLES[arguments.table]() if arguments.only in cell.name]
    data = load(arguments)
    for cell in cells:
        path = results / f"{cell.name}.json"
        if not path.exists():
            result = run(cell, data, arguments.output / "checkpoints", arguments.quick)
            command = f"python examples/reproduce.py {arguments.table} --only {cell.name}"
            result = {"name": cell.name, "command": command, **result}
            path.write_text(json.dumps(result, indent=1) + "\n")
    found = [json.loads((results / f"{cell.name}.json").read_text()) for cell in cells]
    table = Table(title="Table 1: negative log likelihood of test images, nats")
    for column in ("model", "PPL", "column", "paper", "here"):
        table.add_column(column, justify="right" if column in ("paper", "here") else "left")
    for result in found:
        test, paper = result["test"], result["paper"]
        table.add_row(
            result["row"],
            TITLES[result["backend"]],
            result["column"],
            f"{paper:.1f}" if paper else "",
            f"{test['nats']:.1f} ± {test['error']:.1f}",
        )
    picture = arguments.output / f"{arguments.table}.png"
    draw_curves(found, picture)
    rows = [{key: r[key] for key in ("name", "backend", "paper", "test")} for r in found]
    target = write_report(arguments, [picture], rows)
    Console().print(table)
    Console().print(picture, target, sep="\n")


if __name__ == "__main__":
    main()
