"""What the ELBOs for discrete programs share: costs, plates, the state of an estimator."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from numpyro.infer.elbo import MultiFrameTensor
from numpyro.primitives import Messenger

from gs_ppl.numpyro.handlers import is_latent


def is_scored(msg: dict[str, Any]) -> bool:
    """A latent site without a pathwise gradient."""
    return is_latent(msg) and not msg["fn"].has_rsample


def samples(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [site for site in trace.values() if site["type"] == "sample"]


def costs_by_plates(model_trace: dict[str, Any], guide_trace: dict[str, Any]) -> MultiFrameTensor:
    """log p - log q by plates."""
    costs = MultiFrameTensor()
    for sign, trace in ((1, model_trace), (-1, guide_trace)):
        for site in trace.values():
            if site["type"] == "sample":
                costs.add((site["cond_indep_stack"], sign * site["log_prob"]))
    return costs


def check_plates(trace: dict[str, Any]) -> None:
    """Refuses axes that no plate declares: they would be summed in the wrong places."""
    for name, site in trace.items():
        if site["type"] != "sample":
            continue
        dims, shape = {frame.dim for frame in site["cond_indep_stack"]}, site["log_prob"].shape
        for dim in range(-len(shape), 0):
            if shape[dim] > 1 and dim not in dims:
                raise ValueError(
                    f"site {name!r}: axis {dim} of its batch shape {shape} lies in no plate: put"
                    " the site into one, or join the axis to the event by to_event"
                )


class _Registers(Messenger):
    """Calls `register(name)` for each discrete site of the guide, after the guide has run."""

    def __init__(self, fn: Callable, register: Callable[[str], Any]) -> None:
        super().__init__(fn)
        self.register = register

    def process_message(self, msg: dict[str, Any]) -> None:
        if is_scored(msg):
            self.names.append(msg["name"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.names: list[str] = []
        result = super().__call__(*args, **kwargs)
        for name in self.names:
            self.register(name)
        return result


def with_state(guide: Callable, register: Callable[[str], Any]) -> Callable:
    """The guide, and the estimator's own state."""

    @wraps(guide, updated=())
    def program(*args: Any, **kwargs: Any) -> Any:
        return _Registers(guide, register)(*args, **kwargs)

    return program
