"""A comparison as a figure: ELBOs, bias and noise of the gradient, marginals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gs_ppl._figure import make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gs_ppl.report import Comparison, Estimate, Marginal

MOST_TICKS = 6
STYLES = {"categorical": "-", "relaxed": "--", "discrete": "-"}


def to_figure(comparison: Comparison) -> Figure:
    """ELBOs, bias and noise of the gradient over temperature; marginals below."""
    sites = list(comparison.marginals)[:4]
    figure = make_figure(figsize=(13, 4.8 + (3.4 if sites else 0)), layout="constrained")
    parts = figure.subfigures(
        2 if sites else 1, 1, squeeze=False, height_ratios=[4.8, 3.4][: 1 + bool(sites)]
    )[:, 0]
    curves = parts[0].subplots(1, 3)
    _draw_elbos(curves[0], comparison)
    several = any(len(row.kinds) > 1 for row in comparison.estimates)
    of = "logits' gradient" if several else "gradient"
    _draw_gradients(curves[1], comparison, "bias", f"relative bias of the {of}")
    _draw_gradients(curves[2], comparison, "variance", f"variance of the {of}")
    handles, labels = curves[0].get_legend_handles_labels()  # of all three panels
    options: dict[str, Any] = {"fontsize": 9, "frameon": False, "ncols": min(len(labels), 5) or 1}
    parts[0].legend(handles, labels, loc="outside lower center", **options)
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
    """Whether the estimate has no temperature: it is a line across the axes."""
    return math.isnan(rows[0].temperature)


def _scale_temperatures(ax: Axes, comparison: Comparison) -> None:
    """A logarithmic axis with a tick at each temperature, if there are few."""
    ax.set_xscale("log")
    taus = sorted({t for row in comparison.estimates if math.isfinite(t := row.temperature)})
    if len(taus) <= MOST_TICKS:
        ax.set_xticks(taus, [f"{tau:g}" for tau in taus])
        ax.minorticks_off()


def _draw_elbos(ax: Axes, comparison: Comparison) -> None:
    evidence = comparison.evidence_name, comparison.evidence
    for name, value in (evidence, ("exact ELBO", comparison.elbo)):
        if value is not None:
            ax.axhline(
                value.mean, color="black", ls="-" if name == "exact ELBO" else ":", lw=1, label=name
            )
    for (family, objective), rows in _series(comparison).items():
        style: dict[str, Any] = {
            "color": _color(comparison, family),
            "label": _label(family, objective),
        }
        if _is_level(rows):
            ax.axhline(rows[0].elbo.mean, ls="-.", **style)
            continue
        ax.errorbar(
            [row.temperature for row in rows],
            [row.elbo.mean for row in rows],
            [2 * row.elbo.error for row in rows],
            marker="o",
            ms=4,
            capsize=2,
            ls=STYLES[objective],
            **style,
        )
    ax.set(title="ELBO, ± two standard errors", xlabel="temperature τ", ylabel="nats")
    _scale_temperatures(ax, comparison)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_gradients(ax: Axes, comparison: Comparison, what: str, title: str) -> None:
    for (family, objective), rows in _series(comparison).items():
        rows = [row for row in rows if row.logits or row.gradient]
        gradients = [g for row in rows if (g := row.logits or row.gradient)]
        values = [getattr(gradient, what) for gradient in gradients]
        if not np.isfinite(values).any():
            continue
        taus, color = [row.temperature for row in rows], _color(comparison, family)
        style: dict[str, Any] = {"color": color, "label": _label(family, objective)}
        if _is_level(rows):
            ax.axhline(values[0], ls="-.", **style)
            continue
        ax.plot(taus, values, marker="o", ms=4, ls=STYLES[objective], **style)
        if what == "bias":
            ax.fill_between(taus, 0, [g.floor for g in gradients], color=color, alpha=0.12, lw=0)
    ax.set(title=title, xlabel="temperature τ")
    _scale_temperatures(ax, comparison)
    if what == "bias":
        ax.set_ylim(bottom=0)
        ax.set_xlabel("temperature τ (shaded: Monte Carlo floor)")
    else:
        ax.set_yscale("log")
    ax.set_ylabel("relative to the exact gradient" if what == "bias" else "sum over coordinates")
    ax.spines[["top", "right"]].set_visible(False)


def _draw_marginal(ax: Axes, site: str, marginal: Marginal) -> None:
    """Bars side by side for one row of the plates; exact against approximate for many rows."""
    both = [("exact posterior", marginal.exact), ("guide", marginal.approximate)]
    sides = [(label, array) for label, array in both if array is not None]
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
        top = min(1.0, 1.5 * max(np.nanmax(array) for _, array in sides))  # room for the legend
        ax.set(xlabel="class", ylabel="probability", ylim=(0, top), xticks=np.arange(K))
    distance = np.nanmax(marginal.distance) if len(sides) == 2 else math.nan
    ax.set_title(f"{site}: largest distance {distance:.3f}" if len(sides) == 2 else site)
    ax.legend(fontsize=8, frameon=False)
