"""Time of sampling and scoring, compared with the peers.

    make bench    # or: python tests/benchmarks/speed.py --output tests/benchmarks

writes a section of speed.json, and speed.png. One pinned thread; the contenders take turns, round
by round; process CPU time; medians over the rounds of times and of ratios. torch.compile needs a
C++ compiler and most of the time: --no-compiled leaves it out.
"""

import hashlib
import importlib
import json
from argparse import Namespace
from pathlib import Path

from harness import interleave, summary
from matplotlib.figure import Figure
from record import run
from tqdm import tqdm

SHAPES = [(100, 30, 10), (1024, 30, 10), (100, 20, 2), (128, 1, 1000), (1, 1, 1_000_000)]
ELEMENTS = 2**16
TITLES = {"pyro": "Pyro", "numpyro": "NumPyro"}
SWEEPS = {
    "classes": [(ELEMENTS // 2**k, 2**k) for k in range(1, 17, 2)],
    "batch": [(4**k, 10) for k in range(8)],
}


def measure(side: str, options: Namespace) -> dict:
    contenders = importlib.import_module(f"contenders_{side}")
    shapes = [(4, 3, 2)] if options.quick else SHAPES
    sweeps = {name: [(2, 3)] if options.quick else at for name, at in SWEEPS.items()}

    def row(shape: tuple[int, ...], extent: str, names: list[str] | None = None) -> dict:
        calls = contenders.make(shape, extent, options.compiled and names is None)
        calls = {name: call for name, call in calls.items() if names is None or name in names}
        times = interleave(calls, options.rounds, options.seconds)
        return {"shape": shape, "extent": extent, **summary(times, contenders.OURS)}

    extents = contenders.EXTENTS[-1:] if options.quick else contenders.EXTENTS
    cases = [(shape, extent) for shape in shapes for extent in extents]
    whole = contenders.EXTENTS[-1]
    return {
        "ours": contenders.OURS,
        "rows": [row(*case) for case in tqdm(cases, desc=side)],
        "sweeps": {
            name: [row(shape, whole, contenders.SWEPT) for shape in tqdm(shapes, desc=name)]
            for name, shapes in sweeps.items()
        },
    }


def draw(record: dict, path: Path) -> None:
    """Cost against the number of classes, and against the size of the batch."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = [(ppl, name) for ppl in record["sides"] for name in SWEEPS]
    for ax, (ppl, name) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        side = record["sides"][ppl]
        rows, by_class = side["sweeps"][name], name == "classes"
        x = [row["shape"][-1 if by_class else 0] for row in rows]
        for contender in rows[0]["us"]:
            y = [row["us"][contender] * (1e3 / ELEMENTS if by_class else 1) for row in rows]
            width = 2 if contender == side["ours"] else 1
            ax.loglog(x, y, "o-", markersize=4, linewidth=width, label=contender)
        ax.set_title(f"{TITLES[ppl]}: {rows[0]['extent']}")
        ax.set_xlabel(f"classes K, {ELEMENTS} elements" if by_class else "batch, K = 10")
        ax.set_ylabel("ns per element" if by_class else "µs per call")
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    figure.savefig(path, dpi=110, metadata={"Record": digest})


if __name__ == "__main__":
    record, folder = run("speed", __doc__.splitlines()[0], measure)
    draw(record, folder / "speed.png")
