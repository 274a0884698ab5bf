"""Automatic guides over the discrete latents of a program."""

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.infer import autoguide
from numpyro.primitives import _PYRO_STACK

from gs_ppl._shared.families import (
    Family,
    Relaxation,
    check_sites,
)
from gs_ppl._shared.following import check_continuous, check_logits_of, check_makes_guides, in_order
from gs_ppl._shared.reprs import handled
from gs_ppl._shared.structure import (
    Parents,
)
from gs_ppl._shared.wrappers import innermost, rewrap
from gs_ppl.numpyro._base import BitWithoutTemperature, WithoutTemperature
from gs_ppl.numpyro.distributions import GumbelSoftmax
from gs_ppl.numpyro.follow import Follows, SameRows, rows_of, terms_of
from gs_ppl.numpyro.functional import Temperature
from gs_ppl.numpyro.handlers import (
    carry_log_values,
    discretize,
    has_classes,
    is_latent,
)
from gs_ppl.numpyro.integers import of_values
from gs_ppl.numpyro.site_logits import (
    OTHER_GUIDE,
    Latent,
    ReadLogits,
    in_place_of,
    refuse_unless_without_arguments,
)
from gs_ppl.numpyro.sparse import is_in_step, rows_of_table
from gs_ppl.numpyro.structure import weights_of

__all__ = ["AutoGuideList", "AutoGumbelSoftmax", "auto_relaxed"]


class AutoGumbelSoftmax(ReadLogits):
    """Guide in which each discrete latent has its own logits and is drawn from `family`.

    q(z) = prod_i family(tau, sum_k y_k table_ik), where y are the weights of the parents of i.
    Without `parents` it is a mean-field guide. Plates and subsampling are those of the model. It
    does not draw continuous latents: auto_relaxed makes a guide for both kinds. Parameters are
    called {site}_{prefix}_logits.

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
        prefix, create_plates: as in NumPyro's other automatic guides.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import AutoGumbelSoftmax, OneHotCategorical
        >>> def model():
        ...     with numpyro.plate("data", 4):
        ...         numpyro.sample("z", OneHotCategorical(logits=jnp.zeros(3)))
        >>> guide = AutoGumbelSoftmax(model, temperature=0.5)
        >>> with numpyro.handlers.seed(rng_seed=0):
        ...     guide()["z"].shape
        (4, 3)
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
        prefix: str = "auto",
        create_plates: Callable | None = None,
    ) -> None:
        laws = BitWithoutTemperature, WithoutTemperature
        self.relaxation = Relaxation(temperature, family, objective, GumbelSoftmax, laws)
        super().__init__(model, sites, init_logits, parents, sparse, prefix, create_plates)

    def __repr__(self) -> str:
        return handled(type(self).__name__, self.model, **self.relaxation.shown)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._setup_prototype(*args, **kwargs)
            check_sites(self.relaxation.named, {*self._latents})
        except Exception:
            self.prototype_trace = None  # the next call finds the same error
            raise

    def _table(self, latent: Latent, plates: Mapping[str, Any]) -> Array:
        """The parameter, or its rows in these plates."""
        name, plate = self._param_name(latent.name), self._row_plates.get(latent.name)
        initial = self._initial_logits[latent.name]
        # with rows of its own optimizer, no plate selects them
        dims = {"event_dim": latent.table_dims} if plate is None else {}
        table = numpyro.param(name, initial, **dims)
        rows, wanted = rows_of(plates), [*initial.shape]
        if plate is None or is_in_step():
            for frame in self.prototype_trace[latent.name]["cond_indep_stack"]:
                wanted[frame.dim - latent.table_dims] = len(rows[frame.name])
        check_logits_of(name, jnp.shape(table), tuple(wanted), "params has", OTHER_GUIDE)
        return table if plate is None else rows_of_table(table, rows[plate])

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates, result = self._create_plates(*args, **kwargs), {}
        terms = self._terms(plates, args, kwargs)
        is_parent = frozenset().union(*self._parents.values())
        weights: dict[str, Array] = {}
        for name, latent in self._latents.items():
            site = self.prototype_trace[name]
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                table = self._table(latent, plates)
                logits = latent.mixed(table, [weights[parent] for parent in latent.parents])
                values = latent.values
                kind = of_values(values) if values else None
                law = self.relaxation.law(name, latent.dims, kind)(logits=logits)
                fn = law.to_event(latent.fn.event_dim - latent.dims)
                if name in terms:
                    stack.enter_context(terms_of(terms[name]))
                    fn = rewrap(terms[name]["fn"], partial(in_place_of, law))
                seen = stack.enter_context(handlers.trace()) if name in is_parent else None
                with carry_log_values():
                    result[name] = numpyro.sample(name, fn)
            if seen is not None:  # after the outer handlers, which may make the site discrete
                drawn = innermost(seen[name]["fn"])
                weights[name] = weights_of(drawn, result[name], values)
        return result


def has_latents(part: Any) -> bool:
    """NumPyro's own guides have no median and no draws if no latent is left to them."""
    return not isinstance(part, autoguide.AutoGuide) or bool(getattr(part, "_init_locs", True))


def _is_independent(part: Any) -> bool:
    """Whether no part of a list depends on another one; a part by hand may have any order."""
    if isinstance(part, autoguide.AutoGuideList):
        return all(map(_is_independent, part))
    return isinstance(part, autoguide.AutoGuide)


class AutoGuideList(Follows, autoguide.AutoGuideList):
    """NumPyro's AutoGuideList; all its parts use the same rows of a subsampled plate.

    NumPyro's own class draws other indices for each part, and does not take discrete latents. The
    parts draw one after the other, but the traces around have the order of the model.
    """

    _guides: list[Any]

    def __repr__(self) -> str:
        parts = (repr(part) if isinstance(part, Follows) else type(part).__name__ for part in self)
        return f"AutoGuideList({', '.join(parts)})"

    def append(self, part: Any) -> None:
        if isinstance(part, Follows):
            part.whole = self
        super().append(part)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates, result = self._create_plates(*args, **kwargs), {}
        with SameRows(None, rows_of(plates)):
            for part in self._guides:
                if isinstance(part, autoguide.AutoGuide):  # the part may not see the plates
                    part._prototype_frame_full_sizes.update(self._prototype_frame_full_sizes)
                result.update(part(*args, **kwargs))
        self._guides = [part for part in self._guides if has_latents(part)]
        if _is_independent(self):  # the PPL has no public way to the traces around
            traces = [h.trace for h in _PYRO_STACK if isinstance(h, handlers.trace)]
            in_order(traces, [name for name in self.prototype_trace if name in result])
        return result

    def median(self, params: dict[str, Array]) -> dict[str, Array]:
        """Medians of the continuous latents, and the mode of the discrete ones."""
        if self.prototype_trace is None:  # in a new process
            refuse_unless_without_arguments(self.model)
            with handlers.block():
                handlers.seed(discretize(self), 0)()
        return super().median(params)

    def probs(self, params: dict[str, Array]) -> dict[str, Array]:
        """Class probabilities of the discrete latents, as AutoGumbelSoftmax.probs."""
        parts = (part for part in self if isinstance(part, AutoGumbelSoftmax))
        return {name: p for part in parts for name, p in part.probs(params).items()}

    def mode(self, params: dict[str, Array]) -> dict[str, Array]:
        """Most probable values of the discrete latents, as AutoGumbelSoftmax.mode."""
        parts = (part for part in self if isinstance(part, AutoGumbelSoftmax))
        return {name: z for part in parts for name, z in part.mode(params).items()}


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
        >>> import jax, jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import OneHotCategorical, auto_relaxed
        >>> def model():
        ...     numpyro.sample("w", numpyro.distributions.Normal(0.0, 1.0))
        ...     numpyro.sample("z", OneHotCategorical(logits=jnp.zeros(2)))
        >>> guide = auto_relaxed(model, temperature=0.5)
        >>> with numpyro.handlers.seed(rng_seed=0):
        ...     sorted(guide())
        ['w', 'z']
    """
    check_makes_guides(continuous, autoguide.AutoGuide)
    guide = AutoGuideList(model, create_plates=create_plates)
    plain = discretize(model)
    part = continuous(handlers.block(plain, hide_fn=_is_not_continuous))
    check_continuous(part)
    guide.append(part)
    discrete = handlers.block(plain, hide_fn=_is_continuous)
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
    if msg["type"] == "deterministic":
        return True  # it belongs to all parts together: no single part may have it
    if not is_latent(msg):
        return False
    law = innermost(msg["fn"])
    return has_classes(law) or law.support.is_discrete


def _is_not_continuous(msg: dict[str, Any]) -> bool:
    """Also of data: NumPyro starts where the density is finite; at random classes it may be 0."""
    return _is_discrete(msg) or (msg["type"] == "sample" and msg["is_observed"])


def _is_continuous(msg: dict[str, Any]) -> bool:
    return msg["type"] == "deterministic" or (is_latent(msg) and not _is_discrete(msg))
