"""The tables of README.md, made from recorded results; run as a program, it fills them in."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TITLES = {"pyro": "Pyro", "numpyro": "NumPyro"}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def demo() -> str:
    results = ROOT / "examples" / "results"
    names = ["comparison.json", "comparison_seed1.json", "comparison_seed2.json"]
    record, *others = (json.loads((results / name).read_text()) for name in names)
    rows = [
        [
            TITLES[row["backend"]],
            row["method"],
            row["temperature"] or "",
            f"{row['nats_per_image']:.2f}",
            f"{row['gap_percent']:+.2f} %",
            ", ".join(f"{other['rows'][i]['gap_percent']:+.2f} %" for other in others),
            f"{row['adjusted_rand_index']:.2f}",
            f"{row['guide_kl_per_image']:.2f}" if "guide_kl_per_image" in row else "",
            f"{row['gradient_bias']:.2f}" if "gradient_bias" in row else "",
            f"{row['steps_per_second']:.0f}",
        ]
        for i, row in enumerate(record["rows"])
    ]
    header = ["PPL", "z in model and guide", "tau", "nats", "gap", "seeds 1, 2", "Rand"]
    header += ["KL", "bias", "steps/s"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    source = f"Seed {record['seed']}, {record['steps']} steps; {versions}."
    return f"{table(header, rows)}\n\n{source}"


def peers() -> str:
    record = json.loads((ROOT / "tests" / "long" / "peers.json").read_text())
    rows = [
        [name, str(row["cells"]), str(row["not finite"]), str(row["own sample rejected"])]
        for name, row in record["results"].items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    source = f"Seed {record['seed']}, {record['dtype']}; {versions}; `{record['command']}`."
    return f"{table(['class', 'cells', 'not finite', 'rejects its own'], rows)}\n\n{source}"


def by_method(name: str, *fields: str) -> tuple[dict, dict]:
    """The record of an example, and its rows by (method, tau), side and field, in lists."""
    record = json.loads((ROOT / "examples" / "results" / name / "report.json").read_text())
    methods: dict = {}
    for row in record["rows"]:
        sides = methods.setdefault((row["method"], row["temperature"] or ""), {})
        fields_of_side = sides.setdefault(row["backend"], {field: [] for field in fields})
        for field in fields:
            fields_of_side[field].append(row[field])
    return record, methods


def side_by_side(name: str, header: list[str], shown: dict[str, str]) -> str:
    """One column a figure and side; the range where there are several data sets."""

    def cell(values: list[float], form: str) -> str:
        low, high = (form.format(x).replace("-0%", "0%") for x in (min(values), max(values)))
        return low if low == high else f"{low} to {high}"

    record, methods = by_method(name, *shown)
    rows = [
        [
            method,
            tau,
            *(
                cell(side[field], form) if (side := sides.get(backend)) else ""
                for field, form in shown.items()
                for backend in (TITLES if None not in sides else (None, "none"))
            ),
        ]
        for (method, tau), sides in methods.items()
    ]
    header = ["method", "tau", *(f"{what}, {side}" for what in header for side in TITLES.values())]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"{table(header, rows)}\n\n`python {record['command']}`; {versions}."


def two_components() -> str:
    return side_by_side("two_component_mixture", ["right"], {"right_by_guide": "{:.1%}"})


def hidden_markov() -> str:
    shown = {"share_of_gain": "{:.0%}", "vowels_apart": "{:.1%}"}
    return side_by_side("hidden_markov", ["share of the gain", "apart"], shown)


def which_causes() -> str:
    shown = {"average_precision": "{:.3f}", "off_gibbs": "{:.4f}"}
    return side_by_side("which_causes", ["average precision", "off Gibbs"], shown)


TABLES = {
    "demo": demo,
    "peers": peers,
    "two_components": two_components,
    "hidden_markov": hidden_markov,
    "which_causes": which_causes,
}


def filled(text: str) -> str:
    """The text with each marked table made anew."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        made = make()
        text = re.sub(
            pattern, lambda m, made=made: f"{m[1]}{made}\n{m[2]}", text, count=1, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
