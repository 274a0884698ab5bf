"""What `compare` does and finds, free of either PPL; how it is shown is in report.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from gs_ppl import elimination, report, rewriting
from gs_ppl.rewriting import Family

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from xarray import Dataset

ALL = "all parameters"
ADAPTATION_RATE = 0.02  # of Adam, for the state that an ELBO keeps

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
    """One family, objective and temperature: its ELBO, and its gradient by guide parameter.

    An estimator of the discrete program's gradient has no temperature, which is NaN.
    """

    family: str
    objective: str  # "categorical" or "relaxed"; "discrete" for what draws hard samples
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
        """Total variation distance, shape plates; NaN where either side is missing, or a row is."""
        if self.exact is None or self.approximate is None:
            return np.full((), math.nan)
        return 0.5 * np.abs(self.exact - self.approximate).sum(-1)

    def match(self) -> Marginal:
        """The approximate classes in the order in which they fit the exact ones best."""
        if self.exact is None or self.approximate is None:
            return self
        K = self.exact.shape[-1]
        exact, approximate = self.exact.reshape(-1, K), self.approximate.reshape(-1, K)
        cost = np.nansum(np.abs(exact[:, :, None] - approximate[:, None, :]), 0)
        _, order = report.require("scipy.optimize").linear_sum_assignment(cost)
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


def normalized(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Probabilities along the last axis; NaN for rows of a plate that no draw has seen."""
    with np.errstate(invalid="ignore"):
        return {name: w / w.sum(-1, keepdims=True) for name, w in weights.items()}


class Session(Protocol):
    """One program on one backend: what run asks for. Draw i has the same noise in all methods."""

    stochastic: bool  # continuous latents or subsampled rows: exact numbers take draws too

    def table(self, side: str) -> tuple[int, list[str]]:
        """Entries and latents of the largest table of enumeration, "model" or "guide"."""

    def marginals(self, side: str, draws: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Log evidence, shape (draws,), and class probabilities by site.

        Of the "model", given its data, or of the "guide", which has none.
        """

    def elbo(self, draws: int) -> tuple[np.ndarray, Gradients]:
        """ELBO of the discretized guide, enumerated, and its gradient."""

    def plates(self, site: str) -> tuple[str, ...]:
        """Names of the plates around a site, from the left."""

    def relaxed(
        self, family: Family, objective: str, temperature: float, draws: int
    ) -> tuple[np.ndarray, Gradients]:
        """ELBO of the relaxed program, and its gradient."""

    def discrete(
        self, elbo: Any, draws: int, adaptation_steps: int
    ) -> tuple[np.ndarray, Gradients]:
        """The same of the discrete program, by an ELBO that has a gradient for it.

        State that the ELBO keeps in the guide adapts before, by as many steps.
        """


def list_rows(
    families: Sequence[Family | Any], objectives: Sequence[str], temperatures: Sequence[float]
) -> list[tuple[Family | Any, str, float]]:
    """Family, objective and temperature of each estimate."""
    rows: list[tuple[Family | Any, str, float]] = []
    for family in families:
        if not isinstance(family, Family):
            rows.append((family, "discrete", math.nan))
            continue
        if not hasattr(rewriting.bare(family), "is_hard"):
            name = rewriting.shown(family)
            raise TypeError(f"families: {name} is no family; an ELBO goes as an object: {name}()")
        hard = rewriting.bare(family).is_hard
        how = ["discrete"] if hard else objectives
        rows += [(family, objective, tau) for objective in how for tau in temperatures]
    return rows


def run(
    session: Session,
    families: Sequence[Family | Any],
    objectives: Sequence[str],
    temperatures: Sequence[float],
    num_samples: int,
    adaptation_steps: int,
    relabel: Collection[str],
    max_entries: int,
    progress_bar: bool,
) -> Comparison:
    """Enumerates what fits, relaxes by each row of the table, and puts both side by side."""
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}")
    if adaptation_steps < 1:
        raise ValueError(f"adaptation_steps must be at least 1, got {adaptation_steps}")
    exact = _Exact(session, num_samples if session.stochastic else 1, max_entries)
    marginals = {
        site: Marginal(exact.posterior.get(site), exact.guide.get(site), session.plates(site))
        for site in {**exact.posterior, **exact.guide}
    }
    unknown = sorted(set(relabel) - set(marginals))
    if unknown:
        raise ValueError(f"relabel: no enumerated site is called {', '.join(map(repr, unknown))}")
    rows = list_rows(families, objectives, temperatures)
    relaxed = cache(partial(_draw, session, num_samples, adaptation_steps))
    estimates = [
        _estimate(relaxed, exact.gradients, *row)
        for row in tqdm(rows, desc="compare", disable=not progress_bar)
    ]
    return Comparison(
        exact.evidence,
        exact.elbo,
        tuple(estimates),
        {site: m.match() if site in relabel else m for site, m in marginals.items()},
        num_samples,
        tuple(exact.notes),
    )


def _draw(
    session: Session,
    draws: int,
    adaptation_steps: int,
    family: Family | Any,
    objective: str,
    temperature: float,
) -> tuple[np.ndarray, Gradients]:
    if isinstance(family, Family):
        return session.relaxed(family, objective, temperature, draws)
    return session.discrete(family, draws, adaptation_steps)


class _Exact:
    """The enumerated numbers, as far as their tables fit."""

    def __init__(self, session: Session, draws: int, max_entries: int) -> None:
        self.evidence: Value | None = None
        self.elbo: Value | None = None
        self.gradients: Gradients | None = None
        self.posterior: dict[str, np.ndarray] = {}
        self.guide: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        self._session, self._draws, self._limit = session, draws, max_entries
        self._try("model", "log evidence and exact marginals", self._of_model)
        self._try("guide", "ELBO and marginals of the guide, exact gradient", self._of_guide)

    def _of_model(self) -> None:
        evidence, self.posterior = self._session.marginals("model", self._draws)
        self.evidence = Value.of(evidence)

    def _of_guide(self) -> None:
        elbo, self.gradients = self._session.elbo(self._draws)
        self.elbo = Value.of(elbo)
        _, self.guide = self._session.marginals("guide", self._draws)

    def _try(self, side: str, what: str, enumerate_: Callable[[], None]) -> None:
        """What the size of the tables, or the PPL, has against it becomes a note."""
        try:
            self._check_size(side)
            enumerate_()
        except (ValueError, NotImplementedError) as error:
            self.notes.append(f"{what}: not enumerated: {error}")

    def _check_size(self, side: str) -> None:
        entries, latents = self._session.table(side)
        if entries > self._limit:
            shown = ", ".join(latents[:6]) + (", ..." if len(latents) > 6 else "")
            raise ValueError(
                f"a table over {shown} would have {elimination.shown(entries)} entries, more than"
                f" max_entries = {elimination.shown(self._limit)}"
            )


def _estimate(
    relaxed: Callable[[Family | Any, str, float], tuple[np.ndarray, Gradients]],
    exact: Gradients | None,
    family: Family | Any,
    objective: str,
    temperature: float,
) -> Estimate:
    elbo, gradients = relaxed(family, objective, temperature)
    gap = None
    if objective == "relaxed":  # the same draws: what differs is the KL
        gap = Value.of(relaxed(family, "categorical", temperature)[0] - elbo)
    if len(gradients) > 0:
        gradients = {**gradients, ALL: np.concatenate(list(gradients.values()), -1)}
    if exact:
        exact = {**exact, ALL: np.concatenate(list(exact.values()), -1)}
    quality = {
        name: Gradient.of(g, exact[name] if exact else None) for name, g in gradients.items()
    }
    name = rewriting.shown(family)
    return Estimate(name, objective, temperature, Value.of(elbo), gap, quality)
