"""Curves in small multiples: few lines in each panel, with their names at their ends."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _report import TITLES
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

GROUPS = {  # columns of Table 1
    "noise in the gradient": ("Gumbel-S.", "ST Gumbel-S.", "Gumbel-Rao"),
    "straight-through without noise": ("ST", "Annealed ST", "ReinMax", "GappedST"),
    "score functions": ("SF", "DARN", "MuProp", "RLOO", "REBAR", "DisARM"),
}
FEW = 4  # with so few lines there are no groups
APART = 0.09  # smallest distance of two names, as a share of the height


def name_lines(ax: Axes, names: list[str]) -> None:
    """Writes the names next to the last points of the lines, in their colours, without overlap."""
    lines = ax.lines[-len(names) :]
    to_axes = (ax.transData + ax.transAxes.inverted()).transform
    ends = np.clip([to_axes(line.get_xydata()[-1])[1] for line in lines], 0, 1)
    order, heights = np.argsort(ends), np.sort(ends)
    for _ in range(100):  # moves neighbours apart until no names overlap
        for i in np.flatnonzero(np.diff(heights) < APART):
            heights[i : i + 2] = heights[i : i + 2].mean() + 0.501 * APART * np.array([-1, 1])
    heights -= min(heights[0], 0)  # no name below the axes
    for i, height in zip(order, heights, strict=True):
        color = lines[i].get_color()
        ax.text(1.03, height, names[i], transform=ax.transAxes, color=color, va="center")


def draw_curves(
    results: list[dict[str, Any]], path: Path, costs: Sequence[dict[str, Any]] = ()
) -> None:
    """The discrete bound of test images during training: a row of panels for each model.

    Each group of estimators is in colour in its own panel, with all others in grey, up to 20 %
    above the best. The costs of a step give the CPU time, if they are known for all curves.
    """
    cells = choose_cells(results)
    ms = {(cost["row"], cost["backend"], cost["column"]): cost["ms"] for cost in costs}
    over_time = all((m, x["backend"], name) in ms for m in cells for name, x in cells[m].items())
    present = {name for of_model in cells.values() for name in of_model}
    groups = {title: present.intersection(names) for title, names in GROUPS.items()}
    groups = {title: names for title, names in groups.items() if names}
    groups = groups if len(present) > FEW else {"": present}
    size = 3.9 * len(groups) + 0.4, 2.6 * len(cells) + 0.4
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(cells), len(groups), squeeze=False, sharex="row", sharey="row")
    for line, (model, of_model) in zip(axes, cells.items(), strict=True):
        curves = {}
        for name, cell in of_model.items():
            steps, nats = np.array(cell["evaluations"] or cell["losses"]).T
            minutes = ms[model, cell["backend"], name] / 60_000 if over_time else 0.001
            curves[name] = steps * minutes, nats
        for ax, names in zip(line, groups.values(), strict=True):
            draw_panel(ax, curves, sorted(names.intersection(curves)))
            if over_time:
                ax.set_xscale("log")
                ax.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
                ax.xaxis.set_minor_locator(NullLocator())
        line[0].set_ylabel(f"{model}\nnats per image")
    for ax, title in zip(axes[0], groups, strict=True):
        ax.set_title(title)
    sides = {TITLES[cell["backend"]] for of_model in cells.values() for cell in of_model.values()}
    figure.suptitle(f"{' and '.join(sorted(sides))}: negative bound of test images", size="large")
    figure.supxlabel("CPU minutes" if over_time else "thousand steps", size="medium")
    figure.savefig(path, dpi=110)


def choose_cells(results: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By model and estimator, of the runs of a cell the one to show: with the estimator's own
    settings, in NumPyro, with the first seed.

    A model of one or two estimators is left out if there are others.
    """
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for result in sorted(results, key=priority, reverse=True):  # the last one is kept
        cells.setdefault(result["row"].removesuffix(", tuned"), {})[result["column"]] = result
    return {model: cells[model] for model in sorted(cells) if len(cells[model]) > 2} or cells


def draw_panel(
    ax: Axes, curves: dict[str, tuple[np.ndarray, np.ndarray]], shown: list[str]
) -> None:
    """Those that are shown in colour, on top of all others."""
    for name in (*(curves.keys() - shown), *shown):
        ax.plot(*curves[name], **({"lw": 2} if name in shown else {"color": "0.85"}))
    best = min(nats.min() for _, nats in curves.values())
    ax.set_ylim(0.99 * best, 1.2 * best)
    ax.spines[["top", "right"]].set_visible(False)
    if shown:
        name_lines(ax, shown)


def priority(result: dict[str, Any]) -> tuple[bool, bool, int]:
    """Sort key: of the runs of one cell, the one to show comes first."""
    tuned = result["row"].endswith(", tuned")
    return not tuned, result["backend"] != "numpyro", result["seed"]
