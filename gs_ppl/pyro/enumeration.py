"""Exact enumeration: discrete sites are lowered to integers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro.distributions import Categorical
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import constraints

from gs_ppl._shared.reprs import handled
from gs_ppl._shared.wrappers import innermost, masks, refuse_composed, rewrap, unmasked
from gs_ppl.pyro.handlers import _wrap, bit, has_classes, is_latent
from gs_ppl.pyro.integers import classes, event_dims, integer_law, is_count, parameters, values_of

__all__ = ["config_enumerate"]


class OneHotIndex(Categorical):
    """The integer law that a one-hot site is lowered to; scores one-hot vectors as well."""

    def log_prob(self, value: Tensor) -> Tensor:
        if value.is_floating_point():
            if self._validate_args and not constraints.one_hot.check(value).all():
                raise ValueError(f"a class index or a one-hot vector is wanted, got {value}")
            value = value.argmax(-1)
        return super().log_prob(value)


class EnumerateMessenger(Messenger):
    """Lowers one-hot sites to integers, and gives the program the one-hot vector."""

    def shown(self, fn: Callable | None) -> str:
        return handled("config_enumerate", fn)

    def __repr__(self) -> str:
        return self.shown(None)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not is_latent(msg):
            return
        refuse_composed(msg["name"], innermost(msg["fn"]), has_classes)
        dims = event_dims(innermost(msg["fn"]))
        if dims is not None and msg["fn"].event_dim > dims:
            raise ValueError(
                f"site {msg['name']!r}: to_event joins {msg['fn'].event_shape} discrete variables"
                " into one, whose joint support is not enumerated: use a plate instead, with"
                " everything that depends on the site inside of it"
            )
        msg["fn"] = rewrap(msg["fn"], partial(_lowered, msg["name"]))
        if isinstance(msg["fn"], OneHotIndex) and _in_prototype():
            msg["fn"], msg["one_hot"] = Categorical(logits=msg["fn"].logits), True
        if getattr(msg["fn"], "has_enumerate_support", False):
            msg["infer"] = {"enumerate": "parallel", "expand": False, **msg["infer"]}
            for mask in masks(msg["fn"]):  # Pyro would sum a masked law to K, where it must be 1
                msg["mask"] = mask if msg["mask"] is None else msg["mask"] & mask
            msg["fn"] = unmasked(msg["fn"])

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        # here an outer trace has recorded the integer already
        law, value = innermost(msg["fn"]), msg["value"]
        if value is None:  # sequential enumeration leaves the program here, and runs it again
            return
        is_one_hot = isinstance(law, OneHotIndex) or msg.get("one_hot")
        if is_one_hot and not value.is_floating_point():
            K = law.logits.shape[-1]
            msg["value"] = torch.nn.functional.one_hot(value, K).to(law.logits.dtype)


def _in_prototype() -> bool:
    """Whether an automatic guide inspects the model: Pyro's knows only Categorical itself."""
    looks = AutoGuide._prototype_hide_fn
    return any(getattr(handler, "hide_fn", None) is looks for handler in _PYRO_STACK)


def _lowered(site: str, law: Any) -> Any:
    if is_count(law):  # also if the rows have different totals
        values, given = classes(site, law)
        return integer_law(given["logits"], values, floating=True)
    dims = event_dims(law)
    if dims is None or isinstance(law, TorchBernoulli):
        return law
    if (integers := values_of(law)) is not None:
        return integer_law(law.a, integers, law.floating)
    return OneHotIndex(**parameters(law)) if dims else bit(law)


def config_enumerate(fn: Callable | None = None) -> Any:
    """Marks every discrete latent site for exact enumeration under TraceEnum_ELBO.

    One-hot, relaxed and straight-through sites are lowered: for inference they are an integer
    Categorical with the same parameters, so that traces and samples have class indices. The program
    still gets its one-hot vector.
    Condition and substitute accept indices and one-hot vectors.

    Raises:
        ValueError: naming the site, if to_event joins several discrete variables.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import OneHotCategorical, config_enumerate
        >>> def model():
        ...     z = pyro.sample("z", OneHotCategorical(logits=torch.zeros(2)))
        ...     loc = (z * torch.tensor([-1.0, 1.0])).sum(-1)
        ...     pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=torch.tensor(0.0))
        >>> elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=0)
        >>> round(elbo.loss(config_enumerate(model), lambda: None), 4)
        1.4189
    """
    return _wrap("config_enumerate", EnumerateMessenger(), fn)
