"""How long one waits for compare: the program of the README, three points beside enumeration.

    make bench    # or: python tests/benchmarks/compare_calls.py --output tests/benchmarks

writes a section of speed.json: process CPU seconds of the first call in a process and of the
second, on one pinned thread; 100 draws of each of three estimators at one temperature.
"""

import importlib
from argparse import Namespace

from harness import seconds_of
from record import run

CALLS = ["first", "second"]


def measure(side: str, options: Namespace) -> dict:
    compare = importlib.import_module(f"compare_calls_{side}").prepare()
    draws = 2 if options.quick else 100
    return {
        "draws": draws,
        "seconds": {call: seconds_of(lambda: compare(draws), 1) for call in CALLS},
    }


if __name__ == "__main__":
    run("compare_calls", __doc__.splitlines()[0], measure)
