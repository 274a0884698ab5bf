"""The runs for the paper's tables, with the paper's figures: reproduce.py runs them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from _report import TITLES

from gs_ppl.models.training import SemiSupervisedSettings, Settings


@dataclass(frozen=True)
class Cell:
    """One run: its place in a table, the paper's figure, its settings."""

    row: str
    column: str
    paper: float | None  # nats
    settings: Settings
    backend: str
    paper_accuracy: float | None = None
    shift: int = 0  # largest shift of copies of a labelled image, in pixels

    def name(self, table: str) -> str:
        """The name of the file with its result."""
        words = " ".join([table, self.row, self.column, self.backend, f"seed{self.settings.seed}"])
        return words.lower().replace(",", "").replace(".", "").replace(" ", "_")


# --- Table 1: nats of the discrete program --------------------------------------------------------

ONE_HOT = {"variables": 20, "classes": 10, "steps": 60_000}
BITS = {"variables": 200, "steps": 60_000}
LINEAR = {"learning_rate": 1e-2, "weight_decay": 0.03}
LONGER = {"steps": 150_000, "learning_rate": 2e-2, "minimum": 0.3}
MANY = {"steps": 1_000_000}
LIGHT = {"steps": 100_000, "weight_decay": 0.01}
SLOWER = {"steps": 100_000, "learning_rate": 3e-3}
SBN = {"model": "structured_output", "rate": 0.0}  # temperature 1 throughout, as in the paper
COLUMNS = {  # the paper's, in its order, then others
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
    "SBN, bits, rate 0.003": Settings(**SBN, **BITS | LINEAR | SLOWER),
    "SBN, bits, weight decay 0.01": Settings(**SBN, **BITS | LINEAR | LIGHT),
    "VAE, bits, 150,000 steps": Settings(**BITS | LINEAR | LONGER),
    "VAE, categorical, 150,000 steps": Settings(**ONE_HOT | {"steps": 150_000}, **LINEAR),
    "VAE, bits, 1,000,000 steps": Settings(**BITS | LINEAR | MANY | {"learning_rate": 3e-2}),
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
    "SBN, bits, rate 0.003": ("SF", "MuProp"),
    "SBN, bits, weight decay 0.01": ("Gumbel-S.",),
    "VAE, bits, 150,000 steps": ("Gumbel-S.",),
    "VAE, categorical, 150,000 steps": ("Gumbel-S.",),
    "VAE, bits, 1,000,000 steps": ("Gumbel-S.",),
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
RATES = (1e-4, 1e-5)  # of the temperature, as in the paper
MORE_COLUMNS = {
    "GappedST": {"family": "GappedST"},
    "REBAR": {"family": "REBAR_ELBO"},
    "DisARM": {"family": "DisARM_ELBO"},
}
TUNED_SEEDS = {"Gumbel-S.": (0, 1, 2), "ST Gumbel-S.": (0, 1, 2)}  # the other families have one


def list_searches() -> list[Cell]:
    """The cells to tune, with their settings before; on one side, whose choice serves both."""
    return [
        Cell(row, column, figure, settings, "numpyro")
        for row, figures in PAPER.items()
        for (column, changes), figure in zip_longest({**COLUMNS, **MORE_COLUMNS}.items(), figures)
        if column != "DisARM" or ROWS[row].classes is None
        for settings in [replace(ROWS[row], **changes)]
        for settings in [replace(settings, steps=LONG[settings.model])]
    ]


def rates_of(settings: Settings) -> tuple[float, ...]:
    """The rates of the temperature to choose from."""
    scheduled = settings.rate > 0 and "rate" not in settings.without_effect
    return RATES if scheduled else (settings.rate,)


def path_of_search(search: Cell, results: Path) -> Path:
    return results / "tuning" / f"{search.name('tune')}.json"


def read_search(search: Cell, results: Path) -> dict[str, Any]:
    """The trials so far, and the choice, which is None until they are complete."""
    path = path_of_search(search, results)
    return json.loads(path.read_text()) if path.exists() else {"trials": [], "choice": None}


def list_tuned(results: Path) -> list[Cell]:
    """The long runs whose settings have been found."""
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

SEEDS = range(5)
SEMI_SUPERVISED = {"variables": 10, "labelled": 20, "alpha": 10.0}
COLD = {"minimum": 0.2, "rate": 10.0, "every": 1}  # from the second step on
SUMMED = {"family": "enumerated", "channels": 8, "batch": 25, "learning_rate": 2e-3}
SOFT = {"family": "GumbelSoftmax", "channels": 16, "batch": 50, **COLD}
SLOW = {"alpha": 30.0, "learning_rate": 5e-4}
HARD = {"family": "STGumbelSoftmax", "channels": 16, "batch": 50, **COLD}
METHODS = {
    # column: settings, then nats and accuracy of the paper
    "Marginalization": (
        SemiSupervisedSettings(**SEMI_SUPERVISED, **SUMMED, steps=6000),
        106.8,
        0.926,
    ),
    "Gumbel-S.": (SemiSupervisedSettings(**SEMI_SUPERVISED, **SOFT, steps=6000), 109.6, 0.924),
    "ST Gumbel-S.": (
        SemiSupervisedSettings(**SEMI_SUPERVISED | HARD | SLOW, steps=16_000),
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
SIZES = {"8 x 16": {"classes": 8, "variables": 16}, "10 x 30": {"classes": 10, "variables": 30}}
COLUMNS_OF_GREY = {
    # row: for each column the published figure, temperature and learning rate
    "8 x 16": {
        "ST Gumbel-S.": (99.2, "STGumbelSoftmax", 0.5, 5e-4),
        "ReinMax": (97.8, "ReinMax", 1.5, 7e-4),
        "Gumbel-Rao": (99.6, "GumbelRao", 0.7, 7e-4),
        "GappedST": (98.3, "GappedST", 0.5, 7e-4),
    },
    "10 x 30": {
        "ST Gumbel-S.": (99.8, "STGumbelSoftmax", 0.5, 5e-4),
        "ReinMax": (98.5, "ReinMax", 1.3, 5e-4),
        "Gumbel-Rao": (102.3, "GumbelRao", 1.0, 5e-4),
        "GappedST": (98.7, "GappedST", 0.5, 5e-4),
    },
}
RUN_WITH = {  # the columns that have been run with each optimizer
    "AdamW": ("ST Gumbel-S.", "ReinMax", "Gumbel-Rao"),
    "RAdam": ("ST Gumbel-S.", "ReinMax", "GappedST"),
}


def list_grey() -> list[Cell]:
    return [
        Cell(
            row if optimizer == "AdamW" else f"{row}, {optimizer}",
            column,
            figure,
            settings,
            backend,
        )
        for backend in TITLES
        for optimizer, columns in RUN_WITH.items()
        for row, size in SIZES.items()
        for column in columns
        for figure, family, tau, rate in [COLUMNS_OF_GREY[row][column]]
        for changes in [{"family": family, "start": tau, "learning_rate": rate}]
        for settings in [Settings(**GREY, **size, **changes, optimizer=optimizer)]
    ]


TABLES: dict[str, Callable[[], list[Cell]]] = {
    "tune": list_searches,
    "table1": list_table1,
    "table2": list_table2,
    "grey": list_grey,
}
