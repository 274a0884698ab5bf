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
            f"{row['steps_per_second']:.0f}",
        ]
        for i, row in enumerate(record["rows"])
    ]
    header = ["PPL", "z in model and guide", "tau", "nats", "gap", "seeds 1, 2", "Rand", "steps/s"]
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


TABLES = {"demo": demo, "peers": peers}


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
