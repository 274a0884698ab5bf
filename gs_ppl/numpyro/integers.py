"""Laws of relaxed integer sites: vectors of weights that represent the integers of a support."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import (
    BernoulliLogits,
    BernoulliProbs,
    BetaBinomial,
    BinomialLogits,
    BinomialProbs,
    CategoricalLogits,
    CategoricalProbs,
    DiscreteUniform,
    Distribution,
    RelaxedBernoulliLogits,
    constraints,
)

from gs_ppl._shared.families import check_truncation, refuse_support
from gs_ppl.numpyro._base import LogitsDistribution, read
from gs_ppl.numpyro.soft_index import constant

__all__: list[str] = []


def event_dims(law: Any) -> int | None:
    """1 for a one-hot law, 0 for a bit, None for any other."""
    if isinstance(law, LogitsDistribution):
        return law.event_dims
    bits = BernoulliLogits | BernoulliProbs | RelaxedBernoulliLogits
    return 0 if isinstance(law, bits) else None


class IndexScored:
    """Turns a family into the law of an integer site: it scores weights, and also integers."""

    logits: Array
    values: ClassVar[tuple[int, ...]]
    max_tail: ClassVar[float | None]  # the largest mass that truncation may leave out
    has_enumerate_support = False  # so that the PPL's own enumeration does not mark it

    def weights(self, value: Array) -> Array:
        """The vertex of an integer; weights do not change."""
        if jnp.issubdtype(jnp.result_type(value), jnp.floating):
            return value
        return (jnp.asarray(value)[..., None] == np.array(self.values)).astype(self.logits.dtype)

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        # the family is the next base class after this mixin; mypy does not see that
        return super().log_prob(self.weights(value), intermediates)  # type: ignore[misc]


@cache
def _of_values(family: type, values: tuple[int, ...], max_tail: float | None) -> type:
    body = {"values": values, "max_tail": max_tail, "__doc__": None}
    return type(family.__name__, (IndexScored, family), body)


def of_values(values: tuple[int, ...], max_tail: float | None = None) -> Callable[[Any], Any]:
    """A function that turns a family, with its options, into one for a site of these integers."""

    def make(family: Any) -> Any:
        if isinstance(family, partial):
            return partial(make(family.func), **family.keywords)
        return _of_values(family, values, max_tail)

    return make


def values_of(law: Any) -> tuple[int, ...] | None:
    """The integers that a relaxed law represents; None for any other law."""
    return getattr(law, "values", None) if isinstance(law, LogitsDistribution) else None


def is_integer(law: Any) -> bool:
    """Whether the values are integers of a finite support: not bits, not vectors."""
    if isinstance(law, LogitsDistribution | BernoulliLogits | BernoulliProbs):
        return False
    if isinstance(law, FiniteIntegers):
        return True
    scalar = isinstance(law, Distribution) and law.event_shape == ()
    return scalar and (law.has_enumerate_support or isinstance(law, COUNTS))


COUNTS = (BinomialLogits, BinomialProbs, BetaBinomial)


def classes(site: str, law: Any) -> tuple[tuple[int, ...], dict[str, Array]]:
    """The support of an integer law, and the parameters of a Categorical over it."""
    if isinstance(law, CategoricalProbs):
        return tuple(range(law.probs.shape[-1])), {"probs": law.probs}
    if isinstance(law, CategoricalLogits):
        return tuple(range(law.logits.shape[-1])), {"logits": law.logits}
    if isinstance(law, FiniteIntegers):
        return law.values, {"logits": law.logits}
    exists: Any = None
    at: Any
    if isinstance(law, COUNTS):
        support = np.arange(1 + int(_known(site, law, law.total_count).max()))
        exists = support.reshape(-1, *(1,) * len(law.batch_shape)) <= law.total_count
    elif isinstance(law, DiscreteUniform):
        low, high = (_known(site, law, x) for x in (law.low, law.high))
        support = np.arange(int(low.min()), int(high.max()) + 1)
        at = support.reshape(-1, *(1,) * len(law.batch_shape))
        exists = (at >= low) & (at <= high)
    else:
        with jax.ensure_compile_time_eval():
            support = _known(site, law, law.enumerate_support(expand=False)).ravel()
    if not np.issubdtype(support.dtype, np.integer):
        refuse_support(site, type(law).__name__)
    at = jnp.asarray(support).reshape(-1, *(1,) * len(law.batch_shape))
    if exists is not None:  # the support of each row, if rows differ
        at = jnp.where(exists, at, law.low if isinstance(law, DiscreteUniform) else 0)
    logits = jnp.broadcast_to(law.log_prob(at), (len(support), *law.batch_shape))
    if exists is not None:
        logits = jnp.where(exists, logits, -jnp.inf)
    return tuple(support.tolist()), {"logits": jnp.moveaxis(logits, 0, -1)}


def _known(site: str, law: Any, x: Any) -> np.ndarray:
    """The value of a parameter that the support depends on; under jit it must be a constant."""
    value: Any = constant(x)
    if value is None:
        refuse_support(site, type(law).__name__)
    return value


def truncated(site: str, law: Any, largest: int) -> tuple[tuple[int, ...], dict[str, Array]]:
    """The counts 0..largest, and their log-probabilities: the mass missing to 1 is the tail."""
    scalar = isinstance(law, Distribution) and law.event_shape == ()
    counts = scalar and getattr(law.support, "is_discrete", False)
    check_truncation(site, largest, type(law).__name__, counts)
    at = jnp.arange(largest + 1).reshape(-1, *(1,) * len(law.batch_shape))
    exists = law.support(at)
    logits = jnp.where(exists, law.log_prob(jnp.where(exists, at, 0)), -jnp.inf)
    logits = jnp.broadcast_to(logits, (largest + 1, *law.batch_shape))
    return tuple(range(largest + 1)), {"logits": jnp.moveaxis(logits, 0, -1)}


def tail(law: Any) -> float | None:
    """The largest mass that truncation leaves out of a row; None without truncation, or in jit."""
    if getattr(law, "max_tail", None) is None or (a := read(law.a)) is None:
        return None
    return max(0.0, float(1 - np.exp(a.astype(np.float64)).sum(-1).min()))


def support_of(site: str, law: Any) -> tuple[int, ...]:
    """The integers of a law, also those that a relaxed law represents."""
    values = getattr(law, "values", None)
    return classes(site, law)[0] if values is None else values


def index_in_support(site: str, law: Any, value: Array) -> Array:
    """The class index of an integer."""
    support = support_of(site, law)
    return (jnp.asarray(value)[..., None] == np.array(support)).argmax(-1)


def class_dims(law: Any) -> int | None:
    """1 for laws of classes, one-hot or integer, 0 for a bit, None for any other."""
    return 1 if is_integer(law) else event_dims(law)


class FiniteIntegers(Distribution):
    """The discrete law over integers that are not 0..K-1."""

    arg_constraints = {"logits": constraints.real_vector}
    has_enumerate_support = True
    pytree_data_fields = ("logits",)
    pytree_aux_fields = ("values",)

    def __init__(self, logits: Array, values: tuple[int, ...]) -> None:
        self.logits, self.values = logits, values
        super().__init__(logits.shape[:-1], (), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(min(self.values), max(self.values))

    def expand(self, batch_shape: tuple[int, ...]) -> "FiniteIntegers":
        logits = jnp.broadcast_to(self.logits, (*batch_shape, len(self.values)))
        return FiniteIntegers(logits, self.values)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        index = CategoricalLogits(self.logits).sample(key, sample_shape)
        return jnp.asarray(self.values)[index]

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        hit = jnp.asarray(value)[..., None] == np.array(self.values)
        logits = jax.nn.log_softmax(self.logits)
        found = CategoricalLogits(logits).log_prob(hit.argmax(-1))
        return jnp.where(hit.any(-1), found, -jnp.inf)

    def enumerate_support(self, expand: bool = True) -> Array:
        values = jnp.asarray(self.values).reshape(-1, *(1,) * len(self.batch_shape))
        return jnp.broadcast_to(values, (len(values), *self.batch_shape)) if expand else values


IMPOSSIBLE = -1e30  # an enumerated guide multiplies it by 0, and 0 times -inf is NaN


class IntegerIndex(CategoricalLogits):
    """NumPyro's CategoricalLogits, if some rows lack classes that other rows have."""

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        return jnp.maximum(super().log_prob(value), IMPOSSIBLE)


def integer_law(logits: Array, values: tuple[int, ...]) -> Distribution:
    """The discrete law of a relaxed integer site."""
    if values == tuple(range(len(values))):
        return IntegerIndex(logits, validate_args=False)
    return FiniteIntegers(logits, values)
