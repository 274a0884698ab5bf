"""Enumerated and soft sites in one program: Pyro's TraceEnum_ELBO with analytic divergences."""

from collections.abc import Callable
from typing import Any

from pyro import infer
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from torch.distributions import kl_divergence

from gs_ppl._shared.families import refuse_enumerated_parents
from gs_ppl._shared.reprs import ShownELBO
from gs_ppl._shared.wrappers import innermost
from gs_ppl.pyro._base import LogitsDistribution

__all__ = ["TraceEnum_ELBO"]


def is_soft_mass(fn: Any) -> bool:
    law = innermost(fn)
    return isinstance(law, LogitsDistribution) and law.scored_as == "mass" and not law.is_hard


class TraceEnum_ELBO(ShownELBO, infer.TraceEnum_ELBO):
    """Pyro's ELBO with the exact categorical divergence at soft sites, as in TraceMeanField_ELBO.

    A program may have both enumerated and soft sites. log_prob of soft values is a mass; an
    estimate by log q - log p would not have its optimum at q = p.

    Raises:
        ValueError: for a soft site whose law depends on a site that the model enumerates.

    Example:
        >>> elbo = TraceEnum_ELBO(max_plate_nesting=1)
    """

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        summed = {
            node["infer"]["_enumerate_symbol"]
            for name, node in model_trace.nodes.items()
            if node["type"] == "sample"
            and name not in guide_trace.nodes
            and node["infer"].get("_enumerate_dim") is not None
        }
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and is_soft_mass(site["fn"]) and name in model_trace.nodes:
                self._take_divergence(name, site, model_trace.nodes[name], summed)
        return model_trace, guide_trace

    @staticmethod
    def _take_divergence(name: str, guide: Any, model: Any, summed: set[str]) -> None:
        divergence = kl_divergence(guide["fn"], model["fn"])
        divergence = scale_and_mask(divergence, guide["scale"], guide["mask"])
        names = {**model["infer"]["_dim_to_symbol"], **guide["infer"]["_dim_to_symbol"]}
        divergence = packed.pack(divergence, names)
        if summed.intersection(divergence._pyro_dims):
            refuse_enumerated_parents(name)
        model["packed"]["log_prob"] = packed.neg(divergence)
        guide["packed"]["log_prob"] = packed.pack(0.0 * guide["log_prob"].detach(), names)
