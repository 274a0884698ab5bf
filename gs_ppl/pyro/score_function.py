"""Score-function ELBOs with a baseline: for any program with discrete latents.

Letters: b = the sample of a discrete site, r = its cost in nats: the sum of log p - log q over all
terms, except those in other rows of the site's plates. Each estimate G of the gradient by the
logits a enters the loss as the surrogate r + G a.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from gs_ppl._shared.laws import refuse_undefined
from gs_ppl._shared.score_function import check_baseline, check_decay, weight_of_step
from gs_ppl._shared.wrappers import is_masked, unmasked
from gs_ppl.pyro._elbo import (
    SameRows,
    SurrogateELBO,
    costs_by_plates,
    is_scored,
    samples,
    with_state,
)

__all__ = ["NVIL_ELBO", "RLOO_ELBO"]

Particle = tuple[Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


class ScoreFunctionELBO(SurrogateELBO):
    """grad E r = E[grad r + sum_s (r_s - baseline_s) grad log q(b_s)], s the discrete sites.

    Continuous sites of the guide have their pathwise gradient. r_s leaves out the terms in other
    rows of the plates of s. All particles see the same rows of a subsampled plate.
    """

    def center(self, r: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The learning signal of each site; the first axis of r is that of the particles."""
        refuse_undefined(self, "center")

    def update(self, r: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        """New values of the guide's parameters that are state."""
        return {}

    def predict(self, site: dict[str, Any]) -> Tensor | float:
        """A prediction of r; it is learnt by least squares of the signal."""
        return 0.0

    def _particle(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Particle:
        costs = costs_by_plates(model_trace, guide_trace)
        elbo = sum(site["log_prob"].sum() for site in samples(model_trace))
        log_q, r = {}, {}
        for site in samples(guide_trace):
            term, name = site["log_prob"].sum(), site["name"]
            elbo = elbo - (term.detach() if is_scored(site) else term)
            if is_scored(site):
                log_q[name] = _log_q(site)
                cost = costs.sum_to(site["cond_indep_stack"]).detach()
                # sum_to drops leading axes of size 1
                cost = cost.expand(torch.broadcast_shapes(cost.shape, log_q[name].shape))
                r[name] = _subtract(name, cost, self.predict(site))
        state = {n: s["value"] for n, s in guide_trace.nodes.items() if s["type"] == "param"}
        return elbo, log_q, r, state

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        with SameRows():
            traces = list(self._get_traces(model, guide, args, kwargs))
        elbos, log_qs, rs, states = zip(*(self._particle(*pair) for pair in traces), strict=True)
        whole = len(traces) < self.num_particles  # vectorized: particles are an axis already

        def stack(xs: Sequence[dict[str, Tensor]], name: str) -> Tensor:
            return xs[0][name] if whole else torch.stack([x[name] for x in xs])

        r, state = {name: stack(rs, name) for name in rs[0]}, states[0]
        signals = self.center(r, {name: x.detach() for name, x in state.items()})
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


def _log_q(site: dict[str, Any]) -> Tensor:
    """log q of the sample by its own law, without scale and masks."""
    fn = site["fn"]
    if is_masked(fn):
        return unmasked(fn).log_prob(site["value"])
    return site["score_parts"].score_function


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

    It takes any program: with plates, subsampling, dependent sites and continuous latents.

    Args:
        num_particles: at least 2.
        vectorize_particles, **options: as in pyro.infer.Trace_ELBO: max_plate_nesting, ...

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

    def __init__(
        self, num_particles: int = 2, *, vectorize_particles: bool = False, **options: Any
    ) -> None:
        if num_particles < 2:
            raise ValueError(
                f"RLOO_ELBO: num_particles must be at least 2, got {num_particles}: each takes its"
                " baseline from the others"
            )
        super().__init__(num_particles, vectorize_particles=vectorize_particles, **options)

    def center(self, r: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        n = self.num_particles
        return {name: (x - x.mean(0)) * n / (n - 1) for name, x in r.items()}


class NVIL_ELBO(ScoreFunctionELBO):
    """REINFORCE, with a learned and a running mean as the baseline.

    G = (r - C - c) / max(1, s) grad log q(b), c and s the running moments of r - C

    Unbiased if `normalize` is False. The division by s, which is one number for each site, does not
    change the direction of G for that site. It takes any program, as RLOO_ELBO.

    C = nn_baseline(nn_baseline_input), in nats, for sites of the guide that have
    `infer={"baseline": {"nn_baseline": f, "nn_baseline_input": x}}`, else 0; the parameters of f
    are trained to minimize the square of r - C - c. The running moments are parameters of the guide
    without a gradient; so give SVI the guide `elbo.wrap(guide)`.

    Args:
        num_particles: as in pyro.infer.Trace_ELBO.
        decay: weight of the past in the running moments, in [0, 1).
        normalize: divide by the standard deviation where that is above 1 nat.
        vectorize_particles, **options: as in pyro.infer.Trace_ELBO.

    Raises:
        ValueError: for a guide that is not wrapped, for a decay outside of [0, 1), and for a site
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
        self,
        num_particles: int = 1,
        *,
        decay: float = 0.9,
        normalize: bool = True,
        vectorize_particles: bool = False,
        **options: Any,
    ) -> None:
        check_decay("NVIL_ELBO", decay)
        super().__init__(num_particles, vectorize_particles=vectorize_particles, **options)
        self.decay, self.normalize = decay, normalize

    def wrap(self, guide: Callable) -> Callable:
        """The guide, and for each discrete site a running mean, variance and number of steps."""
        return with_state(guide, lambda name: pyro.param(f"{name}_nvil", torch.zeros(3)))

    def predict(self, site: dict[str, Any]) -> Tensor | float:
        baseline = site["infer"].get("baseline")
        if baseline is None:
            return 0.0
        check_baseline(site["name"], baseline)
        return baseline["nn_baseline"](baseline["nn_baseline_input"].detach())

    def center(self, r: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        signals = {}
        for name, x in r.items():
            if f"{name}_nvil" not in state:
                raise ValueError(
                    f"site {name!r}: NVIL_ELBO keeps its running mean in the guide: give SVI"
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
            weight = weight_of_step(self.decay, steps)
            change = x.mean() - mean
            spread = (1 - weight) * (variance + weight * change**2) + weight * x.var(correction=0)
            new[f"{name}_nvil"] = torch.stack([mean + weight * change, spread, steps + 1])
        return new
