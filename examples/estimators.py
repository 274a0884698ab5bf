"""Which estimator of the gradient? All of them on one program: bias, variance, cost of a step.

The program is the net of temperature_sweep.py, with four latents of eight classes, or with eight
bits. Both are small enough to be summed over all states, so that `compare` has the exact gradient
for comparison with each estimate. The cost is the CPU time of a training step of the paper's VAE
(20 latents with ten classes each, or 200 bits; batches of 100), relative to STGumbelSoftmax: the
median over rounds in which all methods take turns, on one thread.

    python examples/estimators.py --output results/estimators

writes estimators.png and report.json, and prints the table. Bias, standard deviation (the root of
the variance summed over coordinates) and error, the root of the mean square of both, are those of a
single estimate, relative to the norm of the exact gradient. NVIL_ELBO runs without division by the
standard deviation, which would change the gradient's length. Its baseline, and the parameters that
REBAR_ELBO learns, have adapted to the program.
"""

import importlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _pictures import name_lines
from _report import TITLES, make_parser, parse, write_report
from _step_cost import time_in_turns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from temperature_sweep import PROGRAMS, make_weights

from gs_ppl.models.training import Settings, make_trainer

TEMPERATURES = [0.5, 1.0]
SOFT = "GumbelSoftmax"
FAMILIES = [SOFT, "STGumbelSoftmax", "StraightThrough", "ReinMax", "GumbelRao", "GappedST"]
ELBOS = {
    "RLOO_ELBO(2)": {"num_particles": 2},
    "RLOO_ELBO(4)": {"num_particles": 4},
    "NVIL_ELBO": {"normalize": False},
    "MuProp_ELBO": {},
    "DARN_ELBO": {},
    "REBAR_ELBO": {},
    "DisARM_ELBO": {},
}
VERSIONS = {"one-hot": {"variables": 20, "classes": 10}, "bits": {"variables": 200}}  # for the VAE
BITS = 8
PIXELS = 784
PYROS_SHARE = 20  # it draws one after the other: so it has that many samples fewer
Row = dict[str, Any]


def list_methods(version: str, quick: bool = False) -> list[str]:
    if quick:
        return ["STGumbelSoftmax", "RLOO_ELBO(4)"]
    return [*FAMILIES, *(name for name in ELBOS if version == "bits" or name != "DisARM_ELBO")]


# --- the program ----------------------------------------------------------------------------------


def make_net(version: str, seed: int) -> dict[str, np.ndarray]:
    """Its weights, its output, and the logits of the guide."""
    rng = np.random.default_rng([seed, 1])
    bits = {"hidden": rng.normal(size=(BITS, 1, 8)), "logits": rng.normal(size=BITS) / 2}
    return make_weights(seed) | (bits if version == "bits" else {})


def measure_gradients(
    backend: str,
    version: str,
    seed: int,
    num_samples: int,
    quick: bool,
) -> list[Row]:
    gs = importlib.import_module(f"gs_ppl.{backend}")
    names, temperatures = list_methods(version, quick), TEMPERATURES[:1] if quick else TEMPERATURES
    elbos = {name: getattr(gs, name.split("(")[0]) for name in names if name in ELBOS}
    comparison = gs.compare(
        *PROGRAMS[backend](make_net(version, seed)),
        families=[
            elbos[name](**ELBOS[name]) if name in ELBOS else getattr(gs, name) for name in names
        ],
        objectives=["categorical"],
        temperatures=temperatures,
        num_samples=num_samples,
        adaptation_steps=5 if quick else 1000,
    )
    methods = [name for name in names for _ in (temperatures if name in FAMILIES else [None])]
    rows = []
    for method, row in zip(methods, comparison.estimates, strict=True):
        g = row.gradient
        variance = g.variance / g.exact**2
        tau = None if math.isnan(row.temperature) else row.temperature
        rows.append(
            {
                "backend": backend,
                "version": version,
                "method": method,
                "temperature": tau,
                "samples": num_samples,
                "bias": g.bias,
                "floor": g.floor,
                "variance": variance,
                "error": math.hypot(g.bias, math.sqrt(variance)),
                "cosine": g.cosine,
            }
        )
    return rows


# --- what a step costs ----------------------------------------------------------------------------


def measure_costs(backends: list[str], seed: int, quick: bool) -> dict[tuple[str, str, str], float]:
    """CPU time relative to STGumbelSoftmax, by backend, version and method."""
    if not quick and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = np.random.default_rng(seed)
    images = (rng.random((1000, PIXELS)) < 0.2).astype(np.float32)
    images = images[:, :16] if quick else images
    keys = [(b, v, m) for b in backends for v in VERSIONS for m in list_methods(v, quick)]
    steps = {key: make_step(*key, images) for key in keys}
    seconds = time_in_turns(steps, 1, turn=0.0) if quick else time_in_turns(steps, 9)
    rounds = {key: np.array(by_round) for key, by_round in seconds.items()}
    base = {key: rounds[*key[:2], "STGumbelSoftmax"] for key in keys}
    return {key: float(np.median(rounds[key] / base[key])) for key in keys}


def make_step(
    backend: str, version: str, method: str, images: np.ndarray
) -> Callable[[int], object]:
    settings = Settings(family=method.split("(")[0], batch=100, **VERSIONS[version])
    trainer = make_trainer(backend, settings, images)
    if "num_particles" in ELBOS.get(method, {}):
        loss = trainer.svi.loss  # in Pyro a method of the ELBO
        getattr(loss, "__self__", loss).num_particles = ELBOS[method]["num_particles"]
    return trainer.advance if backend == "numpyro" else OwnParameters(trainer.advance)


class OwnParameters:
    """Steps with their own parameter store of Pyro."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        self.advance, self.state = advance, None

    def __call__(self, steps: int) -> None:
        import pyro

        with pyro.get_param_store().scope(self.state) as self.state:
            self.advance(steps)


# --- table and picture ----------------------------------------------------------------------------


def is_seen(row: Row) -> bool:
    """Whether the bias is larger than Monte Carlo noise explains: two floors."""
    return row["bias"] > 2 * row["floor"]


def make_table(rows: list[Row], version: str) -> Table:
    table = Table(title=f"Gradients, {version}: relative to the exact one; cost over ST's")
    for column in ("PPL", "method", "τ", "bias", "(floor)", "deviation", "error", "cos", "cost"):
        table.add_column(column, justify="left" if column in ("PPL", "method") else "right")
    for row in rows:
        if row["version"] == version:
            numbers = [f"{row['bias']:.3f}", f"({row['floor']:.3f})"]
            numbers += [f"{math.sqrt(row['variance']):.2f}", f"{row['error']:.2f}"]
            numbers += [f"{row['cosine']:.3f}", f"{row['cost']:.2f}" if row["cost"] else ""]
            tau = f"{row['temperature']:g}" if row["temperature"] else ""
            table.add_row(TITLES[row["backend"]], row["method"], tau, *numbers)
    return table


def draw(rows: list[Row], path: Path) -> None:
    """Error of the mean of n estimates against their cost, at the better temperature.

    A bias that is not significant counts as 0. If both sides were measured, it is NumPyro's, which
    has the more samples.
    """
    side = rows[-1]["backend"]
    methods = list_methods("bits")
    groups = {
        "with a temperature (better of τ = 0.5, 1)": [
            method for method in methods if method in FAMILIES
        ],
        "score functions": [method for method in methods if method not in FAMILIES],
    }
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(len(groups), len(VERSIONS), sharex=True, sharey=True)
    named: list[tuple[Axes, list[str]]] = []
    for line, (group, names) in zip(axes, groups.items(), strict=True):
        for ax, version in zip(line, VERSIONS, strict=True):
            shown = [r for r in rows if (r["version"], r["backend"]) == (version, side)]
            curves = draw_errors(shown, methods)
            own = [name for name in names if name in curves]
            for name in (*(curves.keys() - {*own}), *own):
                ax.plot(*curves[name], **({"lw": 2} if name in own else {"color": "0.85"}))
            ax.set(xscale="log", yscale="log", title=f"{TITLES[side]}, {version}: {group}")
            named.append((ax, own))
            ax.spines[["top", "right"]].set_visible(False)
    for ax, own in named:  # after all plots, when the shared limits are final
        name_lines(ax, own)
    for ax in axes[-1]:
        ax.set_xlabel("cost, in steps with STGumbelSoftmax")
    figure.supylabel("error of the mean gradient, relative to the exact one", fontsize="medium")
    figure.savefig(path, dpi=110)


def draw_errors(shown: list[Row], methods: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By method, the cost of averaging, and the error of the average."""
    n = np.geomspace(1, 10_000, 100)
    curves = {}
    for method in methods:
        own = [row for row in shown if row["method"] == method and row["cost"]]
        if own:
            biases = [row["bias"] if is_seen(row) else 0.0 for row in own]
            errors = [
                np.hypot(bias, np.sqrt(row["variance"] / n))
                for bias, row in zip(biases, own, strict=True)
            ]
            curves[method] = n * own[0]["cost"], np.min(errors, 0)
    return curves


def main() -> None:
    parser = make_parser(__doc__, output="results/estimators")
    parser.add_argument("--samples", type=int, default=20_000, help="gradients for each estimate")
    arguments = parse(parser)
    samples = 10 if arguments.quick else arguments.samples
    number = {"numpyro": samples, "pyro": max(10, samples // PYROS_SHARE)}
    rows = [
        row
        for version in VERSIONS
        for b in arguments.backends
        for row in measure_gradients(b, version, arguments.seed, number[b], arguments.quick)
    ]
    costs = measure_costs(arguments.backends, arguments.seed, arguments.quick)
    for row in rows:
        row["cost"] = costs.get((row["backend"], row["version"], row["method"]))
    console, picture = Console(width=120), arguments.output / "estimators.png"
    for version in VERSIONS:
        console.print(make_table(rows, version))
    draw(rows, picture)
    console.print(picture, write_report(arguments, [picture], rows, samples=number), sep="\n")


if __name__ == "__main__":
    main()
