"""Handlers that relax, discretize and exactly enumerate the discrete latents of a program."""

from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import (
    Bernoulli,
    BernoulliLogits,
    BernoulliProbs,
    CategoricalLogits,
    CategoricalProbs,
)
from numpyro.primitives import Messenger

from gs_ppl._shared.families import Family, Relaxation, check_sites, refuse_integer
from gs_ppl._shared.wrappers import innermost, rewrap
from gs_ppl.numpyro._base import LogitsDistribution, OwnSample, read
from gs_ppl.numpyro.distributions import (
    DensityScored,
    GumbelSoftmax,
    OneHotCategorical,
)
from gs_ppl.numpyro.functional import Temperature

__all__ = ["config_enumerate", "discretize", "relax", "select"]


def _parameters(law: Any) -> dict[str, Array]:
    """Probs where a native law was given them, so that a zero stays a masked category."""
    return {"probs": law.probs} if isinstance(law, BernoulliProbs) else {"logits": law.logits}


def event_dims(law: Any) -> int | None:
    """1 for a one-hot law, 0 for a bit, None for any other."""
    if isinstance(law, LogitsDistribution):
        return law.event_dims
    return 0 if isinstance(law, BernoulliLogits | BernoulliProbs) else None


def _is_discrete(law: Any) -> bool:
    """One-hot and Bernoulli laws, the PPL's and ours; not those that are relaxed already."""
    return isinstance(law, OneHotCategorical | BernoulliLogits | BernoulliProbs)


def is_latent(msg: dict[str, Any]) -> bool:
    return msg["type"] == "sample" and not msg["is_observed"]


class Within(Messenger):
    """Applies another handler to the body of a scan, whose sites it would see too late."""

    def __init__(self, outer: Messenger, body: Callable) -> None:
        super().__init__(body)
        self.outer = outer

    def process_message(self, msg: dict[str, Any]) -> None:
        self.outer.process_message(msg)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        self.outer.postprocess_message(msg)


def reach_into_scan(outer: Messenger, msg: dict[str, Any]) -> None:
    """Wraps the body that a control_flow message carries."""
    if msg["type"] == "control_flow":
        body, *rest = msg["args"]
        msg["args"] = (Within(outer, body), *rest)


# --- relax ----------------------------------------------------------------------------------------

LOG_VALUE = "_gs_ppl_log_value"


class carry_log_values(Messenger):
    """Hands the log-value of a guide's relaxed sample to the model's site that replays it.

    Replay copies `infer` along with the value, and not the intermediates: without them the model
    would score the rounded value itself (KL 607 for 3.72 at tau = 0.01).
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        reach_into_scan(self, msg)
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
        integer = isinstance(law, CategoricalLogits | CategoricalProbs)
        if integer and "enumerate" not in msg["infer"]:
            refuse_integer(name)
        if _is_discrete(law):
            make = self.relaxation.law(name, event_dims(law))
            msg["fn"] = rewrap(msg["fn"], lambda law: make(**_parameters(law)))


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
    relaxation = Relaxation(temperature, family, objective, GumbelSoftmax)
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
        reach_into_scan(self, msg)
        if is_latent(msg):
            msg["fn"] = rewrap(msg["fn"], _discretized)


def _discretized(law: Any) -> Any:
    if not isinstance(law, LogitsDistribution):
        return law
    return OneHotCategorical(logits=law.a) if law.event_dims else Bernoulli(logits=law.a)


# --- enumerate ------------------------------------------------------------------------------------


class OneHotIndex(CategoricalLogits):
    """The integer law that a one-hot site is lowered to; scores one-hot vectors as well."""

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        if jnp.issubdtype(jnp.result_type(value), jnp.floating):
            values = read(value)
            if values is not None and not (
                ((values == 0) | (values == 1)).all() and (values.sum(-1) == 1).all()
            ):
                raise ValueError(f"a class index or a one-hot vector is wanted, got {value}")
            value = jnp.asarray(value).argmax(-1)
        return super().log_prob(value)


class _Refuse(Messenger):
    """Stands around the body of a scan under enumeration."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if is_latent(msg) and isinstance(innermost(msg["fn"]), LogitsDistribution):
            raise ValueError(
                f"site {msg['name']!r}: one-hot and relaxed sites inside of scan are not"
                " enumerated: write a Python loop over numpyro.contrib.funsor.markov(range(n))"
            )


class config_enumerate(Messenger):
    """Marks every discrete latent site for exact enumeration under TraceEnum_ELBO.

    One-hot, relaxed and straight-through sites are lowered: inference sees an integer Categorical
    with the same parameters (class indices in traces and samples), the program its one-hot vector.
    Condition and substitute accept indices and one-hot vectors alike; inside of plates vectors
    are for handlers within: config_enumerate(condition(model, ...)).

    Raises:
        ValueError: naming the site, where to_event has joined several discrete variables, for
            one-hot sites inside of scan, and for vectors from without inside of a plate.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import OneHotCategorical, config_enumerate
        >>> def model():
        ...     z = numpyro.sample("z", OneHotCategorical(logits=jnp.zeros(2)))
        ...     loc = (z * jnp.array([-1.0, 1.0])).sum(-1)
        ...     numpyro.sample("x", numpyro.distributions.Normal(loc, 1.0), obs=jnp.array(0.0))
        >>> elbo = numpyro.infer.TraceEnum_ELBO(max_plate_nesting=0)
        >>> loss = elbo.loss(jax.random.key(0), {}, config_enumerate(model), lambda: None)
        >>> round(float(loss), 4)
        1.4189
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        reach_into_scan(_Refuse(), msg)
        if not is_latent(msg):
            return
        dims = event_dims(innermost(msg["fn"]))
        if dims is not None and msg["fn"].event_dim > dims:
            raise ValueError(
                f"site {msg['name']!r}: to_event joins {msg['fn'].event_shape} discrete variables"
                " into one, whose joint support is not enumerated: use a plate instead, and stay"
                " inside of it with all that depends on the site"
            )
        msg["fn"] = rewrap(msg["fn"], _lowered)
        if msg["fn"].has_enumerate_support:
            msg["infer"] = {"enumerate": "parallel", **msg["infer"]}

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        # after an outer trace has recorded the integer, and the same infer dict
        if msg["type"] != "sample":
            return
        law, value = innermost(msg["fn"]), msg["value"]
        if not isinstance(law, OneHotIndex):
            return
        is_vector = jnp.issubdtype(value.dtype, jnp.floating)
        if msg["is_observed"]:
            msg["infer"].pop("enumerate", None)  # an outer condition has fixed it since
            if is_vector and msg["cond_indep_stack"]:
                raise ValueError(
                    f"site {msg['name']!r}: inside of a plate, a handler around config_enumerate"
                    " must give class indices, since NumPyro reads the last axis as a plate's;"
                    " one-hot vectors go inside, as in config_enumerate(condition(model, ...))"
                )
        if not is_vector:
            msg["value"] = jax.nn.one_hot(value, law.logits.shape[-1], dtype=law.logits.dtype)


def _lowered(law: Any) -> Any:
    if not isinstance(law, LogitsDistribution):
        return law
    return OneHotIndex(law.a) if law.event_dims else Bernoulli(logits=law.a)


# --- select ---------------------------------------------------------------------------------------


def select(table: Array, z: Array, binary: bool = False) -> Array:
    """Entry of the last axis of a table that z stands for, whatever the mode.

    sum_k table_k z_k for a one-hot or soft z, table[..., z] for an integer one, and for a bit
    (`binary`) table_0 (1 - z) + table_1 z. One model source serves all modes.

    Args:
        table: shape (..., K); K = 2 where binary.
        z: floating with last axis K; or integer, or a bit, of the batch shape.
        binary: whether a floating z is a bit.

    Example:
        >>> import jax.numpy as jnp
        >>> table = jnp.array([1.0, 2.0, 4.0])
        >>> float(select(table, jnp.array([0.5, 0.5, 0.0]))), float(select(table, jnp.array(2)))
        (1.5, 4.0)
    """
    table, z = jnp.asarray(table), jnp.asarray(z)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        shape = jnp.broadcast_shapes(table.shape[:-1], z.shape)
        table = jnp.broadcast_to(table, (*shape, table.shape[-1]))
        index = jnp.broadcast_to(z.astype(int), shape)[..., None]
        return jnp.take_along_axis(table, index, -1)[..., 0]
    if binary:
        return table[..., 0] * (1 - z) + table[..., 1] * z
    if z.shape[-1:] != table.shape[-1:]:
        raise ValueError(
            f"select: the last axes of table and z must agree, got shapes {table.shape} and"
            f" {z.shape}; pass binary=True for a soft bit"
        )
    return (table * z).sum(-1)
