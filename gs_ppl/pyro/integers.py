"""Laws of relaxed integer sites: vectors of weights that represent the integers of a support."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar

import torch
from pyro.distributions import BetaBinomial, Categorical, TorchDistribution
from torch import Size, Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Binomial as TorchBinomial
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions import RelaxedBernoulli, RelaxedOneHotCategorical, constraints

from gs_ppl._shared.families import check_truncation, refuse_support
from gs_ppl.pyro._base import LogitsDistribution

__all__: list[str] = []


def parameters(law: Any) -> dict[str, Tensor]:
    """If a native law was given probs, these are probs, so that a zero stays a masked category."""
    source = getattr(law, "_categorical", law)
    if "probs" in source.__dict__ and source._param is source.__dict__["probs"]:
        return {"probs": source.probs}
    return {"logits": law.logits}


def event_dims(law: Any) -> int | None:
    """1 for a one-hot law, 0 for a bit, None for any other."""
    if isinstance(law, LogitsDistribution):
        return law.event_dims
    if isinstance(law, TorchOneHotCategorical | RelaxedOneHotCategorical):
        return 1
    return 0 if isinstance(law, TorchBernoulli | RelaxedBernoulli) else None


class IndexScored:
    """Turns a family into the law of an integer site: it scores weights, and also integers."""

    logits: Tensor
    values: ClassVar[tuple[int, ...]]
    floating: ClassVar[bool]  # whether the values are floats, as Pyro's counts are
    max_tail: ClassVar[float | None]  # the largest mass that truncation may leave out
    has_enumerate_support = False  # so that the PPL's own enumeration does not mark it

    def weights(self, value: Tensor) -> Tensor:
        """The vertex of an integer; weights do not change."""
        if value.is_floating_point():
            return value
        values = torch.tensor(self.values, device=value.device)
        return (value[..., None] == values).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        # the family is the next base class after this mixin; mypy does not see that
        return super().log_prob(self.weights(value))  # type: ignore[misc]


@cache
def _of_values(
    family: type, values: tuple[int, ...], floating: bool, max_tail: float | None
) -> type:
    body = {"values": values, "floating": floating, "max_tail": max_tail, "__doc__": None}
    return type(family.__name__, (IndexScored, family), body)


def of_values(
    values: tuple[int, ...], floating: bool, max_tail: float | None = None
) -> Callable[[Any], Any]:
    """A function that turns a family, with its options, into one for a site of these integers."""

    def make(family: Any) -> Any:
        if isinstance(family, partial):
            return partial(make(family.func), **family.keywords)
        return _of_values(family, values, floating, max_tail)

    return make


def values_of(law: Any) -> tuple[int, ...] | None:
    """The integers that a relaxed law represents; None for any other law."""
    return getattr(law, "values", None) if isinstance(law, LogitsDistribution) else None


COUNTS = (TorchBinomial, BetaBinomial)


def is_integer(law: Any) -> bool:
    """Whether the values are integers of a finite support: not bits, not vectors."""
    if isinstance(law, LogitsDistribution | TorchBernoulli):
        return False
    if isinstance(law, FiniteIntegers):
        return True
    scalar = getattr(law, "event_shape", None) == ()
    return scalar and (getattr(law, "has_enumerate_support", False) or isinstance(law, COUNTS))


def is_count(law: Any) -> bool:
    """Whether it is a law of counts; in Pyro they are floats."""
    return isinstance(law, COUNTS) or (isinstance(law, FiniteIntegers) and law.floating)


def classes(site: str, law: Any) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """The support of an integer law, and the parameters of a Categorical over it."""
    exists = None
    if isinstance(law, TorchCategorical):
        given = parameters(law)
        return tuple(range(next(iter(given.values())).shape[-1])), given
    if isinstance(law, FiniteIntegers):
        return law.values, {"logits": law.logits}
    if isinstance(law, COUNTS):
        totals = torch.as_tensor(law.total_count, dtype=law.mean.dtype)
        support = torch.arange(1 + int(totals.max()), device=totals.device).to(totals)
        at = support.reshape(-1, *[1] * len(law.batch_shape))
        exists = at <= totals
        at = torch.where(exists, at, 0)  # the support of each row, if rows differ
    else:
        at = law.enumerate_support(expand=False)
        support = at.flatten().unique()
        at = support.reshape(-1, *[1] * len(law.batch_shape)).expand(-1, *law.batch_shape)
    if not (support == support.long()).all():
        refuse_support(site, type(law).__name__)
    if isinstance(law, COUNTS):
        logits = law.log_prob(at).expand(len(support), *law.batch_shape)
    else:  # value by value, since a law of the user may not broadcast
        logits = torch.stack([law.log_prob(value) for value in at])
    if exists is not None:
        logits = logits.masked_fill(~exists, -math.inf)
    return tuple(support.long().tolist()), {"logits": logits.movedim(0, -1)}


def truncated(site: str, law: Any, largest: int) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """The counts 0..largest, and their log-probabilities: the mass missing to 1 is the tail."""
    support: Any = getattr(law, "support", None)
    counts = getattr(law, "event_shape", None) == () and getattr(support, "is_discrete", False)
    check_truncation(site, largest, type(law).__name__, counts)
    at = torch.arange(largest + 1, device=law.mean.device).to(law.mean.dtype)
    at = at.reshape(-1, *[1] * len(law.batch_shape))
    exists = support.check(at)
    logits = law.log_prob(torch.where(exists, at, 0)).masked_fill(~exists, -math.inf)
    logits = logits.expand(largest + 1, *law.batch_shape).movedim(0, -1)
    return tuple(range(largest + 1)), {"logits": logits}


@torch.no_grad()
def tail(law: Any) -> float | None:
    """The largest mass that truncation leaves out of a row; None without truncation."""
    if getattr(law, "max_tail", None) is None:
        return None
    return max(0.0, float(-torch.expm1(law.a.logsumexp(-1).min())))


def support_of(site: str, law: Any) -> tuple[int, ...]:
    """The integers of a law, also those that a relaxed law represents."""
    values = getattr(law, "values", None)
    return classes(site, law)[0] if values is None else values


def index_in_support(site: str, law: Any, value: Tensor) -> Tensor:
    """The class index of an integer."""
    support = support_of(site, law)
    return (value[..., None] == torch.tensor(support, device=value.device)).long().argmax(-1)


def class_dims(law: Any) -> int | None:
    """1 for laws of classes, one-hot or integer, 0 for a bit, None for any other."""
    return 1 if is_integer(law) else event_dims(law)


class FiniteIntegers(TorchDistribution):
    """The discrete law over integers that are not 0..K-1, or that are floats in Pyro."""

    arg_constraints = {"logits": constraints.real_vector}
    has_enumerate_support = True

    def __init__(self, logits: Tensor, values: tuple[int, ...], floating: bool = False) -> None:
        self.logits, self.values, self.floating = logits, values, floating
        super().__init__(logits.shape[:-1], validate_args=False)

    @property
    def _table(self) -> Tensor:
        dtype = self.logits.dtype if self.floating else torch.long
        return torch.tensor(self.values, dtype=dtype, device=self.logits.device)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(min(self.values), max(self.values))

    def expand(self, batch_shape: Size, _instance: Any = None) -> "FiniteIntegers":
        logits = self.logits.expand(*batch_shape, len(self.values))
        return FiniteIntegers(logits, self.values, self.floating)

    def sample(self, sample_shape: Size = Size()) -> Tensor:
        return self._table[Categorical(logits=self.logits).sample(sample_shape)]

    def log_prob(self, value: Tensor) -> Tensor:
        hit = value[..., None] == self._table
        found = Categorical(logits=self.logits, validate_args=False).log_prob(hit.long().argmax(-1))
        return found.masked_fill(~hit.any(-1), -math.inf)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self._table.reshape(-1, *[1] * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values


def integer_law(logits: Tensor, values: tuple[int, ...], floating: bool) -> TorchDistribution:
    """The discrete law of a relaxed integer site."""
    if values == tuple(range(len(values))) and not floating:
        return Categorical(logits=logits, validate_args=False)
    return FiniteIntegers(logits, values, floating)
