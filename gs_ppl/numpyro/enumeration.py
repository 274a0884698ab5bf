"""Exact enumeration: discrete sites are lowered to integers."""

from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import (
    CategoricalLogits,
    CategoricalProbs,
    DiscreteUniform,
)
from numpyro.primitives import Messenger

from gs_ppl._shared.reprs import handled
from gs_ppl._shared.wrappers import innermost, refuse_composed, rewrap
from gs_ppl.numpyro._base import LogitsDistribution, read
from gs_ppl.numpyro.control_flow import is_scan, reach_into_bodies
from gs_ppl.numpyro.handlers import bit, has_classes, is_latent, is_relaxed, logits_of
from gs_ppl.numpyro.integers import (
    COUNTS,
    IMPOSSIBLE,
    FiniteIntegers,
    IntegerIndex,
    classes,
    event_dims,
    values_of,
)
from gs_ppl.numpyro.scan_enumeration import enumerate_cond, enumerate_scan
from gs_ppl.numpyro.soft_index import constant

__all__ = ["config_enumerate"]


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
        return jnp.maximum(super().log_prob(value), IMPOSSIBLE)


class ValueIndex(IntegerIndex):
    """The class index of values that are not 0..K-1; NumPyro enumerates the index."""

    pytree_aux_fields = ("values",)
    values: tuple[int, ...]


def _integers(logits: Array, values: tuple[int, ...]) -> CategoricalLogits:
    if values == tuple(range(len(values))):
        return IntegerIndex(logits, validate_args=False)
    law = ValueIndex(logits, validate_args=False)
    law.values = values
    return law


def _lowered(site: str, law: Any) -> Any:
    counted = isinstance(law, COUNTS) and constant(law.total_count) is not None
    if counted or isinstance(law, DiscreteUniform | FiniteIntegers):
        values, given = classes(site, law)
        return _integers(given["logits"], values)
    if not (isinstance(law, LogitsDistribution) or is_relaxed(law)):
        return law
    if (integers := values_of(law)) is not None:
        return _integers(law.a, integers)
    return OneHotIndex(logits_of(law), validate_args=False) if event_dims(law) else bit(law)


def has_one_class(fn: Any) -> bool:
    """Whether there is nothing to sum: funsor makes no table of one class."""
    law = innermost(fn)
    return isinstance(law, CategoricalLogits | CategoricalProbs) and law.probs.shape[-1] == 1


class config_enumerate(Messenger):
    """Marks every discrete latent site for exact enumeration under TraceEnum_ELBO.

    One-hot, relaxed and straight-through sites are lowered: for inference they are an integer
    Categorical with the same parameters, so that traces and samples have class indices. The program
    still gets its one-hot vector.
    Condition and substitute accept indices and one-hot vectors. In plates, vectors need the handler
    inside: config_enumerate(condition(model, ...)).

    Inside of scan NumPyro's TraceEnum_ELBO alone would be wrong. So latents that are not in the
    guide are summed out step by step, and inference sees the factor `{site}_summed` instead. A mask
    on them counts as in a loop: a masked step has the factor 1. For infer_discrete the scan runs as
    a loop, and its steps are drawn one by one.

    Raises:
        ValueError: naming the site: if to_event or sample_shape joins several discrete variables;
            for vectors that are given from outside in a plate; for sites inside of cond; and inside
            of scan for sites that the guide enumerates, for reverse=True, and for a result that is
            computed from sites that are summed out.

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

    def __repr__(self) -> str:
        return handled("config_enumerate", self.fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "control_flow":
            reach_into_bodies(self, msg)
            run = enumerate_scan if is_scan(msg) else enumerate_cond
            msg["fn"] = partial(run, msg, msg["fn"])
        if not is_latent(msg):
            return
        refuse_composed(msg["name"], innermost(msg["fn"]), has_classes)
        dims = event_dims(innermost(msg["fn"]))
        if dims is not None and msg["fn"].event_dim > dims:
            _refuse_joined(msg["name"], f"to_event joins {msg['fn'].event_shape}")
        msg["fn"] = rewrap(msg["fn"], partial(_lowered, msg["name"]))
        if msg["fn"].has_enumerate_support and not has_one_class(msg["fn"]):
            if sample_shape := msg["kwargs"].get("sample_shape"):
                _refuse_joined(msg["name"], f"sample_shape joins {sample_shape}")
            msg["infer"] = {"enumerate": "parallel", **msg["infer"]}

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        # here an outer trace has recorded the integer already, and the same infer dict
        if msg["type"] != "sample":
            return
        law, value = innermost(msg["fn"]), msg["value"]
        if isinstance(law, ValueIndex):
            if msg["is_observed"]:
                raise ValueError(
                    f"site {msg['name']!r} is enumerated by the index of its value: condition"
                    " inside, as in config_enumerate(condition(model, ...))"
                )
            msg["value"] = jnp.asarray(law.values)[value]
            return
        if not isinstance(law, OneHotIndex):
            return
        is_vector = jnp.issubdtype(value.dtype, jnp.floating)
        if msg["is_observed"]:
            msg["infer"].pop("enumerate", None)  # an outer condition has fixed it in the meantime
            if is_vector and msg["cond_indep_stack"]:
                raise ValueError(
                    f"site {msg['name']!r}: inside of a plate, a handler around config_enumerate"
                    " must give class indices, since NumPyro takes the last axis for a plate; give"
                    " one-hot vectors inside, as in config_enumerate(condition(model, ...))"
                )
        if not is_vector:
            msg["value"] = jax.nn.one_hot(value, law.logits.shape[-1], dtype=law.logits.dtype)


def _refuse_joined(site: str, what: str) -> NoReturn:
    raise ValueError(
        f"site {site!r}: {what} discrete variables into one, whose joint support is not enumerated:"
        " use a plate instead, with everything that depends on the site inside of it"
    )
