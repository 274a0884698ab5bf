"""Time of a call of compare: the program of the README, with three points.

    make bench    # or: python tests/benchmarks/compare_calls.py --output tests/benchmarks

writes a section of speed.json: process CPU seconds of the first call in a process and of the
second, on one pinned thread; 100 draws of each of three estimators at one temperature.
"""

from argparse import Namespace
from collections.abc import Callable
from importlib import import_module

from harness import seconds_of
from record import run

CALLS = ["first", "second"]
ARRAY = {"pyro": ("torch", "tensor"), "numpyro": ("jax.numpy", "array")}


def prepare(side: str) -> Callable[[int], object]:
    """The README's program, which both PPLs share, and compare on it."""
    ppl, dist = import_module(side), import_module(f"{side}.distributions")
    gs = import_module(f"gs_ppl.{side}")
    package, name = ARRAY[side]
    array = getattr(import_module(package), name)
    x = array([-2.1, -1.9, -2.0, 1.8, 2.0, 2.3])

    def model() -> None:
        locs = ppl.param("locs", array([-1.0, 1.0]))
        with ppl.plate("data", 6):
            z = ppl.sample("z", dist.Categorical(logits=array([0.0, 0.0])))
            ppl.sample("x", dist.Normal(locs[z], 0.5), obs=x)

    guide = gs.AutoGumbelSoftmax(model)
    options = {"temperatures": [0.3], "progress_bar": False}
    return lambda draws: gs.compare(model, guide, num_samples=draws, **options)


def measure(side: str, options: Namespace) -> dict:
    compare = prepare(side)
    draws = 2 if options.quick else 100
    return {
        "draws": draws,
        "seconds": {call: seconds_of(lambda: compare(draws), 1) for call in CALLS},
    }


if __name__ == "__main__":
    run("compare_calls", __doc__.splitlines()[0], measure)
