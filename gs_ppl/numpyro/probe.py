"""The probe along edges, of programs in NumPyro: see gs_ppl._shared.probing."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.distributions.util import scale_and_mask

from gs_ppl._shared.probing import NoDerivative, Reading, probe, vertices, weights
from gs_ppl._shared.wrappers import innermost
from gs_ppl.numpyro.distributions import ExpGumbelSoftmax

__all__: list[str] = []

NEEDS_VALUES = (  # errors of a program that runs only without jit
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
TINY = 1e-6  # smallest coordinate on the simplex, if the value is its log

# for code that runs about ten times: optimization takes most of the time of compiling
IN_HASTE = {"xla_backend_optimization_level": 0}


class Probe:
    """Replays a program with relaxed values along edges; other values are those of its trace."""

    def __init__(
        self, side: str, program: Callable, trace: dict[str, Any], args: tuple, kwargs: dict
    ) -> None:
        self.side, self.program, self.trace = side, program, trace
        self.args, self.kwargs = args, kwargs
        self.sites: frozenset[str] = frozenset()
        self.compiled: dict[tuple[str, ...], Callable] = {}

    def run(self, masses: list[str], densities: list[str]) -> None:
        probe(self.side, masses, densities, self.corners, self.read)

    def law(self, name: str) -> Any:
        return innermost(self.trace[name]["fn"])

    def corners(self, name: str) -> list[Array]:
        value = self.trace[name]["value"]
        a = np.broadcast_to(_logits(self.law(name)), value.shape)
        if not self.law(name).event_shape:  # a bit that is certain does not move
            return [jnp.asarray(v, value.dtype) for v in (a == np.inf, a > -np.inf)]
        rng = np.random.default_rng(0)
        return [jnp.asarray(v, value.dtype) for v in vertices(a > -np.inf, rng)]

    def read(self, moved: dict[str, tuple[Array, Array]], t: float) -> Reading:
        point = moved, jnp.asarray(t, jnp.result_type(float))
        run = self.compiled.get(tuple(moved))
        values, slopes = self._first(*point) if run is None else run(*point)
        flat = [np.asarray(x, np.float64).ravel() for x in values]
        with np.errstate(invalid="ignore"):  # slopes of inf and -inf: their sum is unknown
            slope = sum(float(np.asarray(x, np.float64).sum()) for x in slopes)
        return Reading(np.concatenate([np.zeros(1), *flat]), slope, self.sites)

    def _first(self, *point: Any) -> tuple:
        """Differentiates forward, or else backward: custom_vjp has no forward derivative."""
        for differentiate in (_forward, _backward):
            slopes = partial(self._values_and_slopes, differentiate)
            for run in (jax.jit(slopes, compiler_options=IN_HASTE), slopes):
                try:
                    found = run(*point)
                except NEEDS_VALUES as error:
                    cause: Exception = error
                except (TypeError, NotImplementedError) as error:
                    cause = error
                    break
                else:
                    self.compiled[tuple(point[0])] = run
                    return found
        self._values_and_slopes(_plain, *point)  # if the program itself fails, its own error
        raise NoDerivative(str(cause)) from cause

    def _values_and_slopes(
        self, differentiate: Callable, moved: dict[str, tuple[Array, Array]], t: Array
    ) -> tuple:
        def terms(t: Array) -> list[Array]:
            leaves = {}
            for name, (start, end) in moved.items():
                value = start + t.astype(start.dtype) * (end - start)
                in_logs = isinstance(self.law(name), ExpGumbelSoftmax)
                leaves[name] = jnp.log(jnp.maximum(value, TINY)) if in_logs else value
            sites, values = self._terms(leaves)
            self.sites = frozenset(sites)
            random = weights([x.shape for x in values])
            return [jnp.asarray(w, x.dtype) * x for w, x in zip(random, values, strict=True)]

        return differentiate(terms, t)

    def _terms(self, leaves: dict[str, Array]) -> tuple[set[str], list[Array]]:
        fixed = {
            name: {**site, "value": leaves.get(name, site["value"])}
            for name, site in self.trace.items()
            if site["type"] == "plate" or (site["type"] == "sample" and not site["is_observed"])
        }
        seeded = handlers.seed(self.program, jax.random.key(0))
        with handlers.block():
            trace = handlers.trace(handlers.replay(seeded, fixed)).get_trace(
                *self.args, **self.kwargs
            )
        sites = {name for name, site in trace.items() if site["type"] == "sample"}
        terms = [_score(trace[name]) for name in sorted(sites - leaves.keys())]
        for name, value in leaves.items():
            law = innermost(trace[name]["fn"]) if name in sites else None
            if law is not None and getattr(law, "scored_as", "mass") == "mass":
                terms.append(_linear_score(law, value))
        return sites, terms


def _plain(terms: Callable, t: Array) -> tuple:
    return terms(t), []


def _forward(terms: Callable, t: Array) -> tuple:
    return jax.jvp(terms, (t,), (jnp.ones_like(t),))


def _backward(terms: Callable, t: Array) -> tuple:
    values, pull = jax.vjp(terms, t)
    return values, pull([jnp.ones_like(x) for x in values])


def _score(site: dict[str, Any]) -> Array:
    intermediates = [site["intermediates"]] if site["intermediates"] else []
    return scale_and_mask(site["fn"].log_prob(site["value"], *intermediates), site["scale"])


def _logits(law: Any) -> Array:
    return law.a if hasattr(law, "a") else law.logits


def _linear_score(law: Any, value: Array) -> Array:
    """The mass at any value, also of a law on the vertices: it shows the effect of the parents."""
    a = _logits(law)
    if law.event_shape:
        return _weighted(value, jax.nn.log_softmax(a))
    return _weighted(value, jax.nn.log_sigmoid(a)) + _weighted(1 - value, jax.nn.log_sigmoid(-a))


def _weighted(value: Array, logs: Array) -> Array:
    return value * jnp.where(jnp.isinf(logs), 0.0, logs)  # 0 * inf has no slope
