"""CPU time of a training step of each estimator, in each model of Table 1."""

from dataclasses import replace
from typing import Any

import numpy as np
from _cells import list_searches
from _report import TITLES
from _step_cost import TURN, time_in_turns, use_one_thread
from rich.table import Table
from tqdm import tqdm

from gs_ppl.models.training import make_trainer

PIXELS = 784


def measure_costs(backends: list[str], quick: bool, seed: int) -> list[dict[str, Any]]:
    """Medians over rounds in which all estimators of a model take turns, on one thread.

    The time does not depend on the images; these are drawn.
    """
    use_one_thread(quick)
    cells, rounds, turn = list_searches(), 7, TURN
    if quick:
        cells, rounds, turn = cells[3:5], 1, 0.0
        cells = [replace(c, settings=replace(c.settings, variables=3, batch=4)) for c in cells]
    rng = np.random.default_rng(seed)
    images = (rng.random((1000, PIXELS)) < 0.2).astype(np.float32)
    models = list(dict.fromkeys(cell.row for cell in cells))
    rows = []
    for model, backend in tqdm([(m, b) for m in models for b in backends], desc="models"):
        takers = {
            cell.column: make_trainer(backend, cell.settings, images).advance
            for cell in cells
            if cell.row == model
        }
        rows += [
            {"row": model, "backend": backend, "column": column, "ms": 1e3 * float(np.median(s))}
            for column, s in time_in_turns(takers, rounds, turn).items()
        ]
    return rows


def show_costs(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="CPU time of a training step, ms")
    sides = list(dict.fromkeys(row["backend"] for row in rows))
    for column in ("model", "estimator", *(TITLES[side] for side in sides)):
        table.add_column(column, justify="left" if column in ("model", "estimator") else "right")
    ms = {(row["row"], row["column"], row["backend"]): row["ms"] for row in rows}
    for cell in dict.fromkeys(key[:2] for key in ms):
        table.add_row(*cell, *(f"{ms[*cell, side]:.2f}" for side in sides))
    return table
