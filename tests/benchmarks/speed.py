"""How long sampling and scoring take, beside the peers; the numbers of tests/benchmarks/README.md.

    make bench    # or: python tests/benchmarks/speed.py --output tests/benchmarks

writes speed.json and speed.png. One pinned thread; the contenders take turns, round by round;
process CPU time; medians over the rounds of times and of ratios. torch.compile needs a C++
compiler and takes the longest: --no-compiled leaves it out.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from harness import interleave, summary
from tqdm import tqdm

SIDES = ["pyro", "numpyro"]
SHAPES = [(100, 30, 10), (1024, 30, 10), (100, 20, 2), (128, 1, 1000), (1, 1, 1_000_000)]
ELEMENTS = 2**16
BY_CLASSES = [(ELEMENTS // 2**k, 2**k) for k in range(1, 17, 2)]
BY_BATCH = [(4**k, 10) for k in range(8)]


def measure(side: str, rounds: int, seconds: float, compiled: bool) -> dict:
    """In this process, which is thereby pinned to one processor."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    contenders = importlib.import_module(f"contenders_{side}")
    contenders.pin()

    def row(shape: tuple[int, ...], extent: str, names: list[str] | None = None) -> dict:
        calls = contenders.make(shape, extent, compiled and names is None)
        calls = {name: call for name, call in calls.items() if names is None or name in names}
        times = interleave(calls, rounds, seconds)
        return {"shape": shape, "extent": extent, **summary(times, contenders.OURS)}

    cases = [(shape, extent) for shape in SHAPES for extent in contenders.EXTENTS]
    whole = contenders.EXTENTS[-1]
    return {
        "versions": versions(["gs-ppl", "numpy", *contenders.PACKAGES]),
        "ours": contenders.OURS,
        "peer": contenders.PEER,
        "rows": [row(*case) for case in tqdm(cases, desc=side)],
        "sweeps": {
            name: [row(shape, whole, contenders.SWEPT) for shape in tqdm(shapes, desc=name)]
            for name, shapes in (("classes", BY_CLASSES), ("batch", BY_BATCH))
        },
    }


def versions(packages: list[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def draw(record: dict, path: Path) -> None:
    """Cost against the number of classes, and against the size of the batch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for ax, (side, sweep) in zip(
        axes.flat, [(side, sweep) for side in record["sides"] for sweep in ("classes", "batch")],
        strict=True,
    ):  # fmt: skip
        rows = record["sides"][side]["sweeps"][sweep]
        for name in rows[0]["us"]:
            ours = name == record["sides"][side]["ours"]
            y = [
                1e3 * row["us"][name] / ELEMENTS if sweep == "classes" else row["us"][name]
                for row in rows
            ]
            x = [row["shape"][-1 if sweep == "classes" else 0] for row in rows]
            ax.loglog(x, y, marker="o", ms=4, lw=2 if ours else 1, label=name)
        what = rows[0]["extent"]
        if sweep == "classes":
            ax.set(xlabel=f"classes K, {ELEMENTS} elements", ylabel="ns an element", title=what)
        else:
            ax.set(xlabel="batch, K = 10", ylabel="µs a call", title=what)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("results/bench"))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.02, help="of a contender's turn")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--side", choices=SIDES, help="print this one's record and stop")
    options = parser.parse_args()
    if options.side:
        record = measure(options.side, options.rounds, options.seconds, options.compiled)
        print(json.dumps(record))
        return
    sides = {}
    for side in SIDES:  # a process each: their threads and allocators are strangers
        command = [sys.executable, *sys.argv, "--side", side]
        sides[side] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    record = {
        "command": f"python tests/benchmarks/speed.py --rounds {options.rounds}",
        "machine": f"{processor()}, one thread",
        "sides": sides,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "speed.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(record, options.output / "speed.png")


if __name__ == "__main__":
    main()
