"""What an ordinary program over integers costs beside the same program with one-hot vectors.

    make bench    # or: python tests/benchmarks/soft_index.py --output tests/benchmarks

writes a section of speed.json: the time of an ELBO and its gradient, in JAX also that of tracing
and compiling it, and the bytes that `table[z]` needs at its peak beside those of its result. One
pinned thread; the two ways take turns, round by round; process CPU time.
"""

import importlib
import time
from argparse import Namespace

import numpy as np
from harness import interleave, median, summary
from record import run

ONE_HOT, INTEGERS = "one-hot", "integers"
SIZES = {"rows": 1000, "classes": 8, "width": 32, "steps": 12, "raters": 5}
QUICK = {"rows": 4, "classes": 2, "width": 2, "steps": 2, "raters": 2}
PROGRAMS = ["mixture", "hidden_markov", "annotation"]
COMPILATIONS = 3  # of each way


def tables(rows: int, classes: int, width: int, steps: int, raters: int) -> dict[str, np.ndarray]:
    """What the programs read, in float32, and the labels."""
    rng = np.random.default_rng(0)
    return {
        "weights": rng.dirichlet(np.ones(classes)).astype(np.float32),
        "locs": rng.normal(size=(classes, width)).astype(np.float32),
        "x": rng.normal(size=(rows, width)).astype(np.float32),
        "transition": rng.dirichlet(np.ones(classes), size=classes).astype(np.float32),
        "series": rng.normal(size=(steps, width)).astype(np.float32),
        "confusion": rng.dirichlet(np.ones(classes), size=(raters, classes)).astype(np.float32),
        "labels": rng.integers(classes, size=(raters, rows)),
    }


def measure(side: str, options: Namespace) -> dict:
    ways = importlib.import_module(f"soft_index_ways_{side}")
    shown = tables(**(QUICK if options.quick else SIZES))
    peak = importlib.import_module(f"contenders_{side}").peak
    result = 4 * shown["x"].shape[0] * shown["locs"].shape[1]
    rows = []
    for name in PROGRAMS:
        steps = {way: ways.step(name, shown, way == ONE_HOT) for way in (ONE_HOT, INTEGERS)}
        found = summary(interleave(steps, options.rounds, options.seconds), ONE_HOT)
        rows.append({"program": name, **found, "compile": compilation(ways, name, shown, options)})
    peaks = {way: peak(ways.look_up(shown, way == ONE_HOT)) for way in (ONE_HOT, INTEGERS)}
    return {"ours": INTEGERS, "rows": rows, "memory": {"minimum": result, "peaks": peaks}}


def compilation(ways: object, name: str, shown: dict, options: Namespace) -> dict | None:
    """Seconds of each way, by turns, and the ratio; None where nothing is compiled."""
    if not hasattr(ways, "compile_step"):
        return None
    seconds: dict[str, list[float]] = {ONE_HOT: [], INTEGERS: []}
    for _ in range(1 if options.quick else COMPILATIONS):
        for way, taken in seconds.items():
            start = time.process_time()
            ways.compile_step(name, shown, way == ONE_HOT)
            taken.append(time.process_time() - start)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return {
        "seconds": {way: median(taken) for way, taken in seconds.items()},
        "times": median(ratios),
    }


if __name__ == "__main__":
    run("soft_index", __doc__.splitlines()[0], measure)
