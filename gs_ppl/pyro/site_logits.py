"""The discrete latents that an automatic guide has logits for, and what trained logits say."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.utils import deep_setattr
from pyro.infer.inspect import get_dependencies
from pyro.nn import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from torch import Size, Tensor
from torch.distributions import Bernoulli, constraints

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
from gs_ppl._shared.structure import Law, Parents, check_parents, find_parents, refuse_joined
from gs_ppl._shared.wrappers import innermost, rewrap
from gs_ppl.pyro import functional as F
from gs_ppl.pyro.distributions import OneHotCategorical
from gs_ppl.pyro.follow import Follows
from gs_ppl.pyro.handlers import program_inside, random_state
from gs_ppl.pyro.integers import classes, event_dims, is_count, is_integer, parameters, values_of
from gs_ppl.pyro.structure import mixed

__all__: list[str] = []

Upstream = Callable[[], Mapping[str, Collection[str]]]  # by site, what its law depends on
Rows = Mapping[int, tuple[str, int]]  # by axis; for a subsampled plate its name and number of rows


class Latent(NamedTuple):
    """A discrete latent, whose logits have the shape plates + (K of each parent, ...) + event."""

    name: str
    fn: Any  # its law in the model; for an integer, over one-hot vectors
    dims: int  # axes of a variable: 1 of a one-hot vector, 0 of a bit
    values: tuple[tuple[int, ...], bool] | None  # of an integer; whether they are floats
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

    def mixed(self, table: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Logits at these weights of the parents' classes."""
        return mixed(table, weights, self.fn.event_dim, has_infinite=self.infinite)

    def law(self, table: Tensor) -> Law:
        a = table.detach().double().cpu().numpy()
        return Law(a, self.parents, self.fn.event_dim, not self.dims)

    def value(self, vector: Tensor) -> Tensor:
        """The value that the program gets for a one-hot vector."""
        if self.values is None:
            return vector
        values, floating = self.values
        value = torch.tensor(values, device=vector.device)[vector.argmax(-1)]
        return value.to(vector.dtype) if floating else value

    def of_class(self, index: np.ndarray, like: Tensor) -> Tensor:
        """The values that the program gets for class indices."""
        at = torch.from_numpy(index).to(like.device)
        if not self.dims:
            return at.to(like)
        return self.value(torch.nn.functional.one_hot(at, self.classes).to(like))

    def mode(self, a: Tensor) -> Tensor:
        return self.value(F.one_hot_argmax(a)) if self.dims else (a > 0).to(a)

    def draw(self, a: Tensor, shape: Size) -> tuple[Tensor, Tensor]:
        """Weights of the classes, and the values that the program gets for them."""
        if self.dims:
            vector = OneHotCategorical(logits=a).sample(shape)
            return vector, self.value(vector)
        bit = Bernoulli(logits=a).sample(shape)
        return torch.stack([1 - bit, bit], -1), bit


# --- set up from a run of the program -------------------------------------------------------------


def read_latent(name: str, site: dict[str, Any]) -> Latent | None:
    """None if the site is not discrete; an integer in the trace becomes a vector of weights."""
    law = innermost(site["fn"])
    values: tuple[tuple[int, ...], bool] | None = None
    if is_integer(law):
        integers, given = classes(name, law)
        values, law = (integers, is_count(law)), one_hot(given)
        site["fn"] = rewrap(site["fn"], partial(in_place_of, law))
        site["value"] = law.logits.new_zeros(site["fn"].shape())
    elif (support := values_of(law)) is not None:
        values = support, law.floating
    dims = event_dims(law)
    return None if dims is None else Latent(name, site["fn"], dims, values)


def one_hot(given: dict[str, Any]) -> OneHotCategorical:
    return OneHotCategorical(**given)


def in_place_of(law: Any, other: Any) -> Any:
    return law


def prior_dependencies(model: Callable, args: tuple, kwargs: dict) -> Mapping[str, Collection[str]]:
    with random_state(), poutine.block():
        hidden = poutine.block(model, hide_types=["param"])
        return get_dependencies(hidden, args, kwargs)["prior_dependencies"]


def initial_logits(
    latent: Latent, value: Tensor, given: Any, of_parents: Sequence[int], rows: Rows
) -> tuple[Tensor, bool]:
    """Logits of all rows, and whether the user has given them for all rows."""
    fn = latent.fn
    given = given.get(latent.name, 0.0) if isinstance(given, Mapping) else given
    init = torch.as_tensor(given, dtype=value.dtype, device=value.device)
    shape, given_shape = [*fn.batch_shape, *of_parents, *fn.event_shape], init.shape
    for axis, (_, size) in rows.items():
        if init.dim() >= -axis and init.shape[axis] == shape[axis] != 1:
            init = periodic_repeat(init, size, axis)
        shape[axis] = size
    check_broadcast(latent.name, tuple(init.shape), tuple(shape))
    return init.broadcast_to(shape).clone(), bool(rows) and given_shape == Size(shape)


def sure_logits(latent: Latent, rows: Rows, upstream: Upstream) -> Tensor | float:
    """-inf at masked categories, -inf and inf at bits of probability 0 and 1; 0 elsewhere.

    Logits that depend on other latents start at 0: they may differ in the next draw.
    """
    fn = latent.fn
    ((what, given),) = parameters(innermost(fn)).items()
    never, always = {"probs": (0.0, 1.0), "logits": (-math.inf, math.inf)}[what]
    a = given.detach()
    sure = torch.zeros_like(a).masked_fill(a == never, -math.inf)
    if not latent.dims:
        sure = sure.masked_fill(a == always, math.inf)
    if not sure.isinf().any() or set(upstream()[latent.name]) - {latent.name}:
        return 0.0
    sure = sure.expand(fn.shape())
    sure = sure.reshape(fn.batch_shape + (1,) * len(latent.parents) + fn.event_shape)
    for axis, (plate, _) in rows.items():
        if (sure != sure.narrow(axis, 0, 1)).any():
            refuse_sure_rows(latent.name, plate)
        sure = sure.narrow(axis, 0, 1)
    return sure


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
        check_program(type(self).__name__, model)
        super().__init__(model, create_plates=create_plates)
        check_parents(parents)
        self.sparse = sparse
        self._structure = parents
        self._init_logits = init_logits
        self._wanted = names_of(sites)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        upstream = partial(prior_dependencies, self.model, args, kwargs)
        sites = {
            name: site
            for name, site in self.prototype_trace.iter_stochastic_nodes()
            if self._wanted is None or name in self._wanted
        }
        latents = [read_latent(name, site) for name, site in sites.items()]
        self._latents = {z.name: z for z in latents if z is not None}
        check_sites({*named(self._init_logits), *(self._wanted or ())}, {*self._latents})
        if not self._latents:
            refuse_without_latents({name: innermost(site["fn"]) for name, site in sites.items()})
        self._parents = self._find_parents(upstream)
        self._row_plates = self._find_row_plates(args, kwargs) if self.sparse else {}
        self.logits = PyroModule()
        for name, latent in self._latents.items():
            latent = latent._replace(parents=self._parents[name])
            logits = self._start(latent, upstream)
            self._check_store(name, logits.shape)
            self._latents[name] = latent._replace(infinite=bool(logits.isinf().any()))
            dims = None if name in self._row_plates else latent.table_dims  # no plate selects rows
            deep_setattr(self.logits, name, PyroParam(logits.contiguous(), constraints.real, dims))

    def _check_store(self, site: str, shape: Size) -> None:
        """The value in the parameter store is used, if there is one, and not the start."""
        with self._pyro_context:
            name, store = self.logits._pyro_get_fullname(site), pyro.get_param_store()
        if name in store:
            shapes = tuple(store[name].shape), tuple(shape)
            cure = "call pyro.clear_param_store() before it is made"
            check_logits_of(name, *shapes, "the parameter store has", cure)

    def _find_parents(self, upstream: Upstream) -> dict[str, tuple[str, ...]]:
        sites = {name: self.prototype_trace.nodes[name] for name in self._latents}
        plates = {n: [f.name for f in site["cond_indep_stack"]] for n, site in sites.items()}
        found = find_parents(self._structure, plates, upstream)
        for name, parents in found.items():
            for parent in (self._latents[p] for p in parents):
                if parent.fn.event_dim > parent.dims:
                    refuse_joined(name, parent.name)
        return found

    def _find_row_plates(self, args: tuple, kwargs: dict) -> dict[str, str]:
        """Of sparse rows, by site, for the sites that are in a plate."""
        _, given, _ = self._known(args, kwargs)
        found = {}
        for name, latent in self._latents.items():
            if frames := self.prototype_trace.nodes[name]["cond_indep_stack"]:
                plates = {frame.dim: frame.name for frame in frames}
                some = {
                    f.name for f in frames if f.name in given or f.full_size not in (None, f.size)
                }
                found[name] = plate_of_rows(name, plates, some, latent.rows_dims)
        return found or refuse_without_rows()

    def _start(self, latent: Latent, upstream: Upstream) -> Tensor:
        site = self.prototype_trace.nodes[latent.name]
        rows = {
            frame.dim - latent.table_dims: (frame.name, frame.full_size)
            for frame in site["cond_indep_stack"]
            if frame.full_size not in (None, frame.size)
        }
        of_parents = [self._latents[parent].classes for parent in latent.parents]
        logits, whole = initial_logits(latent, site["value"], self._init_logits, of_parents, rows)
        return logits if whole else logits + sure_logits(latent, rows, upstream)


# --- read after training --------------------------------------------------------------------------


def refuse_unless_without_arguments(model: Callable) -> None:
    parameters = inspect.signature(program_inside(model)).parameters
    refuse_before_first_run(bool(parameters), "discretize(guide)(*args)")


class ReadLogits(SiteLogits):
    """Probabilities, modes and draws by site, for all rows of its plates."""

    def _logits(self) -> dict[str, Tensor]:
        """The logits in the parameter store, in a fresh process too."""
        if self.prototype_trace is None:
            refuse_unless_without_arguments(self.model)
            with random_state():
                for guide in (self,) if self.master is None else (self.master(), self):
                    if guide.prototype_trace is None:
                        guide._setup_prototype()
        with self._pyro_context, poutine.block():  # outside of it a module uses its own values
            return {name: attrgetter(name)(self.logits) for name in self._latents}

    def _laws(self, logits: Mapping[str, Tensor]) -> dict[str, Law] | None:
        """The law of each site; None if no site has parents."""
        if not any(self._parents.values()):
            return None
        return {name: self._latents[name].law(a) for name, a in logits.items()}

    @torch.no_grad()
    def probs(self) -> dict[str, Tensor]:
        """Class probabilities of each site, for all rows of its plates; for a bit those of 1.

        For a site with parents they are its marginal.
        """
        logits, found = self._logits(), dict[str, Tensor]()
        laws = self._laws(logits)
        marginals = laws and structure.marginals(laws)
        for name, a in logits.items():
            is_bit = not self._latents[name].dims
            if marginals:
                p = marginals[name]
                found[name] = torch.from_numpy(p[..., 1] if is_bit else p).to(a)
            else:
                found[name] = a.sigmoid() if is_bit else a.softmax(-1)
        return found

    @torch.no_grad()
    def mode(self) -> dict[str, Tensor]:
        """The most probable value of each site: a one-hot vector, a bit, or an integer.

        With parents: the values that are the most probable together.
        """
        logits = self._logits()
        if laws := self._laws(logits):
            best = structure.maximum(laws)
            return {n: self._latents[n].of_class(i, logits[n]) for n, i in best.items()}
        return {name: self._latents[name].mode(a) for name, a in logits.items()}

    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """None, since a class has no quantiles; AutoGuideList returns those of its other parts."""
        return {}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The mode, under the name that AutoGuideList calls."""
        return self.mode()

    def sample_posterior(self, *, sample_shape: Size = Size()) -> dict[str, Tensor]:
        """Discrete draws of each site: one-hot vectors, bits, integers; all rows of its plates."""
        found: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        for name, table in self._logits().items():
            latent = self._latents[name]
            above = [self._latents[parent] for parent in latent.parents]
            given = [
                in_rows(
                    weights[z.name], sample_shape, table.dim() - latent.table_dims - z.rows_dims
                )
                for z in above
            ]
            shape = Size() if given else sample_shape
            weights[name], found[name] = latent.draw(latent.mixed(table, given), shape)
        return found


def in_rows(weights: Tensor, sample_shape: Size, plates: int) -> Tensor:
    """Weights of draws, with axes for that many more plates."""
    n = len(sample_shape)
    return weights.reshape(sample_shape + (1,) * plates + weights.shape[n:])
