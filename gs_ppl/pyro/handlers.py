"""Handlers that relax, discretize and exactly enumerate the discrete latents of a program."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import update_wrapper
from types import TracebackType
from typing import Any, Self

import torch
from pyro.distributions import Bernoulli, Categorical
from pyro.ops.indexing import Vindex
from pyro.poutine import unwrap
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions import constraints

from gs_ppl._shared import annealing
from gs_ppl._shared.families import Family, Relaxation, check_sites, refuse_integer
from gs_ppl._shared.wrappers import innermost, rewrap
from gs_ppl.pyro._base import LogitsDistribution
from gs_ppl.pyro.distributions import GumbelSoftmax, OneHotCategorical
from gs_ppl.pyro.functional import Temperature

__all__ = ["config_enumerate", "discretize", "relax", "select"]


def _parameters(law: Any) -> dict[str, Tensor]:
    """Probs where a native law was given them, so that a zero stays a masked category."""
    source = getattr(law, "_categorical", law)
    if "probs" in source.__dict__ and source._param is source.__dict__["probs"]:
        return {"probs": source.probs}
    return {"logits": law.logits}


def event_dims(law: Any) -> int | None:
    """1 for a one-hot law, 0 for a bit, None for any other."""
    if isinstance(law, LogitsDistribution):
        return law.event_dims
    if isinstance(law, TorchOneHotCategorical):
        return 1
    return 0 if isinstance(law, TorchBernoulli) else None


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
    return annealing.annealed(fn, unwrap)


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
        if isinstance(law, TorchCategorical) and "enumerate" not in msg["infer"]:
            refuse_integer(name)
        if _is_discrete(law):
            make = self.relaxation.law(name, event_dims(law))
            msg["fn"] = rewrap(msg["fn"], lambda law: make(**_parameters(law)))


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
    relaxation = Relaxation(temperature, family, objective, GumbelSoftmax)
    return _wrap(RelaxMessenger(relaxation, sites), fn)


# --- discretize -----------------------------------------------------------------------------------


class DiscretizeMessenger(Messenger):
    """Replaces each relaxed or straight-through latent law by the discrete one."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if is_latent(msg):
            msg["fn"] = rewrap(msg["fn"], _discretized)


def _discretized(law: Any) -> Any:
    if not isinstance(law, LogitsDistribution):
        return law
    return OneHotCategorical(logits=law.a) if law.event_dims else Bernoulli(logits=law.a)


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


# --- enumerate ------------------------------------------------------------------------------------


class OneHotIndex(Categorical):
    """The integer law that a one-hot site is lowered to; scores one-hot vectors as well."""

    def log_prob(self, value: Tensor) -> Tensor:
        if value.is_floating_point():
            if self._validate_args and not constraints.one_hot.check(value).all():
                raise ValueError(f"a class index or a one-hot vector is wanted, got {value}")
            value = value.argmax(-1)
        return super().log_prob(value)


class EnumerateMessenger(Messenger):
    """Lowers one-hot sites to integers, and hands the program the one-hot vector."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not is_latent(msg):
            return
        dims = event_dims(innermost(msg["fn"]))
        if dims is not None and msg["fn"].event_dim > dims:
            raise ValueError(
                f"site {msg['name']!r}: to_event joins {msg['fn'].event_shape} discrete variables"
                " into one, whose joint support is not enumerated: use a plate instead, and stay"
                " inside of it with all that depends on the site"
            )
        msg["fn"] = rewrap(msg["fn"], _lowered)
        if getattr(msg["fn"], "has_enumerate_support", False):
            msg["infer"] = {"enumerate": "parallel", "expand": False, **msg["infer"]}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        # after an outer trace has recorded the integer
        law, value = innermost(msg["fn"]), msg["value"]
        if isinstance(law, OneHotIndex) and not value.is_floating_point():
            K = law.logits.shape[-1]
            msg["value"] = torch.nn.functional.one_hot(value, K).to(law.logits.dtype)


def _lowered(law: Any) -> Any:
    dims = event_dims(law)
    if dims is None or isinstance(law, TorchBernoulli):
        return law
    return OneHotIndex(**_parameters(law)) if dims else Bernoulli(logits=law.a)


def config_enumerate(fn: Callable | None = None) -> Any:
    """Marks every discrete latent site for exact enumeration under TraceEnum_ELBO.

    One-hot, relaxed and straight-through sites are lowered: inference sees an integer Categorical
    with the same parameters (class indices in traces and samples), the program its one-hot vector.
    Condition and substitute accept indices and one-hot vectors alike.

    Raises:
        ValueError: naming the site, where to_event has joined several discrete variables.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import OneHotCategorical, config_enumerate
        >>> def model():
        ...     z = pyro.sample("z", OneHotCategorical(logits=torch.zeros(2)))
        ...     loc = (z * torch.tensor([-1.0, 1.0])).sum(-1)
        ...     pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=torch.tensor(0.0))
        >>> elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=0)
        >>> round(elbo.loss(config_enumerate(model), lambda: None), 4)
        1.4189
    """
    return _wrap(EnumerateMessenger(), fn)


# --- select ---------------------------------------------------------------------------------------


def select(table: Tensor, z: Tensor, binary: bool = False) -> Tensor:
    """Entry of the last axis of a table that z stands for, whatever the mode.

    sum_k table_k z_k for a one-hot or soft z, table[..., z] for an integer one, and for a bit
    (`binary`) table_0 (1 - z) + table_1 z. One model source serves all modes.

    Args:
        table: shape (..., K); K = 2 where binary.
        z: floating with last axis K; or integer, or a bit, of the batch shape.
        binary: whether a floating z is a bit.

    Example:
        >>> import torch
        >>> table = torch.tensor([1.0, 2.0, 4.0])
        >>> select(table, torch.tensor([0.5, 0.5, 0.0])), select(table, torch.tensor(2))
        (tensor(1.5000), tensor(4.))
    """
    if not z.is_floating_point():
        return Vindex(table)[..., z.long()]
    if binary:
        return table[..., 0] * (1 - z) + table[..., 1] * z
    if z.shape[-1:] != table.shape[-1:]:
        raise ValueError(
            f"select: the last axes of table and z must agree, got shapes {tuple(table.shape)} and"
            f" {tuple(z.shape)}; pass binary=True for a soft bit"
        )
    return (table * z).sum(-1)
