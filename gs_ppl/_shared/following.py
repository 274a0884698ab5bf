"""Checks and errors of automatic guides of both sides: sizes, rows and masks."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any, NoReturn

import numpy as np


def signature(value: Any) -> Any:
    """The shapes of arguments, and the integers and strings among them: sizes depend on these."""
    if hasattr(value, "shape"):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return tuple((key, signature(x)) for key, x in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(signature, value))
    return value if isinstance(value, int | str) else None


def check_broadcast(site: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Refuses initial logits that do not broadcast to the shape of a site with all its rows."""
    try:
        fits = np.broadcast_shapes(given, wanted) == wanted
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"site {site!r}: init_logits of shape {given} do not fit shape {wanted}")


def check_logits_of(
    name: str, given: tuple[int, ...], wanted: tuple[int, ...], where: str, cure: str
) -> None:
    """Refuses logits of another guide; axes of several runs may come first."""
    if given[len(given) - len(wanted) :] != wanted:
        raise ValueError(
            f"{where} {name} of shape {given}, but the guide of this program needs shape {wanted}:"
            f" {cure}"
        )


def check_full_size(plate: str, known: int, size: int) -> None:
    """Refuses a plate with more or fewer rows than an automatic guide has logits for."""
    if known != size:
        raise ValueError(
            f"plate {plate!r} has {size} rows, and the automatic guide has logits for {known}: for"
            " the classes of other rows call assign; to train on them make a new guide; for a"
            " minibatch subsample the plate, as in plate(name, size, subsample_size=...)"
        )


def check_program(door: str, fn: Any) -> None:
    """Refuses a value of a program, and nothing, in place of the program."""
    if not callable(fn):
        raise TypeError(f"{door} takes a program, which is a function, got {fn!r}")


def refuse_rows_of_type(plate: str, dtype: Any) -> NoReturn:
    """Refuses a mask, and numbers that are no indices."""
    raise TypeError(
        f"plate {plate!r}: its rows must be integers, got {dtype}; the rows of a mask are"
        " is_chosen.nonzero()"
    )


def refuse_order(plate: str) -> NoReturn:
    """Refuses all rows in another order: a plate selects rows only if it has some of them."""
    raise ValueError(
        f"plate {plate!r} is given all its rows in another order, but the parameters of an"
        " automatic guide keep their order: give all rows in order, or some rows in any order"
    )


# They need a Hessian, or Langevin steps, of the program that they get.
NEED_THE_WHOLE = {
    "AutoLaplaceApproximation",
    "AutoDAIS",
    "AutoSemiDAIS",
    "AutoSurrogateLikelihoodDAIS",
}


def in_order(traces: Iterable[Any], names: Sequence[str]) -> None:
    """Puts these sites into this order. The mean-field ELBOs of the PPLs want that of the model."""
    for trace in traces:
        for name in names:
            if name in trace:
                trace.move_to_end(name)


def check_makes_guides(continuous: Any, guide_class: type) -> None:
    """Refuses a guide in place of its class: auto_relaxed makes it, for a part of the program."""
    if isinstance(continuous, guide_class) or not callable(continuous):
        raise TypeError(
            "auto_relaxed: continuous must be a class of guides, such as AutoNormal, or a function"
            f" that makes a guide of a program, got {continuous!r}"
        )


def check_continuous(part: Any) -> None:
    """Refuses guides that would see only the prior: a part runs without the discrete latents."""
    for cls in type(part).__mro__:
        if cls.__name__ in NEED_THE_WHOLE:
            raise ValueError(
                f"auto_relaxed: {cls.__name__} needs the density of the whole program, but gets the"
                " part without discrete latents: use AutoMultivariateNormal or AutoDelta"
            )


def refuse_mask_of_latent(site: str, latent: str) -> NoReturn:
    """An automatic guide reads masks from a run of the model, which has other draws."""
    raise ValueError(
        f"site {site!r}: its mask depends on the latent {latent!r}, which an automatic guide cannot"
        " follow: write the guide by hand, under the same mask"
    )


def check_same_sites(marked: Collection[str], now: Collection[str], known: Collection[str]) -> None:
    """Refuses latents that only some runs have: the first run decides which ones there are."""
    for site in sorted({*marked, *now} - ({*now} & {*known})):
        raise ValueError(_coming_and_going(site))


@contextmanager
def missing_site_named(ppl: str) -> Iterator[None]:
    """Names the site where a PPL's ELBO fails with a KeyError: the guide has not drawn it."""
    try:
        yield
    except KeyError as error:
        *_, (frame, _) = walk_tb(error.__traceback__)
        if not frame.f_globals["__name__"].startswith(f"{ppl}."):
            raise
        raise ValueError(_coming_and_going(error.args[0])) from error


def _coming_and_going(site: str) -> str:
    return (
        f"site {site!r}: the program has it in some runs and not in others, which an automatic"
        " guide cannot follow: draw it in each run, under a mask where it does not count"
    )
