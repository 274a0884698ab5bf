"""Automatic guides over the discrete latents of a program."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from operator import attrgetter
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.autoguide.utils import deep_setattr
from pyro.infer.inspect import get_dependencies
from pyro.nn import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from torch import Size, Tensor
from torch.distributions import Bernoulli, constraints

from gs_ppl._shared import structure
from gs_ppl._shared.annealing import refuse_before_first_run
from gs_ppl._shared.families import (
    Family,
    Relaxation,
    check_sites,
    named,
    refuse_sure_rows,
)
from gs_ppl._shared.following import check_broadcast, check_continuous
from gs_ppl._shared.reprs import handled
from gs_ppl._shared.sparse import plate_of_rows, refuse_without_rows
from gs_ppl._shared.structure import Parents, check_parents, find_parents, refuse_joined
from gs_ppl._shared.wrappers import innermost, rewrap
from gs_ppl.pyro import functional as F
from gs_ppl.pyro._base import BitWithoutTemperature, WithoutTemperature
from gs_ppl.pyro.distributions import GumbelSoftmax, OneHotCategorical
from gs_ppl.pyro.follow import Follows, Unrolled, terms_of
from gs_ppl.pyro.functional import Temperature
from gs_ppl.pyro.handlers import (
    discretize,
    has_classes,
    is_latent,
    program_inside,
    random_state,
)
from gs_ppl.pyro.integers import (
    classes,
    event_dims,
    is_count,
    is_integer,
    of_values,
    parameters,
    values_of,
)
from gs_ppl.pyro.sparse import rows_of_table
from gs_ppl.pyro.structure import mixed, weights_of

__all__ = ["AutoGuideList", "AutoGumbelSoftmax", "auto_relaxed"]


class SiteLogits(Follows):
    """Logits for each discrete latent of a program, for all rows of its plates."""

    def __init__(
        self,
        model: Callable,
        sites: Collection[str] | None,
        init_logits: float | Mapping[str, Any],
        parents: Parents,
        sparse: bool,
        create_plates: Callable | None,
    ) -> None:
        super().__init__(model, create_plates=create_plates)
        check_parents(parents)
        self.sparse = sparse
        self._structure = parents
        self._init_logits = init_logits
        self._wanted = None if sites is None else frozenset(sites)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.logits = PyroModule()
        self._sites: dict[str, int] = {}
        self._values: dict[str, tuple[tuple[int, ...], bool]] = {}  # of integer sites
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            if self._wanted is not None and name not in self._wanted:
                continue
            law = innermost(site["fn"])
            if is_integer(law):  # a vector of weights over its support
                values, given = classes(name, law)
                self._values[name] = values, is_count(law)
                law = _one_hot(given)
                site["fn"] = rewrap(site["fn"], partial(_in_place_of, law))
                site["value"] = law.logits.new_zeros(site["fn"].shape())
            elif (integers := values_of(law)) is not None:
                self._values[name] = integers, law.floating
            dims = event_dims(law)
            if dims is None:
                continue
            self._sites[name] = dims
        check_sites({*named(self._init_logits), *(self._wanted or ())}, {*self._sites})
        if not self._sites:
            raise ValueError("AutoGumbelSoftmax: the program has no discrete latents")
        sites = {name: self.prototype_trace.nodes[name] for name in self._sites}
        plates = {n: [f.name for f in site["cond_indep_stack"]] for n, site in sites.items()}
        upstream = partial(self._upstream, args, kwargs)
        self._parents = find_parents(self._structure, plates, upstream)
        self._row_plates = self._plates_of_rows(sites, args, kwargs) if self.sparse else {}
        self._infinite: dict[str, bool] = {}
        for name, site in sites.items():
            self._setup_logits(name, site, args, kwargs)

    def _plates_of_rows(self, sites: Mapping, args: tuple, kwargs: dict) -> dict[str, str]:
        """By site, of those that are in a plate."""
        _, given, _ = self._known(args, kwargs)
        found = {}
        for name, site in sites.items():
            frames = site["cond_indep_stack"]
            if frames:
                plates = {frame.dim: frame.name for frame in frames}
                some = {
                    f.name for f in frames if f.name in given or f.full_size not in (None, f.size)
                }
                found[name] = plate_of_rows(name, plates, some, len(site["fn"].batch_shape))
        return found or refuse_without_rows()

    def _setup_logits(self, name: str, site: dict[str, Any], args: tuple, kwargs: dict) -> None:
        event_dim = self._event_dim(name)
        full = {
            frame.dim - event_dim: frame.full_size
            for frame in site["cond_indep_stack"]
            if frame.full_size not in (None, frame.size)
        }
        of_parents = [self._classes(name, parent) for parent in self._parents[name]]
        logits, whole = self._initial(name, site, of_parents, full)
        if not whole:
            logits = logits + self._sure(name, site, args, kwargs)
        self._infinite[name] = bool(logits.isinf().any())
        own_rows = None if name in self._row_plates else event_dim  # None: no plate picks rows
        deep_setattr(self.logits, name, PyroParam(logits.contiguous(), constraints.real, own_rows))

    def _event_dim(self, name: str) -> int:
        """Axes of the logits that are none of the rows: the parents' classes, and the event's."""
        return len(self._parents[name]) + self.prototype_trace.nodes[name]["fn"].event_dim

    def _classes(self, name: str, parent: str) -> int:
        fn = self.prototype_trace.nodes[parent]["fn"]
        if fn.event_dim > self._sites[parent]:
            refuse_joined(name, parent)
        return fn.event_shape[-1] if fn.event_dim else 2

    def _upstream(self, args: tuple, kwargs: dict) -> Mapping[str, Collection[str]]:
        with random_state(), poutine.block():
            model = poutine.block(self.model, hide_types=["param"])
            return get_dependencies(model, args, kwargs)["prior_dependencies"]

    def _initial(
        self, name: str, site: dict[str, Any], of_parents: list[int], full: Mapping[int, int]
    ) -> tuple[Tensor, bool]:
        """Logits of all rows, which are `full` by axis; whether the user has given them so."""
        value, fn = site["value"], site["fn"]
        given = self._init_logits
        given = given.get(name, 0.0) if isinstance(given, Mapping) else given
        init = torch.as_tensor(given, dtype=value.dtype, device=value.device)
        shape, given_shape = [*fn.batch_shape, *of_parents, *fn.event_shape], init.shape
        for axis, size in full.items():
            if init.dim() >= -axis and init.shape[axis] == shape[axis] != 1:
                init = periodic_repeat(init, size, axis)
            shape[axis] = size
        check_broadcast(name, tuple(init.shape), tuple(shape))
        return init.broadcast_to(shape).clone(), bool(full) and given_shape == Size(shape)

    def _sure(self, name: str, site: dict[str, Any], args: tuple, kwargs: dict) -> Tensor | float:
        """-inf at masked categories, at bits of probability 0 and 1 those values; 0 elsewhere.

        What depends on other latents is left to training: it may differ in the next draw.
        """
        ((what, given),) = parameters(innermost(site["fn"])).items()
        never, always = {"probs": (0.0, 1.0), "logits": (-math.inf, math.inf)}[what]
        a = given.detach()
        sure = torch.zeros_like(a).masked_fill(a == never, -math.inf)
        if not self._sites[name]:
            sure = sure.masked_fill(a == always, math.inf)
        if not sure.isinf().any():
            return 0.0
        if set(self._upstream(args, kwargs)[name]) - {name}:
            return 0.0
        fn = site["fn"]
        sure = sure.expand(fn.shape())
        sure = sure.reshape(fn.batch_shape + (1,) * len(self._parents[name]) + fn.event_shape)
        for frame in site["cond_indep_stack"]:
            axis, full_size = frame.dim - self._event_dim(name), frame.full_size or frame.size
            if full_size != frame.size:
                if (sure != sure.narrow(axis, 0, 1)).any():
                    refuse_sure_rows(name, frame.name)
                sure = sure.narrow(axis, 0, 1)
        return sure

    def _logits(self) -> dict[str, Tensor]:
        """Those of the parameter store, in a fresh process too."""
        if self.prototype_trace is None:
            refuse_before_first_run(bool(inspect.signature(program_inside(self.model)).parameters))
            with random_state():
                for guide in (self,) if self.master is None else (self.master(), self):
                    if guide.prototype_trace is None:
                        guide._setup_prototype()
        with self._pyro_context, poutine.block():  # outside of it a module has its own values
            return {name: attrgetter(name)(self.logits) for name in self._sites}

    @torch.no_grad()
    def probs(self) -> dict[str, Tensor]:
        """Class probabilities of each site, for all rows of its plates; for a bit those of 1.

        For a site with parents they are its marginal.
        """
        logits = self._logits()
        if any(self._parents.values()):
            found = structure.marginals(self._laws(logits))
            return {
                name: torch.from_numpy(p if self._sites[name] else p[..., 1]).to(logits[name])
                for name, p in found.items()
            }
        return {
            name: a.softmax(-1) if self._sites[name] else a.sigmoid() for name, a in logits.items()
        }

    @torch.no_grad()
    def mode(self) -> dict[str, Tensor]:
        """The most probable value of each site: a one-hot vector, a bit, or an integer.

        With parents: the values that are the most probable together.
        """
        logits = self._logits()
        if any(self._parents.values()):
            found = structure.maximum(self._laws(logits))
            return {name: self._of_class(name, i, logits[name]) for name, i in found.items()}
        return {
            name: self._value(name, F.one_hot_argmax(a)) if self._sites[name] else (a > 0).to(a)
            for name, a in logits.items()
        }

    def _laws(self, logits: Mapping[str, Tensor]) -> dict[str, structure.Law]:
        return {
            name: structure.Law(
                a.detach().double().cpu().numpy(),
                self._parents[name],
                self.prototype_trace.nodes[name]["fn"].event_dim,
                not self._sites[name],
            )
            for name, a in logits.items()
        }

    def _of_class(self, name: str, index: Any, like: Tensor) -> Tensor:
        """What classes are to the program."""
        at = torch.from_numpy(index).to(like.device)
        if not self._sites[name]:
            return at.to(like)
        return self._value(name, torch.nn.functional.one_hot(at, like.shape[-1]).to(like))

    def _value(self, name: str, vector: Tensor) -> Tensor:
        """What a one-hot vector is to the program."""
        if name not in self._values:
            return vector
        values, floating = self._values[name]
        value = torch.tensor(values, device=vector.device)[vector.argmax(-1)]
        return value.to(vector.dtype) if floating else value

    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """None: a class has no quantiles; AutoGuideList gives those of its other parts."""
        return {}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The mode. AutoGuideList calls it."""
        return self.mode()

    def sample_posterior(self, *, sample_shape: Size = Size()) -> dict[str, Tensor]:
        """Discrete draws of each site: one-hot vectors, bits, integers; all rows of its plates."""
        found: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        for name, table in self._logits().items():
            event_dim = self.prototype_trace.nodes[name]["fn"].event_dim
            rows = table.dim() - self._event_dim(name)
            given = [weights[parent] for parent in self._parents[name]]
            for i, (w, parent) in enumerate(zip(given, self._parents[name], strict=True)):
                own = self.prototype_trace.nodes[parent]["fn"].batch_shape
                between = (1,) * (rows - len(own))
                given[i] = w.reshape(sample_shape + between + w.shape[len(sample_shape) :])
            a = mixed(table, given, event_dim, has_infinite=self._infinite[name])
            shape = Size() if given else sample_shape
            if self._sites[name]:
                vector = OneHotCategorical(logits=a).sample(shape)
                weights[name], found[name] = vector, self._value(name, vector)
            else:
                found[name] = bit = Bernoulli(logits=a).sample(shape)
                weights[name] = torch.stack([1 - bit, bit], -1)
        return found


class AutoGumbelSoftmax(SiteLogits):
    """Guide in which each discrete latent has its own logits and is drawn from `family`.

    q(z) = prod_i family(tau, sum_k y_k table_ik), y the weights of the parents of i: mean field
    unless there are `parents`. Plates and subsampling are included. Continuous latents are left to
    the other parts of an AutoGuideList (see auto_relaxed).

    With parents="model" q can be the exact posterior of chains and trees whose observations depend
    on one latent and its parents each; not where two causes meet in one effect. At hard samples
    the rows of the tables are chosen, so that losses of straight-through families are estimates of
    the discrete ELBO without bias, and gradients have the bias of the family alone. At soft samples
    the divergence of a site is that of the mixed logits, not the mean of the rows' divergences.
    The objective "relaxed" is a bound with parents too.

    Args:
        model: program with discrete latents, relaxed or not.
        temperature: tau > 0; None takes that of AnnealedSVI.
        family: class for all sites, with options a partial, such as partial(GumbelRao,
            num_samples=100); or a dict by site name (GumbelSoftmax for the others).
        sites: names of the sites to draw; None: all. Give relax the same.
        objective: "categorical" or "relaxed", as the model's; see relax.
        init_logits: a number for all, or a dict of arrays by site name (0 for the others).
        parents: "none" is mean field; "model" gives each latent those that its law in the model
            depends on; or a dict from a site to a list of others. Logits of a site with parents
            are a table, shape plates + (K of each parent, ...) + (K,), mixed by their weights.
        sparse: in AnnealedSVI each row of the first plate takes a step of its own optimizer where
            it is in the minibatch, and none elsewhere; the cost does not depend on their number.
        create_plates: as in Pyro's other automatic guides.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import AutoGumbelSoftmax, OneHotCategorical
        >>> pyro.clear_param_store()
        >>> def model():
        ...     with pyro.plate("data", 4):
        ...         pyro.sample("z", OneHotCategorical(logits=torch.zeros(3)))
        >>> guide = AutoGumbelSoftmax(model, temperature=0.5)
        >>> guide()["z"].shape, guide.probs()["z"][0]
        (torch.Size([4, 3]), tensor([0.3333, 0.3333, 0.3333]))
    """

    def __init__(
        self,
        model: Callable,
        temperature: Temperature | None = None,
        *,
        family: Family | Mapping[str, Family] = GumbelSoftmax,
        sites: Collection[str] | None = None,
        objective: str = "categorical",
        init_logits: float | Mapping[str, Any] = 0.0,
        parents: Parents = "none",
        sparse: bool = False,
        create_plates: Callable | None = None,
    ) -> None:
        laws = BitWithoutTemperature, WithoutTemperature
        self.relaxation = Relaxation(temperature, family, objective, GumbelSoftmax, laws)
        super().__init__(model, sites, init_logits, parents, sparse, create_plates)

    def __repr__(self) -> str:
        return handled(type(self).__name__, self.model, **self.relaxation.shown)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        check_sites(self.relaxation.named, {*self._sites})

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates, result = self._create_plates(*args, **kwargs), {}
        terms = self._terms(plates, args, kwargs)
        is_parent = frozenset().union(*self._parents.values())
        weights: dict[str, Tensor] = {}
        for name, dims in self._sites.items():
            site = self.prototype_trace.nodes[name]
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                values = self._values.get(name)
                make = self.relaxation.law(name, dims, of_values(*values) if values else None)
                given = [weights[parent] for parent in self._parents[name]]
                event_dim, infinite = site["fn"].event_dim, self._infinite[name]
                table = attrgetter(name)(self.logits)
                if name in self._row_plates:
                    table = rows_of_table(table, plates[self._row_plates[name]].indices)
                law = make(logits=mixed(table, given, event_dim, has_infinite=infinite))
                fn = law.to_event(site["fn"].event_dim - dims)
                if name in terms:
                    stack.enter_context(terms_of(terms[name]))
                    fn = rewrap(terms[name]["fn"], partial(_in_place_of, law))
                seen = stack.enter_context(poutine.trace()) if name in is_parent else None
                result[name] = pyro.sample(name, fn)
            if seen is not None:  # after the handlers around, which may make it discrete
                drawn = innermost(seen.trace.nodes[name]["fn"])
                weights[name] = weights_of(drawn, result[name], values and values[0])
        return result


def _one_hot(given: dict[str, Any]) -> OneHotCategorical:
    return OneHotCategorical(**given)


def _in_place_of(law: Any, other: Any) -> Any:
    return law


class AutoGuideList(Follows, autoguide.AutoGuideList):
    """Pyro's AutoGuideList, whose rows are those that the program is given."""

    def __repr__(self) -> str:
        parts = (repr(part) if isinstance(part, Follows) else type(part).__name__ for part in self)
        return f"AutoGuideList({', '.join(parts)})"

    def probs(self) -> dict[str, Tensor]:
        """Class probabilities of the discrete latents, as AutoGumbelSoftmax.probs."""
        parts = (part for part in self if isinstance(part, AutoGumbelSoftmax))
        return {name: p for part in parts for name, p in part.probs().items()}

    def mode(self) -> dict[str, Tensor]:
        """Most probable values of the discrete latents, as AutoGumbelSoftmax.mode."""
        parts = (part for part in self if isinstance(part, AutoGumbelSoftmax))
        return {name: z for part in parts for name, z in part.mode().items()}


def auto_relaxed(
    model: Callable,
    continuous: Callable[..., Any] = autoguide.AutoNormal,
    *,
    temperature: Temperature | None = None,
    family: Family | Mapping[str, Family] = GumbelSoftmax,
    objective: str = "categorical",
    init_logits: float | Mapping[str, Any] = 0.0,
    parents: Parents = "none",
    sparse: bool = False,
    create_plates: Callable | None = None,
) -> AutoGuideList:
    """An AutoGuideList of two parts: AutoGumbelSoftmax for the discrete latents of
    a program, `continuous` for all others.

    Args:
        model: program, relaxed or not.
        continuous: the automatic guide of the others, a class or a partial of one; its options
            such as init_loc_fn go by partial. Not one that needs the density of the whole
            program, such as AutoLaplaceApproximation.
        temperature: as AutoGumbelSoftmax.
        family: as AutoGumbelSoftmax.
        objective: as AutoGumbelSoftmax.
        init_logits: as AutoGumbelSoftmax.
        parents: as AutoGumbelSoftmax; of the discrete latents alone.
        sparse: as AutoGumbelSoftmax; of the discrete latents' logits alone.
        create_plates: as AutoGumbelSoftmax.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import OneHotCategorical, auto_relaxed
        >>> def model():
        ...     pyro.sample("w", pyro.distributions.Normal(0.0, 1.0))
        ...     pyro.sample("z", OneHotCategorical(logits=torch.zeros(2)))
        >>> guide = auto_relaxed(model, temperature=0.5)
        >>> pyro.clear_param_store()
        >>> sorted(guide())
        ['w', 'z']
    """
    guide = AutoGuideList(model, create_plates=create_plates)
    plain = Unrolled()(discretize(model))
    part = continuous(poutine.block(plain, hide_fn=_is_discrete))
    check_continuous(part)
    guide.append(part)
    discrete = poutine.block(plain, hide_fn=_is_continuous)
    part = AutoGumbelSoftmax(
        discrete,
        temperature,
        family=family,
        objective=objective,
        init_logits=init_logits,
        parents=parents,
        sparse=sparse,
    )
    guide.append(part)
    return guide


def _is_discrete(msg: dict[str, Any]) -> bool:
    if msg["type"] != "sample" or not is_latent(msg):
        return False
    law = innermost(msg["fn"])
    return has_classes(law) or law.support.is_discrete


def _is_continuous(msg: dict[str, Any]) -> bool:
    return msg["type"] == "sample" and is_latent(msg) and not _is_discrete(msg)
