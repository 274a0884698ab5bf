"""What `compare` found, free of either PPL, and how it is shown: table, figure, data set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gs_ppl._extras import require
from gs_ppl._figure import make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from xarray import Dataset

ALL = "all parameters"  # of the guide
LOGITS, CONTINUOUS, MODEL = KINDS = ("logits", "continuous", "model")
UNIT = "STGumbelSoftmax"  # the family whose cost is 1

# --- the numbers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """A number in nats and its standard error, 0 where it is exact."""

    mean: float
    error: float = 0.0

    @staticmethod
    def of(draws: np.ndarray) -> Value:
        """Mean of independent draws; a single one is exact."""
        n = len(draws)
        return Value(float(draws.mean()), float(draws.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}" if self.error else f"{self.mean:.3f}"


@dataclass(frozen=True)
class Gradient:
    """An estimator of the gradient in one parameter beside the enumerated gradient.

    `bias` is the norm of (mean - exact), relative to the norm of exact; `floor` what it would be
    from Monte Carlo noise alone: a bias below two floors was not seen. `variance` is
    summed over coordinates, `snr` the norm of the mean over its square root, `cosine` that of the
    angle between mean and exact. NaN where the exact gradient is missing, or zero.
    """

    size: int
    exact: float
    bias: float
    floor: float
    variance: float
    snr: float
    cosine: float

    @staticmethod
    def of(draws: np.ndarray, exact: np.ndarray | None) -> Gradient:
        """From draws of shape (n, size); `exact` of shape (size,), or (n, size) draw by draw."""
        n, size = draws.shape
        mean = draws.mean(0)
        variance = float(draws.var(0, ddof=1).sum()) if n > 1 else math.nan
        snr = float(np.linalg.norm(mean)) / math.sqrt(variance) if variance > 0 else math.inf
        if exact is None:
            return Gradient(size, math.nan, math.nan, math.nan, variance, snr, math.nan)
        difference = draws - exact
        exact = exact.mean(0) if exact.ndim > 1 else exact
        norm = float(np.linalg.norm(exact))
        noise = float(difference.var(0, ddof=1).sum()) / n if n > 1 else math.nan
        product = norm * float(np.linalg.norm(mean))
        return Gradient(
            size,
            norm,
            float(np.linalg.norm(difference.mean(0))) / norm if norm else math.nan,
            math.sqrt(noise) / norm if norm else math.nan,
            variance,
            snr,
            float(mean @ exact) / product if product else math.nan,
        )


@dataclass(frozen=True)
class Estimate:
    """One family, objective and temperature: its ELBO, and its gradient by parameter and by kind.

    An estimator of the discrete program's gradient has no temperature, which is NaN.

    Attributes:
        gradients: by parameter.
        kinds: by kind of parameter: "logits", which the laws of the guide's discrete latents take;
            "continuous", the other ones of the guide; "model".
        cost: CPU time of one estimate, over that of the comparison's unit.
        squared_error: of the logits' gradient, bias^2 + variance x cost / budget, over the square
            of the exact one; None where that is not known, or zero.
    """

    family: str
    objective: str  # "categorical" or "relaxed"; "discrete" for what draws hard samples
    temperature: float
    elbo: Value
    gap: Value | None  # KL in the relaxed objective minus the categorical KL
    gradients: Mapping[str, Gradient]
    kinds: Mapping[str, Gradient] = field(default_factory=dict)
    cost: float = field(default=math.nan, compare=False)  # of a clock
    squared_error: Value | None = field(default=None, compare=False)

    @property
    def gradient(self) -> Gradient | None:
        """That of all parameters of the guide together; None for a guide without parameters."""
        return self.gradients.get(ALL)

    @property
    def logits(self) -> Gradient | None:
        """That of the logits alone."""
        return self.kinds.get(LOGITS)

    @property
    def continuous(self) -> Gradient | None:
        """That of the guide's other parameters."""
        return self.kinds.get(CONTINUOUS)

    @property
    def model(self) -> Gradient | None:
        """That of the model's parameters."""
        return self.kinds.get(MODEL)

    def __repr__(self) -> str:
        by_kind = [
            f"{kind}: bias {g.bias:.3f}, cos {g.cosine:.3f}" for kind, g in self.kinds.items()
        ]
        return f"Estimate({'; '.join([self.label, f'ELBO {self.elbo}', *by_kind])})"

    @property
    def label(self) -> str:
        """Family, objective and temperature, in words."""
        of = f" ({self.objective})" if self.objective != "discrete" else ""
        at = "" if math.isnan(self.temperature) else f" at τ = {self.temperature:g}"
        return f"{self.family}{of}{at}"


@dataclass(frozen=True)
class Marginal:
    """Class probabilities of a site, shape plates + (K,); `relabelled` is a matching of classes."""

    exact: np.ndarray | None
    approximate: np.ndarray | None
    plates: tuple[str, ...]
    relabelled: tuple[int, ...] | None = None

    @property
    def distance(self) -> np.ndarray:
        """Total variation distance, shape plates; NaN where either side is missing, or a row is."""
        if self.exact is None or self.approximate is None:
            return np.full((), math.nan)
        return 0.5 * np.abs(self.exact - self.approximate).sum(-1)

    def __repr__(self) -> str:
        sides = {"exact": self.exact, "approximate": self.approximate}
        shown = [f"{name} of shape {x.shape}" for name, x in sides.items() if x is not None]
        if np.isfinite(self.distance).any():
            shown.append(f"largest distance {np.nanmax(self.distance):.4f}")
        return f"Marginal({', '.join(shown)})"

    def match(self) -> Marginal:
        """The approximate classes in the order in which they fit the exact ones best."""
        if self.exact is None or self.approximate is None:
            return self
        K = self.exact.shape[-1]
        exact, approximate = self.exact.reshape(-1, K), self.approximate.reshape(-1, K)
        cost = np.nansum(np.abs(exact[:, :, None] - approximate[:, None, :]), 0)
        from scipy.optimize import linear_sum_assignment  # slow to import

        _, order = linear_sum_assignment(cost)
        relabelled = tuple(int(k) for k in order)
        return Marginal(self.exact, self.approximate[..., order], self.plates, relabelled)


@dataclass(frozen=True)
class Comparison:
    """A program under exact enumeration and under relaxations of it, side by side.

    Attributes:
        evidence: log p(x), all discrete latents summed out; with continuous latents w, the mean of
            log p(x, w) - log q(w) over w from the guide, and over the rows of subsampled plates.
            None where enumeration was refused.
        elbo: ELBO of the discretized guide, enumerated; None likewise.
        estimates: what the relaxations give in place of it.
        marginals: by discrete site; given the guide's draws of continuous latents.
        notes: what could not be done, and why: the tables' size, or what the PPL or the program
            itself refuses under enumeration alone. What fails in any case is raised.
        budget: CPU time to spend on a gradient, in estimates by the unit.
        unit: the family whose estimate costs 1: STGumbelSoftmax, or the cheapest where it is not
            compared.
    """

    evidence: Value | None
    elbo: Value | None
    estimates: tuple[Estimate, ...]
    marginals: Mapping[str, Marginal]
    num_samples: int
    notes: tuple[str, ...] = field(default=())
    budget: float = 100.0
    unit: str = UNIT

    @property
    def best(self) -> tuple[Estimate, ...]:
        """The estimate of least squared error first, then those within two standard errors of it.

        Empty where the exact gradient is not known.
        """
        found = [(row.squared_error, row) for row in self.estimates if row.squared_error]
        if not found:
            return ()
        found.sort(key=lambda pair: pair[0].mean)
        least = found[0][0]
        return tuple(
            row
            for error, row in found
            if error.mean - least.mean <= 2 * math.hypot(error.error, least.error) or error is least
        )

    @property
    def verdict(self) -> str:
        """The last line of the table: which family and temperature this program does best with."""
        return _verdict(self)

    def __str__(self) -> str:
        return to_text(self)

    def __repr__(self) -> str:
        shown = [
            f"{n}={getattr(self, n).mean:.4g}" for n in ("evidence", "elbo") if getattr(self, n)
        ]
        shown += [f"{len(self.estimates)} estimates"]
        shown += [f"best: {row.label}" for row in self.best[:1]]
        return f"Comparison({', '.join(shown)})"

    def _repr_html_(self) -> str:
        return to_html(self)

    def __rich__(self) -> Any:
        return to_table(self)

    def plot(self) -> Figure:
        """ELBOs, bias and noise of the gradient, and marginals, as a matplotlib figure."""
        return to_figure(self)

    def to_dataset(self) -> Dataset:
        """All numbers as an xarray data set: dimensions estimate and parameter; marginals by site.

        The coordinates family, objective and temperature lie along estimate.
        """
        return to_dataset(self)


# --- table ----------------------------------------------------------------------------------------


class Sheet(NamedTuple):
    """A table, however it is shown; `words` are the columns that hold text."""

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
    from rich.console import Console  # within: its import draws from the random state

    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(to_table(comparison))
    return capture.get()


def to_table(comparison: Comparison) -> Any:
    """What rich prints."""
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
        ["log evidence", _show(comparison.evidence)],
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
    """A line for each kind of parameter; what it costs, and the squared error, by the logits."""
    rows = []
    for row in comparison.estimates:
        names = _named(row)
        for kind, g in row.kinds.items():
            floor = "" if math.isnan(g.floor) else f"({g.floor:.3f})"
            cells = [kind, _number(g.bias, ".3f"), floor, f"{g.variance:.3g}"]
            cells += [f"{g.snr:.2f}", _number(g.cosine, ".3f"), "", ""]
            if kind == LOGITS:
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
    """Nothing, where it is not known."""
    return "" if math.isnan(x) else format(x, how)


def _show(value: Value | None) -> str:
    return "not enumerated" if value is None else str(value)


def _verdict(comparison: Comparison) -> str:
    if not comparison.estimates:
        return ""
    if not any(row.logits for row in comparison.estimates):
        return "No family is best: the guide has no parameters of discrete latents."
    if not comparison.best:
        why = "is zero" if comparison.elbo else "was not enumerated"
        return f"No family is named the best: the exact gradient of the logits {why}."
    first, *ties = comparison.best
    spend = f"{comparison.budget:g} estimates by {comparison.unit}"
    line = (
        f"Best for the logits at the cost of {spend}: {first.label}, error {first.squared_error}."
    )
    if ties:
        shown = [row.label for row in ties[:4]] + [f"{len(ties) - 4} more"] * (len(ties) > 4)
        line += f" A tie, within two standard errors: {', '.join(shown)}."
    return line


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
        kinds = [[getattr(row.kinds.get(k), what, math.nan) for k in KINDS] for row in rows]
        data[f"{what}_by_kind"] = (
            (first, "kind"),
            np.array(kinds, float).reshape(len(rows), len(KINDS)),
        )
    data["cost"] = (first, [row.cost for row in rows])
    for name in ("mean", "error"):
        data["squared_error" + "_error" * (name == "error")] = (
            first,
            [getattr(row.squared_error, name, math.nan) for row in rows],
        )
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
    return Dataset(data, coords={**coords, "parameter": names, "kind": list(KINDS)})


# --- figure ---------------------------------------------------------------------------------------

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
    handles, labels = curves[0].get_legend_handles_labels()  # of all three
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
    """Whether it is one without a temperature: a line across the axes."""
    return math.isnan(rows[0].temperature)


def _draw_elbos(ax: Axes, comparison: Comparison) -> None:
    for name, value in (("log evidence", comparison.evidence), ("exact ELBO", comparison.elbo)):
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
    ax.set(title="ELBO, ± two standard errors", xlabel="temperature", ylabel="nats", xscale="log")
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
    ax.set(title=title, xlabel="temperature", xscale="log")
    if what == "bias":
        ax.set_ylim(bottom=0)
        ax.set_xlabel("temperature (shaded: Monte Carlo floor)")
    else:
        ax.set_yscale("log")
    ax.set_ylabel("relative to the exact gradient" if what == "bias" else "sum over coordinates")
    ax.spines[["top", "right"]].set_visible(False)


def _draw_marginal(ax: Axes, site: str, marginal: Marginal) -> None:
    """Side by side for one row of the plates; exact against approximate for many."""
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
        ax.set(xlabel="class", ylabel="probability", ylim=(0, 1), xticks=np.arange(K))
    distance = np.nanmax(marginal.distance) if len(sides) == 2 else math.nan
    ax.set_title(f"{site}: largest distance {distance:.3f}" if len(sides) == 2 else site)
    ax.legend(fontsize=8, frameon=False)
