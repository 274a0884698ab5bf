"""The paper's tables in models/README.md."""

import json
from statistics import mean as mean_of
from statistics import stdev

from tables import ROOT, TITLES, table

MODELS = ROOT / "models" / "results"


def read_cells(name: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(MODELS.glob(f"{name}_*.json"))]


def in_bold(nats: float, paper: float | None) -> str:
    """A figure, in bold if it is at or below the paper's."""
    return f"**{nats:.1f}**" if paper is not None and nats <= paper else f"{nats:.1f}"


def versions_of(cells: list[dict]) -> str:
    found = {f"{name} {version}" for cell in cells for name, version in cell["versions"].items()}
    return ", ".join(sorted(found)) + "."


ESTIMATORS = (
    *("SF", "DARN", "MuProp", "ST", "Annealed ST", "Gumbel-S.", "ST Gumbel-S."),  # of the paper
    *("ReinMax", "Gumbel-Rao", "GappedST", "RLOO", "REBAR", "DisARM"),
)
TUNED = ", tuned"  # end of the row name of a cell with tuned settings


def over_seeds(nats: list[float], paper: float | None) -> str:
    """The mean, and the standard deviation if there are several."""
    mean = in_bold(mean_of(nats), paper)
    return mean if len(nats) == 1 else f"{mean} ± {stdev(nats):.1f}"


def table1() -> str:
    """One line for the paper's figures of a model, and one line for each side."""
    cells = read_cells("table1")
    papers: dict = {}
    lines: dict = {}
    for cell in cells:
        row, side = cell["row"].removesuffix(TUNED), TITLES[cell["backend"]]
        side += TUNED if cell["row"].endswith(TUNED) else ""
        papers.setdefault(row, {})[cell["column"]] = cell["paper"]
        found = lines.setdefault((row, side), {}).setdefault(cell["column"], [])
        found.append(cell["test"]["nats"])
    columns = [name for name in ESTIMATORS if any(name in line for line in lines.values())]
    order = [f"{side}{ending}" for side in ("NumPyro", "Pyro") for ending in (TUNED, "")]
    shown = []
    for row, paper in sorted(papers.items()):
        figures = [f"{paper[name]:.1f}" if paper.get(name) else "" for name in columns]
        shown.append([row, "paper", *figures])
        for side in order:
            line = lines.get((row, side), {})
            texts = [
                over_seeds(line[name], paper[name]) if name in line else "" for name in columns
            ]
            shown += [[row, side, *texts]] if line else []
    errors = [cell["test"]["error"] for cell in cells]
    source = f"Standard errors {min(errors):.1f} to {max(errors):.1f}. {versions_of(cells)}"
    return f"{table(['model', '', *columns], shown)}\n\n{source}"


def one_sample() -> str:
    """The last point of each curve of NumPyro; the least is bold in models with three or more."""
    lines: dict = {}
    for cell in read_cells("table1"):
        if cell["backend"] == "numpyro":
            lines.setdefault(cell["row"], {}).setdefault(cell["column"], []).append(
                cell["evaluations"][-1][1]
            )
    lines = {row: line for row, line in sorted(lines.items()) if len(line) > 2}
    columns = [name for name in ESTIMATORS if any(name in line for line in lines.values())]
    shown = []
    for row, line in lines.items():
        least = min(map(mean_of, line.values()))
        texts = [over_seeds(line[name], least) if name in line else "" for name in columns]
        shown.append([row, *texts])
    return table(["model", *columns], shown)


def searches() -> str:
    """By learning rate, the nats of the trials at each rate of tau, with the chosen one in bold."""
    records = [json.loads(p.read_text()) for p in sorted((MODELS / "tuning").glob("*.json"))]
    tried = {trial["learning_rate"] for record in records for trial in record["trials"]}
    shown = []
    for record in records:
        for rate in dict.fromkeys(trial["rate"] for trial in record["trials"]):
            chosen, texts = record["choice"], {}
            for trial in (trial for trial in record["trials"] if trial["rate"] == rate):
                text = "diverged" if trial["nats"] is None else f"{trial['nats']:.1f}"
                best = chosen == {name: trial[name] for name in ("learning_rate", "rate")}
                texts[trial["learning_rate"]] = f"**{text}**" if best else text
            scheduled = record["settings"]["rate"] > 0 and not record["settings"][
                "family"
            ].endswith("ELBO")
            shown.append(
                [
                    record["row"],
                    record["column"],
                    f"{rate:g}" if scheduled else "",
                    *(texts.get(step, "") for step in sorted(tried)),
                    "" if chosen else "goes on",
                ]
            )
    header = ["model", "estimator", "tau's rate", *(f"{step:g}" for step in sorted(tried)), ""]
    return f"{table(header, shown)}\n\n{versions_of(records)}"


def table2() -> str:
    cells = read_cells("table2")
    rows: dict = {}
    for cell in cells:
        rows.setdefault((cell["column"], TITLES[cell["backend"]]), []).append(cell)
    shown = []
    for (column, side), runs in sorted(rows.items()):
        nats, right = ([run["test"][what] for run in runs] for what in ("nats", "accuracy"))
        values = {"nats": sum(nats) / len(nats), "right": sum(right) / len(right)}
        paper = runs[0]["paper"], runs[0]["paper_accuracy"]
        cell = f"{values['nats']:.1f}", f"{values['right']:.1%}"
        better = values["nats"] <= paper[0], values["right"] >= paper[1]
        cell = [f"**{text}**" if good else text for text, good in zip(cell, better, strict=True)]
        seeds = ", ".join(f"{x:.1%}" for x in right)
        shown.append([column, side, f"{paper[0]:.1f}", cell[0], f"{paper[1]:.1%}", cell[1], seeds])
    header = ["y in training", "PPL", "paper, nats", "here", "paper, right", "here", "by seed"]
    return f"{table(header, shown)}\n\n{versions_of(cells)}"


def grey() -> str:
    """By classes and latents; over the seeds."""
    cells = read_cells("grey")
    lines: dict = {}
    for cell in cells:
        size, _, optimizer = cell["row"].partition(", ")
        order = tuple(map(int, size.split(" x ")))
        line = order, optimizer, cell["row"], cell["column"], cell["paper"]
        lines.setdefault(line, []).append(cell)
    shown = [
        [
            row,
            column,
            f"{paper:.1f}",
            over_seeds([run["train"]["nats"] for run in runs], paper),
            over_seeds([run["test"]["nats"] for run in runs], None),
        ]
        for (_, _, row, column, paper), runs in sorted(lines.items())
    ]
    header = ["classes x latents", "estimator", "published", "here", "test images"]
    return f"{table(header, shown)}\n\n{versions_of(cells)}"


def figure5() -> str:
    record = json.loads((MODELS / "figure5.json").read_text())
    classes = sorted({row["classes"] for row in record["rows"]})
    by_method: dict = {}
    for row in record["rows"]:
        key = TITLES[row["backend"]], row["method"]
        value = f"{row['ms']:.1f} ms" if row["method"] == "relaxed" else f"{row['ratio']:.1f}"
        by_method.setdefault(key, {})[row["classes"]] = value
    rows = [[*key, *(values[K] for K in classes)] for key, values in by_method.items()]
    header = ["PPL", "method", *(f"K = {K}" for K in classes)]
    return f"{table(header, rows)}\n\n{versions_of([record])}"


def costs() -> str:
    """A line for each model and side: CPU time of a step of each estimator."""
    path = MODELS / "costs.json"
    record = json.loads(path.read_text())
    lines: dict = {}
    for row in record["rows"]:
        lines.setdefault((row["row"], TITLES[row["backend"]]), {})[row["column"]] = row["ms"]
    shown = [
        [*key, *(f"{line[name]:.1f}" if name in line else "" for name in ESTIMATORS)]
        for key, line in lines.items()
    ]
    return f"{table(['model', 'PPL', *ESTIMATORS], shown)}\n\n{versions_of([record])}"


def find_cell(row: str, column: str) -> dict:
    """The result of a cell of the paper's Table 1 on NumPyro."""
    cells = read_cells("table1")
    at = [x for x in cells if (x["row"], x["column"], x["backend"]) == (row, column, "numpyro")]
    return at[0]


PAPER = {
    "table1": table1,
    "one_sample": one_sample,
    "costs": costs,
    "searches": searches,
    "table2": table2,
    "grey": grey,
    "figure5": figure5,
}
