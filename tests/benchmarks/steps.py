"""Time of an SVI step of the paper's auto-encoder, compared with a loop written by hand.

    make bench    # or: python tests/benchmarks/steps.py --output tests/benchmarks

writes a section of speed.json. 784-(20x10)-784, linear, batches of 100 drawn at each step, Adam.
The loops have no PPL, but the same networks, minibatches, objective and optimizer. One pinned
thread; the contenders take turns, round by round; process CPU time. In JAX also the seconds to the
end of the first step of a process, which include tracing and compiling.
"""

import importlib
from argparse import Namespace

import numpy as np
from harness import by_turns, interleave, summary
from record import run

VARIABLES, CLASSES, PIXELS, BATCH = 20, 10, 784, 100
STEPS = 20  # of one call
FIRST_STEPS = 5  # of each contender, each in a new state


def measure(side: str, options: Namespace) -> dict:
    pixels, batch, steps = (6, 5, 2) if options.quick else (PIXELS, BATCH, STEPS)
    images = (np.random.default_rng(0).random((1000, pixels)) < 0.2).astype(np.float32)
    contenders = importlib.import_module(f"steps_{side}")
    loops = contenders.make(images, VARIABLES, CLASSES, batch, steps)
    found = summary(interleave(loops, options.rounds, options.seconds), contenders.OURS)
    found["us"] = {name: us / steps for name, us in found["us"].items()}
    if hasattr(contenders, "first_steps"):
        starts = contenders.first_steps(images, VARIABLES, CLASSES, batch)
        rounds = 1 if options.quick else FIRST_STEPS
        found["first step"] = by_turns(starts, rounds, contenders.BY_HAND)
    return {"ours": contenders.OURS, "by hand": contenders.BY_HAND, **found}


if __name__ == "__main__":
    run("steps", __doc__.splitlines()[0], measure)
