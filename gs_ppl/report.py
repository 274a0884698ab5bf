"""How a Comparison is shown: table, figure, data set. Its packages come with [compare]."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from xarray import Dataset

    from gs_ppl.comparison import Comparison, Estimate, Marginal, Value


def require(name: str) -> ModuleType:
    """A package of the extra [compare], with a word on how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'gs-ppl[compare]'") from error


# --- table ----------------------------------------------------------------------------------------


def to_text(comparison: Comparison) -> str:
    """The table as plain text."""
    console = require("rich.console").Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(to_table(comparison))
    return capture.get()


def to_table(comparison: Comparison) -> Any:
    """The table that rich prints."""
    Table = require("rich.table").Table
    summary = Table(title="Exact, by enumeration")
    summary.add_column("nats")
    summary.add_column("", justify="right")
    summary.add_row("log evidence", _show(comparison.evidence))
    summary.add_row("ELBO of the guide, discretized", _show(comparison.elbo))
    if comparison.evidence and comparison.elbo:
        gap = comparison.evidence.mean - comparison.elbo.mean
        of = " of discrete latents" if comparison.evidence.error else ""
        summary.add_row(f"their gap: KL(guide || posterior){of}", f"{gap:.3f}")
    marginals = Table(title="Marginals: total variation distance of guide and posterior")
    for column in ("site", "classes", "mean", "largest"):
        marginals.add_column(column, justify="left" if column == "site" else "right")
    for site, marginal in comparison.marginals.items():
        shown = marginal.exact if marginal.exact is not None else marginal.approximate
        classes = "" if shown is None else str(shown.shape[-1])
        name = f"{site} (relabelled)" if marginal.relabelled else site
        distance = marginal.distance[np.isfinite(marginal.distance)]
        shown = [f"{distance.mean():.4f}", f"{distance.max():.4f}"] if distance.size else ["", ""]
        marginals.add_row(name, classes, *shown)
    estimates = _estimates(comparison, Table)
    return require("rich.console").Group(summary, estimates, marginals, *comparison.notes)


def _estimates(comparison: Comparison, Table: Any) -> Any:
    n = comparison.num_samples
    table = Table(title=f"Relaxed, {n} samples each; gradient in all parameters of the guide")
    gaps = any(row.gap for row in comparison.estimates)
    table.add_column("family", overflow="fold")
    table.add_column("objective", no_wrap=True)
    for column in ("τ", "ELBO", "- exact", "KL gap", "bias", "(floor)", "variance", "SNR", "cos"):
        if gaps or column != "KL gap":
            table.add_column(column, justify="right", no_wrap=True)
    exact = comparison.elbo.mean if comparison.elbo else math.nan
    for row in comparison.estimates:
        cells = ["", "", "", "", ""]
        if row.gradient:
            g = row.gradient
            cells = [f"{g.bias:.3f}", f"({g.floor:.3f})", f"{g.variance:.3g}"]
            cells += [f"{g.snr:.2f}", f"{g.cosine:.3f}"]
        table.add_row(
            row.family,
            row.objective,
            "" if math.isnan(row.temperature) else f"{row.temperature:g}",
            f"{row.elbo.mean:.2f} ± {row.elbo.error:.2f}",
            f"{row.elbo.mean - exact:+.2f}",
            *([f"{row.gap.mean:+.2f}" if row.gap else ""] if gaps else []),
            *cells,
        )
    return table


def _show(value: Value | None) -> str:
    return "not enumerated" if value is None else str(value)


# --- data set -------------------------------------------------------------------------------------


def to_dataset(comparison: Comparison) -> Dataset:
    """All numbers as an xarray data set."""
    Dataset = require("xarray").Dataset
    rows, first = comparison.estimates, "estimate"
    names = list(dict.fromkeys(name for row in rows for name in row.gradients))
    data: dict[str, Any] = {
        "elbo": (first, [row.elbo.mean for row in rows]),
        "elbo_error": (first, [row.elbo.error for row in rows]),
        "gap": (first, [row.gap.mean if row.gap else math.nan for row in rows]),
    }
    for what in ("bias", "floor", "variance", "snr", "cosine"):
        table = [[getattr(row.gradients[n], what) for n in names] for row in rows]
        data[what] = ((first, "parameter"), np.array(table).reshape(len(rows), len(names)))
    for name, value in (("evidence", comparison.evidence), ("exact_elbo", comparison.elbo)):
        data[name] = ((), value.mean if value else math.nan)
    for site, marginal in comparison.marginals.items():
        for side in ("exact", "approximate"):
            array = getattr(marginal, side)
            if array is not None:
                data[f"{site}_{side}"] = ((*marginal.plates, f"{site}_class"), array)
    coords = {
        what: (first, [getattr(row, what) for row in rows])
        for what in ("family", "objective", "temperature")
    }
    return Dataset(data, coords={**coords, "parameter": names})


# --- figure ---------------------------------------------------------------------------------------

STYLES = {"categorical": "-", "relaxed": "--", "discrete": "-"}


def to_figure(comparison: Comparison) -> Figure:
    """ELBOs, bias and noise of the gradient over temperature; marginals below."""
    Figure = require("matplotlib.figure").Figure
    sites = list(comparison.marginals)[:4]
    figure = Figure(figsize=(13, 4.2 + (3.4 if sites else 0)), layout="constrained")
    parts = figure.subfigures(
        2 if sites else 1, 1, squeeze=False, height_ratios=[4.2, 3.4][: 1 + bool(sites)]
    )[:, 0]
    curves = parts[0].subplots(1, 3)
    _draw_elbos(curves[0], comparison)
    _draw_gradients(curves[1], comparison, "bias", "relative bias of the gradient")
    _draw_gradients(curves[2], comparison, "variance", "variance of the gradient")
    if sites:
        panels = parts[1].subplots(1, len(sites), squeeze=False)[0]
        for ax, site in zip(panels, sites, strict=True):
            _draw_marginal(ax, site, comparison.marginals[site])
    return figure


def _series(comparison: Comparison) -> dict[tuple[str, str], list[Estimate]]:
    series: dict[tuple[str, str], list[Estimate]] = {}
    for row in sorted(comparison.estimates, key=lambda row: np.nan_to_num(row.temperature)):
        series.setdefault((row.family, row.objective), []).append(row)
    return series


def _color(comparison: Comparison, family: str) -> str:
    families = list(dict.fromkeys(row.family for row in comparison.estimates))
    return f"C{families.index(family) % 10}"


def _label(family: str, objective: str) -> str:
    return family if objective == "discrete" else f"{family}, {objective}"


def _is_level(rows: list[Estimate]) -> bool:
    """Whether it is one without a temperature: a line across the axes."""
    return math.isnan(rows[0].temperature)


def _draw_elbos(ax: Axes, comparison: Comparison) -> None:
    for name, value in (("log evidence", comparison.evidence), ("exact ELBO", comparison.elbo)):
        if value is not None:
            ax.axhline(
                value.mean, color="black", ls="-" if name == "exact ELBO" else ":", lw=1, label=name
            )
    for (family, objective), rows in _series(comparison).items():
        how = {"color": _color(comparison, family), "label": _label(family, objective)}
        if _is_level(rows):
            ax.axhline(rows[0].elbo.mean, ls="-.", **how)
            continue
        ax.errorbar(
            [row.temperature for row in rows],
            [row.elbo.mean for row in rows],
            [2 * row.elbo.error for row in rows],
            marker="o",
            ms=4,
            capsize=2,
            ls=STYLES[objective],
            **how,
        )
    ax.set(title="ELBO, two standard errors", xlabel="temperature", ylabel="nats", xscale="log")
    _finish(ax)


def _draw_gradients(ax: Axes, comparison: Comparison, what: str, title: str) -> None:
    for (family, objective), rows in _series(comparison).items():
        rows = [row for row in rows if row.gradient]
        values = [getattr(row.gradient, what) for row in rows]
        if not np.isfinite(values).any():
            continue
        taus, color = [row.temperature for row in rows], _color(comparison, family)
        how = {"color": color, "label": _label(family, objective)}
        if _is_level(rows):
            ax.axhline(values[0], ls="-.", **how)
            continue
        ax.plot(taus, values, marker="o", ms=4, ls=STYLES[objective], **how)
        if what == "bias":
            ax.fill_between(
                taus, 0, [row.gradient.floor for row in rows], color=color, alpha=0.12, lw=0
            )
    ax.set(title=title, xlabel="temperature", xscale="log")
    if what == "bias":
        ax.set_ylim(bottom=0)
        ax.set_xlabel("temperature (shaded: Monte Carlo floor)")
    else:
        ax.set_yscale("log")
    _finish(ax)


def _draw_marginal(ax: Axes, site: str, marginal: Marginal) -> None:
    """Side by side for one row of the plates; exact against approximate for many."""
    sides = [("exact posterior", marginal.exact), ("guide", marginal.approximate)]
    sides = [(label, array) for label, array in sides if array is not None]
    K = sides[0][1].shape[-1]
    if len(sides) == 2 and sides[0][1].size > K:
        ax.plot([0, 1], [0, 1], color="black", lw=0.8)
        x, y = (array.reshape(-1, K) for _, array in sides)
        for k in range(K):
            ax.plot(x[:, k], y[:, k], ".", ms=5, alpha=0.6, label=f"class {k}" if K <= 6 else None)
        ax.set(xlabel="exact posterior", ylabel="guide", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        ax.set_aspect("equal")
    else:
        for i, (label, array) in enumerate(sides):
            ax.bar(
                np.arange(K) + 0.4 * i - 0.2 * (len(sides) - 1),
                array.reshape(-1, K).mean(0),
                0.4,
                label=label,
            )
        ax.set(xlabel="class", ylabel="probability", ylim=(0, 1), xticks=np.arange(K))
    distance = np.nanmax(marginal.distance) if len(sides) == 2 else math.nan
    ax.set_title(f"{site}: largest distance {distance:.3f}" if len(sides) == 2 else site)
    ax.legend(fontsize=8, frameon=False)


def _finish(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, frameon=False)
