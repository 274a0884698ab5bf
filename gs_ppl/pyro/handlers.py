"""Handlers that relax and discretize the latents of a program; select, for tables of classes."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, update_wrapper
from types import TracebackType
from typing import Any, Self

from pyro.distributions import (
    Bernoulli,
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
)
from pyro.ops.indexing import Vindex
from pyro.poutine.messenger import Messenger, _bound_partial, _context_wrap
from pyro.poutine.util import site_is_subsample
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, float32, promote_types
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions import RelaxedBernoulli, RelaxedOneHotCategorical

from gs_ppl._shared import annealing
from gs_ppl._shared.annealing import refuse_without_temperature
from gs_ppl._shared.families import (
    Family,
    Relaxation,
    check_sites,
    refuse_integer,
    refuse_straight_through,
)
from gs_ppl._shared.wrappers import innermost, refuse_composed, rewrap
from gs_ppl.pyro import functional as F
from gs_ppl.pyro._base import (
    BitWithoutTemperature,
    LogitsDistribution,
    WithoutTemperature,
    parse_logits,
)
from gs_ppl.pyro.distributions import GumbelSoftmax, OneHotCategorical
from gs_ppl.pyro.functional import Temperature

__all__ = ["discretize", "relax", "select"]


def parameters(law: Any) -> dict[str, Tensor]:
    """Probs where a native law was given them, so that a zero stays a masked category."""
    source = getattr(law, "_categorical", law)
    if "probs" in source.__dict__ and source._param is source.__dict__["probs"]:
        return {"probs": source.probs}
    return {"logits": law.logits}


def event_dims(law: Any) -> int | None:
    """1 for a one-hot law, 0 for a bit, None for any other."""
    if isinstance(law, LogitsDistribution):
        return law.event_dims
    if isinstance(law, TorchOneHotCategorical | RelaxedOneHotCategorical):
        return 1
    return 0 if isinstance(law, TorchBernoulli | RelaxedBernoulli) else None


def is_relaxed(law: Any) -> bool:
    """Relaxed and straight-through laws, torch's and Pyro's among them."""
    ours = isinstance(law, LogitsDistribution) and law.has_temperature
    return ours or isinstance(law, RelaxedOneHotCategorical | RelaxedBernoulli)


def has_classes(law: Any) -> bool:
    """Whether its values stand for classes: one-hot vectors, bits, relaxed ones."""
    return event_dims(law) is not None


def _is_discrete(law: Any) -> bool:
    """One-hot and Bernoulli laws, the PPL's and ours; not those that are relaxed already."""
    return isinstance(law, OneHotCategorical | TorchOneHotCategorical | TorchBernoulli)


def is_latent(msg: dict[str, Any]) -> bool:
    return not msg["is_observed"] and not site_is_subsample(msg)


@contextmanager
def random_state() -> Iterator[None]:
    """Leaves the random state as it was."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def annealed(fn: Callable) -> Callable:
    """`fn` with the temperature as a first positional argument, which handlers and guides see."""
    return annealing.annealed(fn, program_inside)


def program_inside(fn: Callable) -> Callable:
    """The program inside of Pyro's handlers; a partial of the user's own stays whole.

    Pyro's `unwrap` takes the second argument of any partial for a program.
    """
    while True:
        if isinstance(fn, _bound_partial):
            fn = fn.func
        elif isinstance(fn, partial) and fn.func is _context_wrap:
            fn = fn.args[1]
        else:
            return fn


def _wrap(messenger: Messenger, fn: Callable | None) -> Any:
    """The wrapped program, or the context manager where there is none, as Pyro's handlers do."""
    return messenger if fn is None else update_wrapper(messenger(fn), fn, updated=())


# --- relax ----------------------------------------------------------------------------------------


class RelaxMessenger(Messenger):
    """Replaces each discrete latent law by its relaxed counterpart with the same parameters."""

    def __init__(self, relaxation: Relaxation, sites: Collection[str] | None) -> None:
        super().__init__()
        self.relaxation = relaxation
        self.sites = None if sites is None else frozenset(sites)

    def __enter__(self) -> Self:
        self._discrete: set[str] = set()
        return super().__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            check_sites({*(self.sites or ()), *self.relaxation.named}, self._discrete)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name, law = msg["name"], innermost(msg["fn"])
        if not is_latent(msg):
            return
        if _is_discrete(law):
            self._discrete.add(name)
        if self.sites is not None and name not in self.sites:
            return
        refuse_composed(name, law, has_classes)
        straight = RelaxedOneHotCategoricalStraightThrough | RelaxedBernoulliStraightThrough
        if isinstance(law, straight):
            refuse_straight_through(name, type(law).__name__)
        if isinstance(law, TorchCategorical) and "enumerate" not in msg["infer"]:
            refuse_integer(name)
        dims = event_dims(law)
        if dims is not None and _is_discrete(law):
            make = self.relaxation.law(name, dims)
            msg["fn"] = rewrap(msg["fn"], lambda law: make(**parameters(law)))

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        # at a value that was given; a handler around would have put another law here
        if isinstance(innermost(msg["fn"]), WithoutTemperature) and not msg["is_observed"]:
            refuse_without_temperature(msg["name"])


def relax(
    fn: Callable | None = None,
    temperature: Temperature | None = None,
    *,
    family: Family | Mapping[str, Family] = GumbelSoftmax,
    sites: Collection[str] | None = None,
    objective: str = "categorical",
) -> Any:
    """Relaxes the latent OneHotCategorical and Bernoulli sites of a program, for SVI.

    Model and guide are relaxed alike. Observed sites, continuous ones and those that are relaxed
    already stay as they are; a program without discrete latents stays as it is altogether.

    Args:
        fn: program; without one, the handler is a context manager.
        temperature: tau > 0; None takes that of AnnealedSVI.
        family: class for all sites, with options a partial, such as partial(GumbelRao,
            num_samples=100); or a dict by site name (GumbelSoftmax for the others): a soft
            one (GumbelSoftmax) or a straight-through one. A Bernoulli site takes its binary class.
        sites: names of the sites to relax; None: all.
        objective: how soft sites are scored. "categorical": by the categorical mass, linear in the
            value, with exact KL under TraceMeanField_ELBO (the paper's objective; it tends to the
            discrete ELBO as tau -> 0, and is no bound above). "relaxed": by densities, a bound on
            the evidence of the relaxed program, whose optimum is not the discrete posterior.
            Straight-through families are scored by the mass in either case.

    A bit of probability 0 or 1 is that value, without gradient, under each objective. So
    Bernoulli(phi * alive) learns nothing of phi in draws where a straight-through alive is 0.

    Raises:
        ValueError: naming the site: an integer Categorical latent, a family without a class for
            it, a name that no site has, no temperature.

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
    return _wrap(RelaxMessenger(relaxation, sites), fn)


# --- discretize -----------------------------------------------------------------------------------


class DiscretizeMessenger(Messenger):
    """Replaces each relaxed or straight-through latent law by the discrete one."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if is_latent(msg):
            refuse_composed(msg["name"], innermost(msg["fn"]), has_classes)
            msg["fn"] = rewrap(msg["fn"], _discretized)


def _discretized(law: Any) -> Any:
    if not (isinstance(law, LogitsDistribution) or is_relaxed(law)):
        return law
    return OneHotCategorical(logits=logits_of(law)) if event_dims(law) else bit(law)


class SureBernoulli(Bernoulli):
    """Pyro's, which has no score where the logits are infinite."""

    def log_prob(self, value: Tensor) -> Tensor:
        return F.bernoulli_log_prob(self.logits, value, self.logits.isfinite())

    def entropy(self) -> Tensor:
        return F.bernoulli_entropy(self.logits, self.logits.isfinite())


def bit(law: Any) -> Bernoulli:
    """Pyro's law of a relaxed bit's class."""
    sure = isinstance(law, LogitsDistribution) and law.unsure is not None
    return (SureBernoulli if sure else Bernoulli)(logits=logits_of(law))


def logits_of(law: Any) -> Tensor:
    """In at least float32; infinite for a bit of probability 0 or 1."""
    if isinstance(law, LogitsDistribution):
        return law.a
    given = parameters(law)
    name, dims = type(law).__name__, len(law.event_shape)
    logits = parse_logits(name, given.get("probs"), given.get("logits"), dims)
    return logits.to(promote_types(logits.dtype, float32))


def discretize(fn: Callable | None = None) -> Any:
    """The reverse of relax: relaxed and straight-through latents become the discrete ones.

    What a trained guide is worth on the true discrete program is measured through it.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import GumbelSoftmax, discretize
        >>> def guide():
        ...     return pyro.sample("z", GumbelSoftmax(0.5, logits=torch.zeros(3)))
        >>> discretize(guide)().sum()
        tensor(1.)
    """
    return _wrap(DiscretizeMessenger(), fn)


# --- select ---------------------------------------------------------------------------------------


def select(table: Tensor, z: Tensor, binary: bool = False, *, axis: int = -1) -> Tensor:
    """Entry of a table that z stands for, whatever the mode: the mean of the entries under z.

    Along the last axis (-1) the other axes of the table go with the batch of z, row by row:
    sum_k table_k z_k for a one-hot or soft z, entry z of each row for an integer one, and for a bit
    (`binary`) table_0 (1 - z) + table_1 z. Along the first axis (0) it is table[z], the other axes
    after the batch of z. For a vector both are the same. One model source serves all modes.

    Args:
        table: shape (..., K), or (K, ...) along axis 0; K = 2 where binary.
        z: floating with last axis K; or integer, or a bit, of the batch shape.
        binary: whether a floating z is a bit.
        axis: -1 or 0, the axis of the classes.

    Shapes: along -1 the batch of z broadcast with (...); along 0 the batch of z + (...).

    Raises:
        ValueError: for another axis, and where table and z differ in K.

    Example:
        >>> import torch
        >>> table = torch.tensor([1.0, 2.0, 4.0])
        >>> select(table, torch.tensor([0.5, 0.5, 0.0])), select(table, torch.tensor(2))
        (tensor(1.5000), tensor(4.))
        >>> transition = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> select(transition, torch.tensor([1, 1, 0]), axis=0).shape
        torch.Size([3, 2])
    """
    if axis not in (-1, 0) or table.dim() == 0:
        raise ValueError(
            "select: axis must be -1 or 0, the last or the first of the table's, got axis"
            f" {axis!r} and a table of shape {tuple(table.shape)}"
        )
    is_vector = z.is_floating_point() and not binary
    classes = z.shape[-1:] if is_vector else (2,) if binary else (table.shape[axis],)
    if (table.shape[axis],) != tuple(classes):
        raise ValueError(
            f"select: axis {axis} of the table and the classes of z must agree, got shapes"
            f" {tuple(table.shape)} and {tuple(z.shape)}; pass binary=True for a soft bit"
        )
    if axis == 0:
        batch = z.shape[:-1] if is_vector else z.shape
        table = table.movedim(0, -1)  # the classes last, and z before the other axes
        z = z.reshape(batch + (1,) * (table.dim() - 1) + z.shape[len(batch) :])
    if not z.is_floating_point():
        return Vindex(table)[..., z.long()]
    if binary:
        return table[..., 0] * (1 - z) + table[..., 1] * z
    return (table * z).sum(-1)
