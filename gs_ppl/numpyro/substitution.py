"""ELBOs that run the program at chosen values of its discrete sites: MuProp, DARN, REBAR, DisARM.

Letters: b = the sample of a discrete site, a = its logits, pi = its mean, r = its cost in nats: the
sum of log p - log q over all terms, except those in other rows of the site's plates. Each estimate
G of the gradient by a enters the loss as the surrogate r + G a.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from jax.lax import stop_gradient
from numpyro import handlers
from numpyro.infer.elbo import ELBO
from numpyro.infer.util import get_importance_trace
from numpyro.primitives import Messenger, mutable

from gs_ppl._shared.laws import refuse_undefined
from gs_ppl._shared.reprs import ShownELBO
from gs_ppl._shared.score_function import check_decay, weight_of_step
from gs_ppl._shared.substitution import DiscreteSite, Run, check_law, refuse_one_hot
from gs_ppl._shared.wrappers import innermost, rewrap
from gs_ppl.numpyro import functional as F
from gs_ppl.numpyro._base import LogitsDistribution
from gs_ppl.numpyro._elbo import check_plates, costs_by_plates, samples, with_state
from gs_ppl.numpyro.control_flow import reach_into_bodies
from gs_ppl.numpyro.distributions import OneHotCategorical, SoftOneHotCategorical
from gs_ppl.numpyro.handlers import is_latent, relax
from gs_ppl.numpyro.integers import event_dims, is_integer

__all__ = ["DARN_ELBO", "REBAR_ELBO", "DisARM_ELBO", "MuProp_ELBO"]

# --- one-hot vectors and bits, in one set of formulas ---------------------------------------------


class OneHot:
    """A one-hot vector; the last axis holds its categories."""

    squash = staticmethod(jax.nn.softmax)
    hard = staticmethod(F.one_hot_argmax)

    @staticmethod
    def noise(key: Array, a: Array) -> Array:
        return -jnp.log(F.exponential_noise(key, a.shape, dtype=a.dtype))

    @staticmethod
    def midpoint(a: Array) -> Array:
        """1 / K in each category that exists."""
        finite = a > -jnp.inf
        return finite / finite.sum(-1, keepdims=True)

    @staticmethod
    def log_prob(a: Array, b: Array) -> Array:
        return F.categorical_log_prob(a, b, a > -jnp.inf)[..., None]

    @staticmethod
    def pull(y: Array, v: Array) -> Array:
        """v^T d y / d z for y = squash(z)."""
        return y * (v - (y * v).sum(-1, keepdims=True))

    @staticmethod
    def pull_coupled(z: Array, a: Array, v: Array) -> Array:
        """v^T d (z - z') / d a, with z = a + g and z' of the same value, its law that of z given b.

        With the top at m, z'_k = -log(E_k) there and z'_i = -log(E_i / pi_i + E_k) elsewhere, E
        fixed; this leaves exp(z_i - m) d log pi_i.
        """
        u = jnp.exp(z - z.max(-1, keepdims=True)) * v
        return u - jax.nn.softmax(a) * u.sum(-1, keepdims=True)


class Bit:
    """A bit."""

    squash = staticmethod(jax.nn.sigmoid)

    @staticmethod
    def hard(z: Array) -> Array:
        return (z > 0).astype(z.dtype)

    @staticmethod
    def noise(key: Array, a: Array) -> Array:
        return F.logistic_noise(key, a.shape, dtype=a.dtype)

    @staticmethod
    def midpoint(a: Array) -> Array:
        return jnp.full_like(a, 0.5)

    @staticmethod
    def log_prob(a: Array, b: Array) -> Array:
        return F.bernoulli_log_prob(a, b, jnp.isfinite(a))

    @staticmethod
    def pull(y: Array, v: Array) -> Array:
        """v d y / d z for y = squash(z)."""
        return y * (1 - y) * v

    @staticmethod
    def pull_coupled(z: Array, a: Array, v: Array) -> Array:
        """v d (z - z') / d a, as in OneHot; p is the probability of b."""
        p = jax.nn.sigmoid(jnp.where(z > 0, a, -a))
        return (1 + p * jnp.expm1(-jnp.abs(z))) * v


# --- runs at chosen values ------------------------------------------------------------------------


Rule = Callable[[DiscreteSite], Array]
Particle = tuple[Array, dict[str, Array]]


class _AtValues(Messenger):
    """Gives each site of a guide with soft masses the value that a rule chooses."""

    def __init__(self, fn: Callable, rule: Rule, fixed_law: bool) -> None:
        super().__init__(fn)
        self.rule, self.fixed_law = rule, fixed_law
        self.sites: dict[str, DiscreteSite] = {}
        self.values: dict[str, Array] = {}

    def process_message(self, msg: dict[str, Any]) -> None:
        if not is_latent(msg):
            return
        name, fn, law = msg["name"], msg["fn"], innermost(msg["fn"])
        kind, logits = OneHot if event_dims(law) else Bit, law.a
        a = jnp.broadcast_to(logits, fn.shape(tuple(msg["kwargs"].get("sample_shape", ()))))
        site = DiscreteSite(name, kind, a, fn.event_dim, list(msg["cond_indep_stack"]))
        scored = stop_gradient(logits) if self.fixed_law else logits
        msg["fn"] = rewrap(fn, lambda law: type(law)(1.0, logits=scored))
        self.sites[name] = site
        self.values[name] = msg["value"] = self.rule(site)


class _Discrete(Messenger):
    """A handler around the guide; refuses laws that are not discrete."""

    def __init__(self, fn: Callable, estimator: str) -> None:
        super().__init__(fn)
        self.estimator = estimator

    def process_message(self, msg: dict[str, Any]) -> None:
        reach_into_bodies(_RefuseScan(self.estimator), msg)
        if is_latent(msg):
            law = innermost(msg["fn"])
            relaxed = isinstance(law, LogitsDistribution) and not isinstance(law, OneHotCategorical)
            discrete = event_dims(law) is not None or is_integer(law)
            check_law(msg["name"], law, self.estimator, relaxed=relaxed, discrete=discrete)


class _RefuseScan(Messenger):
    """A handler around the body of a scan in the guide."""

    def __init__(self, estimator: str) -> None:
        super().__init__()
        self.estimator = estimator

    def process_message(self, msg: dict[str, Any]) -> None:
        if is_latent(msg):
            raise ValueError(
                f"site {msg['name']!r}: {self.estimator} takes no discrete site inside of scan in"
                " the guide: write the guide's loop in Python"
            )


@dataclass(frozen=True)
class Programs:
    """Guide and model, run at values that a rule chooses; the rows of plates stay the same."""

    name: str  # name of the estimator
    key: Array
    params: dict[str, Any]
    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict[str, Any]

    def fixed(self) -> "Programs":
        """The programs with their parameters as constants."""
        return replace(self, params=stop_gradient(self.params))

    def run(self, rule: Rule, fixed_law: bool = False) -> Run:
        guide = handlers.seed(self.guide, jax.random.fold_in(self.key, 0))
        guide = relax(_Discrete(guide, self.name), 1.0, family=SoftOneHotCategorical)
        at = _AtValues(guide, rule, fixed_law)
        model = handlers.seed(self.model, jax.random.fold_in(self.key, 1))
        model = relax(model, 1.0, family=SoftOneHotCategorical)
        model_trace, guide_trace = get_importance_trace(
            model, at, self.args, self.kwargs, self.params
        )
        for name, site in model_trace.items():
            if is_latent(site) and name not in guide_trace:
                raise ValueError(
                    f"site {name!r}: {self.name} needs it in the guide too: add it to the guide"
                )
        pair = model_trace, guide_trace
        for trace in pair:
            check_plates(trace)
        run = Run(at, costs_by_plates(*pair), *map(samples, pair))
        sites = [site for trace in pair for site in trace.values()]
        run.state |= {s["name"]: s["value"] for s in sites if s["type"] == "mutable"}
        return run


class SharedNoise:
    """Noise for each site, the same in each run: z = a + noise, b = hard(z)."""

    def __init__(self, key: Array) -> None:
        self.key = key
        self._noise: dict[str, Array] = {}

    def noise(self, site: DiscreteSite) -> Array:
        if site.name not in self._noise:
            key = jax.random.fold_in(self.key, len(self._noise))
            self._noise[site.name] = site.kind.noise(key, site.a)
        return self._noise[site.name]

    def z(self, site: DiscreteSite) -> Array:
        return site.a + self.noise(site)

    def b(self, site: DiscreteSite) -> Array:
        return stop_gradient(site.kind.hard(self.z(site)))


def _attach(g: Array, x: Array) -> Array:
    """Zero, with the gradient g by x; masked categories have no gradient."""
    x = (stop_gradient(g) * jnp.where(jnp.isfinite(x), x, 0)).sum()
    return x - stop_gradient(x)


def _tempered(z: Array, tau: Any) -> Array:
    """z / tau; infinite values stay infinite, without a gradient by tau."""
    finite = jnp.isfinite(z)
    return jnp.where(finite, jnp.where(finite, z, 0.0) / tau, z)


class SubstitutingELBO(ShownELBO, ELBO):
    """For guides with only discrete sites, in one layer or several."""

    can_infer_discrete = True

    def __init__(self, num_particles: int = 1, *, vectorize_particles: Any = True) -> None:
        super().__init__(num_particles, vectorize_particles)

    def estimate(self, programs: Programs, shared: SharedNoise, hard: Run) -> dict[str, Array]:
        """G by the logits of each site, from the run at the samples."""
        refuse_undefined(self, "estimate")

    def particle(self, programs: Programs, shared: SharedNoise) -> Particle:
        """The ELBO at the samples, with the estimate as its gradient; the new state."""
        hard = programs.run(shared.b)
        estimates = self.estimate(programs.fixed(), shared, hard)
        surrogate = sum(_attach(estimates[n], site.a) for n, site in hard.sites.items())
        return hard.log_p - stop_gradient(hard.log_q) + surrogate, hard.state

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        def particle(key: Array) -> Particle:
            programs = Programs(type(self).__name__, key, param_map, model, guide, args, kwargs)
            return self.particle(programs, SharedNoise(jax.random.fold_in(key, 2)))

        if self.num_particles == 1:
            elbo, state = particle(rng_key)
        else:
            keys = jax.random.split(rng_key, self.num_particles)
            found = self.vectorize_particles_fn(particle, keys)
            elbo, state = jax.tree.map(lambda x: x.mean(0).astype(x.dtype), found)
        return {"loss": -elbo, "mutable_state": stop_gradient(state) or None}


class MuProp_ELBO(SubstitutingELBO):
    """REINFORCE, with the Taylor expansion around the mean-field run as its baseline. Unbiased.

    G = (r - r(m) - r'(m) (b - m) - c) (b - pi) + r'(m) d pi / d a

    m: the values of a run in which each site takes its mean, given the values before it. If SVI
    gets `elbo.wrap(guide)`, c is the running mean of the terms before it, for each site, which is
    mutable state of the guide. Otherwise c is 0.

    Args:
        num_particles, vectorize_particles: as in numpyro.infer.Trace_ELBO.
        decay: weight of the past in the running mean, in [0, 1).

    Raises:
        ValueError: naming the site: one that is not discrete, is relaxed, or has a batch axis in no
            plate; for a decay outside of [0, 1).

    Source: Gu, Levine, Sutskever, Mnih 2016; c is their centering.

    Example: as NVIL_ELBO, with MuProp_ELBO() in its place.
    """

    def __init__(
        self, num_particles: int = 1, *, decay: float = 0.9, vectorize_particles: Any = True
    ) -> None:
        check_decay("MuProp_ELBO", decay)
        super().__init__(num_particles, vectorize_particles=vectorize_particles)
        self.decay = decay

    def wrap(self, guide: Callable) -> Callable:
        """The guide, and for each discrete site a running mean and the number of steps."""
        return with_state(guide, lambda name: mutable(f"{name}_muprop", jnp.zeros(2)))

    def estimate(self, programs: Programs, shared: SharedNoise, hard: Run) -> dict[str, Array]:
        def mean_field(shift: dict[str, Array]) -> tuple:
            run = programs.run(lambda site: site.kind.squash(site.a) + shift[site.name])
            return run.elbo, (run.values, {n: run.r(site) for n, site in run.sites.items()})

        zeros = {name: jnp.zeros_like(site.a) for name, site in hard.sites.items()}
        slope, (m, r) = jax.grad(mean_field, has_aux=True)(zeros)
        result = {}
        for name, site in hard.sites.items():
            b, pi, k = hard.values[name], site.kind.squash(site.a), slope[name]
            signal = hard.r(site) - r[name] - site.inner(k * (b - m[name]))
            if (state := programs.params.get(f"{name}_muprop")) is not None:
                c, steps = state
                change = weight_of_step(self.decay, steps) * (signal.mean() - c)
                hard.state[f"{name}_muprop"] = jnp.stack([c + change, steps + 1])
                signal -= c
            result[name] = signal * (b - pi) + site.kind.pull(pi, k)
        return result


class DARN_ELBO(SubstitutingELBO):
    """REINFORCE, with r expanded around the sample at the midpoint as its baseline. Biased.

    G = r'(b) (b - c) (b - pi), c = 1/2 for a bit, 1/K for a one-hot vector

    G is computed for each variable separately. It is unbiased if r is quadratic in a bit, or linear
    in a one-hot vector. Otherwise it is biased, also in the effect of a variable on later layers.

    Args, Raises: as MuProp_ELBO.

    Source: Gregor, Danihelka, Mnih, Blundell, Wierstra 2014; Gu et al. 2016, section 4 (the "1/2
    estimator"). They have bits only; c = 1/K for one-hot vectors is our extension.

    Example: as RLOO_ELBO, with DARN_ELBO() in its place.
    """

    def particle(self, programs: Programs, shared: SharedNoise) -> Particle:
        def value(site: DiscreteSite) -> Array:
            b = shared.b(site)
            log_q = site.kind.log_prob(site.a, b)
            return b + (b - site.kind.midpoint(site.a)) * (log_q - stop_gradient(log_q))

        run = programs.run(value, fixed_law=True)
        return run.elbo, run.state


class REBAR_ELBO(SubstitutingELBO):
    """REINFORCE, with the program at a relaxed sample as its control variate. Unbiased.

    G = (r(b) - eta r(y)) (b - pi) + eta d r(y) / d a - eta d r(y') / d a

    y = squash(z / tau), z = a + noise; y' is the same with z drawn given b. Their noise is coupled
    so that y and y' have the same value, and only their gradients differ. G is computed for each
    site separately: sites before it keep their samples, sites after it are relaxed.

    If SVI gets `elbo.wrap(guide)`, tau and eta of each site are parameters, which are trained to
    minimize sum G^2; use an optimizer that scales its steps, such as Adam. Otherwise they are
    constants.

    Args:
        num_particles, vectorize_particles: as in numpyro.infer.Trace_ELBO.
        temperature: tau > 0, or its initial value.
        scale: eta, or its initial value.

    Raises:
        ValueError: as MuProp_ELBO; a temperature that is not positive.

    Source: Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein 2017.

    Example: as NVIL_ELBO, with REBAR_ELBO() in its place.
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        temperature: float = 0.5,
        scale: float = 1.0,
        vectorize_particles: Any = True,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"REBAR_ELBO: temperature must be positive, got {temperature}")
        super().__init__(num_particles, vectorize_particles=vectorize_particles)
        self.temperature, self.scale = temperature, scale

    def wrap(self, guide: Callable) -> Callable:
        """The guide with tau and eta of each discrete site as parameters."""

        def register(name: str) -> None:
            numpyro.param(f"{name}_rebar_log_temperature", jnp.log(self.temperature))
            numpyro.param(f"{name}_rebar_scale", jnp.asarray(float(self.scale)))

        return with_state(guide, register)

    def particle(self, programs: Programs, shared: SharedNoise) -> Particle:
        hard = programs.run(shared.b)
        fixed = programs.fixed()
        surrogate: Array | float = 0.0
        for name, site in hard.sites.items():
            start = math.log(self.temperature), self.scale
            names = f"{name}_rebar_log_temperature", f"{name}_rebar_scale"
            log_tau, eta = map(programs.params.get, names, start)
            g = self.estimate_site(fixed, shared, hard, site, jnp.exp(log_tau), eta)
            spread = (g**2).sum()
            surrogate += _attach(g, site.a) - (spread - stop_gradient(spread))
        return hard.log_p - stop_gradient(hard.log_q) + surrogate, hard.state

    def estimate_site(
        self,
        programs: Programs,
        shared: SharedNoise,
        hard: Run,
        site: DiscreteSite,
        tau: Any,
        eta: Any,
    ) -> Array:
        """G by the logits of one site, as a function of only its tau and eta."""
        before = list(hard.sites)[: list(hard.sites).index(site.name)]
        a, b = stop_gradient((site.a, hard.values[site.name]))
        z = a + shared.noise(site)
        y = site.kind.squash(_tempered(z, tau))

        def relaxed(y: Array) -> tuple[Array, Array]:
            def rule(other: DiscreteSite) -> Array:
                if other.name == site.name:
                    return y
                if other.name in before:
                    return shared.b(other)
                return other.kind.squash(_tempered(shared.z(other), tau))

            run = programs.run(rule)
            return run.elbo, run.r(site)

        slope, r = jax.grad(relaxed, has_aux=True)(y)
        signal = stop_gradient(hard.r(site)) - eta * r
        pathwise = site.kind.pull_coupled(z, a, site.kind.pull(y, slope) / tau)
        return signal * (b - site.kind.squash(a)) + eta * pathwise


class DisARM_ELBO(SubstitutingELBO):
    """An antithetic pair of runs for each site of bits. Unbiased.

    G = (r(b) - r(b')) (b - b') sigmoid(|a|) / 2, with b = [a + L > 0], b' = [a - L > 0]

    The noise L is logistic. Sites before it keep their samples. Sites after it are drawn again,
    with the same noise.

    Args, Raises: as MuProp_ELBO, and for one-hot sites.

    Source: Dong, Mnih, Tucker 2020; Yin, Ho, Yan, Qian, Zhou 2020 (U2G).

    Example: as RLOO_ELBO, with Bernoulli sites and DisARM_ELBO() in its place.
    """

    def estimate(self, programs: Programs, shared: SharedNoise, hard: Run) -> dict[str, Array]:
        result = {}
        for name, site in hard.sites.items():
            if site.kind is not Bit:
                refuse_one_hot(name)
            b, opposite = hard.values[name], Bit.hard(site.a - shared.noise(site))
            at = partial(_flipped, shared, name, opposite)
            difference = hard.r(site) - programs.run(at).r(site)
            result[name] = difference * (b - opposite) * jax.nn.sigmoid(jnp.abs(site.a)) / 2
        return result


def _flipped(shared: SharedNoise, name: str, opposite: Array, other: DiscreteSite) -> Array:
    """The bits as they were drawn, except one."""
    return opposite if other.name == name else shared.b(other)
