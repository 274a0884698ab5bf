"""Laws of relaxed integer sites: vectors of weights that stand for the integers of a support."""

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

from gs_ppl._shared.families import refuse_support
from gs_ppl.pyro._base import LogitsDistribution

__all__: list[str] = []


def parameters(law: Any) -> dict[str, Tensor]:
    """Probs where a native law was given them, so that a zero stays a masked category."""
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
    """What a family is at an integer site: it scores vectors of weights, and integers besides."""

    values: ClassVar[tuple[int, ...]]
    floating: ClassVar[bool]  # whether the PPL's law has floats, as its counts do
    has_enumerate_support = False  # marks of the PPL's own enumeration do not reach it

    def weights(self, value: Tensor) -> Tensor:
        """The vertex of an integer; weights as they are."""
        if value.is_floating_point():
            return value
        values = torch.tensor(self.values, device=value.device)
        return (value[..., None] == values).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(self.weights(value))


@cache
def _of_values(family: type, values: tuple[int, ...], floating: bool) -> type:
    body = {"values": values, "floating": floating, "__doc__": None}
    return type(family.__name__, (IndexScored, family), body)


def of_values(values: tuple[int, ...], floating: bool) -> Callable[[Any], Any]:
    """Makes a family, with its options, one for a site of these integers."""

    def make(family: Any) -> Any:
        if isinstance(family, partial):
            return partial(make(family.func), **family.keywords)
        return _of_values(family, values, floating)

    return make


def values_of(law: Any) -> tuple[int, ...] | None:
    """The integers that a relaxed law stands for; None for any other law."""
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
    """Whether it counts, for which Pyro has floats."""
    return isinstance(law, COUNTS)


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
        at = torch.where(exists, at, 0)  # a row's own support, where rows differ
    else:
        at = law.enumerate_support(expand=False)
        support = at.flatten()
    if not (support == support.long()).all():
        refuse_support(site, type(law).__name__)
    logits = law.log_prob(at).expand(len(support), *law.batch_shape)
    if exists is not None:
        logits = logits.masked_fill(~exists, -math.inf)
    return tuple(support.long().tolist()), {"logits": logits.movedim(0, -1)}


def support_of(site: str, law: Any) -> tuple[int, ...]:
    """The integers of a law, also of one that stands for others."""
    values = getattr(law, "values", None)
    return classes(site, law)[0] if values is None else values


def index_in_support(site: str, law: Any, value: Tensor) -> Tensor:
    """The class of an integer."""
    support = support_of(site, law)
    return (value[..., None] == torch.tensor(support, device=value.device)).long().argmax(-1)


def class_dims(law: Any) -> int | None:
    """1 for laws of classes, one-hot or integer, 0 for a bit, None for any other."""
    return 1 if is_integer(law) else event_dims(law)


class FiniteIntegers(TorchDistribution):
    """The discrete law over integers that are not 0..K-1."""

    arg_constraints = {"logits": constraints.real_vector}

    def __init__(self, logits: Tensor, values: tuple[int, ...]) -> None:
        self.logits, self.values = logits, values
        super().__init__(logits.shape[:-1], validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(min(self.values), max(self.values))

    def expand(self, batch_shape: Size, _instance: Any = None) -> "FiniteIntegers":
        return FiniteIntegers(self.logits.expand(*batch_shape, len(self.values)), self.values)

    def sample(self, sample_shape: Size = Size()) -> Tensor:
        index = Categorical(logits=self.logits).sample(sample_shape)
        return torch.tensor(self.values, device=index.device)[index]

    def log_prob(self, value: Tensor) -> Tensor:
        hit = value[..., None] == torch.tensor(self.values, device=value.device)
        found = Categorical(logits=self.logits, validate_args=False).log_prob(hit.long().argmax(-1))
        return found.masked_fill(~hit.any(-1), -math.inf)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = torch.tensor(self.values, device=self.logits.device)
        values = values.reshape(-1, *[1] * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values


def integer_law(logits: Tensor, values: tuple[int, ...]) -> TorchDistribution:
    """The discrete law of a relaxed integer site."""
    if values == tuple(range(len(values))):
        return Categorical(logits=logits, validate_args=False)
    return FiniteIntegers(logits, values)
