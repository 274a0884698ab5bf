"""Tables of the examples' results, for their README and the site."""

import json

from tables import BENCHMARKS, ROOT, TITLES, table


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
    """The record of an example, and lists of its rows by (method, tau), side and field."""
    record = json.loads((ROOT / "examples" / "results" / name / "report.json").read_text())
    methods: dict = {}
    for row in record["rows"]:
        sides = methods.setdefault((row["method"], row["temperature"] or ""), {})
        fields_of_side = sides.setdefault(row["backend"], {field: [] for field in fields})
        for field in fields:
            fields_of_side[field].append(row[field])
    return record, methods


def side_by_side(name: str, header: list[str], shown: dict[str, str]) -> str:
    """One column for each figure and side; the range if there are several data sets."""

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


def structure() -> str:
    """By program and method, the share of the best mean field's KL, with a column for each side."""
    path = ROOT / "examples" / "results" / "structured_guides" / "report.json"
    record = json.loads(path.read_text())
    shares: dict = {}
    for row in record["rows"]:
        key = row["program"], f"{row['kl_of_mean_field']:.4f}", row["method"]
        at = (*key, row["temperature"] or "")
        shares.setdefault(at, {})[row["backend"]] = f"{row['kl'] / row['kl_of_mean_field']:.1%}"
    backends = [side for side in TITLES if any(side in found for found in shares.values())]
    rows = [[*at, *(found.get(side, "") for side in backends)] for at, found in shares.items()]
    header = ["program", "best mean field, nats", "guide trained by", "tau"]
    header += [TITLES[side] for side in backends]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"{table(header, rows)}\n\n`python {record['command']}`; {versions}."


def many_rows() -> str:
    """Milliseconds of a step by number of rows, from several records."""
    folder = ROOT / "examples" / "results" / "many_rows"
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    lines: dict = {}
    for row in (row for record in records for row in record["rows"]):
        line = lines.setdefault((TITLES[row["backend"]], row["method"]), {})
        line[row["rows"]] = f"{row['ms']:.1f}"
        line["bytes"] = f"{row['bytes_a_row']:.0f}"
    sizes = sorted({row["rows"] for record in records for row in record["rows"]})
    rows = [[*key, *(line.get(n, "") for n in (*sizes, "bytes"))] for key, line in lines.items()]
    header = ["PPL", "guide", *(f"ms, {n:,} rows" for n in sizes), "bytes a row"]
    versions = dict.fromkeys(
        f"{n} {v}" for record in records for n, v in record["versions"].items()
    )
    commands = "\n".join(f"- `python {record['command']}`" for record in records)
    return f"{table(header, rows)}\n\n{', '.join(versions)}.\n\n{commands}"


def starting() -> str:
    """One record for each mixture and side."""
    folder = ROOT / "examples" / "results" / "starting"
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    rows = [
        [
            row["mixture"],
            TITLES[row["backend"]],
            row["method"],
            str(row["right"]),
            f"{row['right_where_enumeration_is']} of {row['enumeration_right']}",
        ]
        for record in records
        for row in record["rows"]
    ]
    found = {f"{n} {v}" for record in records for n, v in record["versions"].items()}
    source = f"Seed {records[0]['seed']}, {records[0]['steps']} steps; {', '.join(sorted(found))}."
    header = ["mixture", "PPL", "classes", "right", "where enumeration is"]
    commands = "\n".join(f"- `python {record['command']}`" for record in records)
    return f"{table(header, rows)}\n\n{source}\n\n{commands}"


def several_devices() -> str:
    """Time of a step by engine, from its record."""
    folder = ROOT / "examples" / "results" / "distributed"
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    rows = [
        [
            TITLES[row["backend"]],
            {"ddp": "torchrun", "lightning": "Lightning", "jax": "a mesh"}[row["engine"]],
            f"{row['processes']} x {row['devices']}",
            f"{row['cpu_ms']:.1f}",
            f"{row['wall_ms']:.1f}",
            f"{record['batch'] / row['wall_ms']:.0f}",
        ]
        for record in records
        for row in record["rows"]
    ]
    found = {f"{n} {v}" for record in records for n, v in record["versions"].items()}
    header = ["PPL", "started by", "processes x devices", "ms of CPU a step"]
    header += ["ms a step", "rows in a ms"]
    source = f"{records[0]['cores']} cores; {', '.join(sorted(found))}."
    commands = "\n".join(f"- `python {record['command']}`" for record in records)
    return f"{table(header, rows)}\n\n{source}\n\n{commands}"


def sharded_rows() -> str:
    record = json.loads((BENCHMARKS / "sharded_rows.json").read_text())
    rows = [
        [str(row["devices"]), *(f"{row[name] / 1e6:.0f}" for name in ("kept", "beside"))]
        for row in record["devices"]
    ]
    header = ["devices", "MB kept by each", "MB that a step takes beside"]
    sizes = f"{record['rows']:,} rows of {record['classes']} classes"
    source = f"{sizes}; jax {record['versions']['jax']}; `{record['command']}`."
    return f"{table(header, rows)}\n\n{source}"


def estimators() -> str:
    """Bias and spread from NumPyro, which has more samples; the cost on both sides."""
    record = json.loads((ROOT / "examples" / "results" / "estimators" / "report.json").read_text())
    versions = list(dict.fromkeys(row["version"] for row in record["rows"]))
    lines: dict = {}
    for row in record["rows"]:
        line = lines.setdefault((row["method"], row["temperature"]), {})
        line[row["backend"], row["version"]] = row

    def bias(row: dict) -> str:
        return f"{row['bias']:.3f}" if row["bias"] > 2 * row["floor"] else "not seen"

    shown = []
    for (method, tau), line in lines.items():
        cells = [method, f"{tau:g}" if tau else ""]
        for version in versions:
            row = line.get(("numpyro", version))
            cells += [bias(row), f"{row['variance'] ** 0.5:.2f}"] if row else ["", ""]
        for side in TITLES:
            costs = [line[side, v]["cost"] for v in versions if (side, v) in line]
            cells.append(", ".join(f"{cost:.1f}" for cost in costs))
        shown.append(cells)
    header = ["estimator", "tau"]
    header += [f"{what}, {version}" for version in versions for what in ("bias", "deviation")]
    header += [f"cost, {side}" for side in TITLES.values()]
    found = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"{table(header, shown)}\n\n`python {record['command']}`; {found}."


EXAMPLES = {
    "demo": demo,
    "two_components": two_components,
    "hidden_markov": hidden_markov,
    "which_causes": which_causes,
}
