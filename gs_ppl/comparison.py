"""What `compare` does and finds, free of either PPL; how it is shown is in report.py."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from gs_ppl import report

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from xarray import Dataset

ALL = "all parameters"

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
    from Monte Carlo noise alone: a bias below some two floors is none that was seen. `variance` is
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
    """One family, objective and temperature: its ELBO, and its gradient by guide parameter."""

    family: str
    objective: str  # "categorical" or "relaxed"; "discrete" for a straight-through family
    temperature: float
    elbo: Value
    gap: Value | None  # KL in the relaxed objective minus the categorical KL
    gradients: Mapping[str, Gradient]

    @property
    def gradient(self) -> Gradient | None:
        """That of all parameters together; None for a guide without parameters."""
        return self.gradients.get(ALL)


@dataclass(frozen=True)
class Marginal:
    """Class probabilities of a site, shape plates + (K,); `relabelled` is a matching of classes."""

    exact: np.ndarray | None
    approximate: np.ndarray | None
    plates: tuple[str, ...]
    relabelled: tuple[int, ...] | None = None

    @property
    def distance(self) -> np.ndarray:
        """Total variation distance, shape plates; NaN where either side is missing."""
        if self.exact is None or self.approximate is None:
            return np.full((), math.nan)
        return 0.5 * np.abs(self.exact - self.approximate).sum(-1)

    def match(self) -> Marginal:
        """The approximate classes in the order in which they fit the exact ones best."""
        if self.exact is None or self.approximate is None:
            return self
        K = self.exact.shape[-1]
        exact, approximate = self.exact.reshape(-1, K), self.approximate.reshape(-1, K)
        cost = np.abs(exact[:, :, None] - approximate[:, None, :]).sum(0)
        _, order = report.require("scipy.optimize").linear_sum_assignment(cost)
        relabelled = tuple(int(k) for k in order)
        return Marginal(self.exact, self.approximate[..., order], self.plates, relabelled)


@dataclass(frozen=True)
class Comparison:
    """A program under exact enumeration and under relaxations of it, side by side.

    Attributes:
        evidence: log p(x), all discrete latents summed out; with continuous latents, the mean of
            log p(x, w) - log q(w) over w from the guide. None where enumeration was refused.
        elbo: ELBO of the discretized guide, enumerated; None likewise.
        estimates: what the relaxations give in place of it.
        marginals: by discrete site; given the guide's draws of continuous latents.
        notes: what could not be done, and why.
    """

    evidence: Value | None
    elbo: Value | None
    estimates: tuple[Estimate, ...]
    marginals: Mapping[str, Marginal]
    num_samples: int
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return report.to_text(self)

    def __rich__(self) -> Any:
        return report.to_table(self)

    def plot(self) -> Figure:
        """ELBOs, bias and noise of the gradient, and marginals, as a matplotlib figure."""
        return report.to_figure(self)

    def to_dataset(self) -> Dataset:
        """All numbers as an xarray data set: dimensions estimate and parameter; marginals by site.

        The coordinates family, objective and temperature lie along estimate.
        """
        return report.to_dataset(self)


# --- how they come about --------------------------------------------------------------------------

Gradients = dict[str, np.ndarray]  # by parameter, shape (draws, size)


class Session(Protocol):
    """One program on one backend: what run asks for. Draw i has the same noise in all methods."""

    continuous: bool  # whether there are continuous latents, so that exact numbers take draws too

    def table(self, side: str) -> tuple[int, list[str]]:
        """Entries and latents of the largest table of enumeration, "model" or "guide"."""

    def evidence(self, draws: int) -> np.ndarray:
        """Log evidence, shape (draws,)."""

    def elbo(self, draws: int) -> tuple[np.ndarray, Gradients]:
        """ELBO of the discretized guide, enumerated, and its gradient."""

    def marginals(self, side: str, draws: int) -> dict[str, np.ndarray]:
        """Class probabilities by site, of the "model"'s posterior or of the "guide"."""

    def plates(self, site: str) -> tuple[str, ...]:
        """Names of the plates around a site, from the left."""

    def relaxed(
        self, family: type, objective: str, temperature: float, draws: int, gradients: bool
    ) -> tuple[np.ndarray, Gradients]:
        """ELBO of the relaxed program, and its gradient if wanted."""


def run(
    session: Session,
    families: Sequence[type],
    objectives: Sequence[str],
    temperatures: Sequence[float],
    num_samples: int,
    relabel: Collection[str],
    max_entries: int,
    progress_bar: bool,
) -> Comparison:
    """Enumerates what fits, relaxes by each row of the table, and puts both side by side."""
    exact = _Exact(session, num_samples if session.continuous else 1, max_entries)
    rows = [
        (family, objective, temperature)
        for family in families
        for objective in (["discrete"] if family.is_hard else objectives)
        for temperature in temperatures
    ]
    estimates = [
        _estimate(session, exact.gradients, *row, num_samples)
        for row in tqdm(rows, desc="compare", disable=not progress_bar)
    ]
    marginals = {
        site: Marginal(exact.posterior.get(site), exact.guide.get(site), session.plates(site))
        for site in {**exact.posterior, **exact.guide}
    }
    unknown = set(relabel) - set(marginals)
    if unknown:
        raise ValueError(f"relabel: no enumerated site is called {', '.join(map(repr, unknown))}")
    return Comparison(
        exact.evidence,
        exact.elbo,
        tuple(estimates),
        {site: m.match() if site in relabel else m for site, m in marginals.items()},
        num_samples,
        tuple(exact.notes),
    )


class _Exact:
    """The enumerated numbers, as far as their tables fit."""

    def __init__(self, session: Session, draws: int, max_entries: int) -> None:
        self.evidence: Value | None = None
        self.elbo: Value | None = None
        self.gradients: Gradients | None = None
        self.posterior: dict[str, np.ndarray] = {}
        self.guide: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        self._limit, self._session = max_entries, session
        if self._fits("model", "log evidence and exact marginals"):
            self.evidence = Value.of(session.evidence(draws))
            self.posterior = session.marginals("model", draws)
        if self._fits("guide", "ELBO and marginals of the guide, exact gradient"):
            elbo, self.gradients = session.elbo(draws)
            self.elbo, self.guide = Value.of(elbo), session.marginals("guide", draws)

    def _fits(self, side: str, what: str) -> bool:
        entries, latents = self._session.table(side)
        if entries > self._limit:
            shown = ", ".join(latents[:6]) + (", ..." if len(latents) > 6 else "")
            self.notes.append(
                f"{what}: not enumerated, since a table over {shown} would have {entries:.2g}"
                f" entries, more than max_entries = {self._limit:.2g}"
            )
        return entries <= self._limit


def _estimate(
    session: Session,
    exact: Gradients | None,
    family: type,
    objective: str,
    temperature: float,
    draws: int,
) -> Estimate:
    elbo, gradients = session.relaxed(family, objective, temperature, draws, True)
    gap = None
    if objective == "relaxed":  # the same draws: what differs is the KL
        other, _ = session.relaxed(family, "categorical", temperature, draws, False)
        gap = Value.of(other - elbo)
    if len(gradients) > 0:
        gradients = {**gradients, ALL: np.concatenate(list(gradients.values()), -1)}
    if exact:
        exact = {**exact, ALL: np.concatenate(list(exact.values()), -1)}
    quality = {
        name: Gradient.of(g, exact[name] if exact else None) for name, g in gradients.items()
    }
    return Estimate(family.__name__, objective, temperature, Value.of(elbo), gap, quality)
