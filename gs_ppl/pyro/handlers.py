"""Handlers that relax and discretize the latents of a program."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, update_wrapper
from types import TracebackType
from typing import Any, Self

import torch
from pyro.distributions import (
    Bernoulli,
    Categorical,
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
)
from pyro.poutine.messenger import Messenger, _bound_partial, _context_wrap
from pyro.poutine.util import site_is_subsample
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, float32, nn, promote_types
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, RelaxedBernoulli, RelaxedOneHotCategorical
from torch.distributions import OneHotCategorical as TorchOneHotCategorical

from gs_ppl._shared import annealing
from gs_ppl._shared.annealing import refuse_without_temperature
from gs_ppl._shared.families import (
    TABLE_OF_SCORES,
    Family,
    Relaxation,
    check_sites,
    names_of,
    refuse_integer,
    refuse_soft_value,
    refuse_straight_through,
    refuse_weights,
)
from gs_ppl._shared.following import check_program
from gs_ppl._shared.reprs import handled
from gs_ppl._shared.wrappers import innermost, masks, refuse_composed, rewrap
from gs_ppl.pyro import functional as F
from gs_ppl.pyro._base import (
    BitWithoutTemperature,
    LogitsDistribution,
    WithoutTemperature,
    parse_logits,
)
from gs_ppl.pyro.distributions import ExpGumbelSoftmax, GumbelSoftmax, OneHotCategorical
from gs_ppl.pyro.functional import Temperature
from gs_ppl.pyro.integers import (
    classes,
    event_dims,
    integer_law,
    is_count,
    is_integer,
    of_values,
    parameters,
    truncated,
    values_of,
)
from gs_ppl.pyro.soft_index import (
    as_float,
    hardened,
    interpret,
    soft_bit,
    soft_index,
    soft_one_hot,
)
from gs_ppl.pyro.soft_value import SoftIndex

__all__ = ["discretize", "relax"]


def is_relaxed(law: Any) -> bool:
    """Relaxed and straight-through laws, also those of torch and Pyro."""
    ours = isinstance(law, LogitsDistribution) and law.has_temperature
    return ours or isinstance(law, RelaxedOneHotCategorical | RelaxedBernoulli)


def has_classes(law: Any) -> bool:
    """Whether its values are classes: one-hot vectors, bits, or relaxed ones."""
    return event_dims(law) is not None


def _is_discrete(law: Any) -> bool:
    """One-hot and Bernoulli laws, of the PPL and of this library, that are not relaxed already."""
    return isinstance(law, OneHotCategorical | TorchOneHotCategorical | TorchBernoulli)


def is_latent(msg: dict[str, Any]) -> bool:
    return not msg["is_observed"] and not site_is_subsample(msg)


@contextmanager
def random_state() -> Iterator[None]:
    """Restores the random state, also that of GPUs, which Pyro's own function leaves out."""
    state = get_rng_state()
    of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        set_rng_state(state)
        torch.cuda.set_rng_state_all(of_gpus)


def annealed(fn: Callable) -> Callable:
    """`fn` with the temperature as first positional argument; handlers and guides use it."""
    return annealing.Annealed(fn, program_inside)


def program_inside(fn: Callable) -> Callable:
    """The program inside of Pyro's handlers; a user's own partial stays whole.

    Pyro's `unwrap` takes the second argument of any partial for a program.
    """
    while True:
        if isinstance(fn, _bound_partial):
            fn = fn.func
        elif isinstance(fn, partial) and fn.func is _context_wrap:
            fn = fn.args[1]
        elif hasattr(fn, "_gs_ppl_program"):
            fn = fn._gs_ppl_program
        else:
            return fn


class _Handled(_bound_partial):
    """A program inside a messenger; its repr is the call that makes it."""

    def __repr__(self) -> str:
        messenger, program = self.func.args
        return messenger.shown(program)


class HandledModule(nn.Module):
    """A module inside a messenger: it has the module's parameters, for ELBO(model, guide)."""

    def __init__(self, messenger: Any, module: nn.Module, run: Callable) -> None:
        super().__init__()
        self.messenger, self.module, self.run = messenger, module, run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.messenger:
            return self.run(self.module)(*args, **kwargs)

    @property
    def _gs_ppl_program(self) -> nn.Module:
        return self.module

    def __repr__(self) -> str:
        return self.messenger.shown(self.module)


def _as_is(fn: Callable) -> Callable:
    return fn


def _wrap(name: str, messenger: Any, fn: Callable | None, run: Callable = _as_is) -> Any:
    """The wrapped program, or the context manager if there is no program, as in Pyro's handlers.

    Args:
        name: of the handler, for errors.
        messenger: in whose context the program runs.
        fn: the program.
        run: what is done to the program inside of the context.
    """
    if fn is None:
        return messenger
    check_program(name, fn)
    if isinstance(fn, nn.Module):
        return HandledModule(messenger, fn, run)
    inside = partial(_context_wrap, messenger, run(fn))
    return update_wrapper(_Handled(inside), fn, updated=())


# --- relax ----------------------------------------------------------------------------------------


class RelaxMessenger(Messenger):
    """Replaces each discrete latent law by its relaxed counterpart with the same parameters."""

    def __init__(
        self,
        relaxation: Relaxation,
        sites: Collection[str] | None,
        truncate: Mapping[str, int],
        max_tail: float,
        *,
        reads: bool,
    ) -> None:
        super().__init__()
        self.relaxation, self.reads = relaxation, reads
        self.truncate, self.max_tail = truncate, max_tail
        self.sites = names_of(sites)

    def shown(self, fn: Callable | None) -> str:
        options = {"sites": self.sites, "truncate": self.truncate or None}
        given = {name: value for name, value in options.items() if value is not None}
        return handled("relax", fn, **self.relaxation.shown, **given)

    def __repr__(self) -> str:
        return self.shown(None)

    def __enter__(self) -> Self:
        self._discrete: set[str] = set()
        self._relaxed: set[str] = set()
        self._recorded: dict[str, Any] = {}
        return super().__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            named = {*(self.sites or ()), *self.relaxation.named, *self.truncate}
            check_sites(named, self._discrete)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if self.reads:
            self._read(msg)
        if is_latent(msg):
            self._relax(msg)

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        # the value was given; an outer handler would have changed the law
        if isinstance(innermost(msg["fn"]), WithoutTemperature) and not msg["is_observed"]:
            refuse_without_temperature(msg["name"])
        # here an outer trace has recorded the weights, or the hardened value, already
        if not self.reads or msg["value"] is None:
            return
        if msg["name"] in self._relaxed:
            msg["value"] = _handed(msg)
        elif msg["name"] in self._discrete and not msg["is_observed"]:
            law = innermost(msg["fn"])
            if isinstance(law, Categorical) and msg["value"].is_floating_point():
                refuse_weights(msg["name"])
        elif msg["name"] in self._recorded:
            msg["value"] = self._recorded.pop(msg["name"])

    def _read(self, msg: dict[str, Any]) -> None:
        """Replaces soft values in a message, since its readers are outside of the program."""
        name, value = msg["name"], msg["value"]
        if isinstance(value, SoftIndex):
            if not msg["infer"].get("_deterministic"):
                refuse_soft_value(name, "obs", "give a float, as in obs=locs[z]")
            self._recorded[name] = value
            msg["value"] = _shown(value)
            msg["fn"] = rewrap(msg["fn"], partial(_without_soft, name, take=_shown))
        if isinstance(msg["mask"], SoftIndex):
            _refuse_mask(name)
        msg["fn"] = _without_soft(name, msg["fn"])
        msg["scale"] = as_float(msg["scale"])

    def _relax(self, msg: dict[str, Any]) -> None:
        name, law = msg["name"], innermost(msg["fn"])
        largest = self.truncate.get(name)
        if _is_discrete(law) or is_integer(law) or largest is not None:
            self._discrete.add(name)
        if self.sites is not None and name not in self.sites:
            return
        refuse_composed(name, law, has_classes)
        straight = RelaxedOneHotCategoricalStraightThrough | RelaxedBernoulliStraightThrough
        if isinstance(law, straight):
            refuse_straight_through(name, type(law).__name__)
        if largest is not None or is_integer(law):
            if not self.reads:
                refuse_integer(name)
            limit = None if largest is None else self.max_tail
            values, given = classes(name, law) if largest is None else truncated(name, law, largest)
            integers = of_values(values, limit is not None or is_count(law), limit)
            make = self.relaxation.law(name, 1, integers)
        elif _is_discrete(law) and (dims := event_dims(law)) is not None:
            make, given = self.relaxation.law(name, dims), parameters(law)
        else:
            return
        self._relaxed.add(name)
        msg["fn"] = rewrap(msg["fn"], lambda law: make(**given))
        # without the PPL's mark for enumeration: a relaxed site is not summed out
        msg["infer"] = {k: v for k, v in msg["infer"].items() if k != "enumerate"}


def _handed(msg: dict[str, Any]) -> Any:
    """What the program gets for the weights of a site."""
    name, law, value = msg["name"], innermost(msg["fn"]), msg["value"]
    if not is_relaxed(law) or isinstance(value, SoftIndex):
        return value  # an outer handler has undone the relaxation, or has done it already
    values = values_of(law)
    if values is not None:
        weights = law.weights(value)
        weights = weights.exp() if is_log(law) else weights
        ordinal = values == tuple(range(len(values)))
        table = None if ordinal else torch.tensor(values, device=weights.device)
        z = soft_index(name, weights, table)
        return z.to(weights.dtype) if law.floating else z
    if event_dims(law) == 0:
        return soft_bit(name, value)
    return value if is_log(law) else soft_one_hot(name, value)


def is_log(law: Any) -> bool:
    """Whether the values of the law are logs of weights."""
    return isinstance(law, ExpGumbelSoftmax)


def _refuse_mask(site: str) -> None:
    refuse_soft_value(site, "its mask", "weight the score by pyro.factor, or by an index")


def _shown(value: Any) -> Any:
    """The record of a deterministic value: the class of largest weight, or the mean."""
    is_class = isinstance(value, SoftIndex) and not value.is_floating_point()
    return hardened(value) if is_class else as_float(value)


def _without_soft(site: str, fn: Any, take: Callable[[Any], Any] = as_float) -> Any:
    """A law with the means of its soft parameters."""
    found = {
        name: _without_soft(site, x, take) if isinstance(x, Distribution) else take(x)
        for name, x in getattr(fn, "__dict__", {}).items()
        if isinstance(x, (SoftIndex, Distribution))
    }
    changed = {name: x for name, x in found.items() if x is not fn.__dict__[name]}
    if not changed:
        return fn
    if any(isinstance(mask, SoftIndex) for mask in masks(fn)):
        _refuse_mask(site)
    constraints = getattr(fn, "arg_constraints", {})
    for name in changed:
        given = fn.__dict__[name]
        if isinstance(given, SoftIndex) and name in constraints and _is_counted(constraints[name]):
            refuse_soft_value(site, f"its integer parameter {name}", TABLE_OF_SCORES)
        if isinstance(given, SoftIndex) and name == "mask":  # of MaskedMixture
            _refuse_mask(site)
    new = copy.copy(fn)
    new.__dict__.update(changed)
    return new


def _is_counted(constraint: Any) -> bool:
    """Whether a parameter is an integer; some constraints that depend on others do not say."""
    try:
        return constraint.is_discrete
    except NotImplementedError:
        return False


def relax(
    fn: Callable | None = None,
    temperature: Temperature | None = None,
    *,
    family: Family | Mapping[str, Family] = GumbelSoftmax,
    sites: Collection[str] | None = None,
    truncate: Mapping[str, int] | None = None,
    max_tail: float = 1e-3,
    objective: str = "categorical",
) -> Any:
    """Relaxes the discrete latents of a program, for SVI: integers, bits and one-hot vectors.

    The trace has the weights of the classes. A program that draws integers needs no change: it gets
    a soft index, and table[z] is the mean of the rows of the table under the weights.

    Relax model and guide in the same way. Observed sites, continuous sites and sites that are
    relaxed already do not change.

    Args:
        fn: program; without one, the handler is a context manager, for one-hot sites and bits.
        temperature: tau > 0; None uses that of AnnealedSVI.
        family: class for all sites, soft (GumbelSoftmax) or straight-through; or a partial with
            options, such as partial(GumbelRao, num_samples=100); or a dict by site name (the other
            sites use GumbelSoftmax). A Bernoulli site uses the binary class of the family.
        sites: names of the sites to relax; None: all. Marks for enumeration stay at the others.
        truncate: largest count by site name, for laws of counts without a largest value (Poisson).
            The law is then renormalised over 0..largest.
        max_tail: largest probability, in any row, of the counts that are cut off; check, and the
            end of AnnealedSVI.run, refuse more.
        objective: what log_prob of soft sites is. "categorical": the categorical mass, linear in
            the value, with exact KL under TraceMeanField_ELBO; this is the paper's objective. It
            converges to the discrete ELBO as tau -> 0, and is not a bound at tau > 0. "relaxed":
            the density; it gives a bound on the evidence of the relaxed program, whose optimum is
            not the discrete posterior. Straight-through families always use the mass.

    A bit with probability 0 or 1 always has that value, and no gradient. So Bernoulli(phi * alive)
    learns nothing about phi in draws in which a straight-through alive is 0.

    Raises:
        ValueError: naming the site, for an integer site inside of the context manager, a use of a
            soft index that has no meaning, a support that is not fixed and finite, a family
            without a class for the site, a name without a site, and a missing temperature.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import OneHotCategorical, relax
        >>> def model():
        ...     return pyro.sample("z", OneHotCategorical(logits=torch.zeros(3)))
        >>> bool((relax(model, temperature=0.5)() > 0).all())
        True
    """
    laws = BitWithoutTemperature, WithoutTemperature
    relaxation = Relaxation(temperature, family, objective, GumbelSoftmax, laws)
    messenger = RelaxMessenger(relaxation, sites, truncate or {}, max_tail, reads=fn is not None)
    return _wrap("relax", messenger, fn, _interpreted)


def _interpreted(fn: Callable) -> Callable:
    program: Any = interpret(fn)
    program._gs_ppl_program = fn
    return program


# --- discretize -----------------------------------------------------------------------------------


class DiscretizeMessenger(Messenger):
    """Replaces each relaxed or straight-through latent law by the discrete one."""

    def shown(self, fn: Callable | None) -> str:
        return handled("discretize", fn)

    def __repr__(self) -> str:
        return self.shown(None)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if is_latent(msg):
            refuse_composed(msg["name"], innermost(msg["fn"]), has_classes)
            msg["fn"] = rewrap(msg["fn"], _discretized)


def _discretized(law: Any) -> Any:
    if not (isinstance(law, LogitsDistribution) or is_relaxed(law)):
        return law
    if (values := values_of(law)) is not None:
        return integer_law(logits_of(law), values, law.floating)
    return OneHotCategorical(logits=logits_of(law)) if event_dims(law) else bit(law)


class SureBernoulli(Bernoulli):
    """Pyro's Bernoulli, with a score where the logits are infinite."""

    def log_prob(self, value: Tensor) -> Tensor:
        return F.bernoulli_log_prob(self.logits, value, self.logits.isfinite())

    def entropy(self) -> Tensor:
        return F.bernoulli_entropy(self.logits, self.logits.isfinite())


def bit(law: Any) -> Bernoulli:
    """Pyro's law for the class of a relaxed bit."""
    sure = isinstance(law, LogitsDistribution) and law.unsure is not None
    return (SureBernoulli if sure else Bernoulli)(logits=logits_of(law))


def logits_of(law: Any) -> Tensor:
    """Logits in at least float32; infinite for a bit of probability 0 or 1."""
    if isinstance(law, LogitsDistribution):
        return law.a
    given = parameters(law)
    name, dims = type(law).__name__, len(law.event_shape)
    logits = parse_logits(name, given.get("probs"), given.get("logits"), dims)
    return logits.to(promote_types(logits.dtype, float32))


def discretize(fn: Callable | None = None) -> Any:
    """The reverse of relax: relaxed and straight-through latents become discrete.

    Use it to evaluate a trained guide on the discrete program.

    Args:
        fn: program; without one, the handler is a context manager.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import GumbelSoftmax, discretize
        >>> def guide():
        ...     return pyro.sample("z", GumbelSoftmax(0.5, logits=torch.zeros(3)))
        >>> discretize(guide)().sum()
        tensor(1.)
    """
    return _wrap("discretize", DiscretizeMessenger(), fn)
