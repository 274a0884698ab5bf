"""The paper's Figure 1: expectation and samples of the relaxed law at several temperatures.

    python examples/relaxation.py --output results/relaxation

At low temperature samples are near one-hot and their mean is near the mean of the categorical law.
At high temperature they are smooth, and the mean is near uniform. Writes relaxation_{backend}.png
and report.json, and prints how far mean and samples are from the categorical law.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from _report import TITLES, make_parser, parse, write_report
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

PROBS = np.array([0.08, 0.15, 0.30, 0.22, 0.12, 0.09, 0.04])
TEMPERATURES = [None, 0.1, 0.5, 1.0, 10.0]  # None: the categorical law itself
SHOWN = 3  # samples in the picture


def draw_pyro(temperature: float | None, count: int, seed: int) -> np.ndarray:
    import pyro
    import torch

    from gs_ppl.pyro import GumbelSoftmax, OneHotCategorical

    pyro.set_rng_seed(seed)
    probs = torch.tensor(PROBS)
    law = GumbelSoftmax(temperature, probs) if temperature else OneHotCategorical(probs)
    return law.sample((count,)).numpy()


def draw_numpyro(temperature: float | None, count: int, seed: int) -> np.ndarray:
    import jax
    import jax.numpy as jnp

    from gs_ppl.numpyro import GumbelSoftmax, OneHotCategorical

    probs = jnp.asarray(PROBS, jnp.float32)
    law = GumbelSoftmax(temperature, probs) if temperature else OneHotCategorical(probs)
    return np.asarray(law.sample(jax.random.key(seed), (count,)))


DRAW: dict[str, Callable] = {"pyro": draw_pyro, "numpyro": draw_numpyro}


def draw_figure(samples: dict[float | None, np.ndarray], title: str, path: Path) -> None:
    """One column for each temperature: the expectation above, samples below."""
    figure = Figure(figsize=(2.3 * len(samples), 1.5 * (1 + SHOWN)), layout="constrained")
    axes = figure.subplots(1 + SHOWN, len(samples), sharex=True, sharey=True)
    for column, (temperature, values) in zip(axes.T, samples.items(), strict=True):
        rows = [values.mean(0), *values[:SHOWN]]
        for i, (ax, row) in enumerate(zip(column, rows, strict=True)):
            ax.bar(range(len(row)), row, color="C0" if i else "C3", width=0.85)
            ax.set(ylim=(0, 1.05), xticks=[], yticks=[0, 1])
            ax.spines[["top", "right"]].set_visible(False)
        column[0].set_title("categorical" if temperature is None else f"τ = {temperature:g}")
    axes[0, 0].set_ylabel("expectation")
    for i in range(SHOWN):
        axes[1 + i, 0].set_ylabel(f"sample {i + 1}")
    figure.suptitle(f"Gumbel-Softmax, drawn by {title}")
    figure.supxlabel("category")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = make_parser(__doc__, output="results/relaxation")
    parser.add_argument("--samples", type=int, default=100_000)
    arguments = parse(parser)
    count = 2_000 if arguments.quick else arguments.samples
    table = Table(title=f"Gumbel-Softmax beside its categorical law, {count:,} samples")
    table.add_column("PPL")
    for column in ("τ", "mean off by", "largest coordinate", "argmax off by"):
        table.add_column(column, justify="right")
    rows, pictures = [], []
    for backend in arguments.backends:
        samples = {tau: DRAW[backend](tau, count, arguments.seed) for tau in TEMPERATURES}
        for tau, values in samples.items():
            winners = np.bincount(values.argmax(-1), minlength=len(PROBS)) / count
            row = {
                "backend": backend,
                "temperature": tau,
                "mean_distance": float(np.abs(values.mean(0) - PROBS).sum() / 2),
                "largest_coordinate": float(values.max(-1).mean()),
                "argmax_distance": float(np.abs(winners - PROBS).sum() / 2),
            }
            rows.append(row)
            cells = [row[k] for k in ("mean_distance", "largest_coordinate", "argmax_distance")]
            shown = "categorical" if tau is None else f"{tau:g}"
            table.add_row(TITLES[backend], shown, *(f"{cell:.3f}" for cell in cells))
        pictures.append(arguments.output / f"relaxation_{backend}.png")
        draw_figure(samples, TITLES[backend], pictures[-1])
    table.caption = "distances in total variation; the largest coordinate of a one-hot vector is 1"
    target = write_report(arguments, pictures, rows)
    console = Console()
    console.print(table)
    console.print(*pictures, target, sep="\n")


if __name__ == "__main__":
    main()
