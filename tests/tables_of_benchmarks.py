"""Tables of time and memory in tests/benchmarks/README.md."""

import json
from functools import partial

from tables import BENCHMARKS, TITLES, table


def read_bench(section: str) -> tuple[dict, str]:
    """The sides of a section, and the line that says where it comes from."""
    record = json.loads((BENCHMARKS / "speed.json").read_text())[section]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return record["sides"], f"`{record['command']}`; {record['machine']}; {versions}."


def shape_of(row: dict) -> str:
    return f"({', '.join(map(str, row['shape']))})"


def speed(side: str) -> str:
    """Microseconds of ours; ratios of the others."""
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
    """Time of a step, and of the first one in seconds."""
    sides, source = read_bench("steps")
    shown = []
    for name, side in sides.items():
        first = side.get("first step", {}).get("seconds", {})
        ratios = side["times ours"]
        for contender in dict.fromkeys([*side["us"], *first]):
            step = ["", ""]  # this contender differs in the first step only
            if contender in ratios:
                over = ratios[contender] / ratios[side["by hand"]]
                step = [f"{side['us'][contender] / 1e3:.2f}", f"{over:.2f}"]
            start = f"{first[contender]:.2f}" if contender in first else ""
            shown.append([TITLES[name], contender, *step, start])
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
    """Ratios of programs over integers to one-hot vectors, in time and memory."""
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
    """Time and bytes of the ways to read a table, relative to a matrix product."""
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
    """What, compared with what, the bound, its unit, and the figures: the worst one counts."""
    found, took, peaks = (read_bench(section)[0] for section in ("speed", "steps", "memory"))
    integers, compared = (read_bench(section)[0] for section in ("soft_index", "compare_calls"))

    def times(side: str, extent: str, peer: str, shapes: list) -> list[float]:
        """Ratios to ours; a peer that is not installed or refuses has none."""
        rows = (row for row in found[side]["rows"] if row["shape"] in shapes)
        all_times = (row["times ours"].get(peer) for row in rows if row["extent"] == extent)
        return [x for x in all_times if x is not None]

    def faster(side: str, extent: str, peer: str, shapes: list, bound: str) -> Goal:
        figures = times(side, extent, peer, shapes)
        return f"{TITLES[side]}: {extent}, {AT[str(shapes)]}", peer, bound, "as fast", figures

    def step(side: str, what: str, contender: str, bound: str) -> Goal:
        """Ratio to the loop by hand."""
        ratios, by_hand = took[side]["times ours"], took[side]["by hand"]
        figures = [ratios[contender] / ratios[by_hand]]
        return f"{TITLES[side]}: {what}", by_hand, bound, "as long", figures

    def look_ups(side: str) -> list[float]:
        """Ratios of time and memory to both other ways."""
        return [
            measured[name]["integers"] / measured[name][other]
            for measured in integers[side]["look ups"]
            for name in ("times ours", "peaks")
            for other in ("select", "product")
        ]

    back, grad = f"{DRAW}, backward", f"{DRAW}, value_and_grad"
    torch_peer, tfp = "RelaxedOneHotCategorical", "TFP RelaxedOneHotCategorical"
    first = took["numpyro"]["first step"]["times ours"]
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
        *(
            (f"NumPyro: first SVI step{how}", took["numpyro"]["by hand"], "≤ 1.3", "as long", [x])
            for how, x in (
                ("", first[took["numpyro"]["ours"]]),
                (", init inside of jit", first[f"{took['numpyro']['ours']}, init inside of jit"]),
            )
        ),
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


def goals() -> str:
    rows = []
    for what, beside, bound, unit, figures in find_goals():
        sign, limit = bound.split()
        reached = sign == "≥" and min(figures, default=0) >= float(limit)
        reached |= sign == "≤" and max(figures) <= float(limit)
        here = show(figures, unit) if figures else "not measured"
        rows.append([what, beside, bound, here, "reached" if reached else "missed"])
    return table(["what", "beside", "to reach", "here", ""], rows)


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
