"""ELBOs for programs with discrete latents, whose gradient takes several runs of the program.

Letters: b = the sample of a discrete site, a = its logits, pi = its mean, r = what it costs, that
is log p - log q summed over all that shares the site's plates or has none of its own, in nats. Each
estimate G of the gradient by a is handed over as the surrogate r + G a.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.util import MultiFrameTensor, is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_model_guide_match, check_site_shape, warn_if_nan
from torch import Tensor

from gs_ppl import rewriting
from gs_ppl.pyro import functional as F
from gs_ppl.pyro._base import LogitsDistribution
from gs_ppl.pyro.distributions import OneHotCategorical, SoftBernoulli, SoftOneHotCategorical
from gs_ppl.pyro.handlers import event_dims, relax

__all__ = ["DARN_ELBO", "NVIL_ELBO", "REBAR_ELBO", "RLOO_ELBO", "DisARM_ELBO", "MuProp_ELBO"]

Particle = tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]

# --- score function with a baseline: any program --------------------------------------------------


def _is_latent(msg: dict[str, Any]) -> bool:
    return not msg["is_observed"] and not site_is_subsample(msg)


def _is_scored(msg: dict[str, Any]) -> bool:
    """A latent site without a pathwise gradient."""
    return _is_latent(msg) and not msg["fn"].has_rsample


def _samples(trace: poutine.Trace) -> list[dict[str, Any]]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _costs(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> MultiFrameTensor:
    """log p - log q by plates."""
    costs = MultiFrameTensor()
    for sign, trace in ((1, model_trace), (-1, guide_trace)):
        for site in _samples(trace):
            costs.add((site["cond_indep_stack"], sign * site["log_prob"]))
    return costs


class _SameRows(Messenger):
    """Around several runs of the programs: a subsampled plate draws its rows in the first."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if site_is_subsample(msg) and msg["name"] in self.rows:
            msg["value"] = self.rows[msg["name"]]

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if site_is_subsample(msg):
            self.rows[msg["name"]] = msg["value"]


class _Names(Messenger):
    """Collects the names of the discrete sites of a guide."""

    def __enter__(self) -> "_Names":
        self.names: list[str] = []
        return super().__enter__()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if _is_scored(msg):
            self.names.append(msg["name"])


def _wrap(guide: Callable, register: Callable[[str], Any]) -> Callable:
    """The guide with an estimator's own state beside it, one register(name) for a discrete site."""

    @wraps(guide, updated=())
    def program(*args: Any, **kwargs: Any) -> Any:
        with _Names() as seen:
            result = guide(*args, **kwargs)
        for name in seen.names:
            register(name)
        return result

    return program


class SurrogateELBO(Trace_ELBO):
    """An ELBO whose gradient is that of its differentiable loss."""

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, with the estimate for its gradient: each subclass has its own."""
        raise NotImplementedError

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        warn_if_nan(loss, "loss")
        return loss.item()


class ScoreFunctionELBO(SurrogateELBO):
    """grad E r = E[grad r + sum_s (r_s - baseline_s) grad log q(b_s)], s the discrete sites.

    Continuous sites of the guide have their pathwise gradient. r_s leaves out what lies in other
    rows of the plates of s. All particles see the same rows of a subsampled plate.
    """

    def center(self, r: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The learning signal of each site; the first axis of r is that of the particles."""
        raise NotImplementedError

    def update(self, r: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What parameters of the guide that are state become."""
        return {}

    def predict(self, site: dict[str, Any]) -> Tensor | float:
        """What is known of r beforehand; learnt by least squares of the signal."""
        return 0.0

    def _particle(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Particle:
        costs = _costs(model_trace, guide_trace)
        elbo = sum(site["log_prob"].sum() for site in _samples(model_trace))
        log_q, r = {}, {}
        for site in _samples(guide_trace):
            term, name = site["log_prob"].sum(), site["name"]
            elbo = elbo - (term.detach() if _is_scored(site) else term)
            if _is_scored(site):
                log_q[name] = site["score_parts"].score_function  # without the plates' scale
                cost = costs.sum_to(site["cond_indep_stack"]).detach()
                r[name] = _subtract(name, cost, self.predict(site))
        state = {n: s["value"] for n, s in guide_trace.nodes.items() if s["type"] == "param"}
        return elbo, log_q, r, state

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        with _SameRows():
            traces = list(self._get_traces(model, guide, args, kwargs))
        elbos, log_qs, rs, states = zip(*(self._particle(*pair) for pair in traces), strict=True)
        whole = len(traces) < self.num_particles  # vectorized: their axis is the first one already
        stack = lambda xs, n: xs[0][n] if whole else torch.stack([x[n] for x in xs])  # noqa: E731
        r, state = {name: stack(rs, name) for name in rs[0]}, states[0]
        signals = self.center(r, {name: _value(x) for name, x in state.items()})
        with torch.no_grad():
            for name, value in self.update(r, state).items():
                state[name].copy_(value)
        terms = (
            x.detach() * stack(log_qs, name) - x**2 / 2  # with a gradient if x was predicted
            for name, x in signals.items()
        )
        surrogate = sum(term.sum() for term in terms)
        loss = -(sum(elbos) + surrogate) / self.num_particles
        return loss + _value(surrogate) / self.num_particles


def _subtract(name: str, r: Tensor, predicted: Tensor | float) -> Tensor:
    shape = predicted.shape if isinstance(predicted, Tensor) else ()
    if torch.broadcast_shapes(r.shape, shape) != r.shape:
        raise ValueError(
            f"site {name!r}: the baseline must have the shape {tuple(r.shape)} of the site's"
            f" plates, got {tuple(shape)}"
        )
    return r - predicted


def _value(x: Tensor | float) -> Tensor | float:
    return x.detach() if isinstance(x, Tensor) else x


class RLOO_ELBO(ScoreFunctionELBO):
    """REINFORCE, with the mean of the other particles as the baseline of each. Unbiased.

    G = mean_i (r_i - mean_{j != i} r_j) grad log q(b_i)

    For any program: plates, subsampling, dependent sites, continuous latents beside.

    Args:
        num_particles: at least 2.
        **options: as in pyro.infer.Trace_ELBO: vectorize_particles, max_plate_nesting, ...

    Raises:
        ValueError: for fewer particles.

    Source: Kool, van Hoof, Welling 2019, Buy 4 REINFORCE samples, get a baseline for free.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import OneHotCategorical, RLOO_ELBO
        >>> def model():
        ...     z = pyro.sample("z", OneHotCategorical(logits=torch.zeros(2)))
        ...     loc = (z * torch.tensor([-2.0, 2.0])).sum(-1)
        ...     pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=torch.tensor(1.5))
        >>> def guide():
        ...     a = pyro.param("a", torch.zeros(2))
        ...     pyro.sample("z", OneHotCategorical(logits=a))
        >>> pyro.clear_param_store()
        >>> adam = pyro.optim.Adam({"lr": 0.1})
        >>> svi = pyro.infer.SVI(model, guide, adam, RLOO_ELBO(num_particles=4))
        >>> losses = [svi.step() for _ in range(100)]
        >>> pyro.param("a").softmax(-1).round().tolist()
        [0.0, 1.0]
    """

    def __init__(self, num_particles: int = 2, **options: Any) -> None:
        if num_particles < 2:
            raise ValueError(
                f"RLOO_ELBO: num_particles must be at least 2, got {num_particles}: each takes its"
                " baseline from the others"
            )
        super().__init__(num_particles, **options)

    def center(self, r: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        n = self.num_particles
        return {name: (x - x.mean(0)) * n / (n - 1) for name, x in r.items()}


class NVIL_ELBO(ScoreFunctionELBO):
    """REINFORCE, with a learned and a running mean as the baseline.

    G = (r - C - c) / max(1, s) grad log q(b), c and s the running moments of r - C

    Unbiased where `normalize` is False; the division by s, one number for each site, keeps the
    direction of G by that site. For any program, as RLOO_ELBO.

    C = nn_baseline(nn_baseline_input), in nats, for sites of the guide that have
    `infer={"baseline": {"nn_baseline": f, "nn_baseline_input": x}}`, else 0; the parameters of f
    descend on the square of the signal r - C - c. The running moments are parameters of the guide
    that no gradient reaches: hand SVI `elbo.wrap(guide)`.

    Args:
        num_particles: as in pyro.infer.Trace_ELBO.
        decay: weight of the past in the running moments, in [0, 1).
        normalize: divide by the standard deviation where that is above 1 nat.
        **options: as in pyro.infer.Trace_ELBO.

    Raises:
        ValueError: for a guide that is not wrapped, a decay outside of [0, 1), and naming a site
            whose C has more axes than its plates.

    Source: Mnih, Gregor 2014, algorithm 1.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import NVIL_ELBO, OneHotCategorical
        >>> def program():
        ...     a = pyro.param("a", torch.zeros(2))
        ...     pyro.sample("z", OneHotCategorical(logits=a))
        >>> pyro.clear_param_store()
        >>> elbo = NVIL_ELBO()
        >>> svi = pyro.infer.SVI(program, elbo.wrap(program), pyro.optim.Adam({"lr": 0.1}), elbo)
        >>> losses = [svi.step() for _ in range(10)]
        >>> pyro.param("z_nvil")[2].item()
        10.0
    """

    def __init__(
        self, num_particles: int = 1, decay: float = 0.9, normalize: bool = True, **options: Any
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"NVIL_ELBO: decay must be in [0, 1), got {decay}")
        super().__init__(num_particles, **options)
        self.decay, self.normalize = decay, normalize

    def wrap(self, guide: Callable) -> Callable:
        """The guide with running mean, variance and number of steps beside each discrete site."""
        return _wrap(guide, lambda name: pyro.param(f"{name}_nvil", torch.zeros(3)))

    def predict(self, site: dict[str, Any]) -> Tensor | float:
        baseline = site["infer"].get("baseline")
        if baseline is None:
            return 0.0
        return baseline["nn_baseline"](baseline["nn_baseline_input"].detach())

    def center(self, r: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        signals = {}
        for name, x in r.items():
            if f"{name}_nvil" not in state:
                raise ValueError(
                    f"site {name!r}: NVIL_ELBO keeps its running mean in the guide: hand SVI"
                    " elbo.wrap(guide)"
                )
            mean, variance, _ = state[f"{name}_nvil"].to(x)
            scale = variance.clamp(min=1).sqrt() if self.normalize else 1
            signals[name] = (x - mean) / scale
        return signals

    def update(self, r: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        new = {}
        for name, x in r.items():
            mean, variance, steps = state[f"{name}_nvil"].to(x)
            weight = (1 - self.decay) / (1 - self.decay ** (steps + 1))
            change = x.mean() - mean
            spread = (1 - weight) * (variance + weight * change**2) + weight * x.var(correction=0)
            new[f"{name}_nvil"] = torch.stack([mean + weight * change, spread, steps + 1])
        return new


# --- one-hot vectors and bits, in one set of formulas ---------------------------------------------


class OneHot:
    """A one-hot vector; the last axis holds its categories."""

    soft_law = SoftOneHotCategorical
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

    soft_law = SoftBernoulli
    squash = staticmethod(torch.sigmoid)
    log_prob = staticmethod(F.bernoulli_log_prob)

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


@dataclass(frozen=True)
class Site:
    """A discrete site of the guide: its logits in the shape of the value, and its place."""

    name: str
    kind: type[OneHot] | type[Bit]
    a: Tensor
    event_dim: int
    frames: tuple

    def inner(self, x: Tensor) -> Tensor:
        """Sum over the axes of the event, which stay."""
        return x.sum(tuple(range(-self.event_dim, 0)), keepdim=True) if self.event_dim else x


Rule = Callable[[Site], Tensor]


class _AtValues(Messenger):
    """Gives each discrete site of the guide the value of a rule, scored by its mass."""

    def __init__(self, rule: Rule, estimator: str, fixed_law: bool) -> None:
        super().__init__()
        self.rule, self.estimator, self.fixed_law = rule, estimator, fixed_law
        self.sites: dict[str, Site] = {}
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not _is_latent(msg):
            return
        name, fn, law = msg["name"], msg["fn"], rewriting.innermost(msg["fn"])
        _check_law(name, law, self.estimator)
        kind = OneHot if event_dims(law) else Bit
        logits = law.logits.to(torch.promote_types(law.logits.dtype, torch.float32))
        a = logits.expand(fn.shape())
        site = Site(name, kind, a, fn.event_dim, msg["cond_indep_stack"])
        scored = logits.detach() if self.fixed_law else logits
        msg["fn"] = rewriting.rewrap(fn, lambda _: kind.soft_law(1.0, logits=scored))
        self.sites[name] = site
        self.values[name] = msg["value"] = self.rule(site)


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

    def __init__(
        self, at: _AtValues, model_trace: poutine.Trace, guide_trace: poutine.Trace
    ) -> None:
        self.sites, self.values = at.sites, at.values
        self.costs = _costs(model_trace, guide_trace)
        self.log_p = sum(site["log_prob"].sum() for site in _samples(model_trace))
        self.log_q = sum(site["log_prob"].sum() for site in _samples(guide_trace))
        nodes = guide_trace.nodes.values()
        self.params = {site["name"]: site["value"] for site in nodes if site["type"] == "param"}

    @property
    def elbo(self) -> Tensor:
        return self.log_p - self.log_q

    def r(self, site: Site) -> Tensor:
        """Its r, against which the axes of the event broadcast."""
        r = self.costs.sum_to(site.frames)
        return r.reshape(r.shape + (1,) * site.event_dim)


@dataclass(frozen=True)
class Programs:
    """Guide and model, to be run at values that a rule chooses; rows of plates stay the same."""

    name: str  # of the estimator
    rows: _SameRows
    max_plate_nesting: float
    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict[str, Any]

    def run(self, rule: Rule, fixed_law: bool = False) -> Run:
        at = _AtValues(rule, self.name, fixed_law)
        model = relax(self.model, 1.0, family=SoftOneHotCategorical)
        with self.rows:
            guide_trace = poutine.trace(at(self.guide)).get_trace(*self.args, **self.kwargs)
            replayed = poutine.replay(model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(*self.args, **self.kwargs)
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and _is_latent(site) and name not in guide_trace:
                raise ValueError(f"site {name!r}: {self.name} needs it in the guide as well")
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        pair = [prune_subsample_sites(trace) for trace in (model_trace, guide_trace)]
        for trace in pair:
            trace.compute_log_prob()
            if is_validation_enabled():
                for site in _samples(trace):
                    check_site_shape(site, self.max_plate_nesting)
        return Run(at, *pair)


class Draw:
    """Noise for each site, the same in each run: z = a + noise, b = hard(z)."""

    def __init__(self) -> None:
        self._noise: dict[str, Tensor] = {}

    def noise(self, site: Site) -> Tensor:
        if site.name not in self._noise:
            self._noise[site.name] = site.kind.noise(site.a)
        return self._noise[site.name]

    def z(self, site: Site) -> Tensor:
        return site.a + self.noise(site)

    def b(self, site: Site) -> Tensor:
        return site.kind.hard(self.z(site)).detach()


def _attach(g: Tensor, x: Tensor) -> Tensor:
    """Zero, with the gradient g by x; masked categories have none."""
    x = (g.detach() * torch.where(x.isfinite(), x, 0)).sum()
    return x - x.detach()


class SubstitutingELBO(SurrogateELBO):
    """For guides all of whose sites are discrete, in one layer or several."""

    def estimate(self, programs: Programs, draw: Draw, hard: Run) -> dict[str, Tensor]:
        """G by the logits of each site, from the run at the samples."""
        raise NotImplementedError

    def particle(self, programs: Programs, draw: Draw) -> Tensor:
        """The ELBO at the samples, with the estimate as its gradient."""
        hard = programs.run(draw.b)
        estimates = self.estimate(programs, draw, hard)
        surrogate = sum(_attach(estimates[n], site.a) for n, site in hard.sites.items())
        return hard.log_p - _value(hard.log_q) + surrogate

    def _programs(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> Iterator[Programs]:
        """One for each particle; one for all of them if they are vectorized."""
        runs = self.num_particles
        if self.vectorize_particles and runs > 1:
            if self.max_plate_nesting == math.inf:
                self._guess_max_plate_nesting(model, guide, args, kwargs)
            model, guide = map(self._vectorized_num_particles, (model, guide))
            runs = 1
        name, nesting = type(self).__name__, self.max_plate_nesting
        for _ in range(runs):
            yield Programs(name, _SameRows(), nesting, model, guide, args, kwargs)

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            particles = self._programs(model, guide, args, kwargs)
            elbo = sum(programs.run(Draw().b).elbo for programs in particles)
        return -float(elbo) / self.num_particles

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        particles = self._programs(model, guide, args, kwargs)
        return -sum(self.particle(programs, Draw()) for programs in particles) / self.num_particles


class MuProp_ELBO(SubstitutingELBO):
    """REINFORCE, with the Taylor expansion around the mean-field run as its baseline. Unbiased.

    G = (r - r(m) - r'(m) (b - m)) (b - pi) + r'(m) d pi / d a

    m: the values where each site takes its mean, given those before it.

    Args:
        num_particles, **options: as in pyro.infer.Trace_ELBO.

    Raises:
        ValueError: naming the site: one that is not discrete, or is relaxed.

    Source: Gu, Levine, Sutskever, Mnih 2016.

    Example: as RLOO_ELBO, with MuProp_ELBO() in its place.
    """

    def estimate(self, programs: Programs, draw: Draw, hard: Run) -> dict[str, Tensor]:
        shift = {n: torch.zeros_like(s.a).requires_grad_() for n, s in hard.sites.items()}
        mean = programs.run(lambda site: site.kind.squash(site.a) + shift[site.name])
        slopes = torch.autograd.grad(mean.elbo, list(shift.values()))
        result = {}
        for (name, site), k in zip(hard.sites.items(), slopes, strict=True):
            b, m, pi = hard.values[name], mean.values[name], site.kind.squash(site.a)
            signal = hard.r(site) - mean.r(site) - site.inner(k * (b - m))
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

    def particle(self, programs: Programs, draw: Draw) -> Tensor:
        def value(site: Site) -> Tensor:
            b = draw.b(site)
            log_q = site.kind.log_prob(site.a, b)
            return b + (b - site.kind.midpoint(site.a)) * (log_q - log_q.detach())

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
        num_particles: as in pyro.infer.Trace_ELBO.
        temperature: tau > 0, or its start.
        scale: eta, or its start.
        **options: as in pyro.infer.Trace_ELBO.

    Raises:
        ValueError: as MuProp_ELBO; a temperature that is not positive.

    Source: Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein 2017.

    Example: as NVIL_ELBO, with REBAR_ELBO() in its place.
    """

    def __init__(
        self, num_particles: int = 1, temperature: float = 0.5, scale: float = 1.0, **options: Any
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"REBAR_ELBO: temperature must be positive, got {temperature}")
        super().__init__(num_particles, **options)
        self.temperature, self.scale = temperature, scale

    def wrap(self, guide: Callable) -> Callable:
        """The guide with tau and eta of each discrete site as parameters."""

        def register(name: str) -> None:
            log_tau = torch.tensor(math.log(self.temperature))
            pyro.param(f"{name}_rebar_log_temperature", log_tau)
            pyro.param(f"{name}_rebar_scale", torch.tensor(float(self.scale)))

        return _wrap(guide, register)

    def particle(self, programs: Programs, draw: Draw) -> Tensor:
        hard = programs.run(draw.b)
        surrogate = 0.0
        for name, site in hard.sites.items():
            start = torch.tensor(math.log(self.temperature)), self.scale
            names = f"{name}_rebar_log_temperature", f"{name}_rebar_scale"
            log_tau, eta = map(hard.params.get, names, start)
            g = self.estimate_site(programs, draw, hard, site, log_tau.exp(), eta)
            surrogate = surrogate + _attach(g, site.a)
            if g.requires_grad:
                for x in (log_tau, eta):
                    (slope,) = torch.autograd.grad((g**2).sum(), x, retain_graph=True)
                    surrogate = surrogate - _attach(slope, x)
        return hard.log_p - _value(hard.log_q) + surrogate

    def estimate_site(
        self, programs: Programs, draw: Draw, hard: Run, site: Site, tau: Tensor, eta: Any
    ) -> Tensor:
        """G by the logits of one site, a function of its tau and eta alone."""
        before = list(hard.sites)[: list(hard.sites).index(site.name)]
        learned = tau.requires_grad
        a, b = site.a.detach(), hard.values[site.name]
        z = a + draw.noise(site)
        y = site.kind.squash(z / tau)
        y = y if learned else y.requires_grad_()

        def rule(other: Site) -> Tensor:
            if other.name == site.name:
                return y
            if other.name in before:
                return draw.b(other)
            return other.kind.squash(draw.z(other) / tau)

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

    The noise L is logistic. Sites before stay at their samples, those after are drawn anew with the
    noise they had.

    Args, Raises: as MuProp_ELBO, and for one-hot sites.

    Source: Dong, Mnih, Tucker 2020; Yin, Ho, Yan, Qian, Zhou 2020 (U2G).

    Example: as RLOO_ELBO, with Bernoulli sites and DisARM_ELBO() in its place.
    """

    def estimate(self, programs: Programs, draw: Draw, hard: Run) -> dict[str, Tensor]:
        result = {}
        for name, site in hard.sites.items():
            if site.kind is not Bit:
                raise ValueError(
                    f"site {name!r}: DisARM_ELBO takes bits, and this is a one-hot vector: use"
                    " REBAR_ELBO or RLOO_ELBO"
                )
            b, opposite = hard.values[name], Bit.hard(site.a - draw.noise(site)).detach()
            at = lambda other: opposite if other.name == site.name else draw.b(other)  # noqa: E731, B023
            with torch.no_grad():
                difference = hard.r(site) - programs.run(at).r(site)
            result[name] = difference * (b - opposite) * site.a.abs().sigmoid() / 2
        return result
