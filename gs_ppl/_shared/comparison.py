"""How `compare` computes its numbers; report.py has the results, and shows them."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gs_ppl._shared import elimination
from gs_ppl._shared.elimination import Factor, largest_table
from gs_ppl._shared.families import (
    Family,
    bare,
    check_family,
    family_label,
    is_unbounded,
)
from gs_ppl._shared.wrappers import innermost
from gs_ppl.report import (
    ALL,
    CONTINUOUS,
    KINDS,
    LOGITS,
    MODEL,
    UNIT,
    Comparison,
    Estimate,
    Gradient,
    Marginal,
    Value,
)

ADAPTATION_RATE = 0.02  # learning rate of Adam for the state of an ELBO

Gradients = dict[str, np.ndarray]  # of each parameter, shape (draws, size)


def normalized(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Probabilities along the last axis; NaN for rows of a plate that no draw has seen."""
    with np.errstate(invalid="ignore"):
        return {name: w / w.sum(-1, keepdims=True) for name, w in weights.items()}


class Program(ABC):
    """A program made discrete, and the sites of one run.

    Each backend sets `sites`, `discrete` (event dims by latent) and `continuous` from the trace.
    """

    sites: Mapping[str, Any]
    discrete: Mapping[str, int]
    continuous: Sequence[str]
    parameters: Mapping[str, Any]  # unconstrained

    def frames(self, site: str) -> list[Any]:
        """The plates around a site, from the left."""
        stack = self.sites[site]["cond_indep_stack"]
        frames = [frame for frame in stack if getattr(frame, "vectorized", True)]
        return sorted(frames, key=lambda frame: frame.dim)

    def classes(self, site: str) -> int:
        """The number of values of a discrete latent; to_event multiplies them."""
        shape = self.sites[site]["fn"].event_shape
        return shape[-1] ** math.prod(shape[:-1]) if self.discrete[site] else 2 ** math.prod(shape)

    @abstractmethod
    def upstream(self) -> Mapping[str, Collection[str]]:
        """For each site, the sites that its law depends on."""

    @cached_property
    def factors(self) -> list[Factor]:
        """The dependencies of each site's score."""
        upstream = self.upstream()
        return [
            Factor(
                name,
                frozenset(upstream.get(name, ())) & frozenset(self.discrete),
                frozenset(frame.name for frame in self.frames(name)),
                1 if name in self.discrete else math.prod(node["fn"].event_shape),
            )
            for name, node in self.sites.items()
        ]


class Session(ABC):
    """One pair of programs on one backend. Draw i has the same noise in all methods."""

    model: Program
    guide: Program
    sizes: Mapping[str, int]  # rows of each plate that a draw sees
    continuous: bool = False  # has continuous latents: the evidence is a bound
    stochastic: bool  # has continuous latents or subsampled rows: exact numbers need draws too
    seconds: float  # CPU time of one draw of the last estimate
    notes: Sequence[str] = ()

    @property
    def parameters(self) -> dict[str, Any]:
        """The guide's parameters, then those that only the model has."""
        return {**self.guide.parameters, **self.model.parameters, **self.guide.parameters}

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The kind of each parameter."""
        logits, guide = self.logits(), self.guide.parameters
        return {
            name: (LOGITS if name in logits else CONTINUOUS) if name in guide else MODEL
            for name in self.parameters
        }

    @abstractmethod
    def logits(self) -> Collection[str]:
        """The parameters of the guide on which the law of a discrete latent depends directly.

        The other latents are fixed: a parameter that acts only through their values does not count.
        """

    def plates(self, site: str) -> tuple[str, ...]:
        """Names of the plates around a site, from the left."""
        program = self.model if site in self.model.discrete else self.guide
        return tuple(frame.name for frame in program.frames(site))

    def table(self, side: str) -> tuple[int, list[str]]:
        """Entries and latents of the largest table when "model" or "guide" is enumerated."""
        model, guide, sizes = self.model, self.guide, dict(self.sizes)
        plates: dict[str, list[str]] = {}
        for program in [model] if side == "model" else [guide, model]:
            for site in program.discrete:
                plates[site] = [frame.name for frame in program.frames(site)]
                sizes[site] = program.classes(site)
        if side == "model":
            return largest_table(model.factors, plates, sizes)
        # each term of the model is averaged over the guide separately
        return max(largest_table([*guide.factors, term], plates, sizes) for term in model.factors)

    @abstractmethod
    def marginals(self, side: str, draws: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Log evidence, shape (draws,), and class probabilities by site.

        Of the "model", given its data, or of the "guide", which has no data.
        """

    @abstractmethod
    def elbo(self, draws: int) -> tuple[np.ndarray, Gradients]:
        """The enumerated ELBO of the discretized guide, and its gradient."""

    @abstractmethod
    def relaxed(
        self, family: Family, objective: str, temperature: float, draws: int
    ) -> tuple[np.ndarray, Gradients]:
        """ELBO of the relaxed program, and its gradient."""

    @abstractmethod
    def discrete(
        self, elbo: Any, draws: int, adaptation_steps: int
    ) -> tuple[np.ndarray, Gradients]:
        """The same for the discrete program, by an ELBO that has a gradient for it.

        Before, the state that the ELBO keeps in the guide is trained for that many steps.
        """


@dataclass(frozen=True)
class Options:
    """The arguments of `compare`, the same on both sides."""

    families: Sequence[Family | Any]
    objectives: Sequence[str]
    temperatures: Sequence[float]
    num_samples: int
    adaptation_steps: int
    relabel: Collection[str]
    max_entries: int
    progress_bar: bool
    budget: float = 100.0
    cost: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for what in ("families", "objectives", "temperatures"):
            got = getattr(self, what)
            if isinstance(got, str) or not isinstance(got, Collection):
                raise TypeError(f"{what} must be a list, as in {what}=[...], got {got!r}")
        positive = {"budget": self.budget, **{f"cost of {n}": c for n, c in self.costs.items()}}
        for what, number in positive.items():
            if not 0 < number < math.inf:
                raise ValueError(f"{what} must be positive and finite, got {number}")
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {self.num_samples}")
        if self.adaptation_steps < 1:
            raise ValueError(f"adaptation_steps must be at least 1, got {self.adaptation_steps}")

    @property
    def costs(self) -> Mapping[str, float]:
        return self.cost or {}


def list_rows(
    families: Sequence[Family | Any], objectives: Sequence[str], temperatures: Sequence[float]
) -> list[tuple[Family | Any, str, float]]:
    """Family (or ELBO), objective and temperature of each estimate; NaN for an ELBO."""
    rows: list[tuple[Family | Any, str, float]] = []
    for family in families:
        if hasattr(family, "num_particles") and not isinstance(family, type):
            rows.append((family, "discrete", math.nan))
            continue
        if isinstance(family, type) and hasattr(family, "loss"):
            name = family.__name__
            raise TypeError(f"families: {name} is not a family; pass ELBOs as objects: {name}()")
        check_family("families: each", family)
        own = ["discrete"] if bare(family).is_hard else objectives
        rows += [(family, objective, tau) for objective in own for tau in temperatures]
    return rows


def refuse_unbounded(model: Program, guide: Program) -> None:
    """Refuses counts that only the guide truncates: the model would be another one."""
    for name in model.continuous:
        law = innermost(model.sites[name]["fn"])
        if name in guide.discrete and is_unbounded(law):
            raise ValueError(
                f"site {name!r}: {type(law).__name__} in the model has no known largest value, but"
                f" the guide has {guide.classes(name)} classes: give the relaxed program that the"
                f" guide was made from, such as relax(model, truncate={{{name!r}: LARGEST}})"
            )


@np.errstate(invalid="ignore")  # an infinite term gives NaN in the table; a note says so
def run(session: Session, options: Options) -> Comparison:
    """Enumerates what fits, relaxes once for each row of the table, and compares both."""
    draws, relabel = options.num_samples, options.relabel
    exact = _Exact(session, draws if session.stochastic else 1, options.max_entries)
    marginals = {
        site: Marginal(exact.posterior.get(site), exact.guide.get(site), session.plates(site))
        for site in {**exact.posterior, **exact.guide}
    }
    unknown = sorted(set(relabel) - set(marginals))
    if unknown:
        raise ValueError(f"relabel: no enumerated site is called {', '.join(map(repr, unknown))}")
    rows = list_rows(options.families, options.objectives, options.temperatures)
    draw: Any = cache(partial(_draw, session, draws, options.adaptation_steps))
    drawn = [draw(*row) for row in tqdm(rows, desc="compare", disable=not options.progress_bar)]
    labels = [family_label(family) for family, *_ in rows]
    unit, cost = relative_costs(labels, [each.seconds for each in drawn], options.costs)
    estimates = [
        _estimate(draw, exact.gradients, session.kinds, row, cost[label], options.budget)
        for label, row in zip(labels, rows, strict=True)
    ]
    return Comparison(
        exact.evidence,
        exact.elbo,
        tuple(estimates),
        {site: m.match() if site in relabel else m for site, m in marginals.items()},
        draws,
        (
            *session.notes,
            *exact.notes,
            *infinite(exact, estimates),
            *without_spread(estimates, exact.elbo, draws),
        ),
        options.budget,
        unit,
        session.continuous,
    )


def infinite(exact: _Exact, estimates: Sequence[Estimate]) -> list[str]:
    """A note that names the numbers that are infinite or NaN."""
    named = [("the log evidence", exact.evidence), ("the exact ELBO", exact.elbo)]
    named += [(row.family, row.elbo) for row in estimates]
    bad = [name for name, value in named if value and not math.isfinite(value.mean)]
    return [
        f"the model excludes its data, or values that the guide draws: {name} is infinite"
        for name in dict.fromkeys(bad)
    ]


def without_spread(estimates: Sequence[Estimate], exact: Value | None, draws: int) -> list[str]:
    """A note for each estimate whose draws are all equal, but not to the exact ELBO."""
    return [
        f"{row.label}: all {draws} draws gave the same values, so that the standard error of its"
        " ELBO is 0, but rare classes were not drawn: take more num_samples"
        for row in estimates
        if exact is not None and not row.elbo.error
        if not math.isclose(row.elbo.mean, exact.mean, rel_tol=1e-5, abs_tol=1e-5)
    ]


def relative_costs(
    labels: Sequence[str], seconds: Sequence[float], given: Mapping[str, float]
) -> tuple[str, dict[str, float]]:
    """By family, the CPU time of one estimate over that of the unit; and the family of the unit.

    Rounded to half an octave: finer differences change from run to run. Given costs are kept.
    """
    if unknown := sorted(set(given) - set(labels)):
        raise ValueError(
            f"cost: no family is called {', '.join(map(repr, unknown))}; there are"
            f" {', '.join(map(repr, dict.fromkeys(labels)))}"
        )
    least = dict.fromkeys(labels, math.inf)
    for label, each in zip(labels, seconds, strict=True):
        least[label] = min(least[label], max(each, 1e-9))
    unit = UNIT if UNIT in least or not least or given else min(least, key=least.__getitem__)
    one = least.get(unit, min(least.values(), default=1.0))
    octaves = {label: math.log2(each / one) for label, each in least.items()}
    return unit, {label: 2 ** (round(2 * x) / 2) for label, x in octaves.items()} | dict(given)


class Draws(NamedTuple):
    """The draws of one row of the table; `seconds` is the CPU time of one draw."""

    elbo: np.ndarray
    gradients: Gradients
    seconds: float


def _draw(
    session: Session,
    draws: int,
    adaptation_steps: int,
    family: Family | Any,
    objective: str,
    temperature: float,
) -> Draws:
    if isinstance(family, type | partial):
        found = session.relaxed(family, objective, temperature, draws)
    else:
        found = session.discrete(family, draws, adaptation_steps)
    return Draws(*found, session.seconds)


class _Exact:
    """The enumerated numbers whose tables fit."""

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
        """The reason why enumeration was not possible becomes a note."""
        try:
            check_size(self._session, side, self._limit)
            enumerate_()
        except (KeyError, ValueError, NotImplementedError) as error:
            if not isinstance(error, ValueError) and _is_own(error):
                raise
            self.notes.append(f"{what}: not enumerated: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Why enumeration was not possible; the PPL's words with a cure, where they have none."""
    if isinstance(error, KeyError):
        return f"the PPL's enumeration found no {error}"
    if re.search("share a common .*scale", str(error)):
        return (
            "the PPL needs one scale for all sites. A plate with subsample_size, or a handler"
            " `scale`, scales some of them. Give the plate all rows"
        )
    return str(error)


def check_size(session: Session, side: str, limit: int) -> None:
    """Refuses an enumeration whose largest table does not fit."""
    entries, latents = session.table(side)
    if entries > limit:
        shown = ", ".join(latents[:6]) + (", ..." if len(latents) > 6 else "")
        raise ValueError(
            f"a table over {shown} would have {elimination.shown(entries)} entries, more than"
            f" max_entries = {elimination.shown(limit)}"
        )


def _is_own(error: Exception) -> bool:
    """Whether this library raised it: a limit of the PPL becomes a note, a fault here does not."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_globals["__name__"].startswith("gs_ppl.")


def _estimate(
    draw: Callable[[Family | Any, str, float], Draws],
    exact: Gradients | None,
    kinds: Mapping[str, str],
    row: tuple[Family | Any, str, float],
    cost: float,
    budget: float,
) -> Estimate:
    family, objective, temperature = row
    elbo, gradients, _ = draw(*row)
    gap = None
    if objective == "relaxed":  # the same draws: only the KL differs
        gap = Value.of(draw(family, "categorical", temperature).elbo - elbo)

    def quality(groups: Mapping[str, Sequence[str]]) -> dict[str, Gradient]:
        return {
            name: Gradient.of(_joined(gradients, names), _joined(exact, names) if exact else None)
            for name, names in groups.items()
            if names
        }

    of_kind = {kind: [name for name in gradients if kinds[name] == kind] for kind in KINDS}
    guide = of_kind[LOGITS] + of_kind[CONTINUOUS]
    error = None
    if exact and (logits := of_kind[LOGITS]):
        error = squared_error(_joined(gradients, logits), _joined(exact, logits), cost / budget)
    return Estimate(
        family_label(family),
        objective,
        temperature,
        Value.of(elbo),
        gap,
        quality({name: [name] for name in gradients} | {ALL: guide}),
        quality(of_kind),
        cost,
        error,
    )


def _joined(gradients: Gradients, names: Sequence[str]) -> np.ndarray:
    return np.concatenate([gradients[name] for name in names], -1)


def squared_error(draws: np.ndarray, exact: np.ndarray, share: float) -> Value | None:
    """bias^2 + share x variance of an estimator, over the square of the exact gradient.

    The part of bias^2 that is noise is subtracted, so that an unbiased estimator has 0 on average.
    The standard error is that of a U-statistic, with its first and second order. Without bias only
    the second order counts, and noise makes the estimate of the first twice the second.

    Args:
        draws: shape (n, size).
        exact: shape (1, size), or (n, size) draw by draw.
        share: part of the variance that remains, 1 / (number of draws that are averaged).
    """
    n, norm = len(draws), float((exact.mean(0) ** 2).sum())
    if norm == 0:
        return None
    off, spread = draws - exact, draws - draws.mean(0)
    bias, centred = off.mean(0), off - off.mean(0)
    products, squares = centred @ centred.T, (spread**2).sum(-1) * n / (n - 1)
    value = bias @ bias - np.trace(products) / (n * (n - 1)) + share * squares.mean()
    first = (2 * centred @ bias + share * squares).var(ddof=1) / n
    np.fill_diagonal(products, 0.0)
    second = 2 * (products**2).sum() / (n * (n - 1)) ** 2
    return Value(float(value) / norm, math.sqrt(max(first - second, second)) / norm)
