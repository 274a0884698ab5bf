"""Peak memory of sampling and scoring, compared with the peers.

    make bench    # or: python tests/benchmarks/memory.py --output tests/benchmarks

writes a section of speed.json: the peak of the bytes in use, and the minimum, which is the size of
the arrays that the result needs: y, l and log_prob in torch, where backward reads l; y and log_prob
in JAX, whose compiled call returns only these.
"""

import importlib
import math
from argparse import Namespace

from record import run

SHAPES = [(1, 1, 1_000_000), (1024, 30, 10)]
ARRAYS = {"pyro": 2, "numpyro": 1}  # arrays that have the shape of the sample
EXTENT = "rsample, log_prob"


def measure(side: str, options: Namespace) -> dict:
    contenders = importlib.import_module(f"contenders_{side}")

    def row(shape: tuple[int, ...]) -> dict:
        calls = contenders.make(shape, EXTENT, compiled=False)
        calls = {name: calls[name] for name in (contenders.OURS, contenders.PEER) if name in calls}
        minimum = 4 * (ARRAYS[side] * math.prod(shape) + math.prod(shape[:-1]))
        peaks = {name: contenders.peak(call) for name, call in calls.items()}
        return {"shape": shape, "minimum": minimum, "peaks": peaks}

    shapes = [(4, 3, 2)] if options.quick else SHAPES
    return {"ours": contenders.OURS, "rows": [row(shape) for shape in shapes]}


if __name__ == "__main__":
    run("memory", __doc__.splitlines()[0], measure)
