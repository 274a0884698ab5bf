"""The table of laws: one line adds a law to the common suite."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest


@dataclass(frozen=True)
class Law:
    name: str
    event_dims: int  # 1: a vector over the categories; 0: a bit
    scored_as: str  # density | mass
    hard: bool  # the sample is one-hot, or 0 or 1
    tempered: bool = True  # has a temperature
    options: tuple = ()  # keywords and their values

    def __call__(self, backend, temperature, logits=None, **kwargs):
        """The distribution; the temperature is dropped where the law has none."""
        if logits is not None:
            kwargs["logits"] = logits
        make = partial(getattr(backend.gs, self.name), **dict(self.options))
        return make(temperature, **kwargs) if self.tempered else make(**kwargs)

    def logits(self, rng: np.random.Generator, batch: tuple[int, ...] = (), K: int = 3):
        return rng.normal(size=batch + (K,) * self.event_dims)


LAWS = [
    Law("ExpGumbelSoftmax", 1, "density", hard=False),
    Law("GumbelSoftmax", 1, "density", hard=False),
    Law("SoftOneHotCategorical", 1, "mass", hard=False),
    Law("STGumbelSoftmax", 1, "mass", hard=True),
    Law("StraightThrough", 1, "mass", hard=True),
    Law("ReinMax", 1, "mass", hard=True),
    Law("GumbelRao", 1, "mass", hard=True, options=(("num_samples", 2),)),
    Law("GappedST", 1, "mass", hard=True),
    Law("OneHotCategorical", 1, "mass", hard=True, tempered=False),
    Law("GumbelSigmoid", 0, "density", hard=False),
    Law("SoftBernoulli", 0, "mass", hard=False),
    Law("STGumbelSigmoid", 0, "mass", hard=True),
    Law("STBernoulli", 0, "mass", hard=True),
    Law("ReinMaxBernoulli", 0, "mass", hard=True),
    Law("GumbelRaoBernoulli", 0, "mass", hard=True, options=(("num_samples", 2),)),
    Law("GappedSTBernoulli", 0, "mass", hard=True),
]


def select(**wanted) -> list[Law]:
    return [law for law in LAWS if all(getattr(law, k) == v for k, v in wanted.items())]


def name(law: Law) -> str:
    return law.name


# One of each kind. Code of a base class is tested on these, and in the long tests on all laws.
KINDS = ("GumbelSoftmax", "STGumbelSoftmax", "GumbelRao", "OneHotCategorical", "SoftBernoulli")


def of_kinds(argname: str, values: list, quick: tuple = (), laws: list[Law] | None = None):
    """All laws with all values; quick are the quick values for all laws, and all values for
    KINDS."""
    cases = [
        pytest.param(
            law,
            value,
            marks=() if value in quick or law.name in KINDS else pytest.mark.long,
            id=f"{law.name}-{value}",
        )
        for law in (LAWS if laws is None else laws)
        for value in values
    ]
    return pytest.mark.parametrize(("law", argname), cases)
