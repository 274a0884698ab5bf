"""Draws of a guide, or of the exact posterior, as ArviZ groups."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from warnings import warn

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.distributions import Unit
from numpyro.infer import TraceEnum_ELBO
from numpyro.infer.util import log_density
from numpyro.primitives import Messenger

from gs_ppl._shared import inference_data
from gs_ppl._shared.annealing import Annealed
from gs_ppl._shared.inference_data import Layout, Names, Site
from gs_ppl._shared.wrappers import innermost
from gs_ppl.numpyro.checks import check_observed, check_traces
from gs_ppl.numpyro.comparison import initial_values
from gs_ppl.numpyro.control_flow import reach_into_bodies
from gs_ppl.numpyro.enumeration import config_enumerate, has_one_class
from gs_ppl.numpyro.handlers import discretize
from gs_ppl.numpyro.integers import event_dims
from gs_ppl.numpyro.scan_enumeration import unpacked
from gs_ppl.numpyro.site_logits import check_params

__all__ = ["to_inference_data"]


def to_inference_data(
    model: Callable,
    guide: Callable | None = None,
    *args: Any,
    params: Mapping[str, Any] | None = None,
    num_samples: int = 1000,
    rng_key: Array | None = None,
    infer_discrete: bool = False,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    **kwargs: Any,
) -> Any:
    """Draws of a guide, or of the exact posterior, as ArviZ groups.

    Both programs are made discrete first (see discretize). A program with an argument `temperature`
    runs at temperature 1. One-hot vectors become class indices, bits become 0 and 1.

    The groups, with one chain:

    - posterior: latents, and deterministic sites.
    - log_likelihood: of each observed site, for each point of its plates, with masks.
    - posterior_predictive, prior, prior_predictive, observed_data.
    - sample_stats: `lp` = log p(x, z) of the drawn z. `log_q` is the log density of the draw: q(z)
      of the guide; with infer_discrete q(w) p(z | x, w), w the latents that are not enumerated.
      `log_weight` = lp - log_q. Its mean is the ELBO of the draws; the log of the mean of its exp
      is the log evidence. Handlers that scale have no effect on these.

    `arviz.loo` fits a Pareto law to the likelihoods of the draws. If the latents have few values,
    some draws have equal likelihoods: then ArviZ 0.2x warns, and 1.x fails.

    Args:
        model: program.
        guide: program, or an automatic guide; None draws discrete latents from their exact
            posterior, by enumeration.
        *args: what the programs take.
        params: of model and guide, as SVI returns them. Others have their initial values, those
            before training; a warning names them.
        num_samples: number of draws.
        rng_key: of the draws; default jax.random.key(0).
        infer_discrete: whether to draw discrete latents from their exact posterior too, given the
            guide's draws of the others.
        coords: labels by dimension; default 0, 1, ...
        dims: names of the dimensions by site, without chain and draw. Default: the names of the
            plates, and {site}_dim_{i} for an axis i without a plate.
        **kwargs: what the programs take.

    Raises:
        ValueError: for a latent that is neither in the guide nor enumerated, a latent of the guide
            that is not in the model, a subsampled plate, and an unknown name in coords or dims.
        ImportError: without ArviZ.

    Example:
        >>> import jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import AutoGumbelSoftmax, OneHotCategorical, to_inference_data
        >>> def model():
        ...     with numpyro.plate("data", 2):
        ...         z = numpyro.sample("z", OneHotCategorical(logits=jnp.zeros(2)))
        ...         loc = z @ jnp.array([-1.0, 1.0])
        ...         numpyro.sample("x", numpyro.distributions.Normal(loc, 1.0), obs=jnp.ones(2))
        >>> guide, params = AutoGumbelSoftmax(model), {"z_auto_logits": jnp.ones((2, 2))}
        >>> approximate = to_inference_data(model, guide, params=params, num_samples=100)
        >>> exact = to_inference_data(model, num_samples=100)
        >>> exact["posterior"]["z"].dims, exact["posterior"]["z"].dtype
        (('chain', 'draw', 'data'), dtype('int64'))
        >>> round(float(exact["sample_stats"]["log_weight"].mean()), 3)  # the log evidence
        -2.97
    """
    check_params({} if params is None else params)
    key, first = jax.random.split(jax.random.key(0) if rng_key is None else rng_key)
    bind = partial(_bound, args=args, kwargs=kwargs, params=params or {}, key=first)
    program, missing = bind(model)
    fitted, untrained = bind(guide) if guide else (None, [])
    if names := dict.fromkeys([*missing, *untrained]):
        warn(f"to_inference_data: {initial_values(names)}", stacklevel=2)
    sampler = _Sampler(program, fitted, first, infer_discrete or guide is None)
    shown = Names.of(sampler.layout, coords, dims)
    # one after the other: a batch would hold all tables of enumeration at the same time
    draws = jax.jit(partial(jax.lax.map, sampler.draw))(jax.random.split(key, num_samples))
    groups = jax.tree.map(np.asarray, draws)
    attrs = {"method": sampler.method, "numpyro_version": numpyro.__version__}
    return inference_data.build(sampler.layout, shown, groups, attrs)


class Unscaled(Messenger):
    """Removes scales: a scaled density is not the law of a draw."""

    def process_message(self, msg: dict[str, Any]) -> None:
        reach_into_bodies(self, msg)
        if msg["type"] == "sample":
            msg["scale"] = None


class Uncondition(handlers.uncondition):
    """NumPyro's handler, also inside of scan."""

    def process_message(self, msg: dict[str, Any]) -> None:
        reach_into_bodies(self, msg)
        super().process_message(msg)


class _Sampler:
    def __init__(
        self, model: Callable, guide: Callable | None, key: Array, infer_discrete: bool
    ) -> None:
        self._model, self._guide = model, guide or (lambda: None)
        self._trace = _run(model, key)
        self.layout = _layout(self._trace)
        guide_trace = _run(self._guide, key)
        check_traces(guide_trace, self._trace)
        self._fixed: dict[str, Array] = {}  # the latents with only one class
        self._enumerated = self._find_enumerated(key) if infer_discrete else []
        in_guide = _layout(guide_trace).named("latent") if guide else None
        self.layout.check(in_guide, [*self._enumerated, *self._fixed])
        self._infer_discrete = infer_discrete
        self.method = "infer_discrete" if infer_discrete else "guide"
        self.method += ", guide" if infer_discrete and guide else ""

    def _find_enumerated(self, key: Array) -> list[str]:
        """The sites that are enumerated; the guide does not draw them."""
        sites = _run(config_enumerate(self._model), key).items()
        frames = [f.dim for site in self._trace.values() for f in site.get("cond_indep_stack", ())]
        self._plates = -min(frames, default=0)
        latents = {n: s for n, s in sites if s["type"] == "sample" and not s["is_observed"]}
        alone = [name for name, site in latents.items() if has_one_class(site["fn"])]
        self._fixed = {name: jnp.asarray(self.layout.sites[name].value) for name in alone}
        return [name for name, site in latents.items() if site["infer"].get("enumerate")]

    def draw(self, key: Array) -> dict[str, dict[str, Array]]:
        """One draw of each group."""
        of_latents, of_predictive, of_prior = jax.random.split(key, 3)
        latents, log_q, log_weight = self._draw_latents(of_latents)
        # the key is for what stays random: only auxiliary draws
        lp, joint = log_density(handlers.seed(self._model, key), (), {}, latents)
        if log_weight is None:
            log_weight = lp - log_q
        else:
            log_q = lp - log_weight
        predictive = _run(handlers.substitute(Uncondition(self._model), latents), of_predictive)
        prior = _run(Uncondition(self._model), of_prior)
        shown = self.layout.named("latent") + self.layout.named("deterministic")
        observed = self.layout.named("observed")
        return {
            "posterior": _values(joint, shown),
            "log_likelihood": {n: _pointwise(joint[n]) for n in observed},
            "posterior_predictive": _values(predictive, observed),
            "prior": _values(prior, shown),
            "prior_predictive": _values(prior, observed),
            "sample_stats": {"lp": lp, "log_q": log_q, "log_weight": log_weight},
        }

    def _draw_latents(self, key: Array) -> tuple[dict[str, Array], Array | None, Array | None]:
        """Latents by site, and the log density of the draw, or, without one, its log weight."""
        key, own = jax.random.split(key)
        summed = {*self._enumerated, *self._fixed}
        guide = handlers.block(handlers.seed(self._guide, own), hide=list(summed))
        log_q, trace = log_density(guide, (), {}, {})
        rest = [name for name in self.layout.named("latent") if name not in summed]
        latents = _values(trace, rest) | self._fixed
        if not self._enumerated:
            return latents, log_q, None
        conditioned = handlers.condition(self._model, latents)
        elbo = TraceEnum_ELBO(max_plate_nesting=self._plates)
        loss = elbo.loss(key, {}, config_enumerate(conditioned), lambda: None)
        return latents | self._draw_enumerated(conditioned, key), None, -loss - log_q

    def _draw_enumerated(self, model: Callable, key: Array) -> dict[str, Array]:
        # imported here: it sets the backend of funsor, for Pyro too
        from numpyro.contrib.funsor import infer_discrete

        def one_hot_vectors() -> dict[str, Array]:
            return _values(handlers.trace(model).get_trace(), self._enumerated)

        draw = infer_discrete(config_enumerate(one_hot_vectors), -1 - self._plates, rng_key=key)
        drawn, sites = handlers.seed(draw, key)(), self.layout.sites
        return {name: unpacked(x, sites[name].value.shape) for name, x in drawn.items()}


def _bound(
    fn: Callable, args: tuple, kwargs: dict, params: Mapping, key: Array
) -> tuple[Callable, list[str]]:
    """The discrete program with its arguments and parameters; and the parameters not given."""
    program = Unscaled(discretize(partial(Annealed(fn), 1.0, *args, **kwargs)))
    sites = _run(program, key).values()
    initial = {site["name"]: site["value"] for site in sites if site["type"] == "param"}
    bound = handlers.substitute(program, data=initial | dict(params))
    return bound, [name for name in initial if name not in params]


def _run(program: Callable, key: Array) -> dict[str, Any]:
    return handlers.trace(handlers.seed(program, key)).get_trace()


def _layout(trace: Mapping[str, Any]) -> Layout:
    sites = {}
    for name, site in trace.items():
        if site["type"] == "plate":
            size, subsample_size = site["args"]
            if subsample_size not in (None, size):
                inference_data.refuse_subsampling(name, subsample_size, size)
        if site["type"] not in ("sample", "deterministic"):
            continue
        frames = {frame.dim: frame.name for frame in site["cond_indep_stack"]}
        if site["type"] == "deterministic":
            plates = inference_data.plate_axes(frames, -min(frames, default=0))
            sites[name] = Site("deterministic", np.asarray(site["value"]), plates)
            continue
        fn, law = site["fn"], innermost(site["fn"])
        if site["is_observed"]:
            check_observed(name, site)
        if not (isinstance(law, Unit) or site["infer"].get("is_auxiliary")):
            kind = "observed" if site["is_observed"] else "latent"
            drawn = tuple(site["kwargs"].get("sample_shape", ()))
            plates = inference_data.plate_axes(frames, len(drawn) + len(fn.batch_shape))
            value = np.broadcast_to(site["value"], drawn + fn.shape())
            sites[name] = Site(kind, value, plates, event_dims(law))
    return Layout(sites)


def _values(trace: Mapping[str, Any], sites: Sequence[str]) -> dict[str, Array]:
    return {name: trace[name]["value"] for name in sites}


def _pointwise(site: dict[str, Any]) -> Array:
    drawn = tuple(site["kwargs"].get("sample_shape", ()))
    return jnp.broadcast_to(site["fn"].log_prob(site["value"]), drawn + site["fn"].batch_shape)
