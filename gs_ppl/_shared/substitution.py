"""Runs of a program at chosen values of its discrete sites; this module imports no framework."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass(frozen=True)
class DiscreteSite:
    """A discrete site of the guide: its logits in the shape of the value, its event and plates."""

    name: str
    kind: Any  # OneHot or Bit
    a: Any
    event_dim: int
    frames: Sequence[Any]

    def inner(self, x: Any) -> Any:
        """Sum over the axes of the event, which are kept with size 1."""
        axes = tuple(range(-self.event_dim, 0))
        return x.sum(axes, keepdims=True) if axes else x


class Run:
    """The result of one run: the sites and their values, r, and the sums of log p and log q."""

    params: Mapping[str, Any] = {}  # parameters of the guide, if its trace has them

    def __init__(self, at: Any, costs: Any, *traces: Iterable[Any]) -> None:
        self.sites: dict[str, DiscreteSite] = at.sites
        self.values: dict[str, Any] = at.values
        self.costs = costs
        self.state: dict[str, Any] = {}  # the estimator's, for the next step
        self.log_p, self.log_q = (sum(site["log_prob"].sum() for site in t) for t in traces)

    @property
    def elbo(self) -> Any:
        return self.log_p - self.log_q

    def r(self, site: DiscreteSite) -> Any:
        """r of a site, with an axis of size 1 for each axis of the event."""
        r = self.costs.sum_to(site.frames)
        return r.reshape(r.shape + (1,) * site.event_dim)


def check_law(site: str, law: Any, estimator: str, *, relaxed: bool, discrete: bool) -> None:
    """Refuses a law that is not discrete."""
    has_none = getattr(law, "has_temperature", True) is False
    name = "a law without a temperature" if relaxed and has_none else type(law).__name__
    if relaxed:
        raise ValueError(
            f"site {site!r}: {estimator} takes discrete programs, but {name} is relaxed: use"
            " discretize(model) and discretize(guide)"
        )
    if not discrete:
        raise ValueError(
            f"site {site!r}: {estimator} takes only discrete sites with a fixed finite support in"
            f" the guide, got {name}: use RLOO_ELBO, which takes any site"
        )


def refuse_one_hot(site: str) -> NoReturn:
    """DisARM is defined only for bits."""
    raise ValueError(
        f"site {site!r}: DisARM_ELBO takes only bits, but this is a one-hot vector: use REBAR_ELBO"
        " or RLOO_ELBO"
    )
