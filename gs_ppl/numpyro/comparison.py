"""Exact enumeration and relaxations of one program side by side."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from time import process_time
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer import SVI, TraceEnum_ELBO, TraceMeanField_ELBO
from numpyro.infer.elbo import ELBO
from numpyro.infer.inspect import get_dependencies
from numpyro.infer.util import transform_fn
from numpyro.primitives import Messenger

from gs_ppl._shared import comparison
from gs_ppl._shared.annealing import Annealed
from gs_ppl._shared.comparison import Gradients, Options
from gs_ppl._shared.families import Family
from gs_ppl._shared.wrappers import innermost
from gs_ppl.numpyro.checks import check, check_observed, check_traces
from gs_ppl.numpyro.control_flow import reach_into_bodies
from gs_ppl.numpyro.distributions import GumbelSoftmax
from gs_ppl.numpyro.enumeration import OneHotIndex, config_enumerate
from gs_ppl.numpyro.follow import _used
from gs_ppl.numpyro.handlers import discretize, relax
from gs_ppl.numpyro.integers import (
    class_dims,
    event_dims,
    index_in_support,
    is_integer,
    support_of,
)
from gs_ppl.numpyro.selection import select
from gs_ppl.numpyro.site_logits import check_params
from gs_ppl.numpyro.straight_through import STGumbelSoftmax
from gs_ppl.report import Comparison

__all__ = ["compare"]


def compare(
    model: Callable,
    guide: Callable,
    *args: Any,
    params: Mapping[str, Any] | None = None,
    families: Sequence[Family | ELBO] = (GumbelSoftmax, STGumbelSoftmax),
    objectives: Sequence[str] = ("categorical", "relaxed"),
    temperatures: Sequence[float] = (0.1, 0.5, 1.0),
    temperature: float | None = None,
    loss: ELBO | None = None,
    num_samples: int = 200,
    adaptation_steps: int = 1000,
    budget: float = 100.0,
    cost: Mapping[str, float] | None = None,
    relabel: Collection[str] = (),
    max_entries: int = 50_000_000,
    rng_key: Array | None = None,
    progress_bar: bool = True,
    **kwargs: Any,
) -> Comparison:
    """How wrong is a relaxation of this program, and which one is best for it?

    Model and guide may be discrete, relaxed or automatic. For the exact numbers both are made
    discrete and enumerated. Then they are relaxed for each family, objective and temperature. All
    methods use the same random numbers at each site, also at continuous latents.

    Args:
        model: program.
        guide: program, or an automatic guide.
        *args: what the programs take.
        params: of model and guide, as SVI returns them. Others have their initial values, those
            before training; a note names them.
        families: classes to relax by; also ELBOs that have a gradient for the discrete program,
            such as RLOO_ELBO(), which has no temperature. ELBOs with state in the guide are
            wrapped by compare.
        objectives: of the soft families, see relax; straight-through families have only one.
        temperatures: tau > 0, for each family.
        temperature: one temperature instead of several.
        loss: ELBO of the relaxed programs; default TraceMeanField_ELBO.
        num_samples: number of draws for each method.
        adaptation_steps: number of steps in which the state of an ELBO adapts to the program.
        budget: CPU time to spend on a gradient, in estimates by STGumbelSoftmax. The last line
            names the family with the least bias^2 + variance x cost / budget (`best`).
        cost: CPU time of one estimate by family, as {"RLOO_ELBO(2)": 2.0}, relative to
            STGumbelSoftmax (or to the cheapest family, without it). None: measured, and rounded
            to half an octave.
        relabel: sites whose classes in the guide are matched to those in the model.
        max_entries: largest table of an enumeration, in numbers.
        rng_key: of the draws; None: jax.random.key(0).
        progress_bar: whether to show one.
        **kwargs: what the programs take.

    Raises:
        ValueError: naming the site, if a relaxation of the program is refused (see check).

    Example:
        >>> import jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import AutoGumbelSoftmax, OneHotCategorical, compare, select
        >>> def model():
        ...     z = numpyro.sample("z", OneHotCategorical(logits=jnp.zeros(2)))
        ...     loc = select(jnp.array([-1.0, 1.0]), z)
        ...     numpyro.sample("x", numpyro.distributions.Normal(loc, 1.0), obs=jnp.array(0.5))
        >>> report = compare(model, AutoGumbelSoftmax(model), num_samples=10, progress_bar=False)
        >>> round(report.evidence.mean, 4), round(report.elbo.mean, 4)
        (-1.4238, -1.5439)
    """
    temperatures = [temperature] if temperature is not None else temperatures
    options = Options(
        families,
        objectives,
        temperatures,
        num_samples,
        adaptation_steps,
        relabel,
        max_entries,
        progress_bar,
        budget,
        cost,
    )
    check_params({} if params is None else params)
    key = jax.random.key(0) if rng_key is None else rng_key
    session = Session(model, guide, args, kwargs, params or {}, loss or TraceMeanField_ELBO(), key)
    return comparison.run(session, options)


# --- handlers -------------------------------------------------------------------------------------


class SeedBySite(Messenger):
    """Seeds each site by its name and the draw: its noise does not depend on what else is drawn.

    Scan and prng_key have no names: the outer seed handler seeds them.
    """

    def __init__(self, fn: Callable, key: Array) -> None:
        super().__init__(fn)
        self.key = key

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] in ("sample", "plate") and msg["value"] is None:
            msg["kwargs"]["rng_key"] = jax.random.fold_in(self.key, crc32(msg["name"].encode()))


class Tilt(Messenger):
    """Multiplies the weight of each value of a latent by exp(tilt).

    The derivative of the log evidence with respect to the tilt, at 0, is the posterior marginal.
    """

    def __init__(self, fn: Callable, tilts: dict[str, Array]) -> None:
        super().__init__(fn)
        self.tilts = tilts

    def process_message(self, msg: dict[str, Any]) -> None:
        reach_into_bodies(self, msg)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or msg.get("_control_flow_done"):  # done in the body
            return
        name = msg["name"].replace("_PREV_", "")  # scan puts it before its first steps
        if name in self.tilts:
            law, value = innermost(msg["fn"]), msg["value"]
            if is_integer(law) and not isinstance(law, OneHotIndex):
                value = index_in_support(name, law, value)
            binary = event_dims(law) == 0
            step, tilt = msg["infer"].get("_scan_current_index"), self.tilts[name]
            tilt = numpyro.subsample(tilt if step is None else tilt[step], event_dim=1)
            numpyro.factor(f"{name}_tilt", select(tilt, value, binary=binary))


class Initial(Messenger):
    """Records the parameters that no handler gives a value."""

    def __init__(self, fn: Callable) -> None:
        super().__init__(fn)
        self.names: list[str] = []

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "param" and msg["value"] is None:
            self.names.append(msg["name"])


def initial_values(names: Iterable[str]) -> str:
    return f"params= does not have {', '.join(names)}: these have their initial values"


class Plates(Messenger):
    """Records the size of each plate, and of the part that a draw uses, inside of scan too."""

    def __init__(self, fn: Callable) -> None:
        super().__init__(fn)
        self.rows: dict[str, tuple[int, int]] = {}

    def process_message(self, msg: dict[str, Any]) -> None:
        reach_into_bodies(self, msg)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "plate":
            self.rows[msg["name"]] = (msg["args"][0], len(msg["value"]))


# --- the programs ---------------------------------------------------------------------------------


class Program(comparison.Program):
    """A program made discrete, with its arguments bound, and the sites of one run."""

    def __init__(self, fn: Callable, args: tuple, kwargs: dict) -> None:
        self._fn = discretize(Annealed(fn))
        self._args, self._kwargs = args, kwargs

    def at(self, temperature: Any) -> None:
        """Runs it; the temperature is passed to a program that declares the argument."""
        return self._fn(temperature, *self._args, **self._kwargs)

    def __call__(self) -> None:
        return self.at(1.0)

    def run(self, params: Mapping[str, Any], key: Array, guide_trace: Any = None) -> None:
        """Keeps the trace, and its latent sites by kind."""
        plates = Plates(SeedBySite(self, key))
        program = handlers.seed(plates, key)
        if guide_trace is not None:
            program = handlers.replay(program, trace=guide_trace)
        initial = Initial(handlers.substitute(program, data=params))
        self.trace = handlers.trace(initial).get_trace()
        self.initial = initial.names
        nodes = self.trace.items()
        self.sites = {name: node for name, node in nodes if node["type"] == "sample"}
        latents = {name: node for name, node in self.sites.items() if not node["is_observed"]}
        for name in self.sites.keys() - latents:
            check_observed(name, self.sites[name])
        dims = {name: class_dims(innermost(node["fn"])) for name, node in latents.items()}
        self.discrete = {name: dim for name, dim in dims.items() if dim is not None}
        self.continuous = [name for name, dim in dims.items() if dim is None]
        self.rows = plates.rows
        self.values = {
            name: jax.tree.map(jnp.asarray, node["value"])
            for name, node in nodes
            if node["type"] in ("param", "mutable")
        }
        self.transforms = {
            name: biject_to(node["kwargs"].get("constraint", constraints.real))
            for name, node in nodes
            if node["type"] == "param"
        }
        self.parameters = {name: t.inv(self.values[name]) for name, t in self.transforms.items()}

    def classes(self, site: str) -> int:
        fn = self.sites[site]["fn"]
        if not is_integer(innermost(fn)):
            return super().classes(site)
        return len(support_of(site, innermost(fn))) ** math.prod(fn.event_shape)

    def tilts(self) -> dict[str, Array]:
        """Zeros by discrete latent, shape plates + (K,), for all rows of a subsampled plate."""
        tilts = {}
        for name in self.discrete:
            node = self.sites[name]
            shape = list(node["fn"].batch_shape)
            for frame in self.frames(name):
                shape[frame.dim] = self.rows[frame.name][0]
            dtype = jnp.result_type(node["value"], float)
            tilts[name] = jnp.zeros((*shape, self.classes(name)), dtype)
        return tilts

    def upstream(self) -> Any:
        program = handlers.substitute(self, data=self.values)
        hidden = handlers.block(program, hide=list(self.values))
        return get_dependencies(hidden)["prior_dependencies"]


class Session(comparison.Session):
    """What comparison.run needs, computed by NumPyro's own ELBOs."""

    model: Program
    guide: Program

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
        params: Mapping[str, Any],
        loss: ELBO,
        key: Array,
    ) -> None:
        self.model, self.guide = (Program(fn, args, kwargs) for fn in (model, guide))
        self.loss, self.key = loss, key
        first = jax.random.fold_in(key, 0)
        self.guide.run(params, first)
        self.model.run({**params, **self.guide.values}, first, self.guide.trace)
        comparison.refuse_unbounded(self.model, self.guide)
        check_traces(self.guide.trace, self.model.trace)
        self.values = {**params, **self.model.values, **self.guide.values}
        if missing := [*self.guide.initial, *self.model.initial]:
            self.notes = (initial_values(missing),)
        rows = {**self.model.rows, **self.guide.rows}
        self.sizes = {name: size for name, (_, size) in rows.items()}
        subsampled = any(size != full for full, size in rows.values())
        self.continuous = bool(self.model.continuous)
        self.stochastic = self.continuous or subsampled
        frames = [f.dim for p in (self.model, self.guide) for s in p.sites for f in p.frames(s)]
        self.exact = TraceEnum_ELBO(max_plate_nesting=-min(frames, default=0))
        self._relaxed: dict[tuple[Family, str], Callable] = {}

    def marginals(self, side: str, draws: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        program = self.model if side == "model" else self.guide
        rest, hide = self.guide if self.model.continuous else _empty, list(self.guide.discrete)

        def evidence(tilts: dict[str, Array], key: Array) -> Array:
            tilted = config_enumerate(Tilt(SeedBySite(program, key), tilts))
            others = handlers.block(SeedBySite(rest, key), hide=hide)
            return -self.exact.loss(key, self.values, tilted, others)

        draw, tilts = jax.jit(self._map(evidence, draws)), program.tilts()
        values, slopes = _flat(tilts, *draw(tilts))
        weights = {name: slopes[name].mean(0).reshape(tilt.shape) for name, tilt in tilts.items()}
        return values, comparison.normalized(weights)

    def elbo(self, draws: int) -> tuple[np.ndarray, Gradients]:
        def elbo(parameters: dict[str, Any], key: Array) -> Array:
            pair = (config_enumerate(SeedBySite(p, key)) for p in (self.model, self.guide))
            return -self.exact.loss(key, self._constrained(parameters), *pair)

        draw = jax.jit(self._map(elbo, draws))
        return _flat(self.parameters, *draw(self.parameters))

    def logits(self) -> set[str]:
        latents = {name: site["value"] for name, site in self.guide.sites.items()}

        def scores(parameters: dict[str, Any]) -> list[Array]:
            values = {**self._constrained(parameters), **latents}
            seeded = handlers.seed(SeedBySite(self.guide, self.key), self.key)
            trace = handlers.trace(handlers.substitute(seeded, data=values)).get_trace()
            sites = (trace[name] for name in self.guide.discrete)
            return [site["fn"].log_prob(site["value"]) for site in sites]

        return _used(scores, self.guide.parameters)

    def relaxed(
        self, family: Family, objective: str, temperature: float, draws: int
    ) -> tuple[np.ndarray, Gradients]:
        key, tau = (family, objective), jnp.asarray(temperature, float)
        if key not in self._relaxed:
            draw = self._draw(family, objective, temperature, draws)
            self._relaxed[key] = draw.lower(self.parameters, tau).compile()
        return self._timed(self._relaxed[key], draws, self.parameters, tau)

    def _timed(self, compiled: Callable, draws: int, *args: Any) -> tuple[np.ndarray, Gradients]:
        began = process_time()
        values, gradients = jax.block_until_ready(compiled(*args))
        self.seconds = (process_time() - began) / draws
        return _flat(self.parameters, values, gradients)

    def _draw(self, family: Family, objective: str, temperature: float, draws: int) -> Any:
        """A function that draws at any (traced) temperature; the pairing is checked at this one."""
        # a straight-through family is scored by its mass under both objectives
        scoring = "categorical" if objective == "discrete" else objective

        def programs(temperature: Any, noise: Callable) -> list[Callable]:
            return [
                relax(
                    noise(partial(p.at, temperature)), temperature, family=family, objective=scoring
                )
                for p in (self.model, self.guide)
            ]

        def elbo(parameters: dict[str, Any], key: Array, temperature: Array) -> Array:
            # the loss gives each particle its key
            alone = self.loss.num_particles == 1
            pair = programs(temperature, (lambda fn: SeedBySite(fn, key)) if alone else _as_is)
            return -self.loss.loss(key, self._constrained(parameters), *pair)

        fixed = programs(temperature, lambda fn: handlers.substitute(fn, data=self.values))
        check(*fixed, self.loss)
        return jax.jit(self._map(elbo, draws))

    def discrete(
        self, elbo: ELBO, draws: int, adaptation_steps: int
    ) -> tuple[np.ndarray, Gradients]:
        keeps_state = hasattr(elbo, "wrap")
        guide = elbo.wrap(self.guide) if keeps_state else self.guide
        state = self._adapt(elbo, adaptation_steps) if keeps_state else {}

        def score(parameters: dict[str, Any], key: Array) -> Array:
            return -elbo.loss(key, self._constrained(parameters) | state, self.model, guide)

        fixed = (handlers.substitute(p, data=self.values) for p in (self.model, guide))
        check(*fixed, elbo)
        draw = jax.jit(self._map(score, draws))
        compiled = draw.lower(self.parameters).compile()
        return self._timed(compiled, draws, self.parameters)

    def _adapt(self, elbo: ELBO, steps: int) -> dict[str, Any]:
        """The state that the guide keeps for an ELBO, after steps that train it alone."""
        model, guide = (
            handlers.block(handlers.substitute(p, data=self.values), hide_fn=_is_parameter)
            for p in (self.model, self.guide)
        )
        svi = SVI(model, elbo.wrap(guide), numpyro.optim.Adam(comparison.ADAPTATION_RATE), elbo)
        key = jax.random.fold_in(self.key, crc32(b"adaptation"))
        result = svi.run(key, steps, progress_bar=False)
        return result.params | (result.state.mutable_state or {})

    def _constrained(self, parameters: dict[str, Any]) -> dict[str, Any]:
        transforms = {**self.model.transforms, **self.guide.transforms}
        return {**self.values, **transform_fn(transforms, parameters)}

    def _map(self, score: Callable, draws: int) -> Callable:
        """Score and its gradient in the first argument, one draw after the other.

        In vmap XLA compiles the random numbers of many keys, which takes eight times as long.
        """

        def draw(variables: Any, *rest: Any) -> tuple[Array, Any]:
            def one(i: Array) -> tuple[Array, Any]:
                key = jax.random.fold_in(self.key, i)
                return jax.value_and_grad(score)(variables, key, *rest)

            return jax.lax.map(one, jnp.arange(draws))

        return draw


def _empty() -> None: ...


def _as_is(fn: Callable) -> Callable:
    return fn


def _is_parameter(msg: dict[str, Any]) -> bool:
    return msg["type"] in ("param", "mutable")


def _flat(
    names: Iterable[str], values: Array, gradients: dict[str, Any]
) -> tuple[np.ndarray, Gradients]:
    """In float64, in the order of names; a tree of arrays, as of a module, becomes one vector."""
    draws = len(values)
    return np.asarray(values, np.float64), {
        name: np.concatenate(
            [np.asarray(g, float).reshape(draws, -1) for g in jax.tree.leaves(gradients[name])], -1
        )
        for name in names
    }
