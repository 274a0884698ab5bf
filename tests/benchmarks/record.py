"""Common parts of the programs: arguments, a pinned process a side, a section of speed.json."""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

SIDES = ["pyro", "numpyro"]
PACKAGES = ["gs-ppl", "numpy", "torch", "pyro-ppl", "jax", "numpyro", "optax", "tfp-nightly"]


def run(section: str, title: str, measure: Callable[[str, Namespace], dict]) -> tuple[dict, Path]:
    """The section that was measured and written, and the folder; for one side it only prints."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--output", type=Path, default=Path("results/bench"), metavar="DIR")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.02, help="of a contender's turn")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="one round of little: does it run?")
    parser.add_argument("--side", choices=SIDES, help="print what this one measures, and stop")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.compiled = 1, 1e-4, False
    if options.side:
        if hasattr(os, "sched_setaffinity"):  # with one processor XLA makes one thread, like torch
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(json.dumps(measure(options.side, options)))
        raise SystemExit
    sides = {}
    for side in SIDES:  # a process each, with its own threads and allocator
        command = [sys.executable, *sys.argv, "--side", side]
        sides[side] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    found = {
        "command": " ".join(["python", f"tests/benchmarks/{section}.py", *sys.argv[1:]]),
        "machine": f"{processor()}, one thread",
        "versions": versions(),
        "sides": sides,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "speed.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(record | {section: found}, indent=1) + "\n")
    return found, options.output


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
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
