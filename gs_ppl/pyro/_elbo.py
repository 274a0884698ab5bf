"""What the ELBOs for discrete programs share: costs, rows, the state of an estimator."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.util import MultiFrameTensor
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import warn_if_nan
from torch import Tensor

from gs_ppl._shared.laws import refuse_undefined
from gs_ppl._shared.reprs import ShownELBO
from gs_ppl.pyro.handlers import is_latent


def is_scored(msg: dict[str, Any]) -> bool:
    """A latent site without a pathwise gradient."""
    return is_latent(msg) and not msg["fn"].has_rsample


def samples(trace: poutine.Trace) -> list[dict[str, Any]]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def costs_by_plates(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> MultiFrameTensor:
    """log p - log q by plates."""
    costs = MultiFrameTensor()
    for sign, trace in ((1, model_trace), (-1, guide_trace)):
        for site in samples(trace):
            costs.add((site["cond_indep_stack"], sign * site["log_prob"]))
    return costs


class SameRows(Messenger):
    """Around several runs of the programs: subsampled plates keep the rows of the first run."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if site_is_subsample(msg) and msg["name"] in self.rows:
            msg["value"] = self.rows[msg["name"]]

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if site_is_subsample(msg):
            self.rows[msg["name"]] = msg["value"]


class _Names(Messenger):
    """Collects the names of the discrete sites of a guide."""

    def __enter__(self) -> "_Names":
        self.names: list[str] = []
        return super().__enter__()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if is_scored(msg):
            self.names.append(msg["name"])


def with_state(guide: Callable, register: Callable[[str], Any]) -> Callable:
    """The guide, and the estimator's own state: register(name) is called for each discrete site."""

    @wraps(guide, updated=())
    def program(*args: Any, **kwargs: Any) -> Any:
        with _Names() as seen:
            result = guide(*args, **kwargs)
        for name in seen.names:
            register(name)
        return result

    return program


class SurrogateELBO(ShownELBO, Trace_ELBO):
    """An ELBO whose gradient is that of its differentiable loss."""

    def __init__(
        self, num_particles: int = 1, *, vectorize_particles: bool = False, **options: Any
    ) -> None:
        super().__init__(num_particles, vectorize_particles=vectorize_particles, **options)

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, with the estimate for its gradient; each subclass defines it."""
        refuse_undefined(self, "differentiable_loss")

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        warn_if_nan(loss, "loss")
        return loss.item()
