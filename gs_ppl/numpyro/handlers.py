"""Handlers that relax and discretize the latents of a program."""

from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import (
    Bernoulli,
    BernoulliLogits,
    BernoulliProbs,
    RelaxedBernoulliLogits,
)
from numpyro.primitives import Messenger

from gs_ppl._shared.annealing import refuse_without_temperature
from gs_ppl._shared.families import (
    TABLE_OF_SCORES,
    Family,
    Relaxation,
    check_sites,
    names_of,
    refuse_choice,
    refuse_class_indices,
    refuse_integer,
    refuse_soft_value,
    refuse_weights,
)
from gs_ppl._shared.reprs import handled
from gs_ppl._shared.wrappers import innermost, is_masked, masks, refuse_composed, rewrap
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
    ExpGumbelSoftmax,
    GumbelSoftmax,
    OneHotCategorical,
)
from gs_ppl.numpyro.functional import Temperature
from gs_ppl.numpyro.integers import (
    IMPOSSIBLE,
    classes,
    event_dims,
    integer_law,
    is_integer,
    of_values,
    truncated,
    values_of,
)
from gs_ppl.numpyro.soft_index import (
    as_float,
    hardened,
    interpret,
    soft_bit,
    soft_index,
    soft_one_hot,
)
from gs_ppl.numpyro.soft_value import Soft

__all__ = ["discretize", "relax"]


def parameters(law: Any) -> dict[str, Array]:
    """Parameters of a discrete law as arrays; NumPyro takes plain numbers too.

    If a native law was given probs, these are probs, so that a zero stays a zero.
    """
    what, given = (
        ("probs", law.probs) if isinstance(law, BernoulliProbs) else ("logits", law.logits)
    )
    given = jnp.asarray(given)
    return {what: given if jnp.issubdtype(given.dtype, jnp.floating) else given.astype(float)}


def is_relaxed(law: Any) -> bool:
    """Relaxed and straight-through laws, also NumPyro's relaxed bit."""
    ours = isinstance(law, LogitsDistribution) and law.has_temperature
    return ours or isinstance(law, RelaxedBernoulliLogits)


def has_classes(law: Any) -> bool:
    """Whether its values are classes: one-hot vectors, bits, or relaxed ones."""
    return event_dims(law) is not None


def _is_discrete(law: Any) -> bool:
    """One-hot and Bernoulli laws, of the PPL and of this library, that are not relaxed already."""
    return isinstance(law, OneHotCategorical | BernoulliLogits | BernoulliProbs)


def is_latent(msg: dict[str, Any]) -> bool:
    return msg["type"] == "sample" and not msg["is_observed"]


# --- relax ----------------------------------------------------------------------------------------

LOG_VALUE = "_gs_ppl_log_value"


class carry_log_values(Messenger):
    """Passes the log-value of a relaxed sample of the guide to the model's site that replays it.

    Replay copies `infer` with the value, but not the intermediates. Without them the model would
    score the rounded value itself (a KL of 607 instead of 3.72 at tau = 0.01).
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        reach_into_bodies(self, msg)
        if is_latent(msg) and isinstance(innermost(msg["fn"]), DensityScored):
            # a copy of the user's dict, without the entries of an earlier draw
            msg["infer"] = {k: v for k, v in msg["infer"].items() if k != LOG_VALUE}

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        # in place: an outer trace has recorded the same list and dict already
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
        self,
        fn: Callable | None,
        relaxation: Relaxation,
        sites: Collection[str] | None,
        truncate: Mapping[str, int],
        max_tail: float,
    ) -> None:
        super().__init__(None if fn is None else interpret(fn))
        self.reads = fn is not None  # whether the program may compute with soft indices
        self.relaxation = relaxation
        self.truncate, self.max_tail = truncate, max_tail
        self.sites = names_of(sites)

    def __repr__(self) -> str:
        options = {"sites": self.sites, "truncate": self.truncate or None}
        given = {name: value for name, value in options.items() if value is not None}
        return handled("relax", self.fn, **self.relaxation.shown, **given)

    def __enter__(self) -> None:
        self._discrete: set[str] = set()
        self._relaxed: set[str] = set()
        self._recorded: dict[str, Any] = {}
        super().__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            named = {*(self.sites or ()), *self.relaxation.named, *self.truncate}
            check_sites(named, self._discrete)

    def process_message(self, msg: dict[str, Any]) -> None:
        if self.reads:
            self._read(msg)
        if is_latent(msg):
            self._relax(msg)
        super().process_message(msg)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        # the value was given; an outer handler would have changed the law
        if is_latent(msg) and isinstance(innermost(msg["fn"]), WithoutTemperature):
            refuse_without_temperature(msg["name"])
        super().postprocess_message(msg)
        # here an outer trace has recorded the weights, or the hardened value, already
        if msg["type"] == "sample" and msg["name"] in self._relaxed and self.reads:
            msg["value"] = _handed(msg)
        elif is_latent(msg) and msg["name"] in self._discrete and self.reads:
            floating = jnp.issubdtype(jnp.result_type(msg["value"]), jnp.floating)
            if is_integer(innermost(msg["fn"])) and floating:
                refuse_weights(msg["name"])
        elif msg["type"] == "deterministic" and msg["name"] in self._recorded:
            msg["value"] = self._recorded.pop(msg["name"])

    def _read(self, msg: dict[str, Any]) -> None:
        """Replaces soft values in a message, since its readers are outside of the program."""
        if msg["type"] == "deterministic" and isinstance(msg["value"], Soft):
            value = self._recorded[msg["name"]] = msg["value"]
            msg["value"] = as_float(value) if value.is_float else hardened(value)
        if msg["type"] == "sample":
            if isinstance(msg["value"], Soft):
                if msg.get("_control_flow_done"):
                    refuse_choice(msg["name"])
                refuse_soft_value(msg["name"], "obs", "give a float, as in obs=locs[z]")
            msg["fn"] = _without_soft(msg["name"], msg["fn"])
            msg["scale"] = as_float(msg["scale"])

    def _relax(self, msg: dict[str, Any]) -> None:
        name, law = msg["name"], innermost(msg["fn"])
        largest = self.truncate.get(name)
        if _is_discrete(law) or is_integer(law) or largest is not None:
            self._discrete.add(name)
        if self.sites is not None and name not in self.sites:
            return
        refuse_composed(name, law, has_classes)
        if largest is not None or is_integer(law):
            if not self.reads:
                refuse_integer(name)
            limit = None if largest is None else self.max_tail
            values, given = classes(name, law) if largest is None else truncated(name, law, largest)
            make = self.relaxation.law(name, 1, of_values(values, limit))
        elif _is_discrete(law) and (dims := event_dims(law)) is not None:
            make, given = self.relaxation.law(name, dims), parameters(law)
        else:
            return
        self._relaxed.add(name)
        msg["fn"] = rewrap(msg["fn"], lambda law: make(**given))
        # without the PPL's mark for enumeration: a relaxed site is not summed out
        msg["infer"] = {k: v for k, v in msg["infer"].items() if k != "enumerate"}


def _handed(msg: dict[str, Any]) -> Any:
    """What the program gets for the weights of a site."""
    name, law, value = msg["name"], innermost(msg["fn"]), msg["value"]
    if not is_relaxed(law) or isinstance(value, Soft):
        return value  # an outer handler has undone the relaxation, or has done it already
    values = values_of(law)
    if values is not None:
        given = not jnp.issubdtype(jnp.result_type(value), jnp.floating)
        if given and (msg["fn"].batch_shape or is_masked(msg["fn"])):
            refuse_class_indices(name)
        weights = law.weights(value)
        return soft_index(name, jnp.exp(weights) if is_log(law) else weights, values)
    if event_dims(law) == 0:
        return soft_bit(name, value)
    return value if is_log(law) else soft_one_hot(name, value)


def is_log(law: Any) -> bool:
    """Whether the values of the law are logs of weights."""
    return isinstance(law, ExpGumbelSoftmax)


def _without_soft(site: str, fn: Any) -> Any:
    """A law with the means of its soft parameters."""
    law = innermost(fn)
    for name, constraint in getattr(law, "arg_constraints", {}).items():
        # a lazy property would compute other parameters; some integers are not leaves of the law
        if isinstance(vars(law).get(name), Soft) and _is_counted(constraint):
            refuse_soft_value(site, f"its integer parameter {name}", TABLE_OF_SCORES)
    if not any(isinstance(x, Soft) for x in jax.tree.leaves(fn)):
        return fn
    if any(isinstance(mask, Soft) for mask in masks(fn)):
        refuse_soft_value(site, "its mask", "weight the score by numpyro.factor, or by an index")
    return jax.tree.map(as_float, fn)


def _is_counted(constraint: Any) -> bool:
    """Whether a parameter is an integer; some constraints that depend on others do not say."""
    try:
        return constraint.is_discrete
    except NotImplementedError:
        return False


def relax(
    fn: Callable | None = None,
    temperature: Temperature | None = None,
    *,
    family: Family | Mapping[str, Family] = GumbelSoftmax,
    sites: Collection[str] | None = None,
    truncate: Mapping[str, int] | None = None,
    max_tail: float = 1e-3,
    objective: str = "categorical",
) -> Any:
    """Relaxes the discrete latents of a program, for SVI: integers, bits and one-hot vectors.

    The trace has the weights of the classes. A program that draws integers needs no change: it gets
    a soft index, and table[z] is the mean of the rows of the table under the weights.

    Relax model and guide in the same way. Observed sites, continuous sites and sites that are
    relaxed already do not change.

    Args:
        fn: program; without one, the handler is a context manager, for one-hot sites and bits.
        temperature: tau > 0; None uses that of AnnealedSVI.
        family: class for all sites, soft (GumbelSoftmax) or straight-through; or a partial with
            options, such as partial(GumbelRao, num_samples=100); or a dict by site name (the other
            sites use GumbelSoftmax). A Bernoulli site uses the binary class of the family.
        sites: names of the sites to relax; None: all. Marks for enumeration stay at the others.
        truncate: largest count by site name, for laws of counts without a largest value (Poisson).
            The law is then renormalised over 0..largest.
        max_tail: largest probability, in any row, of the counts that are cut off; check, and the
            end of AnnealedSVI.run, refuse more.
        objective: what log_prob of soft sites is. "categorical": the categorical mass, linear in
            the value, with exact KL under TraceMeanField_ELBO; this is the paper's objective. It
            converges to the discrete ELBO as tau -> 0, and is not a bound at tau > 0. "relaxed":
            the density; it gives a bound on the evidence of the relaxed program, whose optimum is
            not the discrete posterior. Straight-through families always use the mass.

    A bit with probability 0 or 1 always has that value, and no gradient. So Bernoulli(phi * alive)
    learns nothing about phi in draws in which a straight-through alive is 0.

    Raises:
        ValueError: naming the site, for an integer site inside of the context manager, a use of a
            soft index that has no meaning, a support that is not fixed and finite, a family
            without a class for the site, a name without a site, and a missing temperature.

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
    return RelaxMessenger(fn, relaxation, sites, truncate or {}, max_tail)


# --- discretize -----------------------------------------------------------------------------------


class discretize(Messenger):
    """The reverse of relax: relaxed and straight-through latents become discrete.

    Use it to evaluate a trained guide on the discrete program.

    Args:
        fn: program; without one, the handler is a context manager.

    Example:
        >>> import jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import GumbelSoftmax, discretize
        >>> def guide():
        ...     return numpyro.sample("z", GumbelSoftmax(0.5, logits=jnp.zeros(3)))
        >>> with numpyro.handlers.seed(rng_seed=0):
        ...     float(discretize(guide)().sum())
        1.0
    """

    def __repr__(self) -> str:
        return handled("discretize", self.fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        reach_into_bodies(self, msg)
        if is_latent(msg):
            refuse_composed(msg["name"], innermost(msg["fn"]), has_classes)
            msg["fn"] = rewrap(msg["fn"], _discretized)


def _discretized(law: Any) -> Any:
    if not (isinstance(law, LogitsDistribution) or is_relaxed(law)):
        return law
    if (values := values_of(law)) is not None:
        return integer_law(law.a, values)
    return OneHotCategorical(logits=law.a) if event_dims(law) else bit(law)


class SureBernoulli(BernoulliLogits):
    """NumPyro's Bernoulli, which accepts infinite logits and has a score for them."""

    def __init__(self, logits: Array) -> None:
        super().__init__(logits, validate_args=False)

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        log_prob = F.bernoulli_log_prob(self.logits, value, jnp.isfinite(self.logits))
        return jnp.maximum(log_prob, IMPOSSIBLE)

    def entropy(self) -> Array:
        return F.bernoulli_entropy(self.logits, jnp.isfinite(self.logits))


def bit(law: Any) -> BernoulliLogits:
    """NumPyro's law for the class of a bit."""
    logits = logits_of(law)
    values = read(logits)
    known = values is not None and np.isfinite(values).all()
    return Bernoulli(logits=logits) if known else SureBernoulli(logits)


def logits_of(law: Any) -> Array:
    """Logits as an array in at least float32; infinite for a bit of probability 0 or 1."""
    if isinstance(law, LogitsDistribution):
        return law.a
    given = parameters(law)
    logits = parse_logits(type(law).__name__, given.get("probs"), given.get("logits"), 0)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
