"""A comparison as tables: in a terminal, in a notebook; and the line that names the best family."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from gs_ppl.report import Comparison, Estimate, Value


class Sheet(NamedTuple):
    """A table, for a terminal or a notebook; `words` are the columns with text."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    words: tuple[int, ...] = (0,)


def to_sheets(comparison: Comparison) -> list[Sheet]:
    """The tables, as text."""
    sheets = [_exact(comparison)]
    if comparison.estimates:
        sheets += [_elbos(comparison), _gradients(comparison)]
    return [*sheets, _marginals(comparison)] if comparison.marginals else sheets


def to_text(comparison: Comparison) -> str:
    """The tables as plain text."""
    from rich.console import Console  # here, since the import draws from the random state

    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(to_table(comparison))
    return capture.get()


def to_table(comparison: Comparison) -> Any:
    """The tables as an object that rich prints."""
    from rich.console import Group
    from rich.table import Table

    tables = []
    for sheet in to_sheets(comparison):
        table = Table(title=sheet.title)
        for i, column in enumerate(sheet.columns):
            wraps: dict[str, Any] = {"overflow": "fold"} if i == 0 else {"no_wrap": True}
            table.add_column(column, justify="left" if i in sheet.words else "right", **wraps)
        for row in sheet.rows:
            table.add_row(*row)
        tables.append(table)
    return Group(*tables, *comparison.notes, *filter(None, [comparison.verdict]))


def to_html(comparison: Comparison) -> str:
    """The tables for a notebook."""

    def row(cells: list[str], tag: str, words: tuple[int, ...]) -> str:
        align = ("left" if i in words else "right" for i in range(len(cells)))
        shown = (
            f'<{tag} style="text-align: {a}">{escape(cell)}</{tag}>'
            for a, cell in zip(align, cells, strict=True)
        )
        return f"<tr>{''.join(shown)}</tr>"

    tables = [
        f"<table><caption>{escape(sheet.title)}</caption><thead>"
        f"{row(sheet.columns, 'th', sheet.words)}</thead><tbody>"
        f"{''.join(row(cells, 'td', sheet.words) for cells in sheet.rows)}</tbody></table>"
        for sheet in to_sheets(comparison)
    ]
    lines = [*comparison.notes, *filter(None, [comparison.verdict])]
    return "".join([*tables, *(f"<p>{escape(line)}</p>" for line in lines)])


def _exact(comparison: Comparison) -> Sheet:
    rows = [
        [comparison.evidence_name, _show(comparison.evidence)],
        ["ELBO of the guide, discretized", _show(comparison.elbo)],
    ]
    if comparison.evidence and comparison.elbo:
        gap = comparison.evidence.mean - comparison.elbo.mean
        of = " of discrete latents" if comparison.evidence.error else ""
        rows.append([f"their gap: KL(guide || posterior){of}", f"{gap:.3f}"])
    return Sheet("Exact, by enumeration", ["nats", ""], rows)


def _elbos(comparison: Comparison) -> Sheet:
    gaps = any(row.gap for row in comparison.estimates)
    exact = comparison.elbo.mean if comparison.elbo else math.nan
    rows = []
    for row in comparison.estimates:
        cells = [*_named(row), f"{row.elbo.mean:.2f} ± {row.elbo.error:.2f}"]
        cells += [_number(row.elbo.mean - exact, "+.2f")]
        cells += [f"{row.gap.mean:+.2f}" if row.gap else ""] if gaps else []
        rows.append(cells)
    columns = ["family", "objective", "τ", "ELBO", "- exact"] + ["KL gap"] * gaps
    return Sheet(f"ELBO, {comparison.num_samples} samples each", columns, rows, (0, 1))


def _gradients(comparison: Comparison) -> Sheet:
    """A line for each kind of parameter; cost and squared error are in the line of the logits."""
    rows = []
    for row in comparison.estimates:
        names = _named(row)
        for kind, g in row.kinds.items():
            floor = "" if math.isnan(g.floor) else f"({g.floor:.3f})"
            cells = [kind, _number(g.bias, ".3f"), floor, f"{g.variance:.3g}"]
            cells += [f"{g.snr:.2f}", _number(g.cosine, ".3f"), "", ""]
            if g is row.logits:
                error = row.squared_error
                cells[-2:] = [f"{row.cost:.2g}", f"{error.mean:.3g}" if error else ""]
            rows.append(names + cells)
            names = ["", "", ""]
    columns = ["family", "objective", "τ", "parameters", "bias", "(floor)", "variance", "SNR"]
    title = "Gradient of the ELBO, by kind of parameter"
    return Sheet(title, [*columns, "cos", "cost", "error"], rows, (0, 1, 3))


def _marginals(comparison: Comparison) -> Sheet:
    rows = []
    for site, marginal in comparison.marginals.items():
        probs = marginal.exact if marginal.exact is not None else marginal.approximate
        classes = "" if probs is None else str(probs.shape[-1])
        name = f"{site} (relabelled)" if marginal.relabelled else site
        distance = marginal.distance[np.isfinite(marginal.distance)]
        shown = [f"{distance.mean():.4f}", f"{distance.max():.4f}"] if distance.size else ["", ""]
        rows.append([name, classes, *shown])
    title = "Marginals: total variation distance of guide and posterior"
    return Sheet(title, ["site", "classes", "mean", "largest"], rows)


def _named(row: Estimate) -> list[str]:
    tau = "" if math.isnan(row.temperature) else f"{row.temperature:g}"
    return [row.family, row.objective, tau]


def _number(x: float, how: str) -> str:
    """An empty text if the number is not known."""
    return "" if math.isnan(x) else format(x, how)


def _show(value: Value | None) -> str:
    return "not enumerated" if value is None else str(value)


def to_verdict(comparison: Comparison) -> str:
    """A sentence that names the best family and temperature for the program."""
    if not comparison.estimates:
        return ""
    if not any(row.logits for row in comparison.estimates):
        return "No family is best: the guide has no parameters of discrete latents."
    if not comparison.best:
        why = "is zero" if comparison.elbo else "was not enumerated"
        if comparison.elbo and not math.isfinite(comparison.elbo.mean):
            why = "is not known"
        return f"No family is named the best: the exact gradient of the logits {why}."
    first, *ties = comparison.best
    spend = f"{comparison.budget:g} estimates by {comparison.unit}"
    line = (
        f"Best for the logits at the cost of {spend}: {first.label}, error {first.squared_error}."
    )
    if ties:
        shown = [row.label for row in ties[:4]] + [f"{len(ties) - 4} more"] * (len(ties) > 4)
        line += f" A tie, within two standard errors: {', '.join(shown)}."
    if (error := first.squared_error) and error.mean >= 1:
        line += " An error of 1 is that of no step at all: at this cost no family is of use here."
        if not any(math.isnan(row.temperature) for row in comparison.estimates):
            line += " RLOO_ELBO() among the families= has no bias."
    return line
