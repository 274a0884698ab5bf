"""Score-function ELBOs with a baseline: for any program with discrete latents.

Letters: b = the sample of a discrete site, r = its cost in nats: the sum of log p - log q over all
terms, except those in other rows of the site's plates. Each estimate G of the gradient by the
logits a enters the loss as the surrogate r + G a.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient
from numpyro import handlers
from numpyro.infer.elbo import ELBO
from numpyro.infer.util import get_importance_trace
from numpyro.primitives import mutable
from numpyro.util import check_model_guide_match

from gs_ppl._shared.laws import refuse_undefined
from gs_ppl._shared.reprs import ShownELBO
from gs_ppl._shared.score_function import check_baseline, check_decay, weight_of_step
from gs_ppl._shared.wrappers import innermost, rewrap, unmasked
from gs_ppl.numpyro._elbo import check_plates, costs_by_plates, is_scored, samples, with_state
from gs_ppl.numpyro.distributions import SoftBernoulli
from gs_ppl.numpyro.handlers import logits_of
from gs_ppl.numpyro.integers import event_dims

__all__ = ["NVIL_ELBO", "RLOO_ELBO"]

Particle = tuple[Array, dict[str, Array], dict[str, Array]]


def _exact_score(fn: Any) -> Any:
    """The law of the sample, without scale and masks: other terms may depend on masked values.

    Its gradient is right at logits of 0 too, where NumPyro's Bernoulli has kinks: b and 0 for
    b - pi.
    """
    fn = unmasked(fn)
    is_bit = event_dims(innermost(fn)) == 0
    return rewrap(fn, lambda law: SoftBernoulli(1.0, logits=logits_of(law))) if is_bit else fn


class ScoreFunctionELBO(ShownELBO, ELBO):
    """grad E r = E[grad r + sum_s (r_s - baseline_s) grad log q(b_s)], s the discrete sites.

    Continuous sites of the guide have their pathwise gradient. r_s leaves out the terms in other
    rows of the plates of s. All particles see the same rows of a subsampled plate.
    """

    can_infer_discrete = True

    def center(self, r: dict[str, Array], state: dict[str, Array]) -> dict[str, Array]:
        """The learning signal of each site; the first axis of r is that of the particles."""
        refuse_undefined(self, "center")

    def update(self, r: dict[str, Array], state: dict[str, Array]) -> dict[str, Array]:
        """New values of the guide's mutable sites."""
        return state

    def predict(self, site: dict[str, Any]) -> Array | float:
        """A prediction of r; it is learnt by least squares of the signal."""
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
            costs = costs_by_plates(model_trace, guide_trace)
            elbo = sum(site["log_prob"].sum() for site in samples(model_trace))
            log_q, r = {}, {}
            for site in samples(guide_trace):
                term, name = site["log_prob"].sum(), site["name"]
                elbo -= stop_gradient(term) if is_scored(site) else term
                if is_scored(site):
                    log_q[name] = _exact_score(site["fn"]).log_prob(site["value"])
                    cost = stop_gradient(costs.sum_to(site["cond_indep_stack"]))
                    # sum_to drops leading axes of size 1
                    shape = jnp.broadcast_shapes(cost.shape, log_q[name].shape)
                    cost = jnp.broadcast_to(cost, shape)
                    r[name] = _subtract(name, cost, self.predict(site))
            return elbo, log_q, r

        model_trace, guide_trace = traces(rng_key, {})
        check_model_guide_match(model_trace, guide_trace)
        check_plates(model_trace)
        check_plates(guide_trace)
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


class RLOO_ELBO(ScoreFunctionELBO):
    """REINFORCE, with the mean of the other particles as the baseline of each. Unbiased.

    G = mean_i (r_i - mean_{j != i} r_j) grad log q(b_i)

    It takes any program: with plates, subsampling, dependent sites and continuous latents.

    Args:
        num_particles: at least 2.
        vectorize_particles: as in numpyro.infer.Trace_ELBO.

    Raises:
        ValueError: for fewer particles, and for a site with a batch axis outside of plates.

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

    def __init__(self, num_particles: int = 2, *, vectorize_particles: Any = True) -> None:
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

    Unbiased if `normalize` is False. The division by s, which is one number for each site, does not
    change the direction of G for that site. It takes any program, as RLOO_ELBO.

    C = nn_baseline(nn_baseline_input), in nats, for sites of the guide that have
    `infer={"baseline": {"nn_baseline": f, "nn_baseline_input": x}}`, else 0; the parameters of f
    are trained to minimize the square of r - C - c. The running moments are mutable state of the
    guide; so give SVI the guide `elbo.wrap(guide)`.

    Args:
        num_particles: as in numpyro.infer.Trace_ELBO.
        decay: weight of the past in the running moments, in [0, 1).
        normalize: divide by the standard deviation where that is above 1 nat.
        vectorize_particles: as in numpyro.infer.Trace_ELBO.

    Raises:
        ValueError: for a guide that is not wrapped, for a decay outside of [0, 1), for a site with
            a batch axis outside of plates, and for a site whose C has more axes than its plates.

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
        *,
        decay: float = 0.9,
        normalize: bool = True,
        vectorize_particles: Any = True,
    ) -> None:
        check_decay("NVIL_ELBO", decay)
        super().__init__(num_particles, vectorize_particles)
        self.decay, self.normalize = decay, normalize

    def wrap(self, guide: Callable) -> Callable:
        """The guide, and for each discrete site a running mean, variance and number of steps."""
        return with_state(guide, lambda name: mutable(f"{name}_nvil", jnp.zeros(3)))

    def predict(self, site: dict[str, Any]) -> Array | float:
        baseline = site["infer"].get("baseline")
        if baseline is None:
            return 0.0
        check_baseline(site["name"], baseline)
        return baseline["nn_baseline"](stop_gradient(baseline["nn_baseline_input"]))

    def center(self, r: dict[str, Array], state: dict[str, Array]) -> dict[str, Array]:
        signals = {}
        for name, x in r.items():
            if f"{name}_nvil" not in state:
                raise ValueError(
                    f"site {name!r}: NVIL_ELBO keeps its running mean in the guide: give SVI"
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
            weight = weight_of_step(self.decay, steps)
            change = x.mean() - mean
            spread = (1 - weight) * (variance + weight * change**2) + weight * x.var()
            new[f"{name}_nvil"] = jnp.stack([mean + weight * change, spread, steps + 1])
        return state | new
