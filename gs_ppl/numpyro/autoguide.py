"""Automatic guides over the discrete latents of a program."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.distributions import Bernoulli
from numpyro.distributions.util import periodic_repeat
from numpyro.infer import autoguide
from numpyro.infer.inspect import get_dependencies

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
from gs_ppl._shared.structure import (
    Parents,
    check_parents,
    find_parents,
    refuse_in_scan,
    refuse_joined,
)
from gs_ppl._shared.wrappers import innermost, rewrap
from gs_ppl.numpyro import functional as F
from gs_ppl.numpyro._base import BitWithoutTemperature, WithoutTemperature, read
from gs_ppl.numpyro.distributions import GumbelSoftmax, OneHotCategorical
from gs_ppl.numpyro.follow import Follows, SameRows, rows_of, terms_of
from gs_ppl.numpyro.functional import Temperature
from gs_ppl.numpyro.handlers import (
    carry_log_values,
    discretize,
    has_classes,
    is_latent,
    parameters,
)
from gs_ppl.numpyro.integers import classes, event_dims, is_integer, of_values, values_of
from gs_ppl.numpyro.sparse import rows_of_table
from gs_ppl.numpyro.structure import mixed, weights_of

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
        prefix: str,
        create_plates: Callable | None,
    ) -> None:
        check_parents(parents)
        self.sparse = sparse
        self._structure = parents
        self._init_logits = init_logits
        self._wanted = None if sites is None else frozenset(sites)
        super().__init__(model, prefix=prefix, create_plates=create_plates)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._sites: dict[str, int] = {}
        self._values: dict[str, tuple[int, ...]] = {}  # of integer sites
        self._initial_logits: dict[str, Array] = {}
        self._infinite: dict[str, bool] = {}
        for name, site in self.prototype_trace.items():
            if self._is_wanted(name, site):
                self._setup_site(name, site)
        check_sites({*named(self._init_logits), *(self._wanted or ())}, {*self._sites})
        if not self._sites:
            raise ValueError("AutoGumbelSoftmax: the program has no discrete latents")
        sites = {name: self.prototype_trace[name] for name in self._sites}
        if self._structure != "none":
            for name, site in sites.items():
                if site.get("_control_flow_done"):
                    refuse_in_scan(name)
        plates = {n: [f.name for f in site["cond_indep_stack"]] for n, site in sites.items()}
        upstream = partial(self._upstream, args, kwargs)
        self._parents = find_parents(self._structure, plates, upstream)
        self._row_plates = self._plates_of_rows(sites, args, kwargs) if self.sparse else {}
        for name, site in sites.items():
            self._setup_logits(name, site, args, kwargs)

    def _plates_of_rows(self, sites: Mapping, args: tuple, kwargs: dict) -> dict[str, str]:
        """By site, of those that are in a plate."""
        _, given, _ = self._known(args, kwargs)
        found = {}
        for name, site in sites.items():
            if frames := site["cond_indep_stack"]:
                plates = {frame.dim: frame.name for frame in frames}
                sizes = self._prototype_frame_full_sizes
                some = {f.name for f in frames if f.name in given or sizes[f.name] != f.size}
                axes = jnp.ndim(site["value"]) - site["fn"].event_dim
                found[name] = plate_of_rows(name, plates, some, axes)
        return found or refuse_without_rows()

    @property
    def tables(self) -> dict[str, str]:
        """The plate of each parameter that is a table of sparse rows."""
        return {self._param_name(name): plate for name, plate in self._row_plates.items()}

    def _is_wanted(self, name: str, site: dict[str, Any]) -> bool:
        wanted = self._wanted is None or name in self._wanted
        return wanted and site["type"] == "sample" and not site["is_observed"]

    def _setup_site(self, name: str, site: dict[str, Any]) -> None:
        law = innermost(site["fn"])
        if is_integer(law):  # a vector of weights over its support
            self._values[name], given = classes(name, law)
            law = _one_hot(given)
            site["fn"] = rewrap(site["fn"], partial(_in_place_of, law))
            site["value"] = jnp.zeros(site["fn"].shape(), law.logits.dtype)
        elif (values := values_of(law)) is not None:
            self._values[name] = values
        dims = event_dims(law)
        if dims is None:
            return
        self._sites[name] = dims

    def _setup_logits(self, name: str, site: dict[str, Any], args: tuple, kwargs: dict) -> None:
        event_dim = self._event_dim(name)
        full_size = self._prototype_frame_full_sizes
        full = {
            frame.dim - event_dim: full_size[frame.name]
            for frame in site["cond_indep_stack"]
            if full_size[frame.name] != frame.size
        }
        of_parents = [self._classes(name, parent) for parent in self._parents[name]]
        with jax.ensure_compile_time_eval():  # kept, while the first run may be inside of jit
            logits, whole = self._initial(name, site, of_parents, full)
        sure = 0.0 if whole else self._sure(name, site, args, kwargs)
        with jax.ensure_compile_time_eval():
            self._initial_logits[name] = logits + sure
            self._infinite[name] = bool(jnp.isinf(self._initial_logits[name]).any())

    def _event_dim(self, name: str) -> int:
        """Axes of the logits that are none of the rows: the parents' classes, and the event's."""
        return len(self._parents[name]) + self.prototype_trace[name]["fn"].event_dim

    def _classes(self, name: str, parent: str) -> int:
        fn = self.prototype_trace[parent]["fn"]
        if fn.event_dim > self._sites[parent]:
            refuse_joined(name, parent)
        return fn.event_shape[-1] if fn.event_dim else 2

    def _upstream(self, args: tuple, kwargs: dict) -> Mapping[str, Collection[str]]:
        with handlers.block():
            model = handlers.block(handlers.seed(self.model, 0), hide_fn=_is_parameter)
            return get_dependencies(model, args, kwargs)["prior_dependencies"]

    def _initial(
        self, name: str, site: dict[str, Any], of_parents: list[int], full: Mapping[int, int]
    ) -> tuple[Array, bool]:
        """Logits of all rows, which are `full` by axis; whether the user has given them so."""
        value, fn = site["value"], site["fn"]
        given = self._init_logits
        given = given.get(name, 0.0) if isinstance(given, Mapping) else given
        dtype = value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.result_type(float)
        init = jnp.asarray(given, dtype)
        event = jnp.shape(value)[jnp.ndim(value) - fn.event_dim :]
        batch = jnp.shape(value)[: jnp.ndim(value) - fn.event_dim]
        shape, given_shape = [*batch, *of_parents, *event], init.shape
        for axis, size in full.items():
            if init.ndim >= -axis and init.shape[axis] == shape[axis] != 1:
                init = periodic_repeat(init, size, axis)
            shape[axis] = size
        check_broadcast(name, init.shape, tuple(shape))
        return jnp.broadcast_to(init, shape), bool(full) and given_shape == tuple(shape)

    def _sure(self, name: str, site: dict[str, Any], args: tuple, kwargs: dict) -> Any:
        """-inf at masked categories, at bits of probability 0 and 1 those values; 0 elsewhere.

        What depends on other latents is left to training: it may differ in the next draw.
        """
        ((what, given),) = parameters(innermost(site["fn"])).items()
        never, always = {"probs": (0.0, 1.0), "logits": (-math.inf, math.inf)}[what]
        a = read(given)
        if a is None:
            return 0.0
        sure = np.where(a == never, -math.inf, 0.0)
        if not self._sites[name]:
            sure = np.where(a == always, math.inf, sure)
        if not np.isinf(sure).any():
            return 0.0
        if set(self._upstream(args, kwargs)[name]) - {name}:
            return 0.0
        fn = site["fn"]
        sure = np.broadcast_to(sure, fn.shape())
        sure = sure.reshape(fn.batch_shape + (1,) * len(self._parents[name]) + fn.event_shape)
        for frame in site["cond_indep_stack"]:
            axis, full_size = frame.dim - self._event_dim(name), self._prototype_frame_full_sizes
            if full_size[frame.name] != frame.size:
                if (sure != sure.take([0], axis)).any():
                    refuse_sure_rows(name, frame.name)
                sure = sure.take([0], axis)
        return sure.astype(jnp.result_type(site["value"], float))

    def _param_name(self, site: str) -> str:
        return f"{site}_{self.prefix}_logits"

    def _logits(self, params: dict[str, Array]) -> dict[str, Array]:
        if self.prototype_trace is None:  # in a fresh process
            refuse_before_first_run(bool(inspect.signature(self.model).parameters))
            with handlers.seed(rng_seed=0):
                self._setup_prototype()
        return {name: params[self._param_name(name)] for name in self._sites}

    def probs(self, params: dict[str, Array]) -> dict[str, Array]:
        """Class probabilities of each site, for all rows of its plates; for a bit those of 1.

        For a site with parents they are its marginal.
        """
        logits = self._logits(params)
        if any(self._parents.values()):
            found = structure.marginals(self._laws(logits))
            return {
                name: jnp.asarray(p if self._sites[name] else p[..., 1], logits[name].dtype)
                for name, p in found.items()
            }
        return {
            name: jax.nn.softmax(a) if self._sites[name] else jax.nn.sigmoid(a)
            for name, a in logits.items()
        }

    def mode(self, params: dict[str, Array]) -> dict[str, Array]:
        """The most probable value of each site: a one-hot vector, a bit, or an integer.

        With parents: the values that are the most probable together.
        """
        logits = self._logits(params)
        if any(self._parents.values()):
            found = structure.maximum(self._laws(logits))
            return {name: self._of_class(name, i, logits[name]) for name, i in found.items()}
        return {
            name: self._value(name, F.one_hot_argmax(a))
            if self._sites[name]
            else (a > 0).astype(a.dtype)
            for name, a in logits.items()
        }

    def _laws(self, logits: Mapping[str, Array]) -> dict[str, structure.Law]:
        return {
            name: structure.Law(
                np.asarray(a, np.float64),
                self._parents[name],
                self.prototype_trace[name]["fn"].event_dim,
                not self._sites[name],
            )
            for name, a in logits.items()
        }

    def _of_class(self, name: str, index: np.ndarray, like: Array) -> Array:
        """What classes are to the program."""
        if not self._sites[name]:
            return jnp.asarray(index, like.dtype)
        return self._value(name, jax.nn.one_hot(index, like.shape[-1], dtype=like.dtype))

    def _value(self, name: str, vector: Array) -> Array:
        """What a one-hot vector is to the program."""
        if name not in self._values:
            return vector
        return jnp.asarray(self._values[name])[vector.argmax(-1)]

    def quantiles(self, params: dict[str, Array], quantiles: Any) -> dict[str, Array]:
        """None: a class has no quantiles; AutoGuideList gives those of its other parts."""
        return {}

    def median(self, params: dict[str, Array]) -> dict[str, Array]:
        """The mode. AutoGuideList calls it."""
        return self.mode(params)

    def sample_posterior(
        self,
        rng_key: Array,
        params: dict[str, Array],
        *args: Any,
        sample_shape: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Discrete draws of each site: one-hot vectors, bits, integers; all rows of its plates."""
        logits = self._logits(params)
        keys = jax.random.split(rng_key, len(logits))
        found: dict[str, Array] = {}
        weights: dict[str, Array] = {}
        for key, (name, table) in zip(keys, logits.items(), strict=True):
            event_dim = self.prototype_trace[name]["fn"].event_dim
            rows = table.ndim - self._event_dim(name)
            given = [weights[parent] for parent in self._parents[name]]
            for i, (w, parent) in enumerate(zip(given, self._parents[name], strict=True)):
                own = len(self.prototype_trace[parent]["fn"].batch_shape)
                between = (1,) * (rows - own)
                given[i] = w.reshape(sample_shape + between + w.shape[len(sample_shape) :])
            a = mixed(table, given, event_dim, has_infinite=self._infinite[name])
            shape = () if given else sample_shape
            if self._sites[name]:
                vector = OneHotCategorical(logits=a).sample(key, shape)
                weights[name], found[name] = vector, self._value(name, vector)
            else:
                found[name] = bit = Bernoulli(logits=a).sample(key, shape)
                weights[name] = jnp.stack([1 - bit, bit], -1).astype(a.dtype)
        return found


class AutoGumbelSoftmax(SiteLogits):
    """Guide in which each discrete latent has its own logits and is drawn from `family`.

    q(z) = prod_i family(tau, sum_k y_k table_ik), y the weights of the parents of i: mean field
    unless there are `parents`. Plates and subsampling are included. Continuous latents are left to
    the other parts of an AutoGuideList (see auto_relaxed). The parameters are called
    {site}_{prefix}_logits.

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
        super()._setup_prototype(*args, **kwargs)
        check_sites(self.relaxation.named, {*self._sites})

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates, result = self._create_plates(*args, **kwargs), {}
        terms = self._terms(plates, args, kwargs)
        is_parent = frozenset().union(*self._parents.values())
        weights: dict[str, Array] = {}
        for name, dims in self._sites.items():
            site = self.prototype_trace[name]
            initial, event_dim = self._initial_logits[name], site["fn"].event_dim
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                own_rows = {} if name in self._row_plates else {"event_dim": self._event_dim(name)}
                table = numpyro.param(self._param_name(name), initial, **own_rows)
                if name in self._row_plates:
                    rows = rows_of(plates)[self._row_plates[name]]
                    table = rows_of_table(self._param_name(name), table, rows)
                given = [weights[parent] for parent in self._parents[name]]
                logits = mixed(table, given, event_dim, has_infinite=self._infinite[name])
                values = self._values.get(name)
                make = self.relaxation.law(name, dims, of_values(values) if values else None)
                law = make(logits=logits)
                fn = law.to_event(event_dim - dims)
                if name in terms:
                    stack.enter_context(terms_of(terms[name]))
                    fn = rewrap(terms[name]["fn"], partial(_in_place_of, law))
                seen = stack.enter_context(handlers.trace()) if name in is_parent else None
                with carry_log_values():
                    result[name] = numpyro.sample(name, fn)
            if seen is not None:  # after the handlers around, which may make it discrete
                drawn = innermost(seen[name]["fn"])
                weights[name] = weights_of(drawn, result[name], values)
        return result


def _is_parameter(msg: dict[str, Any]) -> bool:
    return msg["type"] in ("param", "mutable")


def _one_hot(given: dict[str, Any]) -> OneHotCategorical:
    return OneHotCategorical(**given)


def _in_place_of(law: Any, other: Any) -> Any:
    return law


class AutoGuideList(Follows, autoguide.AutoGuideList):
    """NumPyro's AutoGuideList, all parts of which see the same rows of a subsampled plate.

    NumPyro's own draws the indices anew for each part, and takes no discrete latents.
    """

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
                if isinstance(part, autoguide.AutoGuide):  # it may not see the plates
                    part._prototype_frame_full_sizes.update(self._prototype_frame_full_sizes)
                result.update(part(*args, **kwargs))
        return result

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
        return True  # of all parts together: no part may have it
    if not is_latent(msg):
        return False
    law = innermost(msg["fn"])
    return has_classes(law) or law.support.is_discrete


def _is_not_continuous(msg: dict[str, Any]) -> bool:
    """Data too: NumPyro starts where the density is finite; at random classes it may be 0."""
    return _is_discrete(msg) or (msg["type"] == "sample" and msg["is_observed"])


def _is_continuous(msg: dict[str, Any]) -> bool:
    return msg["type"] == "deterministic" or (is_latent(msg) and not _is_discrete(msg))
