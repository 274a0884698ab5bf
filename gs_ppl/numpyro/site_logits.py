"""The discrete latents that an automatic guide has logits for, and what trained logits say."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.distributions import Bernoulli
from numpyro.distributions.util import periodic_repeat
from numpyro.infer.inspect import get_dependencies

from gs_ppl._shared import structure
from gs_ppl._shared.annealing import refuse_before_first_run
from gs_ppl._shared.families import (
    check_sites,
    named,
    names_of,
    refuse_sure_rows,
    refuse_without_latents,
)
from gs_ppl._shared.following import check_broadcast, check_logits_of, check_program
from gs_ppl._shared.sparse import plate_of_rows, refuse_without_rows
from gs_ppl._shared.structure import (
    Law,
    Parents,
    check_parents,
    find_parents,
    refuse_in_scan,
    refuse_joined,
)
from gs_ppl._shared.wrappers import innermost, rewrap
from gs_ppl.numpyro import functional as F
from gs_ppl.numpyro._base import read
from gs_ppl.numpyro.distributions import OneHotCategorical
from gs_ppl.numpyro.follow import Follows
from gs_ppl.numpyro.handlers import parameters
from gs_ppl.numpyro.integers import classes, event_dims, is_integer, values_of
from gs_ppl.numpyro.structure import mixed

__all__: list[str] = []

Upstream = Callable[[], Mapping[str, Collection[str]]]  # by site, what its law depends on
Rows = Mapping[int, tuple[str, int]]  # by axis; for a subsampled plate its name and number of rows


class Latent(NamedTuple):
    """A discrete latent, whose logits have the shape plates + (K of each parent, ...) + event."""

    name: str
    fn: Any  # its law in the model; for an integer, over one-hot vectors
    dims: int  # axes of a variable: 1 of a one-hot vector, 0 of a bit
    values: tuple[int, ...] | None  # for an integer
    parents: tuple[str, ...] = ()
    infinite: bool = False  # whether some logits start at infinity

    @property
    def table_dims(self) -> int:
        """Axes of the logits after those of the rows."""
        return len(self.parents) + self.fn.event_dim

    @property
    def rows_dims(self) -> int:
        return len(self.fn.batch_shape)

    @property
    def classes(self) -> int:
        return self.fn.event_shape[-1] if self.dims else 2

    def mixed(self, table: Array, weights: Sequence[Array]) -> Array:
        """Logits at these weights of the parents' classes."""
        return mixed(table, weights, self.fn.event_dim, has_infinite=self.infinite)

    def law(self, table: Array) -> Law:
        return Law(np.asarray(table, np.float64), self.parents, self.fn.event_dim, not self.dims)

    def value(self, vector: Array) -> Array:
        """The value that the program gets for a one-hot vector."""
        if self.values is None:
            return vector
        return jnp.asarray(self.values)[vector.argmax(-1)]

    def of_class(self, index: np.ndarray, like: Array) -> Array:
        """The values that the program gets for class indices."""
        if not self.dims:
            return jnp.asarray(index, like.dtype)
        return self.value(jax.nn.one_hot(index, self.classes, dtype=like.dtype))

    def mode(self, a: Array) -> Array:
        return self.value(F.one_hot_argmax(a)) if self.dims else (a > 0).astype(a.dtype)

    def draw(self, key: Array, a: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Weights of the classes, and the values that the program gets for them."""
        if self.dims:
            vector = OneHotCategorical(logits=a).sample(key, shape)
            return vector, self.value(vector)
        bit = Bernoulli(logits=a).sample(key, shape)
        return jnp.stack([1 - bit, bit], -1).astype(a.dtype), bit


# --- set up from a run of the program -------------------------------------------------------------


def read_latent(name: str, site: dict[str, Any]) -> Latent | None:
    """None if the site is not discrete; an integer in the trace becomes a vector of weights."""
    law = innermost(site["fn"])
    values: tuple[int, ...] | None
    if is_integer(law):
        values, given = classes(name, law)
        law = one_hot(given)
        site["fn"] = rewrap(site["fn"], partial(in_place_of, law))
        site["value"] = jnp.zeros(site["fn"].shape(), law.logits.dtype)
    else:
        values = values_of(law)
    dims = event_dims(law)
    return None if dims is None else Latent(name, site["fn"], dims, values)


def one_hot(given: dict[str, Any]) -> OneHotCategorical:
    return OneHotCategorical(**given)


def in_place_of(law: Any, other: Any) -> Any:
    return law


def prior_dependencies(model: Callable, args: tuple, kwargs: dict) -> Mapping[str, Collection[str]]:
    with handlers.block():
        hidden = handlers.block(handlers.seed(model, 0), hide_fn=_is_parameter)
        return get_dependencies(hidden, args, kwargs)["prior_dependencies"]


def _is_parameter(msg: dict[str, Any]) -> bool:
    return msg["type"] in ("param", "mutable")


def initial_logits(
    latent: Latent, value: Array, given: Any, of_parents: Sequence[int], rows: Rows
) -> tuple[Array, bool]:
    """Logits of all rows, and whether the user has given them for all rows."""
    fn = latent.fn
    given = given.get(latent.name, 0.0) if isinstance(given, Mapping) else given
    dtype = value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.result_type(float)
    init = jnp.asarray(given, dtype)
    batch = jnp.shape(value)[: jnp.ndim(value) - fn.event_dim]
    shape = [*batch, *of_parents, *jnp.shape(value)[len(batch) :]]
    given_shape = init.shape
    for axis, (_, size) in rows.items():
        if init.ndim >= -axis and init.shape[axis] == shape[axis] != 1:
            init = periodic_repeat(init, size, axis)
        shape[axis] = size
    check_broadcast(latent.name, init.shape, tuple(shape))
    return jnp.broadcast_to(init, shape), bool(rows) and given_shape == tuple(shape)


def sure_logits(latent: Latent, value: Array, rows: Rows, upstream: Upstream) -> Any:
    """-inf at masked categories, -inf and inf at bits of probability 0 and 1; 0 elsewhere.

    Logits that depend on other latents start at 0: they may differ in the next draw.
    """
    fn = latent.fn
    ((what, given),) = parameters(innermost(fn)).items()
    never, always = {"probs": (0.0, 1.0), "logits": (-math.inf, math.inf)}[what]
    a = read(given)
    if a is None:
        return 0.0
    sure = np.where(a == never, -math.inf, 0.0)
    if not latent.dims:
        sure = np.where(a == always, math.inf, sure)
    if not np.isinf(sure).any() or set(upstream()[latent.name]) - {latent.name}:
        return 0.0
    sure = np.broadcast_to(sure, fn.shape())
    sure = sure.reshape(fn.batch_shape + (1,) * len(latent.parents) + fn.event_shape)
    for axis, (plate, _) in rows.items():
        if (sure != sure.take([0], axis)).any():
            refuse_sure_rows(latent.name, plate)
        sure = sure.take([0], axis)
    return sure.astype(jnp.result_type(value, float))


def check_params(params: Any) -> None:
    """Refuses the result or the state of a run in the place of its parameters."""
    if not isinstance(params, Mapping):
        raise TypeError(
            "params must be a dict of arrays, such as svi.run(...).params or svi.get_params(state),"
            f" got {type(params).__name__}"
        )


OTHER_GUIDE = "give the parameters of this guide"  # the cure


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
        self._wanted = names_of(sites)
        check_program(type(self).__name__, model)
        super().__init__(model, prefix=prefix, create_plates=create_plates)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        trace = self.prototype_trace
        upstream = partial(prior_dependencies, self.model, args, kwargs)
        sites = {
            name: site
            for name, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
            if self._wanted is None or name in self._wanted
        }
        latents = [read_latent(name, site) for name, site in sites.items()]
        self._latents = {z.name: z for z in latents if z is not None}
        check_sites({*named(self._init_logits), *(self._wanted or ())}, {*self._latents})
        if not self._latents:
            refuse_without_latents({name: innermost(site["fn"]) for name, site in sites.items()})
        self._parents = self._find_parents(upstream)
        self._row_plates = self._find_row_plates(args, kwargs) if self.sparse else {}
        self._initial_logits: dict[str, Array] = {}
        for name, latent in self._latents.items():
            latent = latent._replace(parents=self._parents[name])
            logits = self._start(latent, upstream)
            with jax.ensure_compile_time_eval():
                self._latents[name] = latent._replace(infinite=bool(jnp.isinf(logits).any()))
            self._initial_logits[name] = logits

    def _find_parents(self, upstream: Upstream) -> dict[str, tuple[str, ...]]:
        sites = {name: self.prototype_trace[name] for name in self._latents}
        if self._structure != "none":
            for name, site in sites.items():
                if site.get("_control_flow_done"):
                    refuse_in_scan(name)
        plates = {n: [f.name for f in site["cond_indep_stack"]] for n, site in sites.items()}
        found = find_parents(self._structure, plates, upstream)
        for name, parents in found.items():
            for parent in (self._latents[p] for p in parents):
                if parent.fn.event_dim > parent.dims:
                    refuse_joined(name, parent.name)
        return found

    def _start(self, latent: Latent, upstream: Upstream) -> Array:
        site, full_size = self.prototype_trace[latent.name], self._prototype_frame_full_sizes
        rows = {
            frame.dim - latent.table_dims: (frame.name, full_size[frame.name])
            for frame in site["cond_indep_stack"]
            if full_size[frame.name] != frame.size
        }
        of_parents = [self._latents[parent].classes for parent in latent.parents]
        with jax.ensure_compile_time_eval():  # concrete, also inside of jit
            logits, whole = initial_logits(
                latent, site["value"], self._init_logits, of_parents, rows
            )
        sure = 0.0 if whole else sure_logits(latent, site["value"], rows, upstream)
        with jax.ensure_compile_time_eval():
            return logits + sure

    def _find_row_plates(self, args: tuple, kwargs: dict) -> dict[str, str]:
        """Of sparse rows, by site, for the sites that are in a plate."""
        _, given, _ = self._known(args, kwargs)
        sizes = self._prototype_frame_full_sizes
        found: dict[str, str] = {}
        for name, latent in self._latents.items():
            if frames := self.prototype_trace[name]["cond_indep_stack"]:
                plates = {frame.dim: frame.name for frame in frames}
                some = {f.name for f in frames if f.name in given or sizes[f.name] != f.size}
                axes = jnp.ndim(self.prototype_trace[name]["value"]) - latent.fn.event_dim
                found[name] = plate_of_rows(name, plates, some, axes)
        return found or refuse_without_rows()

    @property
    def tables(self) -> dict[str, str]:
        """The plate of each parameter that is a table with sparse rows."""
        return {self._param_name(name): plate for name, plate in self._row_plates.items()}

    def _param_name(self, site: str) -> str:
        return f"{site}_{self.prefix}_logits"


# --- read after training --------------------------------------------------------------------------


def refuse_unless_without_arguments(model: Callable) -> None:
    parameters = inspect.signature(model).parameters
    refuse_before_first_run(bool(parameters), "handlers.seed(discretize(guide), 0)(*args)")


class ReadLogits(SiteLogits):
    """Probabilities, modes and draws by site, for all rows of its plates."""

    def _logits(self, params: dict[str, Array]) -> dict[str, Array]:
        if self.prototype_trace is None:  # in a fresh process
            refuse_unless_without_arguments(self.model)
            with handlers.seed(rng_seed=0):
                self._setup_prototype()
        check_params(params)
        if missing := [n for z in self._latents if (n := self._param_name(z)) not in params]:
            raise ValueError(f"params does not have {', '.join(missing)}: {OTHER_GUIDE}")
        found = {name: params[self._param_name(name)] for name in self._latents}
        for name, logits in found.items():
            shapes = jnp.shape(logits), self._initial_logits[name].shape
            check_logits_of(self._param_name(name), *shapes, "params has", OTHER_GUIDE)
        return found

    def _laws(self, logits: Mapping[str, Array]) -> dict[str, Law] | None:
        """The law of each site; None if no site has parents."""
        if not any(self._parents.values()):
            return None
        return {name: self._latents[name].law(a) for name, a in logits.items()}

    def probs(self, params: dict[str, Array]) -> dict[str, Array]:
        """Class probabilities of each site, for all rows of its plates; for a bit those of 1.

        For a site with parents they are its marginal.
        """
        logits, found = self._logits(params), dict[str, Array]()
        laws = self._laws(logits)
        marginals = laws and structure.marginals(laws)
        for name, a in logits.items():
            is_bit = not self._latents[name].dims
            if marginals:
                p = marginals[name]
                found[name] = jnp.asarray(p[..., 1] if is_bit else p, a.dtype)
            else:
                found[name] = jax.nn.sigmoid(a) if is_bit else jax.nn.softmax(a)
        return found

    def mode(self, params: dict[str, Array]) -> dict[str, Array]:
        """The most probable value of each site: a one-hot vector, a bit, or an integer.

        With parents: the values that are the most probable together.
        """
        logits = self._logits(params)
        if laws := self._laws(logits):
            best = structure.maximum(laws)
            return {n: self._latents[n].of_class(i, logits[n]) for n, i in best.items()}
        return {name: self._latents[name].mode(a) for name, a in logits.items()}

    def quantiles(self, params: dict[str, Array], quantiles: Any) -> dict[str, Array]:
        """None, since a class has no quantiles; AutoGuideList returns those of its other parts."""
        return {}

    def median(self, params: dict[str, Array]) -> dict[str, Array]:
        """The mode, under the name that AutoGuideList calls."""
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
            latent = self._latents[name]
            above = [self._latents[parent] for parent in latent.parents]
            given = [
                in_rows(weights[z.name], sample_shape, table.ndim - latent.table_dims - z.rows_dims)
                for z in above
            ]
            shape = () if given else sample_shape
            weights[name], found[name] = latent.draw(key, latent.mixed(table, given), shape)
        return found


def in_rows(weights: Array, sample_shape: tuple[int, ...], plates: int) -> Array:
    """Weights of draws, with axes for that many more plates."""
    n = len(sample_shape)
    return weights.reshape(sample_shape + (1,) * plates + weights.shape[n:])
