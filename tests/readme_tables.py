"""The generated tables of READMEs and of the site; as a program, it writes them."""

import json
import re
from pathlib import Path

from tables import BENCHMARKS, ROOT, TITLES, table
from tables_of_benchmarks import BENCH, DRAW, find_goals, show
from tables_of_examples import (
    EXAMPLES,
    estimators,
    many_rows,
    peers,
    several_devices,
    sharded_rows,
    starting,
    structure,
)
from tables_of_paper import PAPER, find_cell

SITE = ROOT / "docs"


def in_short() -> str:
    """Five rows for the README; the tables of the site name the record of each row."""
    demo_rows = json.loads((ROOT / "examples" / "results" / "comparison.json").read_text())["rows"]
    gaps = {
        TITLES[row["backend"]]: f"{row['gap_percent']:+.1f} %"
        for row in demo_rows
        if (row["method"], row["temperature"]) == ("GumbelSoftmax", "1 → 0.5")
    }
    cells = json.loads((ROOT / "tests" / "long" / "peers.json").read_text())["results"]
    ours, theirs = cells["GumbelSoftmax"], cells["torch RelaxedOneHotCategorical"]
    vae = find_cell("VAE, categorical, 150,000 steps", "Gumbel-S.")
    times = {(what, beside): show(x, unit) for what, beside, _, unit, x in find_goals() if x}
    rows = [
        [
            "mixture of 1,797 digits: negative log evidence",
            "exact enumeration",
            ", ".join(f"{gap} ({side})" for side, gap in gaps.items()),
        ],
        [
            "the paper's categorical VAE on MNIST, nats",
            f"the paper: {vae['paper']:.1f}",
            f"{vae['test']['nats']:.1f}",
        ],
        [
            "cells of tau × classes × scale that are not finite in float32",
            f"torch: {theirs['not finite']} of {theirs['cells']}",
            f"{ours['not finite']} of {ours['cells']}",
        ],
        [
            f"{DRAW}, backward at K = 10",
            "torch RelaxedOneHotCategorical",
            times[f"Pyro: {DRAW}, backward, K = 10", "RelaxedOneHotCategorical"],
        ],
        ["SVI step in NumPyro", "loop in JAX by hand", times["NumPyro: SVI step", "jitted loop"]],
    ]
    return table(["what", "beside", "here"], rows)


def matrix() -> str:
    """Whole suites on other Pythons and versions; with the number of tests that ran again."""
    record = json.loads((ROOT / "tests" / "matrix" / "record.json").read_text())
    shown = {"torch": "torch", "Pyro": "pyro-ppl", "JAX": "jax", "NumPyro": "numpyro"}
    shown |= {"NumPy": "numpy", "ArviZ": "arviz"}
    words = "passed", "failed", "skipped"
    rows = [
        [
            row["python"],
            row["constraints"],
            *(row["versions"][package] for package in shown.values()),
            *(str(row["tests"].get(word, 0)) for word in words),
            str(row["run again after mending"]),
        ]
        for row in record
    ]
    return table(["Python", "versions", *shown, *words, "of which run again, mended"], rows)


DOCUMENTS = {
    ROOT / "README.md": {"in_short": in_short},
    ROOT / "examples" / "README.md": EXAMPLES,
    ROOT / "models" / "README.md": PAPER,
    BENCHMARKS / "README.md": BENCH,
    SITE / "explanations" / "estimators.md": {"estimators": estimators},
    SITE / "howtos" / "many_rows.md": {"many_rows": many_rows},
    SITE / "howtos" / "several_devices.md": {
        "several_devices": several_devices,
        "sharded_rows": sharded_rows,
    },
    SITE / "howtos" / "starting_well.md": {"starting": starting},
    SITE / "howtos" / "structured_guides.md": {"structure": structure},
    SITE / "start" / "install.md": {"matrix": matrix},
    SITE / "results" / "peers.md": {"peers": peers},
}


def filled(path: Path) -> str:
    """The document with each marked table made again."""
    text = path.read_text()
    for name, make in DOCUMENTS[path].items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        made = make()
        text = re.sub(
            pattern, lambda m, made=made: f"{m[1]}{made}\n{m[2]}", text, count=1, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(filled(document))
