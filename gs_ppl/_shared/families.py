"""Which class relaxes a site, and the errors if there is none."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from gs_ppl._shared.annealing import temperature_in_force

OBJECTIVES = ("categorical", "relaxed")

Family = type[Any] | partial[Any]  # a class, or partial(GumbelRao, num_samples=100)


def bare(family: Family) -> Any:
    """The class without its options."""
    return family.func if isinstance(family, partial) else family


def is_family(family: Any) -> bool:
    """Whether it is a class that relaxes, with options or without."""
    return isinstance(family, type | partial) and getattr(bare(family), "has_temperature", False)


def check_family(argument: str, family: Any) -> None:
    """Refuses what is not a family: a name, a distribution, a discrete law, an ELBO."""
    if not is_family(family):
        is_class = isinstance(family, type | partial) and isinstance(bare(family), type)
        got = f"the class {bare(family).__name__}" if is_class else repr(family)
        raise TypeError(
            f"{argument} must be a class that relaxes, such as GumbelSoftmax or STGumbelSoftmax, or"
            f" a partial of one, got {got}"
        )


def family_label(family: Family | Any) -> str:
    """The class with its options, as in a program; an ELBO with its particles."""
    if isinstance(family, type):
        return family.__name__
    if not isinstance(family, partial):
        return f"{type(family).__name__}({family.num_particles})"
    options = [f"{option}={value!r}" for option, value in family.keywords.items()]
    return f"{family.func.__name__}({', '.join(options)})"


@dataclass(frozen=True)
class Relaxation:
    """How discrete sites are relaxed: the options that relax and AutoGumbelSoftmax share.

    Sites that a `family` by name leaves out get the default. Without a temperature the law
    is one of `without_temperature`, by event dimensions; discretize can replace it.
    """

    temperature: Any
    family: Family | Mapping[str, Family]
    objective: str
    default: type
    without_temperature: tuple[type, type]

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            wanted = ", ".join(OBJECTIVES)
            raise ValueError(f"objective must be one of {wanted}, got {self.objective!r}")
        tau = self.temperature
        if isinstance(tau, int | float) and not 0 < tau < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {tau}")
        families = self.family.values() if isinstance(self.family, Mapping) else [self.family]
        for family in families:
            check_family("family", family)

    @property
    def shown(self) -> dict[str, Any]:
        """The options that are not the defaults."""
        plain = {"temperature": None, "objective": "categorical", "family": self.default}
        options = {name: getattr(self, name) for name in plain}
        return {name: value for name, value in options.items() if value is not plain[name]}

    @property
    def named(self) -> set[str]:
        """The sites that the options name."""
        return named(self.family)

    def law(
        self, site: str, event_dims: int, of_values: Callable[[Any], Any] | None = None
    ) -> Callable[..., Any]:
        """A function from parameters to the law of a site; integer sites need `of_values`."""
        family = self.family
        if isinstance(family, Mapping):
            family = family.get(site, self.default)
        make = counterpart(family, event_dims, self.objective, site)
        temperature = temperature_in_force(self.temperature)
        if temperature is None:
            make = partial(self.without_temperature[event_dims], site=site)
        make = make if of_values is None else of_values(make)

        def law(**parameters: Any) -> Any:
            with at_site(site):
                return make(temperature, **parameters)

        return law


def named(option: Any) -> set[str]:
    """The sites that an option names, if it is a dict by site name."""
    return set(option) if isinstance(option, Mapping) else set()


def counterpart(family: Family, event_dims: int, objective: str, site: str) -> Any:
    """The class for a site: binary for a bit, scored as the objective says.

    It keeps the options of the family.

    Raises:
        ValueError: naming the site, if the family has no such class.
    """
    if isinstance(family, partial):
        if family.args:
            raise ValueError(
                f"site {site!r}: give the options of {family_label(family)} by keyword"
            )
        return partial(counterpart(bare(family), event_dims, objective, site), **family.keywords)
    return _class_at(family, event_dims, objective, site)


def _class_at(family: Any, event_dims: int, objective: str, site: str) -> Any:
    if event_dims == 0 and family.event_dims == 1:
        if family.binary is None:
            raise ValueError(f"site {site!r} is a bit, and {family.__name__} has no binary class")
        family = family.binary
    if family.event_dims != event_dims:
        kind = "one-hot vector" if event_dims else "bit"
        raise ValueError(f"site {site!r} is a {kind}, which {family.__name__} does not relax")
    if objective == "categorical" and family.scored_as == "density":
        if family.mass_scored is None:
            raise ValueError(
                f"site {site!r}: objective='categorical' scores masses, but {family.__name__} has"
                " only a density: use GumbelSoftmax"
            )
        return family.mass_scored
    if objective == "relaxed" and family.scored_as == "mass" and not family.is_hard:
        raise ValueError(
            f"site {site!r}: objective='relaxed' scores densities, but {family.__name__} has only a"
            " mass: use GumbelSoftmax"
        )
    return family


def refuse_integer(site: str) -> None:
    """A program inside of the context manager cannot compute with a soft index."""
    raise ValueError(
        f"site {site!r} draws an integer, which the context manager cannot relax: write"
        " relax(program) instead"
    )


def refuse_support(site: str, law: str) -> None:
    """A relaxed integer site has one support, which is known before the program runs."""
    raise ValueError(
        f"site {site!r}: the support of {law} must be a fixed finite set of integers, known before"
        " the program is compiled"
    )


def check_truncation(site: str, largest: Any, law: str, counts: bool) -> None:
    """Only a law of counts can be truncated, and only at a count."""
    if not isinstance(largest, int) or isinstance(largest, bool) or largest < 1:
        raise ValueError(
            f"site {site!r}: truncate wants the largest count, 1 or more, got {largest!r}"
        )
    if not counts:
        raise ValueError(f"site {site!r}: truncate is for laws of counts 0, 1, 2, ..., got {law}")


def is_unbounded(law: Any) -> bool:
    """Whether it is a law of single integers without a known largest one, such as Poisson."""
    try:
        discrete = getattr(getattr(law, "support", None), "is_discrete", False)
    except NotImplementedError:  # a law without a support, or a constraint of unknown kind
        return False
    return discrete and law.event_shape == () and not law.has_enumerate_support


def cure_unbounded(site: str) -> str:
    return (
        f"truncate its counts, as in relax(model, truncate={{{site!r}: LARGEST}}), and make the"
        " guide from the relaxed program"
    )


def refuse_without_latents(laws: Mapping[str, Any]) -> NoReturn:
    """Refuses a program without latents that an automatic guide could relax."""
    for site, law in laws.items():
        if is_unbounded(law):
            law = type(law).__name__
            raise ValueError(
                f"site {site!r}: {law} has no known largest value: {cure_unbounded(site)}"
            )
    raise ValueError("AutoGumbelSoftmax: the program has no discrete latents")


def refuse_weights(site: str) -> None:
    """The guide relaxes a site that is still an integer in the model."""
    raise ValueError(
        f"site {site!r}: the guide draws weights of its classes, but the model draws an integer,"
        " since relax(sites=...) leaves it out: give both the same sites="
    )


def refuse_class_indices(site: str) -> None:
    """NumPyro takes the last axis of a batch of integers for the axis of the weights."""
    raise ValueError(
        f"site {site!r}: a relaxed site got class indices of a batch from outside of relax: relax"
        " the guide too, as in relax(guide), or use AutoGumbelSoftmax; or condition inside, as in"
        " relax(condition(program, ...))"
    )


def refuse_choice(site: str) -> None:
    """A soft index chooses a branch of cond, and the branch observes a site."""
    raise ValueError(
        f"site {site!r} is observed inside of cond, whose predicate is a soft index: observe it"
        " after cond, with parameters that jnp.where chooses"
    )


TABLE_OF_SCORES = (  # the cure for an integer parameter
    "write the score as factor(name, table[z]), where the table has log_prob for each class"
)


def refuse_soft_value(site: str, what: str, cure: str) -> None:
    """A soft index where a site wants an integer."""
    raise ValueError(f"site {site!r}: {what} is a soft index; {cure}")


def refuse_reparameterization(site: str, got: str) -> None:
    """GumbelSoftmaxReparam takes only latent sites with a soft relaxed law."""
    raise ValueError(
        f"site {site!r}: GumbelSoftmaxReparam takes a latent site with a soft relaxed law"
        f" (GumbelSoftmax, ExpGumbelSoftmax, GumbelSigmoid), {got}"
    )


def names_of(sites: Any) -> frozenset[str] | None:
    """The names in sites=; a string would be taken letter by letter."""
    if isinstance(sites, str):
        raise TypeError(f"sites must be a collection of names, such as [{sites!r}], got {sites!r}")
    return None if sites is None else frozenset(sites)


def check_sites(wanted: set[str], discrete: set[str], argument: str = "") -> None:
    """Refuses names in sites=, family= or parents= that no discrete latent of the program has."""
    missing = sorted(wanted - discrete)
    if missing:
        raise ValueError(
            f"{argument}no discrete latent site is called {', '.join(map(repr, missing))}; the"
            f" program has {', '.join(map(repr, sorted(discrete))) or 'none'}"
        )


def refuse_enumerated_parents(site: str, cause: Exception | None = None) -> NoReturn:
    """The divergence of a soft site is analytic only if none of its parents is summed out."""
    raise ValueError(
        f"site {site!r}: its law depends on a site that the model enumerates, so that its"
        " divergence is not analytic: enumerate it too, or relax its parents"
    ) from cause


@contextmanager
def at_site(site: str) -> Iterator[None]:
    """Adds the name of the site to an error about its parameters."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("site "):
            raise
        raise ValueError(f"site {site!r}: {error}") from error


def refuse_sure_rows(site: str, plate: str) -> None:
    """Refuses rows with different impossible classes: rows that were not drawn may differ too."""
    raise ValueError(
        f"site {site!r}: the rows of the subsampled plate {plate!r} differ in their impossible"
        " classes: give init_logits for all rows, with -inf at these classes"
    )


def refuse_straight_through(site: str, law: str) -> None:
    """Pyro's own classes score a relaxed tensor that is hidden behind the hard sample."""
    raise ValueError(
        f"site {site!r}: {law} is not scored at its value, so that the ELBO is wrong: use"
        " STGumbelSoftmax or STGumbelSigmoid"
    )
