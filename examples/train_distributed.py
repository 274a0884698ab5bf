"""Trains the paper's VAE data-parallel: by several processes, or on several devices of one process.

    python examples/train_distributed.py --backend pyro --processes 2
    python examples/train_distributed.py --backend pyro --engine lightning --processes 2
    python examples/train_distributed.py --backend numpyro --processes 2
    python examples/train_distributed.py --backend numpyro --processes 1 --devices 2

torchrun or Lightning's Trainer starts Pyro's processes; jax.distributed.initialize connects those
of NumPyro. Each engine and number of processes is a separate run with separate checkpoints, which
goes on from the newest one when it is started again. report.json holds the time of a step.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from _distributed import work
from _report import TITLES, in_words, make_parser, parse, write_report
from rich.console import Console
from rich.table import Table

from gs_ppl.models.training import HARD, SOFT, RunError

ENGINES = {"ddp": "pyro", "lightning": "pyro", "jax": "numpyro"}
QUICK = {"steps": 30, "checkpoint_every": 15, "variables": 4, "batch": 100}


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, output="results/distributed", steps=2_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[2], help="default 2")
    parser.add_argument("--engine", choices=ENGINES, help="all of the backends unless given")
    parser.add_argument("--devices", type=int, default=1, help="of a process; jax on CPUs alone")
    parser.add_argument("--family", default="GumbelSoftmax", choices=(*SOFT, *HARD))
    parser.add_argument("--variables", type=int, default=20)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch", type=int, default=100, help="rows of all processes together")
    parser.add_argument("--checkpoint-every", type=int, default=500, help="steps")
    of_process = parser.add_argument_group("of one process; where there are several hosts")
    of_process.add_argument("--worker", type=Path, metavar="DIR", help="be one, in this folder")
    of_process.add_argument("--coordinator", metavar="HOST:PORT", help="jax: of the first")
    of_process.add_argument("--process", type=int, help="jax: number of this one, from 0")
    arguments = parse(parser)
    if arguments.quick:
        vars(arguments).update(QUICK)
    for processes in arguments.processes:
        if processes < 1 or arguments.devices < 1:
            parser.error("--processes and --devices must be at least 1")
        if arguments.batch % (processes * arguments.devices):
            parser.error(
                f"--batch {arguments.batch} cannot be divided among {processes} processes of"
                f" {arguments.devices} devices"
            )
    return arguments


def start(arguments: argparse.Namespace, engine: str, processes: int) -> dict[str, Any]:
    """Starts a run in its own processes; returns its row of the report."""
    devices = arguments.devices if engine == "jax" else 1
    folder = arguments.output / f"{engine}_{processes}x{devices}"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("row_*.json"):
        old.unlink()
    own = ["--engine", engine, "--processes", str(processes), "--worker", str(folder)]
    commands = [[__file__, *sys.argv[1:], *own]]
    if engine == "ddp":
        torchrun = ["-m", "torch.distributed.run", "--standalone"]
        commands = [[*torchrun, f"--nproc-per-node={processes}", *commands[0]]]
    if engine == "jax":
        with socket.socket() as free:
            free.bind(("localhost", 0))
            meet = f"--coordinator=localhost:{free.getsockname()[1]}"
        commands = [[*commands[0], meet, f"--process={i}"] for i in range(processes)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    children = [subprocess.Popen([sys.executable, *c], env=environment) for c in commands]
    statuses = [child.wait() for child in children]
    if any(statuses):
        raise RunError(f"a process of {engine} has failed; what it said is above")
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("row_*.json"))]
    return {
        "backend": ENGINES[engine],
        "engine": engine,
        "processes": processes,
        "devices": devices,
        "loss": sum(row["loss"] for row in rows) / len(rows),
        "wall_ms": max(row["wall_ms"] for row in rows),
        "cpu_ms": sum(row["cpu_ms"] for row in rows),
    }


def train(arguments: argparse.Namespace) -> None:
    table = Table(title="Data-parallel training of the VAE")
    for column in ("PPL", "engine", "processes", "devices of each", "nats", "ms a step", "of CPU"):
        table.add_column(column, justify="right")
    engines = [e for e, backend in ENGINES.items() if backend in arguments.backends]
    rows = []
    for engine in [arguments.engine] if arguments.engine else engines:
        for processes in arguments.processes:
            rows.append(row := start(arguments, engine, processes))
            numbers = (f"{row[name]:.1f}" for name in ("loss", "wall_ms", "cpu_ms"))
            cells = engine, *(str(row[name]) for name in ("processes", "devices"))
            table.add_row(TITLES[row["backend"]], *cells, *numbers)
    sizes = {name: getattr(arguments, name) for name in ("family", "variables", "classes", "batch")}
    load = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    target = write_report(arguments, [], rows, **sizes, **load)
    console = Console()
    console.print(table)
    console.print(target)


def main() -> None:
    arguments = parse_arguments()
    with in_words(arguments.output):
        if arguments.worker:
            work(arguments)
        else:
            train(arguments)


if __name__ == "__main__":
    main()
