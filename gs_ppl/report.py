"""The results of `compare`, for both PPLs; a comparison is shown as tables and as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gs_ppl._shared.data_set import to_dataset
from gs_ppl._shared.figures import to_figure
from gs_ppl._shared.tables import to_html, to_table, to_text, to_verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from xarray import Dataset

ALL = "all parameters"  # of the guide
LOGITS, CONTINUOUS, MODEL = KINDS = ("logits", "continuous", "model")
UNIT = "STGumbelSoftmax"  # the family whose cost is 1


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
    """An estimator of the gradient in one parameter, compared with the enumerated gradient.

    `bias` is the norm of (mean - exact), relative to the norm of exact. `floor` is the bias that
    Monte Carlo noise alone would show; a bias below two floors is not significant. `variance` is
    summed over coordinates. `snr` is the norm of the mean over the square root of the variance.
    `cosine` is that of the angle between mean and exact. They are NaN if the exact gradient is not
    known, or zero.
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
        """From draws of shape (n, size); `exact` has shape (size,), or (n, size) by draw."""
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

    An estimator of the discrete program's gradient has no temperature; it is NaN then.

    Attributes:
        gradients: by parameter.
        kinds: by kind of parameter: "logits" of the guide's discrete latents; "continuous", the
            other parameters of the guide; "model".
        cost: CPU time of one estimate, relative to that of the comparison's unit.
        squared_error: of the logits' gradient, bias^2 + variance x cost / budget, relative to the
            square of the exact gradient; None if that is not known, or zero.
    """

    family: str
    objective: str  # "categorical" or "relaxed"; "discrete" for estimators that draw hard samples
    temperature: float
    elbo: Value
    gap: Value | None  # KL in the relaxed objective minus the categorical KL
    gradients: Mapping[str, Gradient]
    kinds: Mapping[str, Gradient] = field(default_factory=dict)
    cost: float = field(default=math.nan, compare=False)  # measured by a clock
    squared_error: Value | None = field(default=None, compare=False)

    @property
    def gradient(self) -> Gradient | None:
        """The gradient of all parameters of the guide; None for a guide without parameters."""
        return self.gradients.get(ALL)

    @property
    def logits(self) -> Gradient | None:
        """The gradient of the logits."""
        return self.kinds.get(LOGITS)

    @property
    def continuous(self) -> Gradient | None:
        """The gradient of the guide's other parameters."""
        return self.kinds.get(CONTINUOUS)

    @property
    def model(self) -> Gradient | None:
        """The gradient of the model's parameters."""
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
        """Total variation distance, shape plates; NaN where a side or a row is missing."""
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
        evidence: log p(x), with all discrete latents summed out. With continuous latents w it is a
            bound on log p(x): the mean of log p(x, w) - log q(w) over draws of w from the guide.
            With subsampled plates it is a mean over draws of their rows too. None if enumeration
            was refused.
        elbo: ELBO of the discretized guide, by enumeration; None if that was refused.
        estimates: ELBO and gradient of each family, objective and temperature.
        marginals: by discrete site; given the guide's draws of continuous latents.
        notes: what could not be computed, and why: a table that is too large, or an error that only
            enumeration raises (other errors are raised); also parameters that NumPyro's compare was
            not given, and draws that are all equal.
        budget: CPU time to spend on a gradient, in estimates by the unit.
        unit: the family whose estimate costs 1: STGumbelSoftmax, or the cheapest family if
            STGumbelSoftmax is not compared.
        is_bound: whether `evidence` is a bound, because of continuous latents.
    """

    evidence: Value | None
    elbo: Value | None
    estimates: tuple[Estimate, ...]
    marginals: Mapping[str, Marginal]
    num_samples: int
    notes: tuple[str, ...] = field(default=())
    budget: float = 100.0
    unit: str = UNIT
    is_bound: bool = False

    @property
    def evidence_name(self) -> str:
        """What `evidence` is: exact, a bound, or a mean over the rows that were drawn."""
        if self.is_bound:
            return "bound on the log evidence"
        drawn = self.evidence is not None and self.evidence.error > 0
        return "estimate of the log evidence" if drawn else "log evidence"

    @property
    def best(self) -> tuple[Estimate, ...]:
        """The estimate of least squared error first, then those within two standard errors of it.

        An error of 1 is that of no step at all: one of 1 or more, however uncertain, is no tie.
        Empty if the exact gradient is not known.
        """
        found = [
            (row.squared_error, row)
            for row in self.estimates
            if row.squared_error and math.isfinite(row.squared_error.mean)
        ]
        if not found:
            return ()
        found.sort(key=lambda pair: pair[0].mean)
        least = found[0][0]

        def is_tie(error: Value) -> bool:
            spread = math.hypot(error.error, least.error)
            return error.mean < 1 and error.mean - least.mean <= 2 * spread

        return tuple(row for error, row in found if error is least or is_tie(error))

    @property
    def verdict(self) -> str:
        """The last line of the table: the best family and temperature for this program."""
        return to_verdict(self)

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
        return to_dataset(self, KINDS)
