"""The tables of READMEs and site, made from recorded results; as a program, it fills them in."""

import json
import re
from functools import partial
from pathlib import Path
from statistics import mean as mean_of
from statistics import stdev

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


def structure() -> str:
    """By program and method the share of the best mean field's KL, a column a side."""
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
    """Milliseconds of a step by number of rows; of some records."""
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
    commands = "\n".join(f"`python {record['command']}`" for record in records)
    return f"{table(header, rows)}\n\n{', '.join(versions)}.\n\n{commands}"


def starting() -> str:
    """Of each mixture and side one record."""
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
    commands = "\n".join(f"`python {record['command']}`" for record in records)
    return f"{table(header, rows)}\n\n{source}\n\n{commands}"


def several_devices() -> str:
    """Time of a step by engine, as each record has it."""
    folder = ROOT / "examples" / "results" / "distributed"
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    rows = [
        [
            TITLES[row["backend"]],
            {"ddp": "torchrun", "lightning": "Lightning", "jax": "a mesh"}[row["engine"]],
            f"{row['processes']} x {row['devices']}",
            f"{row['cpu_ms']:.0f}",
            f"{row['wall_ms']:.0f}",
            f"{record['load']:.0f}",
        ]
        for record in records
        for row in record["rows"]
    ]
    found = {f"{n} {v}" for record in records for n, v in record["versions"].items()}
    header = ["PPL", "started by", "processes x devices", "ms of CPU a step"]
    header += ["ms a step", "load"]
    source = f"{records[0]['cores']} cores; {', '.join(sorted(found))}."
    commands = "\n".join(f"`python {record['command']}`" for record in records)
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
    """Bias and spread as NumPyro measured them, with the more samples; the cost on both sides."""
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


# --- the paper's tables, of models/README.md -----------------------------------------------------

MODELS = ROOT / "models" / "results"


def read_cells(name: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(MODELS.glob(f"{name}_*.json"))]


def in_bold(nats: float, paper: float | None) -> str:
    """In bold where it is at or below the paper's figure."""
    return f"**{nats:.1f}**" if paper is not None and nats <= paper else f"{nats:.1f}"


def versions_of(cells: list[dict]) -> str:
    found = {f"{name} {version}" for cell in cells for name, version in cell["versions"].items()}
    return ", ".join(sorted(found)) + "."


ESTIMATORS = (
    *("SF", "DARN", "MuProp", "ST", "Annealed ST", "Gumbel-S.", "ST Gumbel-S."),  # the paper's
    *("ReinMax", "Gumbel-Rao", "GappedST", "RLOO", "REBAR", "DisARM"),
)
TUNED = ", tuned"  # ends the row of a cell with the estimator's own settings


def over_seeds(nats: list[float], paper: float | None) -> str:
    """The mean, and the standard deviation where there are several."""
    mean = in_bold(mean_of(nats), paper)
    return mean if len(nats) == 1 else f"{mean} ± {stdev(nats):.1f}"


def table1() -> str:
    """One line for the paper's figures of a model, and one for those of each side."""
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
    """The last point of each curve of NumPyro's, in bold the least of a model of three or more."""
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
    """By learning rate the nats of the trials at each of tau's rates, the chosen one in bold."""
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
    cells = read_cells("grey")
    shown = [
        [
            cell["row"],
            cell["column"],
            f"{cell['paper']:.1f}",
            in_bold(cell["train"]["nats"], cell["paper"]),
            f"{cell['test']['nats']:.1f}",
        ]
        for cell in cells
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


# --- time and memory, of tests/benchmarks/README.md ----------------------------------------------

BENCHMARKS = ROOT / "tests" / "benchmarks"


def read_bench(section: str) -> tuple[dict, str]:
    """The sides of a section, and the line that says where it comes from."""
    record = json.loads((BENCHMARKS / "speed.json").read_text())[section]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return record["sides"], f"`{record['command']}`; {record['machine']}; {versions}."


def shape_of(row: dict) -> str:
    return f"({', '.join(map(str, row['shape']))})"


def speed(side: str) -> str:
    """Microseconds of ours; of the others how many times as long."""
    sides, source = read_bench("speed")
    ours, rows = sides[side]["ours"], sides[side]["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["us"]))

    def cell(row: dict, name: str) -> str:
        us, times = row["us"].get(name), row["times ours"].get(name)
        if us is None:
            return "refuses" if name in row["us"] else ""
        return f"{us:.0f}" if name == ours else f"{us:.0f} ({times:.2f})"

    shown = [[shape_of(row), row["extent"], *(cell(row, name) for name in names)] for row in rows]
    return f"{table(['shape', 'µs', *names], shown)}\n\n{source}"


def steps() -> str:
    """Of a step, and in seconds of the first."""
    sides, source = read_bench("steps")
    shown = []
    for name, side in sides.items():
        first = side.get("first step", {}).get("seconds", {})
        by_hand = side["times ours"][side["by hand"]]
        for contender, us in side["us"].items():
            over = side["times ours"][contender] / by_hand
            start = f"{first[contender]:.2f}" if contender in first else ""
            shown.append([TITLES[name], contender, f"{us / 1e3:.2f}", f"{over:.2f}", start])
    header = ["PPL", "step", "ms", "times the loop", "first step, s"]
    return f"{table(header, shown)}\n\n{source}"


def memory() -> str:
    sides, source = read_bench("memory")
    shown = [
        [
            TITLES[side],
            shape_of(row),
            name,
            *(f"{size / 1e6:.2f}" for size in (row["minimum"], peak)),
            f"{peak / row['minimum']:.2f}",
        ]
        for side, found in sides.items()
        for row in found["rows"]
        for name, peak in row["peaks"].items()
    ]
    header = ["PPL", "shape", "class", "minimum, MB", "peak, MB", "ratio"]
    return f"{table(header, shown)}\n\n{source}"


def soft_index() -> str:
    """Of programs over integers how many times as long as with one-hot vectors, and as much."""
    sides, source = read_bench("soft_index")
    shown = []
    for side, found in sides.items():
        for row in found["rows"]:
            us, compiled = row["us"], row["compile"]
            step = [f"{us[way]:.0f}" for way in ("one-hot", "integers")]
            times = [f"{row['times ours']['integers']:.2f}"]
            times += [f"{compiled['times ours']['integers']:.2f}" if compiled else ""]
            shown.append([TITLES[side], row["program"].replace("_", " "), *step, *times])
    header = ["PPL", "program", "one-hot, µs", "integers, µs", "times", "times to compile"]
    return f"{table(header, shown)}\n\n{source}"


def look_ups() -> str:
    """Time and bytes of ways to read a table, over those of a matrix product."""
    sides, source = read_bench("soft_index")
    shown = []
    for side, found in sides.items():
        for row in found["look ups"]:
            size = f"N = {row['rows']}, K = {row['classes']}, D = {row['width']}"
            cells = [
                f"{row['times ours'][way]:.2f}, {row['peaks'][way] / row['peaks']['product']:.2f}"
                for way in ("integers", "select")
            ]
            shown.append([TITLES[side], size, f"{row['us']['product'] / 1e3:.1f}", *cells])
    header = ["PPL", "size", "y @ table, ms", "table[z]: time, memory", "select: time, memory"]
    return f"{table(header, shown)}\n\n{source}"


def chain() -> str:
    sides, source = read_bench("soft_index")
    rows = ((TITLES[side], found["chain"]) for side, found in sides.items())
    shown = [
        [
            title,
            f"{row['steps']} x {row['classes']}",
            *(f"{us / 1e3:.2f}" for us in row["us"].values()),
            f"{row['times ours']['structured']:.2f}",
        ]
        for title, row in rows
    ]
    header = ["PPL", "steps x classes", "mean field, ms", "structured, ms", "times"]
    return f"{table(header, shown)}\n\n{source}"


def compare_calls() -> str:
    sides, source = read_bench("compare_calls")
    shown = [
        [TITLES[side], *(f"{seconds:.2f}" for seconds in found["seconds"].values())]
        for side, found in sides.items()
    ]
    return f"{table(['PPL', 'first call, s', 'second call, s'], shown)}\n\n{source}"


Goal = tuple[str, str, str, str, list[float]]
K2, K10 = [[100, 20, 2]], [[100, 30, 10], [1024, 30, 10]]
K1000 = [[128, 1, 1000], [1, 1, 1_000_000]]
AT = {str(K2): "K = 2", str(K10): "K = 10", str(K1000): "K ≥ 1000"}
DRAW = "rsample, log_prob"


def find_goals() -> list[Goal]:
    """What, beside what, the bound, its unit, and the figures: the worst of them counts."""
    found, took, peaks = (read_bench(section)[0] for section in ("speed", "steps", "memory"))
    integers, compared = (read_bench(section)[0] for section in ("soft_index", "compare_calls"))

    def times(side: str, extent: str, peer: str, shapes: list) -> list[float]:
        """Of how long ours takes; a peer that is absent or refuses has none."""
        rows = (row for row in found[side]["rows"] if row["shape"] in shapes)
        all_times = (row["times ours"].get(peer) for row in rows if row["extent"] == extent)
        return [x for x in all_times if x is not None]

    def faster(side: str, extent: str, peer: str, shapes: list, bound: str) -> Goal:
        figures = times(side, extent, peer, shapes)
        return f"{TITLES[side]}: {extent}, {AT[str(shapes)]}", peer, bound, "as fast", figures

    def step(side: str, what: str, contender: str, bound: str) -> Goal:
        """Over the loop by hand."""
        ratios, by_hand = took[side]["times ours"], took[side]["by hand"]
        figures = [ratios[contender] / ratios[by_hand]]
        return f"{TITLES[side]}: {what}", by_hand, bound, "as long", figures

    def look_ups(side: str) -> list[float]:
        """Time and memory over those of both other ways."""
        return [
            measured[name]["integers"] / measured[name][other]
            for measured in integers[side]["look ups"]
            for name in ("times ours", "peaks")
            for other in ("select", "product")
        ]

    back, grad = f"{DRAW}, backward", f"{DRAW}, value_and_grad"
    torch_peer, tfp = "RelaxedOneHotCategorical", "TFP RelaxedOneHotCategorical"
    first = took["numpyro"]["first step"]["times ours"][took["numpyro"]["ours"]]
    return [
        faster("pyro", back, torch_peer, K10, "≥ 2.5"),
        faster("pyro", back, f"{torch_peer}, validated", K10, "≥ 4.5"),
        faster("pyro", back, torch_peer, K1000, "≥ 3"),
        faster("numpyro", DRAW, tfp, K10, "≥ 2.5"),
        faster("numpyro", grad, tfp, K10, "≥ 3"),
        faster("numpyro", "rsample", tfp, K2, "≥ 1"),
        step("pyro", "SVI step", "AnnealedSVI", "≤ 1.15"),
        step("pyro", "SVI step, validated", "AnnealedSVI, validated", "≤ 1.3"),
        step("pyro", "SVI step, compiled", "AnnealedSVI compiled", "≤ 1.05"),
        step("numpyro", "SVI step", "AnnealedSVI", "≤ 1.03"),
        ("NumPyro: first SVI step", took["numpyro"]["by hand"], "≤ 1.3", "as long", [first]),
        *(
            (f"{TITLES[name]}: {DRAW}", "minimum", bound, "as much memory", figures)
            for (name, side), bound in zip(peaks.items(), ("≤ 1.2", "≤ 2"), strict=True)
            for figures in [[row["peaks"][side["ours"]] / row["minimum"] for row in side["rows"]]]
        ),
        *(
            goal
            for side, bound in (("pyro", "≤ 1.3"), ("numpyro", "≤ 1.05"))
            for ratios in [[row["times ours"]["integers"] for row in integers[side]["rows"]]]
            for goal in (
                (f"{TITLES[side]}: small programs", "one-hot vectors", bound, "as long", ratios),
                (
                    f"{TITLES[side]}: table[z], its gradient",
                    "select, y @ table",
                    "≤ 1.05",
                    "as long, as much memory",
                    look_ups(side),
                ),
                (
                    f"{TITLES[side]}: structured guide of a chain",
                    "mean field",
                    "≤ 2",
                    "as long",
                    [integers[side]["chain"]["times ours"]["structured"]],
                ),
            )
        ),
        *(
            (f"{TITLES[side]}: compare, second call", "", bound, "s", [row["seconds"]["second"]])
            for (side, row), bound in zip(compared.items(), ("≤ 2.5", "≤ 2"), strict=True)
        ),
    ]


def show(figures: list[float], unit: str) -> str:
    shown = list(dict.fromkeys(f"{x:.2f}" for x in (min(figures), max(figures))))
    return f"{' to '.join(shown)} {'' if unit == 's' else 'times '}{unit}"


def find_cell(row: str, column: str) -> dict:
    """Of the paper's Table 1, as NumPyro trained it."""
    cells = read_cells("table1")
    at = [x for x in cells if (x["row"], x["column"], x["backend"]) == (row, column, "numpyro")]
    return at[0]


def in_short() -> str:
    """Five rows for the README; each has its record in the tables of the site."""
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


def goals() -> str:
    rows = []
    for what, beside, bound, unit, figures in find_goals():
        sign, limit = bound.split()
        reached = sign == "≥" and min(figures, default=0) >= float(limit)
        reached |= sign == "≤" and max(figures) <= float(limit)
        here = show(figures, unit) if figures else "not measured"
        rows.append([what, beside, bound, here, "reached" if reached else "missed"])
    return table(["what", "beside", "to reach", "here", ""], rows)


def matrix() -> str:
    """Whole suites on other Pythons and versions; what was mended on the way is said."""
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


BENCH = {
    "goals": goals,
    "speed_pyro": partial(speed, "pyro"),
    "speed_numpyro": partial(speed, "numpyro"),
    "steps": steps,
    "memory": memory,
    "soft_index": soft_index,
    "look_ups": look_ups,
    "chain": chain,
    "compare_calls": compare_calls,
}


PAPER = {
    "table1": table1,
    "one_sample": one_sample,
    "searches": searches,
    "table2": table2,
    "grey": grey,
    "figure5": figure5,
}
EXAMPLES = {
    "demo": demo,
    "two_components": two_components,
    "hidden_markov": hidden_markov,
    "which_causes": which_causes,
}
SITE = ROOT / "docs"


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
    """The document with each marked table made anew."""
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
