"""How `compare` comes to its numbers; what it finds, and how that is shown, is in report.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
from tqdm import tqdm

from gs_ppl._shared import elimination
from gs_ppl._shared.elimination import Factor, largest_table
from gs_ppl._shared.families import Family, bare, check_family, family_label
from gs_ppl.report import ALL, Comparison, Estimate, Gradient, Marginal, Value

ADAPTATION_RATE = 0.02  # of Adam, for the state that an ELBO keeps

Gradients = dict[str, np.ndarray]  # by parameter, shape (draws, size)


def normalized(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Probabilities along the last axis; NaN for rows of a plate that no draw has seen."""
    with np.errstate(invalid="ignore"):
        return {name: w / w.sum(-1, keepdims=True) for name, w in weights.items()}


class Program:
    """A program made discrete, and what one run of it shows.

    Each side sets `sites`, `discrete` (event dims by latent) and `continuous` from the trace.
    """

    sites: Mapping[str, Any]
    discrete: Mapping[str, int]
    continuous: Sequence[str]

    def frames(self, site: str) -> list[Any]:
        """The plates around a site, from the left."""
        stack = self.sites[site]["cond_indep_stack"]
        frames = [frame for frame in stack if getattr(frame, "vectorized", True)]
        return sorted(frames, key=lambda frame: frame.dim)

    def classes(self, site: str) -> int:
        """The number of values of a discrete latent; to_event multiplies them."""
        shape = self.sites[site]["fn"].event_shape
        return shape[-1] ** math.prod(shape[:-1]) if self.discrete[site] else 2 ** math.prod(shape)

    def upstream(self) -> Mapping[str, Collection[str]]:
        """By site, the sites that its law depends on."""
        raise NotImplementedError

    @cached_property
    def factors(self) -> list[Factor]:
        """The score of each site."""
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


class Session:
    """One pair of programs on one backend. Draw i has the same noise in all methods."""

    model: Program
    guide: Program
    sizes: Mapping[str, int]  # rows of each plate that a draw sees
    stochastic: bool  # continuous latents or subsampled rows: exact numbers take draws too

    def plates(self, site: str) -> tuple[str, ...]:
        """Names of the plates around a site, from the left."""
        program = self.model if site in self.model.discrete else self.guide
        return tuple(frame.name for frame in program.frames(site))

    def table(self, side: str) -> tuple[int, list[str]]:
        """Entries and latents of the largest table of enumeration, "model" or "guide"."""
        model, guide, sizes = self.model, self.guide, dict(self.sizes)
        plates: dict[str, list[str]] = {}
        for program in [model] if side == "model" else [guide, model]:
            for site in program.discrete:
                plates[site] = [frame.name for frame in program.frames(site)]
                sizes[site] = program.classes(site)
        if side == "model":
            return largest_table(model.factors, plates, sizes)
        # each term of the model is averaged by itself over the guide
        return max(largest_table([*guide.factors, term], plates, sizes) for term in model.factors)

    def marginals(self, side: str, draws: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Log evidence, shape (draws,), and class probabilities by site.

        Of the "model", given its data, or of the "guide", which has none.
        """
        raise NotImplementedError

    def elbo(self, draws: int) -> tuple[np.ndarray, Gradients]:
        """ELBO of the discretized guide, enumerated, and its gradient."""
        raise NotImplementedError

    def relaxed(
        self, family: Family, objective: str, temperature: float, draws: int
    ) -> tuple[np.ndarray, Gradients]:
        """ELBO of the relaxed program, and its gradient."""
        raise NotImplementedError

    def discrete(
        self, elbo: Any, draws: int, adaptation_steps: int
    ) -> tuple[np.ndarray, Gradients]:
        """The same of the discrete program, by an ELBO that has a gradient for it.

        State that the ELBO keeps in the guide adapts before, by as many steps.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Options:
    """What `compare` is asked for, the same on both sides."""

    families: Sequence[Family | Any]
    objectives: Sequence[str]
    temperatures: Sequence[float]
    num_samples: int
    adaptation_steps: int
    relabel: Collection[str]
    max_entries: int
    progress_bar: bool

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {self.num_samples}")
        if self.adaptation_steps < 1:
            raise ValueError(f"adaptation_steps must be at least 1, got {self.adaptation_steps}")


def list_rows(
    families: Sequence[Family | Any], objectives: Sequence[str], temperatures: Sequence[float]
) -> list[tuple[Family | Any, str, float]]:
    """Family, objective and temperature of each estimate; an ELBO is no family."""
    rows: list[tuple[Family | Any, str, float]] = []
    for family in families:
        if hasattr(family, "num_particles") and not isinstance(family, type):
            rows.append((family, "discrete", math.nan))
            continue
        if isinstance(family, type) and hasattr(family, "loss"):
            name = family.__name__
            raise TypeError(f"families: {name} is no family; an ELBO goes as an object: {name}()")
        check_family("families: each", family)
        own = ["discrete"] if bare(family).is_hard else objectives
        rows += [(family, objective, tau) for objective in own for tau in temperatures]
    return rows


def run(session: Session, options: Options) -> Comparison:
    """Enumerates what fits, relaxes by each row of the table, and puts both side by side."""
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
    relaxed: Any = cache(partial(_draw, session, draws, options.adaptation_steps))
    estimates = [
        _estimate(relaxed, exact.gradients, *row)
        for row in tqdm(rows, desc="compare", disable=not options.progress_bar)
    ]
    return Comparison(
        exact.evidence,
        exact.elbo,
        tuple(estimates),
        {site: m.match() if site in relabel else m for site, m in marginals.items()},
        draws,
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
    if isinstance(family, type | partial):
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
        """The reason why enumeration was not possible becomes a note."""
        try:
            check_size(self._session, side, self._limit)
            enumerate_()
        except KeyError as error:  # whose text is a name alone
            self.notes.append(f"{what}: not enumerated: the PPL's enumeration found no {error}")
        except (ValueError, NotImplementedError) as error:
            if isinstance(error, NotImplementedError) and _is_own(error):
                raise
            self.notes.append(f"{what}: not enumerated: {error}")


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
    """Whether this library has raised it: what a PPL does not do is a note, a fault here is not."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_globals["__name__"].startswith("gs_ppl.")


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
    name = family_label(family)
    return Estimate(name, objective, temperature, Value.of(elbo), gap, quality)
