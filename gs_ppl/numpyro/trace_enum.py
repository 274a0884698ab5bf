"""Enumerated and soft sites in one program: NumPyro's TraceEnum_ELBO with analytic divergences."""

import re
from collections.abc import Callable
from typing import Any

from jax import Array
from numpyro import handlers, infer
from numpyro.primitives import Messenger

from gs_ppl._shared.families import refuse_enumerated_parents
from gs_ppl._shared.reprs import ShownELBO
from gs_ppl._shared.wrappers import innermost
from gs_ppl.numpyro._base import LogitsDistribution
from gs_ppl.numpyro.follow import SameRows

__all__ = ["TraceEnum_ELBO"]


def is_soft_mass(fn: Any) -> bool:
    law = innermost(fn)
    return isinstance(law, LogitsDistribution) and law.scored_as == "mass" and not law.is_hard


def _analytic(site: dict[str, Any]) -> dict[str, Any]:
    return {"kl": "analytic"} if is_soft_mass(site["fn"]) and not site["is_observed"] else {}


class TraceEnum_ELBO(ShownELBO, infer.TraceEnum_ELBO):
    """NumPyro's ELBO with the exact categorical divergence of soft sites (see TraceMeanField_ELBO).

    A program may have both enumerated and soft sites. log_prob of soft values is a mass; an
    estimate by log q - log p would not have its optimum at q = p. In subsampled plates the model
    gets the rows of the guide. NumPyro's own ELBO draws other rows for the model.

    Raises:
        ValueError: for a soft site whose law depends on a site that the model enumerates.

    Example:
        >>> elbo = TraceEnum_ELBO(max_plate_nesting=1)
    """

    def loss(
        self,
        rng_key: Array,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> Array:
        rows: dict[str, Array] = {}
        marked = _Rows(_MarkAnalytic(guide), rows)  # the guide runs before the model in each trace
        try:
            return super().loss(rng_key, param_map, SameRows(model, rows), marked, *args, **kwargs)
        except AssertionError as error:
            found = re.search("analytic KL computation for the latent variable `(.*?)`", str(error))
            if found is None:
                raise
            refuse_enumerated_parents(found[1], error)


class _MarkAnalytic(handlers.infer_config):
    """Marks the soft sites after relax has made them; replay gives the mark to the model."""

    def __init__(self, fn: Callable) -> None:
        super().__init__(fn, _analytic)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample":
            msg["infer"] = {**msg["infer"], **_analytic(msg)}


class _Rows(Messenger):
    """Records the rows of plates: the trace of NumPyro's enumeration leaves them out."""

    def __init__(self, fn: Callable, rows: dict[str, Array]) -> None:
        super().__init__(fn)
        self.rows = rows

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "plate":
            self.rows[msg["name"]] = msg["value"]
