"""The bodies of NumPyro's scan and cond: a handler outside would see their sites too late."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from numpyro.primitives import Messenger

__all__: list[str] = []


class Within(Messenger):
    """Applies another handler to a body: outside, it would see the sites after they are drawn."""

    def __init__(self, outer: Messenger, body: Callable) -> None:
        super().__init__(body)
        self.outer = outer

    def process_message(self, msg: dict[str, Any]) -> None:
        self.outer.process_message(msg)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        self.outer.postprocess_message(msg)


def reach_into_bodies(outer: Messenger, msg: dict[str, Any]) -> None:
    """Wraps the functions of a control_flow message: the body of scan, both branches of cond."""
    if msg["type"] != "control_flow":
        return
    if is_scan(msg):
        body, *rest = msg["args"]
        msg["args"] = (Within(outer, body), *rest)
    else:
        predicate, if_true, if_false, operand = msg["args"]
        msg["args"] = (predicate, Within(outer, if_true), Within(outer, if_false), operand)
        msg["fn"] = partial(_replaying, msg["fn"])


def is_scan(msg: dict[str, Any]) -> bool:
    """The first argument of scan is its body; the first argument of cond is the predicate."""
    return callable(msg["args"][0])


def _replaying(run: Callable, *args: Any, substitute_stack: list, **kwargs: Any) -> Any:
    """NumPyro's cond ignores replay: its branches would draw again what the guide has drawn."""
    stack = [
        ("substitute", latent_values(data)) if kind == "replay" else (kind, data)
        for kind, data in substitute_stack
    ]
    return run(*args, substitute_stack=stack, **kwargs)


def latent_values(trace: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a trace has drawn."""
    return {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
