"""The temperature that an annealed run gives to handlers, guides and programs."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

_temperature: ContextVar[Any] = ContextVar("temperature", default=None)


@contextmanager
def at_temperature(temperature: Any) -> Iterator[None]:
    """Sets the temperature of handlers and guides that have no temperature of their own.

    Use it in a training loop without AnnealedSVI: your own loop, or the loop of another engine.

    Args:
        temperature: tau > 0, a number or an array; in JAX it may be traced.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import OneHotCategorical, at_temperature, relax
        >>> def model():
        ...     return pyro.sample("z", OneHotCategorical(logits=torch.zeros(3)))
        >>> with at_temperature(0.5):
        ...     z = relax(model)()
        >>> bool((z > 0).all())
        True
    """
    token = _temperature.set(temperature)
    try:
        yield
    finally:
        _temperature.reset(token)


def temperature_in_force(explicit: Any) -> Any:
    """The handler's own temperature, or that of the annealed run, or None."""
    return _temperature.get() if explicit is None else explicit


def refuse_without_temperature(site: str) -> NoReturn:
    """The error of a draw or score without a temperature; discretize needs none."""
    raise ValueError(
        f"site {site!r} has no temperature: pass temperature=, or train with AnnealedSVI; after"
        " training, and for estimators such as MuProp_ELBO, use discretize(guide), which needs none"
    )


class Annealed:
    """A program with the temperature as first positional argument; handlers and guides use it.

    A program that declares an argument `temperature` gets it too, at any position. Attributes are
    those of the program: `svi.guide.probs()` works.

    Args:
        fn: program.
        innermost: finds the program inside of handlers that hide its signature.
    """

    def __init__(
        self, fn: Callable, innermost: Callable[[Callable], Callable] = lambda fn: fn
    ) -> None:
        inside = innermost(fn)
        parameters = inspect.signature(getattr(inside, "forward", inside)).parameters
        self._fn, declared = fn, parameters.get("temperature")
        self._position = list(parameters).index("temperature") if declared else None
        self._by_keyword = declared is not None and declared.kind is declared.KEYWORD_ONLY

    def __call__(self, temperature: Any, *args: Any, **kwargs: Any) -> Any:
        position = self._position
        with at_temperature(temperature):
            if position is None:
                return self._fn(*args, **kwargs)
            if self._by_keyword or position > len(args):
                return self._fn(*args, temperature=temperature, **kwargs)
            return self._fn(*args[:position], temperature, *args[position:], **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # also while it is copied, when it has no program yet
            raise AttributeError(name)
        return getattr(self._fn, name)

    def __repr__(self) -> str:
        return repr(self._fn)


def refuse_before_first_run(takes_arguments: bool, first_run: str) -> None:
    """In a fresh process a guide finds the latents of a program with arguments by running it."""
    if takes_arguments:
        raise ValueError(
            "AutoGumbelSoftmax: the program takes arguments, and the guide has not run yet, so that"
            f" its latents are not known: call {first_run} once, with the arguments of the program"
        )


def takes(fn: Any, count: int) -> bool:
    """Whether it is a function, not a class, that takes that many positional arguments."""
    if not callable(fn) or isinstance(fn, type):
        return False
    try:
        inspect.signature(fn).bind_partial(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a built-in function without a signature
        return True
    return True


def check_argument(argument: str, fits: bool, wanted: str, got: Any) -> None:
    """Refuses what cannot be the optimizer, loss or schedule of AnnealedSVI."""
    if not fits:
        shown = f"the class {got.__name__}" if isinstance(got, type) else repr(got)
        raise TypeError(f"AnnealedSVI: {argument} must be {wanted}, got {shown}")


LOSS = "an ELBO"
STEPS = "an integer, before the arguments of the programs"
SCHEDULE = "a function from step to temperature, such as temperature.constant(0.5)"
