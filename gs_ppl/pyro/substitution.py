"""ELBOs that run the program at chosen values of its discrete sites: MuProp, DARN, REBAR, DisARM.

Letters: b = the sample of a discrete site, a = its logits, pi = its mean, r = its cost in nats: the
sum of log p - log q over all terms, except those in other rows of the site's plates. Each estimate
G of the gradient by a enters the loss as the surrogate r + G a.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from gs_ppl._shared.laws import refuse_undefined
from gs_ppl._shared.score_function import check_decay, weight_of_step
from gs_ppl._shared.substitution import DiscreteSite, Run, check_law, refuse_one_hot
from gs_ppl._shared.wrappers import innermost, rewrap
from gs_ppl.pyro import functional as F
from gs_ppl.pyro._base import LogitsDistribution
from gs_ppl.pyro._elbo import SameRows, SurrogateELBO, costs_by_plates, samples, with_state
from gs_ppl.pyro.distributions import OneHotCategorical, SoftOneHotCategorical
from gs_ppl.pyro.handlers import is_latent, relax
from gs_ppl.pyro.integers import event_dims, is_integer

__all__ = ["DARN_ELBO", "REBAR_ELBO", "DisARM_ELBO", "MuProp_ELBO"]

# --- one-hot vectors and bits, in one set of formulas ---------------------------------------------


class OneHot:
    """A one-hot vector; the last axis holds its categories."""

    hard = staticmethod(F.one_hot_argmax)

    @staticmethod
    def squash(a: Tensor) -> Tensor:
        return a.softmax(-1)

    @staticmethod
    def noise(a: Tensor) -> Tensor:
        return -F.exponential_noise(a.shape, dtype=a.dtype, device=a.device).log()

    @staticmethod
    def midpoint(a: Tensor) -> Tensor:
        """1 / K in each category that exists."""
        finite = (a > -torch.inf).to(a.dtype)
        return finite / finite.sum(-1, keepdim=True)

    @staticmethod
    def log_prob(a: Tensor, b: Tensor) -> Tensor:
        return F.categorical_log_prob(a, b, a > -math.inf)[..., None]

    @staticmethod
    def pull(y: Tensor, v: Tensor) -> Tensor:
        """v^T d y / d z for y = squash(z)."""
        return y * (v - (y * v).sum(-1, keepdim=True))

    @staticmethod
    def pull_coupled(z: Tensor, a: Tensor, v: Tensor) -> Tensor:
        """v^T d (z - z') / d a, with z = a + g and z' of the same value, its law that of z given b.

        With the top at m, z'_k = -log(E_k) there and z'_i = -log(E_i / pi_i + E_k) elsewhere, E
        fixed; this leaves exp(z_i - m) d log pi_i.
        """
        u = (z - z.amax(-1, keepdim=True)).exp() * v
        return u - a.softmax(-1) * u.sum(-1, keepdim=True)


class Bit:
    """A bit."""

    squash = staticmethod(torch.sigmoid)

    @staticmethod
    def log_prob(a: Tensor, b: Tensor) -> Tensor:
        return F.bernoulli_log_prob(a, b, a.isfinite())

    @staticmethod
    def hard(z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)

    @staticmethod
    def noise(a: Tensor) -> Tensor:
        return F.logistic_noise(a.shape, dtype=a.dtype, device=a.device)

    @staticmethod
    def midpoint(a: Tensor) -> Tensor:
        return torch.full_like(a, 0.5)

    @staticmethod
    def pull(y: Tensor, v: Tensor) -> Tensor:
        """v d y / d z for y = squash(z)."""
        return y * (1 - y) * v

    @staticmethod
    def pull_coupled(z: Tensor, a: Tensor, v: Tensor) -> Tensor:
        """v d (z - z') / d a, as in OneHot; p is the probability of b."""
        p = torch.where(z > 0, a, -a).sigmoid()
        return (1 + p * torch.expm1(-z.abs())) * v


# --- runs at chosen values ------------------------------------------------------------------------


Rule = Callable[[DiscreteSite], Tensor]
Particle = tuple[Tensor, Run]


class _AtValues(Messenger):
    """Gives each site of a guide with soft masses the value that a rule chooses."""

    def __init__(self, rule: Rule, fixed_law: bool) -> None:
        super().__init__()
        self.rule, self.fixed_law = rule, fixed_law
        self.sites: dict[str, DiscreteSite] = {}
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not is_latent(msg):
            return
        name, fn, law = msg["name"], msg["fn"], innermost(msg["fn"])
        kind, logits = OneHot if event_dims(law) else Bit, law.a
        a = logits.expand(fn.shape())
        site = DiscreteSite(name, kind, a, fn.event_dim, msg["cond_indep_stack"])
        scored = logits.detach() if self.fixed_law else logits
        msg["fn"] = rewrap(fn, lambda law: type(law)(1.0, logits=scored))
        self.sites[name] = site
        self.values[name] = msg["value"] = self.rule(site)


class _Discrete(Messenger):
    """A handler around the guide; refuses laws that are not discrete."""

    def __init__(self, estimator: str) -> None:
        super().__init__()
        self.estimator = estimator

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if is_latent(msg):
            law = innermost(msg["fn"])
            relaxed = isinstance(law, LogitsDistribution) and not isinstance(law, OneHotCategorical)
            discrete = event_dims(law) is not None or is_integer(law)
            check_law(msg["name"], law, self.estimator, relaxed=relaxed, discrete=discrete)


@dataclass(frozen=True)
class Programs:
    """Guide and model, run at values that a rule chooses; the rows of plates stay the same."""

    name: str  # name of the estimator
    rows: SameRows
    max_plate_nesting: float
    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict[str, Any]

    def run(self, rule: Rule, fixed_law: bool = False) -> Run:
        at = _AtValues(rule, fixed_law)
        discrete = self.model, _Discrete(self.name)(self.guide)
        model, guide = (relax(fn, 1.0, family=SoftOneHotCategorical) for fn in discrete)
        with self.rows:
            guide_trace = poutine.trace(at(guide)).get_trace(*self.args, **self.kwargs)
            replayed = poutine.replay(model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(*self.args, **self.kwargs)
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and is_latent(site) and name not in guide_trace:
                raise ValueError(
                    f"site {name!r}: {self.name} needs it in the guide too: add it to the guide"
                )
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        pair = [prune_subsample_sites(trace) for trace in (model_trace, guide_trace)]
        for trace in pair:
            trace.compute_log_prob()
            if is_validation_enabled():
                for site in samples(trace):
                    check_site_shape(site, self.max_plate_nesting)
        run = Run(at, costs_by_plates(*pair), *map(samples, pair))
        nodes = pair[1].nodes.values()
        run.params = {site["name"]: site["value"] for site in nodes if site["type"] == "param"}
        return run


class SharedNoise:
    """Noise for each site, the same in each run: z = a + noise, b = hard(z)."""

    def __init__(self) -> None:
        self._noise: dict[str, Tensor] = {}

    def noise(self, site: DiscreteSite) -> Tensor:
        if site.name not in self._noise:
            self._noise[site.name] = site.kind.noise(site.a)
        return self._noise[site.name]

    def z(self, site: DiscreteSite) -> Tensor:
        return site.a + self.noise(site)

    def b(self, site: DiscreteSite) -> Tensor:
        return site.kind.hard(self.z(site)).detach()


def _attach(g: Tensor, x: Tensor) -> Tensor:
    """Zero, with the gradient g by x; masked categories have no gradient."""
    x = (g.detach() * torch.where(x.isfinite(), x, 0)).sum()
    return x - x.detach()


def _tempered(z: Tensor, tau: Any) -> Tensor:
    """z / tau; infinite values stay infinite, without a gradient by tau."""
    finite = z.isfinite()
    return torch.where(finite, torch.where(finite, z, 0.0) / tau, z)


class SubstitutingELBO(SurrogateELBO):
    """For guides with only discrete sites, in one layer or several."""

    def estimate(self, programs: Programs, shared: SharedNoise, hard: Run) -> dict[str, Tensor]:
        """G by the logits of each site, from the run at the samples."""
        refuse_undefined(self, "estimate")

    def particle(self, programs: Programs, shared: SharedNoise) -> Particle:
        """The ELBO at the samples, with the estimate as its gradient; the run, with new state."""
        hard = programs.run(shared.b)
        estimates = self.estimate(programs, shared, hard)
        surrogate = sum(_attach(estimates[n], site.a) for n, site in hard.sites.items())
        return hard.log_p - hard.log_q.detach() + surrogate, hard

    def _programs(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> Iterator[Programs]:
        """One run for each particle; one for all of them if they are vectorized."""
        runs = self.num_particles
        if self.vectorize_particles and runs > 1:
            if self.max_plate_nesting == math.inf:
                self._guess_max_plate_nesting(model, guide, args, kwargs)
            model, guide = map(self._vectorized_num_particles, (model, guide))
            runs = 1
        name, nesting = type(self).__name__, self.max_plate_nesting
        for _ in range(runs):
            yield Programs(name, SameRows(), nesting, model, guide, args, kwargs)

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            particles = self._programs(model, guide, args, kwargs)
            elbo = sum(programs.run(SharedNoise().b).elbo for programs in particles)
        return -float(elbo) / self.num_particles

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        particles = self._programs(model, guide, args, kwargs)
        pairs = [self.particle(programs, SharedNoise()) for programs in particles]
        elbos, runs = zip(*pairs, strict=True)
        with torch.no_grad():
            for name in runs[0].state:
                runs[0].params[name].copy_(sum(run.state[name] for run in runs) / len(runs))
        return -sum(elbos) / self.num_particles


class MuProp_ELBO(SubstitutingELBO):
    """REINFORCE, with the Taylor expansion around the mean-field run as its baseline. Unbiased.

    G = (r - r(m) - r'(m) (b - m) - c) (b - pi) + r'(m) d pi / d a

    m: the values of a run in which each site takes its mean, given the values before it. If SVI
    gets `elbo.wrap(guide)`, c is the running mean of the terms before it, for each site, which is
    a parameter of the guide without a gradient. Otherwise c is 0.

    Args:
        num_particles: as in pyro.infer.Trace_ELBO.
        decay: weight of the past in the running mean, in [0, 1).
        vectorize_particles, **options: as in pyro.infer.Trace_ELBO.

    Raises:
        ValueError: naming the site: one that is not discrete, or is relaxed; for a decay outside of
            [0, 1).

    Source: Gu, Levine, Sutskever, Mnih 2016; c is their centering.

    Example: as NVIL_ELBO, with MuProp_ELBO() in its place.
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        decay: float = 0.9,
        vectorize_particles: bool = False,
        **options: Any,
    ) -> None:
        check_decay("MuProp_ELBO", decay)
        super().__init__(num_particles, vectorize_particles=vectorize_particles, **options)
        self.decay = decay

    def wrap(self, guide: Callable) -> Callable:
        """The guide, and for each discrete site a running mean and the number of steps."""
        return with_state(guide, lambda name: pyro.param(f"{name}_muprop", torch.zeros(2)))

    def estimate(self, programs: Programs, shared: SharedNoise, hard: Run) -> dict[str, Tensor]:
        shift = {n: torch.zeros_like(s.a).requires_grad_() for n, s in hard.sites.items()}
        mean = programs.run(lambda site: site.kind.squash(site.a) + shift[site.name])
        slopes = torch.autograd.grad(mean.elbo, list(shift.values()))
        result = {}
        for (name, site), k in zip(hard.sites.items(), slopes, strict=True):
            b, m, pi = hard.values[name], mean.values[name], site.kind.squash(site.a)
            signal = (hard.r(site) - mean.r(site) - site.inner(k * (b - m))).detach()
            if (state := hard.params.get(f"{name}_muprop")) is not None:
                c, steps = state.detach().to(signal)
                change = weight_of_step(self.decay, steps) * (signal.mean() - c)
                hard.state[f"{name}_muprop"] = torch.stack([c + change, steps + 1])
                signal = signal - c
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
        def value(site: DiscreteSite) -> Tensor:
            b = shared.b(site)
            log_q = site.kind.log_prob(site.a, b)
            return b + (b - site.kind.midpoint(site.a)) * (log_q - log_q.detach())

        run = programs.run(value, fixed_law=True)
        return run.elbo, run


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
        num_particles: as in pyro.infer.Trace_ELBO.
        temperature: tau > 0, or its initial value.
        scale: eta, or its initial value.
        vectorize_particles, **options: as in pyro.infer.Trace_ELBO.

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
        vectorize_particles: bool = False,
        **options: Any,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"REBAR_ELBO: temperature must be positive, got {temperature}")
        super().__init__(num_particles, vectorize_particles=vectorize_particles, **options)
        self.temperature, self.scale = temperature, scale

    def wrap(self, guide: Callable) -> Callable:
        """The guide with tau and eta of each discrete site as parameters."""

        def register(name: str) -> None:
            log_tau = torch.tensor(math.log(self.temperature))
            pyro.param(f"{name}_rebar_log_temperature", log_tau)
            pyro.param(f"{name}_rebar_scale", torch.tensor(float(self.scale)))

        return with_state(guide, register)

    def particle(self, programs: Programs, shared: SharedNoise) -> Particle:
        hard = programs.run(shared.b)
        surrogate: Tensor | float = 0.0
        for name, site in hard.sites.items():
            start = torch.tensor(math.log(self.temperature)), self.scale
            names = f"{name}_rebar_log_temperature", f"{name}_rebar_scale"
            log_tau, eta = map(hard.params.get, names, start)
            g = self.estimate_site(programs, shared, hard, site, log_tau.exp(), eta)
            surrogate = surrogate + _attach(g, site.a)
            if g.requires_grad:
                for x in (log_tau, eta):
                    (slope,) = torch.autograd.grad((g**2).sum(), x, retain_graph=True)
                    surrogate = surrogate - _attach(slope, x)
        return hard.log_p - hard.log_q.detach() + surrogate, hard

    def estimate_site(
        self,
        programs: Programs,
        shared: SharedNoise,
        hard: Run,
        site: DiscreteSite,
        tau: Tensor,
        eta: Any,
    ) -> Tensor:
        """G by the logits of one site, as a function of only its tau and eta."""
        before = list(hard.sites)[: list(hard.sites).index(site.name)]
        learned = tau.requires_grad
        a, b = site.a.detach(), hard.values[site.name]
        z = a + shared.noise(site)
        y = site.kind.squash(_tempered(z, tau))
        y = y if learned else y.requires_grad_()

        def rule(other: DiscreteSite) -> Tensor:
            if other.name == site.name:
                return y
            if other.name in before:
                return shared.b(other)
            return other.kind.squash(_tempered(shared.z(other), tau))

        run = programs.run(rule)
        (slope,) = torch.autograd.grad(run.elbo, y, create_graph=learned)
        r = run.r(site) if learned else run.r(site).detach()
        signal = hard.r(site).detach() - eta * r
        pathwise = site.kind.pull_coupled(z, a, site.kind.pull(y, slope) / tau)
        g = signal * (b - site.kind.squash(a)) + eta * pathwise
        return g if learned else g.detach()


class DisARM_ELBO(SubstitutingELBO):
    """An antithetic pair of runs for each site of bits. Unbiased.

    G = (r(b) - r(b')) (b - b') sigmoid(|a|) / 2, with b = [a + L > 0], b' = [a - L > 0]

    The noise L is logistic. Sites before it keep their samples. Sites after it are drawn again,
    with the same noise.

    Args, Raises: as MuProp_ELBO, and for one-hot sites.

    Source: Dong, Mnih, Tucker 2020; Yin, Ho, Yan, Qian, Zhou 2020 (U2G).

    Example: as RLOO_ELBO, with Bernoulli sites and DisARM_ELBO() in its place.
    """

    def estimate(self, programs: Programs, shared: SharedNoise, hard: Run) -> dict[str, Tensor]:
        result = {}
        for name, site in hard.sites.items():
            if site.kind is not Bit:
                refuse_one_hot(name)
            b, opposite = hard.values[name], Bit.hard(site.a - shared.noise(site)).detach()
            at = partial(_flipped, shared, name, opposite)
            with torch.no_grad():
                difference = hard.r(site) - programs.run(at).r(site)
            result[name] = difference * (b - opposite) * site.a.abs().sigmoid() / 2
        return result


def _flipped(shared: SharedNoise, name: str, opposite: Tensor, other: DiscreteSite) -> Tensor:
    """The bits as they were drawn, except one."""
    return opposite if other.name == name else shared.b(other)
