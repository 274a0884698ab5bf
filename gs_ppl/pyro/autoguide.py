"""Automatic guides over the discrete latents of a program."""

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from operator import attrgetter
from typing import Any

import pyro
from pyro import poutine
from pyro.infer import autoguide
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

from gs_ppl._shared.families import (
    Family,
    Relaxation,
    check_sites,
)
from gs_ppl._shared.following import check_continuous, check_makes_guides, in_order
from gs_ppl._shared.reprs import handled
from gs_ppl._shared.structure import Parents
from gs_ppl._shared.wrappers import innermost, rewrap
from gs_ppl.pyro._base import BitWithoutTemperature, WithoutTemperature
from gs_ppl.pyro.distributions import GumbelSoftmax
from gs_ppl.pyro.follow import Follows, Unrolled, terms_of
from gs_ppl.pyro.functional import Temperature
from gs_ppl.pyro.handlers import (
    discretize,
    has_classes,
    is_latent,
    random_state,
)
from gs_ppl.pyro.integers import (
    of_values,
)
from gs_ppl.pyro.site_logits import (
    ReadLogits,
    in_place_of,
    refuse_unless_without_arguments,
)
from gs_ppl.pyro.sparse import rows_of_table
from gs_ppl.pyro.structure import weights_of

__all__ = ["AutoGuideList", "AutoGumbelSoftmax", "auto_relaxed"]


class AutoGumbelSoftmax(ReadLogits):
    """Guide in which each discrete latent has its own logits and is drawn from `family`.

    q(z) = prod_i family(tau, sum_k y_k table_ik), where y are the weights of the parents of i.
    Without `parents` it is a mean-field guide. Plates and subsampling are those of the model. It
    does not draw continuous latents: auto_relaxed makes a guide for both kinds.

    With parents="model" q can be the exact posterior of a chain or a tree, if each observation
    depends on one latent and its parents. It cannot if two latents explain one observation. A hard
    sample chooses one row of the table of its child. So the loss of a straight-through family is an
    unbiased estimate of the discrete ELBO; its gradient has the bias of the family. A soft sample
    mixes the logits of the rows, and the divergence is that of the mixed logits. The objective
    "relaxed" is a bound with parents too.

    Args:
        model: program with discrete latents, relaxed or not.
        temperature: tau > 0; None uses that of AnnealedSVI.
        family: class for all sites, or a partial with options, such as partial(GumbelRao,
            num_samples=100); or a dict by site name (the other sites use GumbelSoftmax).
        sites: names of the sites to draw; None: all. Pass the same to relax.
        objective: "categorical" or "relaxed", the same as for the model; see relax.
        init_logits: a number for all, or a dict of arrays by site name (0 for the others).
        parents: "none" is mean field; "model" gives each latent the parents of its law in the
            model; or a dict from a site to a list of its parents. The logits of a site with parents
            are a table, shape plates + (K of each parent, ...) + (K,).
        sparse: whether each row of the first plate has its own optimizer in AnnealedSVI, which
            takes a step only if the row is in the minibatch. The cost of a step does not depend on
            the number of rows.
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
        try:
            super()._setup_prototype(*args, **kwargs)
            check_sites(self.relaxation.named, {*self._latents})
        except Exception:
            self.prototype_trace = None  # the next call finds the same error
            raise

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates, result = self._create_plates(*args, **kwargs), {}
        terms = self._terms(plates, args, kwargs)
        is_parent = frozenset().union(*self._parents.values())
        weights: dict[str, Tensor] = {}
        for name, latent in self._latents.items():
            site = self.prototype_trace.nodes[name]
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                table = attrgetter(name)(self.logits)
                if name in self._row_plates:
                    table = rows_of_table(table, plates[self._row_plates[name]].indices)
                logits = latent.mixed(table, [weights[parent] for parent in latent.parents])
                values = latent.values
                kind = of_values(*values) if values else None
                law = self.relaxation.law(name, latent.dims, kind)(logits=logits)
                fn = law.to_event(latent.fn.event_dim - latent.dims)
                if name in terms:
                    stack.enter_context(terms_of(terms[name]))
                    fn = rewrap(terms[name]["fn"], partial(in_place_of, law))
                seen = stack.enter_context(poutine.trace()) if name in is_parent else None
                result[name] = pyro.sample(name, fn)
            if seen is not None:  # after the outer handlers, which may make the site discrete
                drawn = innermost(seen.trace.nodes[name]["fn"])
                weights[name] = weights_of(drawn, result[name], values and values[0])
        return result


def _is_independent(part: Any) -> bool:
    """Whether no part of a list depends on another one; a part by hand may have any order."""
    if isinstance(part, autoguide.AutoGuideList):
        return all(map(_is_independent, part))
    return isinstance(part, autoguide.AutoGuide) and not isinstance(part, autoguide.AutoCallable)


class AutoGuideList(Follows, autoguide.AutoGuideList):
    """Pyro's AutoGuideList, which uses the rows that the program is given."""

    def __repr__(self) -> str:
        parts = (repr(part) if isinstance(part, Follows) else type(part).__name__ for part in self)
        return f"AutoGuideList({', '.join(parts)})"

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The parts draw one after the other; the traces around have the order of the model."""
        result = super().forward(*args, **kwargs)
        if _is_independent(self):  # the PPL has no public way to the traces around
            traces = [m.trace.nodes for m in _PYRO_STACK if isinstance(m, TraceMessenger)]
            in_order(traces, [name for name in self.prototype_trace.nodes if name in result])
        return result

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Medians of the continuous latents, and the mode of the discrete ones."""
        if self.prototype_trace is None:  # in a new process
            if not (args or kwargs):
                refuse_unless_without_arguments(self.model)
            with random_state(), poutine.block():
                discretize(self)(*args, **kwargs)
        return super().median(*args, **kwargs)

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
    """A guide for all latents of a program: AutoGumbelSoftmax for the discrete ones, `continuous`
    for the others, in an AutoGuideList.

    Args:
        model: program, relaxed or not.
        continuous: the automatic guide of the other latents: a class, or a partial with options
            such as init_loc_fn. Guides that need the density of the whole program, such as
            AutoLaplaceApproximation, are refused.
        temperature: as AutoGumbelSoftmax.
        family: as AutoGumbelSoftmax.
        objective: as AutoGumbelSoftmax.
        init_logits: as AutoGumbelSoftmax.
        parents: as AutoGumbelSoftmax; for the discrete latents only.
        sparse: as AutoGumbelSoftmax; for the logits of the discrete latents only.
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
    check_makes_guides(continuous, autoguide.AutoGuide)
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
