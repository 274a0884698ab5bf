"""Refuses NumPyro's own enumeration and Gibbs sampler over our classes: they give wrong numbers."""

import sys
from types import FrameType
from typing import Any, NoReturn

from numpyro.handlers import replay
from numpyro.primitives import _PYRO_STACK


def refuse_support(law: str) -> None:
    """Refuses NumPyro's enumeration, which asks for the support, and gives class indices.

    A vector is no index, and NumPyro does not follow the dependencies of a bit with a gradient.
    """
    if _is_enumerating():
        _refuse(law, _site_at_work(), "NumPyro's enumeration gives it class indices")
    if (caller := _sampler_at_work()) is not None:
        name = caller.f_locals.get("name")
        where = "" if name is None else f"site {name!r}: "
        raise ValueError(
            f"{where}NumPyro's Gibbs sampler draws class indices instead of values of {law}: sum"
            " the site out, by NUTS over gs_ppl.numpyro.config_enumerate(program)"
        )


def refuse_draw(law: str) -> None:
    """Refuses, in NumPyro's enumeration, a draw to be summed out, or one that no guide gives."""
    if not _is_enumerating():
        return
    site = _site_at_work() or {}
    marked = site.get("infer", {}).get("enumerate") == "parallel"
    is_model = any(isinstance(handler, replay) for handler in _PYRO_STACK)
    if marked or (is_model and not site.get("stop")):
        _refuse(law, site, "NumPyro's enumeration does not sum it out, and no guide draws it")


def _is_enumerating() -> bool:
    messengers = sys.modules.get("numpyro.contrib.funsor.enum_messenger")  # funsor is optional
    return messengers is not None and any(isinstance(h, messengers.enum) for h in _PYRO_STACK)


def _sampler_at_work() -> FrameType | None:
    """The function of NumPyro's samplers that asks for a support, None if another one asks."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(("gs_ppl.", "numpyro.distributions.")):
            return frame if module.startswith("numpyro.infer.") else None
        frame = frame.f_back
    return None


def _site_at_work() -> dict[str, Any] | None:
    """The current message of NumPyro's handlers, read off the frames: a law does not get it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        message = frame.f_locals.get("msg")
        if isinstance(message, dict) and message.get("type") == "sample":
            return message
        frame = frame.f_back
    return None


def _refuse(law: str, site: dict[str, Any] | None, why: str) -> NoReturn:
    where = f"site {site['name']!r}: " if site else ""
    raise ValueError(
        f"{where}{law} is not enumerated by NumPyro's config_enumerate or infer flag alone ({why}):"
        " wrap the program in gs_ppl.numpyro.config_enumerate"
    )
