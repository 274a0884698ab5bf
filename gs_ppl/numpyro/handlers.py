"""Handlers that relax and discretize the latents of a program; select, for tables of classes."""

from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import (
    Bernoulli,
    BernoulliLogits,
    BernoulliProbs,
    CategoricalLogits,
    CategoricalProbs,
    RelaxedBernoulliLogits,
)
from numpyro.primitives import Messenger

from gs_ppl._shared.annealing import refuse_without_temperature
from gs_ppl._shared.families import Family, Relaxation, check_sites, refuse_integer
from gs_ppl._shared.wrappers import innermost, refuse_composed, rewrap
from gs_ppl.numpyro import functional as F
from gs_ppl.numpyro._base import (
    BitWithoutTemperature,
    LogitsDistribution,
    OwnSample,
    WithoutTemperature,
    parse_logits,
    read,
)
from gs_ppl.numpyro.control_flow import reach_into_bodies
from gs_ppl.numpyro.distributions import (
    DensityScored,
    GumbelSoftmax,
    OneHotCategorical,
)
from gs_ppl.numpyro.functional import Temperature

__all__ = ["discretize", "relax", "select"]


def parameters(law: Any) -> dict[str, Array]:
    """Parameters of a discrete law as arrays, which NumPyro takes as numbers too.

    Probs where a native law was given them, so that a zero stays a zero.
    """
    what, given = (
        ("probs", law.probs) if isinstance(law, BernoulliProbs) else ("logits", law.logits)
    )
    given = jnp.asarray(given)
    return {what: given if jnp.issubdtype(given.dtype, jnp.floating) else given.astype(float)}


def event_dims(law: Any) -> int | None:
    """1 for a one-hot law, 0 for a bit, None for any other."""
    if isinstance(law, LogitsDistribution):
        return law.event_dims
    bits = BernoulliLogits | BernoulliProbs | RelaxedBernoulliLogits
    return 0 if isinstance(law, bits) else None


def is_relaxed(law: Any) -> bool:
    """Relaxed and straight-through laws, NumPyro's relaxed bit among them."""
    ours = isinstance(law, LogitsDistribution) and law.has_temperature
    return ours or isinstance(law, RelaxedBernoulliLogits)


def has_classes(law: Any) -> bool:
    """Whether its values stand for classes: one-hot vectors, bits, relaxed ones."""
    return event_dims(law) is not None


def _is_discrete(law: Any) -> bool:
    """One-hot and Bernoulli laws, the PPL's and ours; not those that are relaxed already."""
    return isinstance(law, OneHotCategorical | BernoulliLogits | BernoulliProbs)


def is_latent(msg: dict[str, Any]) -> bool:
    return msg["type"] == "sample" and not msg["is_observed"]


# --- relax ----------------------------------------------------------------------------------------

LOG_VALUE = "_gs_ppl_log_value"


class carry_log_values(Messenger):
    """Hands the log-value of a guide's relaxed sample to the model's site that replays it.

    Replay copies `infer` along with the value, and not the intermediates: without them the model
    would score the rounded value itself (KL 607 for 3.72 at tau = 0.01).
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        reach_into_bodies(self, msg)
        if is_latent(msg) and isinstance(innermost(msg["fn"]), DensityScored):
            # a copy of the user's dict, without what an earlier draw has left in it
            msg["infer"] = {k: v for k, v in msg["infer"].items() if k != LOG_VALUE}

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        # in place: an outer trace has recorded the same list and dict before
        if not is_latent(msg):
            return
        if not isinstance(innermost(msg["fn"]), DensityScored):
            return
        drawn, carried = msg["intermediates"], msg["infer"].get(LOG_VALUE)
        if drawn:
            msg["infer"][LOG_VALUE] = drawn[0].log_value
        elif carried is not None:
            drawn[:] = [OwnSample(carried)]


class RelaxMessenger(carry_log_values):
    """Replaces each discrete latent law by its relaxed counterpart with the same parameters."""

    def __init__(
        self, fn: Callable | None, relaxation: Relaxation, sites: Collection[str] | None
    ) -> None:
        super().__init__(fn)
        self.relaxation = relaxation
        self.sites = None if sites is None else frozenset(sites)

    def __enter__(self) -> None:
        self._discrete: set[str] = set()
        super().__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            check_sites({*(self.sites or ()), *self.relaxation.named}, self._discrete)

    def process_message(self, msg: dict[str, Any]) -> None:
        if is_latent(msg):
            self._relax(msg)
        super().process_message(msg)

    def _relax(self, msg: dict[str, Any]) -> None:
        name, law = msg["name"], innermost(msg["fn"])
        if _is_discrete(law):
            self._discrete.add(name)
        if self.sites is not None and name not in self.sites:
            return
        refuse_composed(name, law, has_classes)
        integer = isinstance(law, CategoricalLogits | CategoricalProbs)
        if integer and "enumerate" not in msg["infer"]:
            refuse_integer(name)
        dims = event_dims(law)
        if dims is not None and _is_discrete(law):
            make = self.relaxation.law(name, dims)
            msg["fn"] = rewrap(msg["fn"], lambda law: make(**parameters(law)))

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        # at a value that was given; a handler around would have put another law here
        if is_latent(msg) and isinstance(innermost(msg["fn"]), WithoutTemperature):
            refuse_without_temperature(msg["name"])
        super().postprocess_message(msg)


def relax(
    fn: Callable | None = None,
    temperature: Temperature | None = None,
    *,
    family: Family | Mapping[str, Family] = GumbelSoftmax,
    sites: Collection[str] | None = None,
    objective: str = "categorical",
) -> Any:
    """Relaxes the latent OneHotCategorical and Bernoulli sites of a program, for SVI.

    Model and guide are relaxed alike. Observed sites, continuous ones and those that are relaxed
    already stay as they are; a program without discrete latents stays as it is altogether.

    Args:
        fn: program; without one, the handler is a context manager.
        temperature: tau > 0; None takes that of AnnealedSVI.
        family: class for all sites, with options a partial, such as partial(GumbelRao,
            num_samples=100); or a dict by site name (GumbelSoftmax for the others): a soft
            one (GumbelSoftmax) or a straight-through one. A Bernoulli site takes its binary class.
        sites: names of the sites to relax; None: all.
        objective: how soft sites are scored. "categorical": by the categorical mass, linear in the
            value, with exact KL under TraceMeanField_ELBO (the paper's objective; it tends to the
            discrete ELBO as tau -> 0, and is no bound above). "relaxed": by densities, a bound on
            the evidence of the relaxed program, whose optimum is not the discrete posterior.
            Straight-through families are scored by the mass in either case.

    A bit of probability 0 or 1 is that value, without gradient, under each objective. So
    Bernoulli(phi * alive) learns nothing of phi in draws where a straight-through alive is 0.

    Raises:
        ValueError: naming the site: an integer Categorical latent, a family without a class for
            it, a name that no site has, no temperature.

    Example:
        >>> import jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import OneHotCategorical, relax
        >>> def model():
        ...     return numpyro.sample("z", OneHotCategorical(logits=jnp.zeros(3)))
        >>> with numpyro.handlers.seed(rng_seed=0):
        ...     bool((relax(model, temperature=0.5)() > 0).all())
        True
    """
    laws = BitWithoutTemperature, WithoutTemperature
    relaxation = Relaxation(temperature, family, objective, GumbelSoftmax, laws)
    return RelaxMessenger(fn, relaxation, sites)


# --- discretize -----------------------------------------------------------------------------------


class discretize(Messenger):
    """The reverse of relax: relaxed and straight-through latents become the discrete ones.

    What a trained guide is worth on the true discrete program is measured through it.

    Example:
        >>> import jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import GumbelSoftmax, discretize
        >>> def guide():
        ...     return numpyro.sample("z", GumbelSoftmax(0.5, logits=jnp.zeros(3)))
        >>> with numpyro.handlers.seed(rng_seed=0):
        ...     float(discretize(guide)().sum())
        1.0
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        reach_into_bodies(self, msg)
        if is_latent(msg):
            refuse_composed(msg["name"], innermost(msg["fn"]), has_classes)
            msg["fn"] = rewrap(msg["fn"], _discretized)


def _discretized(law: Any) -> Any:
    if not (isinstance(law, LogitsDistribution) or is_relaxed(law)):
        return law
    return OneHotCategorical(logits=law.a) if event_dims(law) else bit(law)


IMPOSSIBLE = -1e30  # an enumerated guide weighs it by 0, and 0 times -inf is NaN


class SureBernoulli(BernoulliLogits):
    """NumPyro's, which has no score where the logits are infinite, and refuses them."""

    def __init__(self, logits: Array) -> None:
        super().__init__(logits, validate_args=False)

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        log_prob = F.bernoulli_log_prob(self.logits, value, jnp.isfinite(self.logits))
        return jnp.maximum(log_prob, IMPOSSIBLE)

    def entropy(self) -> Array:
        return F.bernoulli_entropy(self.logits, jnp.isfinite(self.logits))


def bit(law: Any) -> BernoulliLogits:
    """NumPyro's law of a bit's class."""
    logits = logits_of(law)
    values = read(logits)
    known = values is not None and np.isfinite(values).all()
    return Bernoulli(logits=logits) if known else SureBernoulli(logits)


def logits_of(law: Any) -> Array:
    """As an array in at least float32; infinite for a bit of probability 0 or 1."""
    if isinstance(law, LogitsDistribution):
        return law.a
    given = parameters(law)
    logits = parse_logits(type(law).__name__, given.get("probs"), given.get("logits"), 0)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


# --- select ---------------------------------------------------------------------------------------


def select(table: Array, z: Array, binary: bool = False, *, axis: int = -1) -> Array:
    """Entry of a table that z stands for, whatever the mode: the mean of the entries under z.

    Along the last axis (-1) the other axes of the table go with the batch of z, row by row:
    sum_k table_k z_k for a one-hot or soft z, entry z of each row for an integer one, and for a bit
    (`binary`) table_0 (1 - z) + table_1 z. Along the first axis (0) it is table[z], the other axes
    after the batch of z. For a vector both are the same. One model source serves all modes.

    Args:
        table: shape (..., K), or (K, ...) along axis 0; K = 2 where binary.
        z: floating with last axis K; or integer, or a bit, of the batch shape.
        binary: whether a floating z is a bit.
        axis: -1 or 0, the axis of the classes.

    Shapes: along -1 the batch of z broadcast with (...); along 0 the batch of z + (...).

    Raises:
        ValueError: for another axis, and where table and z differ in K.

    Example:
        >>> import jax.numpy as jnp
        >>> table = jnp.array([1.0, 2.0, 4.0])
        >>> float(select(table, jnp.array([0.5, 0.5, 0.0]))), float(select(table, jnp.array(2)))
        (1.5, 4.0)
        >>> transition = jnp.array([[0.9, 0.1], [0.2, 0.8]])
        >>> select(transition, jnp.array([1, 1, 0]), axis=0).shape
        (3, 2)
    """
    table, z = jnp.asarray(table), jnp.asarray(z)
    if axis not in (-1, 0) or table.ndim == 0:
        raise ValueError(
            "select: axis must be -1 or 0, the last or the first of the table's, got axis"
            f" {axis!r} and a table of shape {table.shape}"
        )
    is_vector = jnp.issubdtype(z.dtype, jnp.floating) and not binary
    classes = z.shape[-1:] if is_vector else (2,) if binary else table.shape[axis:][:1]
    if (table.shape[axis],) != classes:
        raise ValueError(
            f"select: axis {axis} of the table and the classes of z must agree, got shapes"
            f" {table.shape} and {z.shape}; pass binary=True for a soft bit"
        )
    if axis == 0:
        batch = z.shape[:-1] if is_vector else z.shape
        table = jnp.moveaxis(table, 0, -1)  # the classes last, and z before the other axes
        z = z.reshape(batch + (1,) * (table.ndim - 1) + z.shape[len(batch) :])
    if not jnp.issubdtype(z.dtype, jnp.floating):
        shape = jnp.broadcast_shapes(table.shape[:-1], z.shape)
        table = jnp.broadcast_to(table, (*shape, table.shape[-1]))
        index = jnp.broadcast_to(z.astype(int), shape)[..., None]
        return jnp.take_along_axis(table, index, -1)[..., 0]
    if binary:
        return table[..., 0] * (1 - z) + table[..., 1] * z
    return (table * z).sum(-1)
