"""The probe along edges, of programs in Pyro: see gs_ppl._shared.probing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.nn.functional import logsigmoid

from gs_ppl._shared.probing import NoDerivative, Reading, probe, vertices, weights
from gs_ppl._shared.wrappers import innermost
from gs_ppl.pyro.distributions import ExpGumbelSoftmax

__all__: list[str] = []

TINY = 1e-6  # smallest coordinate on the simplex, if the value is its log


class Probe:
    """Replays a program with relaxed values along edges; other values are those of its trace."""

    def __init__(
        self, side: str, program: Callable, trace: poutine.Trace, args: tuple, kwargs: dict
    ) -> None:
        self.side, self.program, self.trace = side, program, trace
        self.args, self.kwargs, self.state = args, kwargs, get_rng_state()

    def run(self, masses: list[str], densities: list[str]) -> None:
        probe(self.side, masses, densities, self.corners, self.read)

    def law(self, name: str) -> Any:
        return innermost(self.trace.nodes[name]["fn"])

    def corners(self, name: str) -> list[Tensor]:
        a, value = _logits(self.law(name)).detach(), self.trace.nodes[name]["value"]
        a = a.broadcast_to(value.shape)
        if not self.law(name).event_shape:  # a bit that is certain does not move
            return [(a == torch.inf).to(value), (a > -torch.inf).to(value)]
        rng = np.random.default_rng(0)
        return [value.new_tensor(v) for v in vertices((a > -torch.inf).numpy(force=True), rng)]

    @torch.enable_grad()
    def read(self, moved: dict[str, tuple[Tensor, Tensor]], t: float) -> Reading:
        leaves, directions = {}, {}
        for name, (start, end) in moved.items():
            leaf, direction = torch.lerp(start, end, t), end - start
            if isinstance(self.law(name), ExpGumbelSoftmax):
                y = leaf
                leaf, direction = y.clamp(min=TINY).log(), direction * (y > TINY) / y.clamp(TINY)
            leaves[name], directions[name] = leaf.requires_grad_(), direction
        try:
            sites, terms = self._terms(leaves)
        except (ValueError, RuntimeError):  # the program fails there, e.g. at scale 0
            return Reading(np.array(np.nan), 0.0, frozenset(self._sites(self.trace)))
        random = [torch.as_tensor(w) for w in weights([x.shape for x in terms])]
        terms = [x.double() * w.to(x.device) for x, w in zip(terms, random, strict=True)]
        total, slope = sum(x.sum() for x in terms), 0.0
        if isinstance(total, Tensor) and total.requires_grad:
            try:
                gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
            except RuntimeError as error:
                raise NoDerivative(str(error)) from error
            for gradient, direction in zip(gradients, directions.values(), strict=True):
                slope += 0.0 if gradient is None else float((gradient * direction).sum())
        flat = [x.detach().flatten().numpy(force=True) for x in terms]
        return Reading(np.concatenate([np.zeros(1), *flat]), slope, frozenset(sites))

    def _terms(self, leaves: dict[str, Tensor]) -> tuple[set[str], list[Tensor]]:
        fixed = poutine.Trace()
        for name in self.trace.stochastic_nodes:
            node = self.trace.nodes[name]
            fixed.add_node(name, **{**node, "value": leaves.get(name, node["value"])})
        set_rng_state(self.state)
        replayed = poutine.replay(self.program, trace=fixed)
        trace = poutine.trace(replayed).get_trace(*self.args, **self.kwargs)
        sites = self._sites(trace)
        trace.compute_log_prob(lambda name, node: name not in leaves)
        terms = [trace.nodes[name]["log_prob"] for name in sites if name not in leaves]
        for name, value in leaves.items():
            law = innermost(trace.nodes[name]["fn"]) if name in sites else None
            if law is not None and getattr(law, "scored_as", "mass") == "mass":
                terms.append(_linear_score(law, value))
        return sites, terms

    @staticmethod
    def _sites(trace: poutine.Trace) -> set[str]:
        return {name for name, node in trace.nodes.items() if node["type"] == "sample"}


def _logits(law: Any) -> Tensor:
    return law.a if hasattr(law, "a") else law.logits


def _linear_score(law: Any, value: Tensor) -> Tensor:
    """The mass at any value, also of a law on the vertices: it shows the effect of the parents."""
    a = _logits(law)
    if law.event_shape:
        return _weighted(value, a.log_softmax(-1))
    return _weighted(value, logsigmoid(a)) + _weighted(1 - value, logsigmoid(-a))


def _weighted(value: Tensor, logs: Tensor) -> Tensor:
    return value * torch.where(torch.isinf(logs), 0.0, logs)  # 0 * inf has no slope
