"""ELBOs for programs with discrete latents, whose gradient takes several runs of the program.

Letters: b = the sample of a discrete site, a = its logits, pi = its mean, r = what it costs, that
is log p - log q summed over all that shares the site's plates or has none of its own, in nats. Each
estimate G of the gradient by a is handed over as the surrogate r + G a.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from jax.lax import stop_gradient
from numpyro import handlers
from numpyro.infer.elbo import ELBO, MultiFrameTensor
from numpyro.infer.util import get_importance_trace
from numpyro.primitives import Messenger, mutable
from numpyro.util import check_model_guide_match

from gs_ppl import rewriting
from gs_ppl.numpyro import functional as F
from gs_ppl.numpyro._base import LogitsDistribution
from gs_ppl.numpyro.distributions import OneHotCategorical, SoftBernoulli, SoftOneHotCategorical
from gs_ppl.numpyro.handlers import event_dims, reach_into_scan, relax

__all__ = ["DARN_ELBO", "NVIL_ELBO", "REBAR_ELBO", "RLOO_ELBO", "DisARM_ELBO", "MuProp_ELBO"]

Particle = tuple[Array, dict[str, Array], dict[str, Array]]

# --- score function with a baseline: any program --------------------------------------------------


def _is_latent(msg: dict[str, Any]) -> bool:
    return msg["type"] == "sample" and not msg["is_observed"]


def _is_scored(msg: dict[str, Any]) -> bool:
    """A latent site without a pathwise gradient."""
    return _is_latent(msg) and not msg["fn"].has_rsample


def _check_plates(trace: dict[str, Any]) -> None:
    """Axes that no plate declares would be summed in the wrong places."""
    for name, site in trace.items():
        if site["type"] != "sample":
            continue
        dims, shape = {frame.dim for frame in site["cond_indep_stack"]}, site["log_prob"].shape
        for dim in range(-len(shape), 0):
            if shape[dim] > 1 and dim not in dims:
                raise ValueError(
                    f"site {name!r}: axis {dim} of its batch shape {shape} lies in no plate: put"
                    " the site into one, or join the axis to the event by to_event"
                )


def _costs(model_trace: dict[str, Any], guide_trace: dict[str, Any]) -> MultiFrameTensor:
    """log p - log q by plates."""
    costs = MultiFrameTensor()
    for sign, trace in ((1, model_trace), (-1, guide_trace)):
        for site in trace.values():
            if site["type"] == "sample":
                costs.add((site["cond_indep_stack"], sign * site["log_prob"]))
    return costs


def _exact_score(fn: Any) -> Any:
    """The law, to be scored without the plates' scale; its gradient is right at logits of 0 too.

    NumPyro's Bernoulli has kinks there: b and 0 for b - pi.
    """
    is_bit = event_dims(rewriting.innermost(fn)) == 0
    return rewriting.rewrap(fn, lambda law: SoftBernoulli(1.0, logits=law.logits)) if is_bit else fn


class _Registers(Messenger):
    """Has `register(name)` called for each discrete site of the guide, once that has run."""

    def __init__(self, fn: Callable, register: Callable[[str], Any]) -> None:
        super().__init__(fn)
        self.register = register

    def process_message(self, msg: dict[str, Any]) -> None:
        if _is_scored(msg):
            self.names.append(msg["name"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.names: list[str] = []
        result = super().__call__(*args, **kwargs)
        for name in self.names:
            self.register(name)
        return result


def _wrap(guide: Callable, register: Callable[[str], Any]) -> Callable:
    """The guide with an estimator's own state beside it."""

    @wraps(guide, updated=())
    def program(*args: Any, **kwargs: Any) -> Any:
        return _Registers(guide, register)(*args, **kwargs)

    return program


class ScoreFunctionELBO(ELBO):
    """grad E r = E[grad r + sum_s (r_s - baseline_s) grad log q(b_s)], s the discrete sites.

    Continuous sites of the guide have their pathwise gradient. r_s leaves out what lies in other
    rows of the plates of s. All particles see the same rows of a subsampled plate.
    """

    can_infer_discrete = True

    def center(self, r: dict[str, Array], state: dict[str, Array]) -> dict[str, Array]:
        """The learning signal of each site; the first axis of r is that of the particles."""
        raise NotImplementedError

    def update(self, r: dict[str, Array], state: dict[str, Array]) -> dict[str, Array]:
        """What the guide's mutable sites become."""
        return state

    def predict(self, site: dict[str, Any]) -> Array | float:
        """What is known of r beforehand; learnt by least squares of the signal."""
        return 0.0

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        def traces(key: Array, rows: dict[str, Array]) -> tuple[dict, dict]:
            programs = [
                handlers.substitute(handlers.seed(fn, k), data=rows)
                for fn, k in zip((model, guide), jax.random.split(key), strict=True)
            ]
            return get_importance_trace(*programs, args, kwargs, param_map)

        def particle(key: Array) -> Particle:
            model_trace, guide_trace = traces(key, rows)
            costs = _costs(model_trace, guide_trace)
            elbo = sum(site["log_prob"].sum() for site in _samples(model_trace))
            log_q, r = {}, {}
            for site in _samples(guide_trace):
                term, name = site["log_prob"].sum(), site["name"]
                elbo -= stop_gradient(term) if _is_scored(site) else term
                if _is_scored(site):
                    log_q[name] = _exact_score(site["fn"]).log_prob(site["value"])
                    cost = stop_gradient(costs.sum_to(site["cond_indep_stack"]))
                    r[name] = _subtract(name, cost, self.predict(site))
            return elbo, log_q, r

        model_trace, guide_trace = traces(rng_key, {})
        check_model_guide_match(model_trace, guide_trace)
        _check_plates(model_trace)
        _check_plates(guide_trace)
        rows = {n: s["value"] for n, s in model_trace.items() if s["type"] == "plate"}
        state = {n: s["value"] for n, s in guide_trace.items() if s["type"] == "mutable"}
        keys = jax.random.split(rng_key, self.num_particles)
        elbo, log_q, r = self.vectorize_particles_fn(particle, keys)
        signals = self.center(r, state)
        terms = (
            stop_gradient(x) * log_q[name]
            - x**2 / 2  # the square has a gradient if x was predicted
            for name, x in signals.items()
        )
        surrogate = sum(term.sum() for term in terms) / self.num_particles
        loss = -elbo.mean() - surrogate + stop_gradient(surrogate)
        return {"loss": loss, "mutable_state": stop_gradient(self.update(r, state)) or None}


def _subtract(name: str, r: Array, predicted: Array | float) -> Array:
    if jnp.broadcast_shapes(r.shape, jnp.shape(predicted)) != r.shape:
        raise ValueError(
            f"site {name!r}: the baseline must have the shape {r.shape} of the site's plates, got"
            f" {jnp.shape(predicted)}"
        )
    return r - predicted


def _samples(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [site for site in trace.values() if site["type"] == "sample"]


class RLOO_ELBO(ScoreFunctionELBO):
    """REINFORCE, with the mean of the other particles as the baseline of each. Unbiased.

    G = mean_i (r_i - mean_{j != i} r_j) grad log q(b_i)

    For any program: plates, subsampling, dependent sites, continuous latents beside.

    Args:
        num_particles: at least 2.
        vectorize_particles: as in numpyro.infer.Trace_ELBO.

    Raises:
        ValueError: for fewer particles, and naming a site with a batch axis in no plate.

    Source: Kool, van Hoof, Welling 2019, Buy 4 REINFORCE samples, get a baseline for free.

    Example:
        >>> import jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import OneHotCategorical, RLOO_ELBO
        >>> def model():
        ...     z = numpyro.sample("z", OneHotCategorical(logits=jnp.zeros(2)))
        ...     loc = (z * jnp.array([-2.0, 2.0])).sum(-1)
        ...     numpyro.sample("x", numpyro.distributions.Normal(loc, 1.0), obs=1.5)
        >>> def guide():
        ...     a = numpyro.param("a", jnp.zeros(2))
        ...     numpyro.sample("z", OneHotCategorical(logits=a))
        >>> adam = numpyro.optim.Adam(0.1)
        >>> svi = numpyro.infer.SVI(model, guide, adam, RLOO_ELBO(num_particles=4))
        >>> result = svi.run(jax.random.key(0), 100, progress_bar=False)
        >>> jax.nn.softmax(result.params["a"]).round().tolist()
        [0.0, 1.0]
    """

    def __init__(self, num_particles: int = 2, vectorize_particles: Any = True) -> None:
        if num_particles < 2:
            raise ValueError(
                f"RLOO_ELBO: num_particles must be at least 2, got {num_particles}: each takes its"
                " baseline from the others"
            )
        super().__init__(num_particles, vectorize_particles)

    def center(self, r: dict[str, Array], state: dict[str, Array]) -> dict[str, Array]:
        n = self.num_particles
        return {name: (x - x.mean(0)) * n / (n - 1) for name, x in r.items()}


class NVIL_ELBO(ScoreFunctionELBO):
    """REINFORCE, with a learned and a running mean as the baseline.

    G = (r - C - c) / max(1, s) grad log q(b), c and s the running moments of r - C

    Unbiased where `normalize` is False; the division by s, one number for each site, keeps the
    direction of G by that site. For any program, as RLOO_ELBO.

    C = nn_baseline(nn_baseline_input), in nats, for sites of the guide that have
    `infer={"baseline": {"nn_baseline": f, "nn_baseline_input": x}}`, else 0; the parameters of f
    descend on the square of the signal r - C - c. The running moments are mutable state of the
    guide: hand SVI `elbo.wrap(guide)`.

    Args:
        num_particles, vectorize_particles: as in numpyro.infer.Trace_ELBO.
        decay: weight of the past in the running moments, in [0, 1).
        normalize: divide by the standard deviation where that is above 1 nat.

    Raises:
        ValueError: for a guide that is not wrapped, a decay outside of [0, 1), and naming a site
            with a batch axis in no plate, or a C of more axes than the plates.

    Source: Mnih, Gregor 2014, algorithm 1.

    Example:
        >>> import jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import NVIL_ELBO, OneHotCategorical
        >>> def program():
        ...     a = numpyro.param("a", jnp.zeros(2))
        ...     numpyro.sample("z", OneHotCategorical(logits=a))
        >>> elbo = NVIL_ELBO()
        >>> svi = numpyro.infer.SVI(program, elbo.wrap(program), numpyro.optim.Adam(0.1), elbo)
        >>> state = svi.run(jax.random.key(0), 10, progress_bar=False).state
        >>> float(state.mutable_state["z_nvil"][2])
        10.0
    """

    def __init__(
        self,
        num_particles: int = 1,
        vectorize_particles: Any = True,
        decay: float = 0.9,
        normalize: bool = True,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"NVIL_ELBO: decay must be in [0, 1), got {decay}")
        super().__init__(num_particles, vectorize_particles)
        self.decay, self.normalize = decay, normalize

    def wrap(self, guide: Callable) -> Callable:
        """The guide with running mean, variance and number of steps beside each discrete site."""
        return _wrap(guide, lambda name: mutable(f"{name}_nvil", jnp.zeros(3)))

    def predict(self, site: dict[str, Any]) -> Array | float:
        baseline = site["infer"].get("baseline")
        if baseline is None:
            return 0.0
        return baseline["nn_baseline"](stop_gradient(baseline["nn_baseline_input"]))

    def center(self, r: dict[str, Array], state: dict[str, Array]) -> dict[str, Array]:
        signals = {}
        for name, x in r.items():
            if f"{name}_nvil" not in state:
                raise ValueError(
                    f"site {name!r}: NVIL_ELBO keeps its running mean in the guide: hand SVI"
                    " elbo.wrap(guide)"
                )
            mean, variance, _ = state[f"{name}_nvil"]
            scale = jnp.sqrt(jnp.maximum(variance, 1)) if self.normalize else 1
            signals[name] = (x - mean) / scale
        return signals

    def update(self, r: dict[str, Array], state: dict[str, Array]) -> dict[str, Array]:
        new = {}
        for name, x in r.items():
            mean, variance, steps = state[f"{name}_nvil"]
            weight = (1 - self.decay) / (1 - self.decay ** (steps + 1))
            change = x.mean() - mean
            spread = (1 - weight) * (variance + weight * change**2) + weight * x.var()
            new[f"{name}_nvil"] = jnp.stack([mean + weight * change, spread, steps + 1])
        return state | new


# --- one-hot vectors and bits, in one set of formulas ---------------------------------------------


class OneHot:
    """A one-hot vector; the last axis holds its categories."""

    soft_law = SoftOneHotCategorical
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

    soft_law = SoftBernoulli
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

    log_prob = staticmethod(F.bernoulli_log_prob)

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


@dataclass(frozen=True)
class Site:
    """A discrete site of the guide: its logits in the shape of the value, and its place."""

    name: str
    kind: type[OneHot] | type[Bit]
    a: Array
    event_dim: int
    frames: list

    def inner(self, x: Array) -> Array:
        """Sum over the axes of the event, which stay."""
        return x.sum(tuple(range(x.ndim - self.event_dim, x.ndim)), keepdims=True)


Rule = Callable[[Site], Array]


class _AtValues(Messenger):
    """Gives each discrete site of the guide the value of a rule, scored by its mass."""

    def __init__(self, fn: Callable, rule: Rule, estimator: str, fixed_law: bool) -> None:
        super().__init__(fn)
        self.rule, self.estimator, self.fixed_law = rule, estimator, fixed_law
        self.sites: dict[str, Site] = {}
        self.values: dict[str, Array] = {}

    def process_message(self, msg: dict[str, Any]) -> None:
        reach_into_scan(_RefuseScan(self.estimator), msg)
        if not _is_latent(msg):
            return
        name, fn, law = msg["name"], msg["fn"], rewriting.innermost(msg["fn"])
        _check_law(name, law, self.estimator)
        kind = OneHot if event_dims(law) else Bit
        logits = jnp.asarray(law.logits, jnp.promote_types(law.logits.dtype, jnp.float32))
        a = jnp.broadcast_to(logits, fn.shape())
        site = Site(name, kind, a, fn.event_dim, list(msg["cond_indep_stack"]))
        scored = stop_gradient(logits) if self.fixed_law else logits
        msg["fn"] = rewriting.rewrap(fn, lambda _: kind.soft_law(1.0, logits=scored))
        self.sites[name] = site
        self.values[name] = msg["value"] = self.rule(site)


class _RefuseScan(Messenger):
    """Stands around the body of a scan in the guide."""

    def __init__(self, estimator: str) -> None:
        super().__init__()
        self.estimator = estimator

    def process_message(self, msg: dict[str, Any]) -> None:
        if _is_latent(msg):
            raise ValueError(
                f"site {msg['name']!r}: {self.estimator} does not reach into scan: write the"
                " guide's loop in Python"
            )


def _check_law(name: str, law: Any, estimator: str) -> None:
    if isinstance(law, LogitsDistribution) and not isinstance(law, OneHotCategorical):
        raise ValueError(
            f"site {name!r}: {estimator} takes the discrete program, and {type(law).__name__} is"
            " relaxed: hand it discretize(guide), and the model likewise"
        )
    if event_dims(law) is None:
        raise ValueError(
            f"site {name!r}: {estimator} takes guides of OneHotCategorical and Bernoulli sites, not"
            f" {type(law).__name__}: use RLOO_ELBO, which takes any"
        )


class Run:
    """What one run gave: the sites and their values, r, and log p and log q in sum."""

    def __init__(self, at: _AtValues, model_trace: dict, guide_trace: dict) -> None:
        self.sites, self.values = at.sites, at.values
        self.costs = _costs(model_trace, guide_trace)
        self.log_p = sum(site["log_prob"].sum() for site in _samples(model_trace))
        self.log_q = sum(site["log_prob"].sum() for site in _samples(guide_trace))

    @property
    def elbo(self) -> Array:
        return self.log_p - self.log_q

    def r(self, site: Site) -> Array:
        """Its r, against which the axes of the event broadcast."""
        r = self.costs.sum_to(site.frames)
        return r.reshape(r.shape + (1,) * site.event_dim)


@dataclass(frozen=True)
class Programs:
    """Guide and model, to be run at values that a rule chooses; rows of plates stay the same."""

    name: str  # of the estimator
    key: Array
    params: dict[str, Any]
    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict[str, Any]

    def fixed(self) -> "Programs":
        """With parameters that are constants."""
        return replace(self, params=stop_gradient(self.params))

    def run(self, rule: Rule, fixed_law: bool = False) -> Run:
        seeded = handlers.seed(self.guide, jax.random.fold_in(self.key, 0))
        at = _AtValues(seeded, rule, self.name, fixed_law)
        model = handlers.seed(self.model, jax.random.fold_in(self.key, 1))
        model = relax(model, 1.0, family=SoftOneHotCategorical)
        model_trace, guide_trace = get_importance_trace(
            model, at, self.args, self.kwargs, self.params
        )
        for name, site in model_trace.items():
            if _is_latent(site) and name not in guide_trace:
                raise ValueError(f"site {name!r}: {self.name} needs it in the guide as well")
        _check_plates(model_trace)
        _check_plates(guide_trace)
        return Run(at, model_trace, guide_trace)


class Draw:
    """Noise for each site, the same in each run: z = a + noise, b = hard(z)."""

    def __init__(self, key: Array) -> None:
        self.key = key
        self._noise: dict[str, Array] = {}

    def noise(self, site: Site) -> Array:
        if site.name not in self._noise:
            key = jax.random.fold_in(self.key, len(self._noise))
            self._noise[site.name] = site.kind.noise(key, site.a)
        return self._noise[site.name]

    def z(self, site: Site) -> Array:
        return site.a + self.noise(site)

    def b(self, site: Site) -> Array:
        return stop_gradient(site.kind.hard(self.z(site)))


def _attach(g: Array, x: Array) -> Array:
    """Zero, with the gradient g by x; masked categories have none."""
    x = (stop_gradient(g) * jnp.where(jnp.isfinite(x), x, 0)).sum()
    return x - stop_gradient(x)


class SubstitutingELBO(ELBO):
    """For guides all of whose sites are discrete, in one layer or several."""

    can_infer_discrete = True

    def estimate(self, programs: Programs, draw: Draw, hard: Run) -> dict[str, Array]:
        """G by the logits of each site, from the run at the samples."""
        raise NotImplementedError

    def particle(self, programs: Programs, draw: Draw) -> Array:
        """The ELBO at the samples, with the estimate as its gradient."""
        hard = programs.run(draw.b)
        estimates = self.estimate(programs.fixed(), draw, hard)
        surrogate = sum(_attach(estimates[n], site.a) for n, site in hard.sites.items())
        return hard.log_p - stop_gradient(hard.log_q) + surrogate

    def loss(
        self,
        rng_key: Array,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> Array:
        def particle(key: Array) -> Array:
            programs = Programs(type(self).__name__, key, param_map, model, guide, args, kwargs)
            return self.particle(programs, Draw(jax.random.fold_in(key, 2)))

        if self.num_particles == 1:
            return -particle(rng_key)
        keys = jax.random.split(rng_key, self.num_particles)
        return -self.vectorize_particles_fn(particle, keys).mean()


class MuProp_ELBO(SubstitutingELBO):
    """REINFORCE, with the Taylor expansion around the mean-field run as its baseline. Unbiased.

    G = (r - r(m) - r'(m) (b - m)) (b - pi) + r'(m) d pi / d a

    m: the values where each site takes its mean, given those before it.

    Args:
        num_particles, vectorize_particles: as in numpyro.infer.Trace_ELBO.

    Raises:
        ValueError: naming the site: one that is not discrete, is relaxed, or has a batch axis in no
            plate.

    Source: Gu, Levine, Sutskever, Mnih 2016.

    Example: as RLOO_ELBO, with MuProp_ELBO() in its place.
    """

    def estimate(self, programs: Programs, draw: Draw, hard: Run) -> dict[str, Array]:
        def mean_field(shift: dict[str, Array]) -> tuple:
            run = programs.run(lambda site: site.kind.squash(site.a) + shift[site.name])
            return run.elbo, (run.values, {n: run.r(site) for n, site in run.sites.items()})

        zeros = {name: jnp.zeros_like(site.a) for name, site in hard.sites.items()}
        slope, (m, r) = jax.grad(mean_field, has_aux=True)(zeros)
        result = {}
        for name, site in hard.sites.items():
            b, pi, k = hard.values[name], site.kind.squash(site.a), slope[name]
            signal = hard.r(site) - r[name] - site.inner(k * (b - m[name]))
            result[name] = signal * (b - pi) + site.kind.pull(pi, k)
        return result


class DARN_ELBO(SubstitutingELBO):
    """REINFORCE, with r expanded around the sample at the midpoint as its baseline. Biased.

    G = r'(b) (b - c) (b - pi), c = 1/2 for a bit, 1/K for a one-hot vector

    For each variable by itself. The expected G is right where r is quadratic in a bit, or linear in
    a one-hot vector; elsewhere, and in what a layer owes to those above it, it is biased.

    Args, Raises: as MuProp_ELBO.

    Source: Gregor, Danihelka, Mnih, Blundell, Wierstra 2014; Gu et al. 2016, section 4 (the "1/2
    estimator"). For one-hot vectors, c = 1/K is our reading.

    Example: as RLOO_ELBO, with DARN_ELBO() in its place.
    """

    def particle(self, programs: Programs, draw: Draw) -> Array:
        def value(site: Site) -> Array:
            b = draw.b(site)
            log_q = site.kind.log_prob(site.a, b)
            return b + (b - site.kind.midpoint(site.a)) * (log_q - stop_gradient(log_q))

        return programs.run(value, fixed_law=True).elbo


class REBAR_ELBO(SubstitutingELBO):
    """REINFORCE, with the program at a relaxed sample as its control variate. Unbiased.

    G = (r(b) - eta r(y)) (b - pi) + eta d r(y) / d a - eta d r(y') / d a

    y = squash(z / tau), z = a + noise, and y' from z given b; their noise is coupled so that both
    have one value, and only their gradients differ. For each site by itself: those before it stay
    at their samples, those after it are relaxed.

    Where SVI gets `elbo.wrap(guide)`, tau and eta of each site are parameters, which descend on
    sum G^2; an optimizer that scales its steps, such as Adam, suits them. Else they are constants.

    Args:
        num_particles, vectorize_particles: as in numpyro.infer.Trace_ELBO.
        temperature: tau > 0, or its start.
        scale: eta, or its start.

    Raises:
        ValueError: as MuProp_ELBO; a temperature that is not positive.

    Source: Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein 2017.

    Example: as NVIL_ELBO, with REBAR_ELBO() in its place.
    """

    def __init__(
        self,
        num_particles: int = 1,
        vectorize_particles: Any = True,
        temperature: float = 0.5,
        scale: float = 1.0,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"REBAR_ELBO: temperature must be positive, got {temperature}")
        super().__init__(num_particles, vectorize_particles)
        self.temperature, self.scale = temperature, scale

    def wrap(self, guide: Callable) -> Callable:
        """The guide with tau and eta of each discrete site as parameters."""

        def register(name: str) -> None:
            numpyro.param(f"{name}_rebar_log_temperature", jnp.log(self.temperature))
            numpyro.param(f"{name}_rebar_scale", jnp.asarray(float(self.scale)))

        return _wrap(guide, register)

    def particle(self, programs: Programs, draw: Draw) -> Array:
        hard = programs.run(draw.b)
        fixed, surrogate = programs.fixed(), 0.0
        for name, site in hard.sites.items():
            start = math.log(self.temperature), self.scale
            names = f"{name}_rebar_log_temperature", f"{name}_rebar_scale"
            log_tau, eta = map(programs.params.get, names, start)
            g = self.estimate_site(fixed, draw, hard, site, jnp.exp(log_tau), eta)
            spread = (g**2).sum()
            surrogate += _attach(g, site.a) - (spread - stop_gradient(spread))
        return hard.log_p - stop_gradient(hard.log_q) + surrogate

    def estimate_site(
        self, programs: Programs, draw: Draw, hard: Run, site: Site, tau: Any, eta: Any
    ) -> Array:
        """G by the logits of one site, a function of its tau and eta alone."""
        before = list(hard.sites)[: list(hard.sites).index(site.name)]
        a, b = stop_gradient((site.a, hard.values[site.name]))
        z = a + draw.noise(site)
        y = site.kind.squash(z / tau)

        def relaxed(y: Array) -> tuple[Array, Array]:
            def rule(other: Site) -> Array:
                if other.name == site.name:
                    return y
                if other.name in before:
                    return draw.b(other)
                return other.kind.squash(draw.z(other) / tau)

            run = programs.run(rule)
            return run.elbo, run.r(site)

        slope, r = jax.grad(relaxed, has_aux=True)(y)
        signal = stop_gradient(hard.r(site)) - eta * r
        pathwise = site.kind.pull_coupled(z, a, site.kind.pull(y, slope) / tau)
        return signal * (b - site.kind.squash(a)) + eta * pathwise


class DisARM_ELBO(SubstitutingELBO):
    """An antithetic pair of runs for each site of bits. Unbiased.

    G = (r(b) - r(b')) (b - b') sigmoid(|a|) / 2, with b = [a + L > 0], b' = [a - L > 0]

    The noise L is logistic. Sites before stay at their samples, those after are drawn anew with the
    noise they had.

    Args, Raises: as MuProp_ELBO, and for one-hot sites.

    Source: Dong, Mnih, Tucker 2020; Yin, Ho, Yan, Qian, Zhou 2020 (U2G).

    Example: as RLOO_ELBO, with Bernoulli sites and DisARM_ELBO() in its place.
    """

    def estimate(self, programs: Programs, draw: Draw, hard: Run) -> dict[str, Array]:
        result = {}
        for name, site in hard.sites.items():
            if site.kind is not Bit:
                raise ValueError(
                    f"site {name!r}: DisARM_ELBO takes bits, and this is a one-hot vector: use"
                    " REBAR_ELBO or RLOO_ELBO"
                )
            b, opposite = hard.values[name], Bit.hard(site.a - draw.noise(site))
            at = lambda other: opposite if other.name == site.name else draw.b(other)  # noqa: E731, B023
            difference = hard.r(site) - programs.run(at).r(site)
            result[name] = difference * (b - opposite) * jax.nn.sigmoid(jnp.abs(site.a)) / 2
        return result
