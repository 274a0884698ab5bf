"""Curves in small multiples: few lines in each panel, with their names at their ends."""

from pathlib import Path
from typing import Any

import numpy as np
from _report import TITLES
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def draw_curves(results: list[dict[str, Any]], path: Path) -> None:
    """The discrete bound of test images during training: a row of panels for each model.

    Each group of estimators is in colour in its own panel, with all others in grey, up to 20 %
    above the best. A model of one or two curves is left out if there are others. Of the runs of a
    cell it shows one: with the estimator's own settings, in NumPyro, with the first seed.
    """
    models: dict[str, dict[str, np.ndarray]] = {}
    sides: dict[tuple[str, str], str] = {}
    for result in sorted(results, key=priority, reverse=True):  # the last one is kept
        model, name = result["row"].removesuffix(", tuned"), result["column"]
        curves = models.setdefault(model, {})
        curves[name] = np.array(result["evaluations"] or result["losses"])
        sides[model, name] = TITLES[result["backend"]]
    models = {model: models[model] for model in sorted(models) if len(models[model]) > 2} or models
    present = {name for curves in models.values() for name in curves}
    groups = {title: present.intersection(names) for title, names in GROUPS.items()}
    groups = {title: names for title, names in groups.items() if names}
    groups = groups if len(present) > FEW else {"": present}
    size = 3.9 * len(groups) + 0.4, 2.6 * len(models) + 0.4
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(models), len(groups), squeeze=False, sharex="row", sharey="row")
    for line, (model, curves) in zip(axes, models.items(), strict=True):
        best = min(curve[:, 1].min() for curve in curves.values())
        for ax, names in zip(line, groups.values(), strict=True):
            shown = sorted(names.intersection(curves))
            for name in (*(curves.keys() - names), *shown):
                steps, nats = curves[name].T
                style = {"lw": 2} if name in shown else {"color": "0.85"}
                ax.plot(steps / 1000, nats, **style)
            ax.set_ylim(0.99 * best, 1.2 * best)
            ax.spines[["top", "right"]].set_visible(False)
            if shown:
                name_lines(ax, shown)
        line[0].set_ylabel(f"{model}\nnats per image")
    for ax, title in zip(axes[0], groups, strict=True):
        ax.set_title(title)
    ppls = " and ".join(sorted({sides[m, n] for m, curves in models.items() for n in curves}))
    figure.suptitle(f"{ppls}: negative bound of test images", fontsize="large")
    figure.supxlabel("thousand steps", fontsize="medium")
    figure.savefig(path, dpi=110)


def priority(result: dict[str, Any]) -> tuple[bool, bool, int]:
    """Sort key: of the runs of one cell, the one to show comes first."""
    tuned = result["row"].endswith(", tuned")
    return not tuned, result["backend"] != "numpyro", result["seed"]
