"""The cost of an ordinary program over integers, compared with one-hot vectors.

    make bench    # or: python tests/benchmarks/soft_index.py --output tests/benchmarks

writes a section of speed.json: the time of an ELBO and its gradient, in JAX also the time of
tracing and compiling; time and peak memory of `table[z]` with its gradient, compared with `select`
and a matrix product; and a chain whose guide has structure, compared with mean field. One pinned
thread; the ways take turns, round by round; process CPU time.
"""

import importlib
from argparse import Namespace
from functools import partial
from types import ModuleType

import numpy as np
from harness import by_turns, interleave, summary
from record import run

ONE_HOT, INTEGERS = "one-hot", "integers"
SIZES = {"rows": 1000, "classes": 8, "width": 32, "steps": 12, "raters": 5}
QUICK = {"rows": 4, "classes": 2, "width": 2, "steps": 2, "raters": 2}
PROGRAMS = ["mixture", "hidden_markov", "annotation"]
COMPILATIONS = 3  # for each way
PRODUCT = "product"
LOOK_UPS = [{"rows": 100_000, "classes": K, "width": 100} for K in (10, 100)]
CHAIN = SIZES | {"classes": 10, "width": 2, "steps": 100}
MEAN_FIELD, STRUCTURED = "mean field", "structured"


def tables(rows: int, classes: int, width: int, steps: int, raters: int) -> dict[str, np.ndarray]:
    """The tables of the programs, in float32, and the labels."""
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
    rows = []
    for name in PROGRAMS:
        steps = {way: ways.step(name, shown, way == ONE_HOT) for way in (ONE_HOT, INTEGERS)}
        found = summary(interleave(steps, options.rounds, options.seconds), ONE_HOT)
        rows.append({"program": name, **found, "compile": compilation(ways, name, shown, options)})
    sizes = [QUICK] if options.quick else LOOK_UPS
    return {
        "ours": INTEGERS,
        "rows": rows,
        "look ups": [look_up(side, ways, size, options) for size in sizes],
        "chain": chain(ways, options),
    }


def look_up(side: str, ways: ModuleType, size: dict[str, int], options: Namespace) -> dict:
    """`table[z]` and its gradient in weights and table; time and bytes relative to a matrix
    product."""
    size = {name: size[name] for name in ("rows", "classes", "width")}
    calls = ways.look_ups(**size)
    peak = importlib.import_module(f"contenders_{side}").peak
    found = summary(interleave(calls, options.rounds, options.seconds), PRODUCT)
    return {**size, **found, "peaks": {way: peak(call) for way, call in calls.items()}}


def chain(ways: ModuleType, options: Namespace) -> dict:
    """A guide that has a table over the classes of the previous state, and one without."""
    shown = tables(**(QUICK if options.quick else CHAIN))
    calls = {
        name: ways.step("hidden_markov", shown, False, parents)
        for name, parents in ((MEAN_FIELD, "none"), (STRUCTURED, "model"))
    }
    size = {"steps": len(shown["series"]), "classes": len(shown["locs"])}
    return size | summary(interleave(calls, options.rounds, options.seconds), MEAN_FIELD)


def compilation(ways: ModuleType, name: str, shown: dict, options: Namespace) -> dict | None:
    """Seconds of each way, by turns, and the ratios; None if nothing is compiled."""
    if not hasattr(ways, "compile_step"):
        return None
    calls = {
        way: partial(ways.compile_step, name, shown, way == ONE_HOT) for way in (ONE_HOT, INTEGERS)
    }
    return by_turns(calls, 1 if options.quick else COMPILATIONS, ONE_HOT)


if __name__ == "__main__":
    run("soft_index", __doc__.splitlines()[0], measure)
