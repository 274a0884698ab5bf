"""What the handlers of both sides share: rewriting the law inside of its wrappers, the choice of a
family for a site, and the temperature that an annealed run hands down. Imports neither framework.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

OBJECTIVES = ("categorical", "relaxed")

# --- the law inside of its wrappers ---------------------------------------------------------------


def is_wrapper(fn: Any) -> bool:
    """Whether this is to_event, mask or expand; a transformed law has a base and is none."""
    return hasattr(fn, "base_dist") and not hasattr(fn, "transforms")


def innermost(fn: Any) -> Any:
    """The law inside of to_event, mask and expand."""
    while is_wrapper(fn):
        fn = fn.base_dist
    return fn


def rewrap(fn: Any, make: Callable[[Any], Any]) -> Any:
    """`fn` with `make` applied to the law inside; `fn` itself where that changes nothing."""
    if not is_wrapper(fn):
        return make(fn)
    inner = rewrap(fn.base_dist, make)
    if inner is fn.base_dist:
        return fn
    if hasattr(fn, "reinterpreted_batch_ndims"):
        return inner.to_event(fn.reinterpreted_batch_ndims)
    return inner.mask(fn._mask) if hasattr(fn, "_mask") else inner.expand(fn.batch_shape)


# --- families -------------------------------------------------------------------------------------

Family = type | partial  # a class, or partial(GumbelRao, num_samples=100)


def bare(family: Family) -> type:
    """The class without its options."""
    return family.func if isinstance(family, partial) else family


def shown(family: Family | Any) -> str:
    """The class with its options, as one would write it; an ELBO with its particles."""
    if isinstance(family, type):
        return family.__name__
    if not isinstance(family, partial):
        return f"{type(family).__name__}({family.num_particles})"
    options = [f"{option}={value!r}" for option, value in family.keywords.items()]
    return f"{family.func.__name__}({', '.join(options)})"


@dataclass(frozen=True)
class Relaxation:
    """How discrete sites are relaxed: the options that relax and AutoGumbelSoftmax share.

    A `family` by site name leaves the others to the default.
    """

    temperature: Any
    family: Family | Mapping[str, Family]
    objective: str
    default: type

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            wanted = ", ".join(OBJECTIVES)
            raise ValueError(f"objective must be one of {wanted}, got {self.objective!r}")

    @property
    def named(self) -> set[str]:
        """The sites that the options name."""
        return named(self.family)

    def law(self, site: str, event_dims: int) -> Callable[..., Any]:
        """Makes the law of a site from its parameters."""
        by_name = isinstance(self.family, Mapping)
        family = self.family.get(site, self.default) if by_name else self.family
        make = counterpart(family, event_dims, self.objective, site)
        return partial(make, temperature_at(site, self.temperature))


def named(option: Any) -> set[str]:
    """The sites that an option by site name speaks of."""
    return set(option) if isinstance(option, Mapping) else set()


def counterpart(family: Family, event_dims: int, objective: str, site: str) -> Family:
    """The class that stands at a site: binary at a bit, scored as the objective says.

    It keeps the options of the family.

    Raises:
        ValueError: naming the site, if the family has no such class.
    """
    if isinstance(family, partial):
        if family.args:
            raise ValueError(f"site {site!r}: the options of {shown(family)} go by keyword")
        return partial(counterpart(family.func, event_dims, objective, site), **family.keywords)
    if event_dims == 0 and family.event_dims == 1:
        if family.binary is None:
            raise ValueError(f"site {site!r} is a bit, and {family.__name__} has no binary class")
        family = family.binary
    if family.event_dims != event_dims:
        kind = "one-hot vector" if event_dims else "bit"
        raise ValueError(f"site {site!r} is a {kind}, for which {family.__name__} is no family")
    if objective == "categorical" and family.scored_as == "density":
        return family.mass_scored
    if objective == "relaxed" and family.scored_as == "mass" and not family.is_hard:
        raise ValueError(
            f"site {site!r}: objective='relaxed' scores densities, and {family.__name__} is a mass;"
            " use GumbelSoftmax"
        )
    return family


def refuse_integer(site: str) -> None:
    """A latent integer site cannot take a soft value."""
    raise ValueError(
        f"site {site!r} is an integer Categorical, which cannot take a soft value: write it as"
        " OneHotCategorical, and table[z] as select(table, z)"
    )


def refuse_reparameterization(site: str, got: str) -> None:
    """GumbelSoftmaxReparam is about latent sites with a soft relaxed law."""
    raise ValueError(
        f"site {site!r}: GumbelSoftmaxReparam takes a latent site with a soft relaxed law"
        f" (GumbelSoftmax, ExpGumbelSoftmax, GumbelSigmoid), {got}"
    )


def check_sites(wanted: set[str], discrete: set[str]) -> None:
    """Refuses names in sites= or family= that no discrete latent site of the program has."""
    missing = sorted(wanted - discrete)
    if missing:
        raise ValueError(
            f"no discrete latent site is called {', '.join(map(repr, missing))}; the program has"
            f" {', '.join(map(repr, sorted(discrete))) or 'none'}"
        )


# --- temperature ----------------------------------------------------------------------------------

_temperature: ContextVar[Any] = ContextVar("temperature", default=None)


@contextmanager
def at_temperature(temperature: Any) -> Iterator[None]:
    """Within it, handlers and guides that were given no temperature take this one."""
    token = _temperature.set(temperature)
    try:
        yield
    finally:
        _temperature.reset(token)


def temperature_at(site: str, explicit: Any) -> Any:
    """The temperature of a site: the handler's own, else that of the annealed run."""
    temperature = _temperature.get() if explicit is None else explicit
    if temperature is None:
        raise ValueError(
            f"site {site!r} has no temperature: pass temperature=, or train with AnnealedSVI"
        )
    return temperature


# --- pairings of guide and model ------------------------------------------------------------------


class Site:
    """What a check needs to know of a latent site: its law, how that is scored, its mask.

    `kind` is "density", "mass", "integer", or None for a law that is no concern of ours.
    """

    def __init__(
        self, law: Any, kind: str | None, *, log_space: bool, masked: bool, enumerated: bool
    ) -> None:
        self.law, self.kind, self.log_space = law, kind, log_space
        self.masked, self.enumerated = masked, enumerated

    @property
    def name(self) -> str:
        return type(self.law).__name__

    @property
    def is_hard(self) -> bool:
        return getattr(self.law, "is_hard", True)  # the PPLs' own discrete laws are


def is_masked(fn: Any) -> bool:
    """Whether a mask stands anywhere around the law."""
    while is_wrapper(fn):
        if getattr(fn, "_mask", True) is not True:
            return True
        fn = fn.base_dist
    return False


def check_pairing(site: str, guide: Site, model: Site) -> None:
    """Refuses what would give a finite but wrong loss, naming the site and the cure."""
    pair = f"site {site!r}: {guide.name} in the guide over {model.name} in the model"
    if {guide.kind, model.kind} == {"density", "mass"}:
        raise ValueError(
            f"{pair} mixes a density with a mass, which have no common measure: relax model and"
            " guide alike, with one family and objective"
        )
    if guide.kind == model.kind == "density" and guide.log_space != model.log_space:
        raise ValueError(f"{pair} mixes log-space with the simplex: use one class on both sides")
    if {guide.kind, model.kind} in ({"integer", "mass"}, {"integer", "density"}):
        raise ValueError(
            f"{pair} mixes class indices with vectors: write both as OneHotCategorical, or"
            " config_enumerate both"
        )
    if guide.kind == model.kind == "mass" and model.is_hard and not guide.is_hard:
        raise ValueError(f"{pair} scores soft values by a law of hard ones: relax the model too")
    if guide.masked != model.masked and guide.kind is not None:
        side, other = ("guide", "model") if guide.masked else ("model", "guide")
        raise ValueError(
            f"{pair} is masked in the {side} alone: apply the same mask to the {other}, or its"
            " terms stay in the loss unpaired"
        )


def check_unpaired(site: str, model: Site, *, loss_enumerates: bool) -> None:
    """Refuses a discrete or relaxed latent that neither the guide nor enumeration takes care of."""
    if model.kind is not None and not (model.enumerated and loss_enumerates):
        raise ValueError(
            f"site {site!r}: {model.name} in the model is neither in the guide nor enumerated: it"
            " would be drawn from the prior. Add it to the guide, or config_enumerate the model"
            " and use TraceEnum_ELBO"
        )
