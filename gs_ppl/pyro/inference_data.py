"""Draws of a guide, or of the exact posterior, as ArviZ groups."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.infer.discrete import TraceEnumSample_ELBO
from pyro.infer.inspect import site_is_deterministic
from pyro.poutine.messenger import Messenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from gs_ppl._shared import inference_data
from gs_ppl._shared.inference_data import Layout, Names, Site
from gs_ppl._shared.wrappers import innermost
from gs_ppl.pyro.checks import check_observed, check_traces
from gs_ppl.pyro.enumeration import config_enumerate
from gs_ppl.pyro.handlers import annealed, discretize, random_state
from gs_ppl.pyro.integers import event_dims

__all__ = ["to_inference_data"]


def to_inference_data(
    model: Callable,
    guide: Callable | None = None,
    *args: Any,
    num_samples: int = 1000,
    seed: int = 0,
    infer_discrete: bool = False,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    **kwargs: Any,
) -> Any:
    """Draws of a guide, or of the exact posterior, as ArviZ groups.

    Both programs are made discrete first (see discretize). A program with an argument `temperature`
    runs at temperature 1. One-hot vectors become class indices, bits become 0 and 1. Random
    state and parameter store do not change.

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
        num_samples: number of draws.
        seed: of the draws.
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
        >>> import pyro, torch
        >>> from gs_ppl.pyro import AutoGumbelSoftmax, OneHotCategorical, to_inference_data
        >>> def model():
        ...     with pyro.plate("data", 2):
        ...         z = pyro.sample("z", OneHotCategorical(logits=torch.zeros(2)))
        ...         loc = z @ torch.tensor([-1.0, 1.0])
        ...         pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=torch.ones(2))
        >>> pyro.clear_param_store()
        >>> approximate = to_inference_data(model, AutoGumbelSoftmax(model), num_samples=100)
        >>> exact = to_inference_data(model, num_samples=100)
        >>> exact["posterior"]["z"].dims, exact["posterior"]["z"].dtype
        (('chain', 'draw', 'data'), dtype('int64'))
        >>> round(float(exact["sample_stats"]["log_weight"].mean()), 3)  # the log evidence
        -2.97
    """
    store = pyro.get_param_store()
    with random_state(), torch.no_grad(), store.scope(store.get_state()):
        pyro.set_rng_seed(seed)
        sampler = _Sampler(model, guide, args, kwargs, infer_discrete or guide is None)
        pyro.set_rng_seed(seed)  # the first run of a guide draws from the random state
        names = Names.of(sampler.layout, coords, dims)
        draws = [sampler.draw() for _ in range(num_samples)]
    groups = {
        group: {site: _numpy(torch.stack([d[group][site] for d in draws])) for site in arrays}
        for group, arrays in draws[0].items()
    }
    attrs = {"method": sampler.method, "pyro_version": pyro.__version__}
    return inference_data.build(sampler.layout, names, groups, attrs)


class Unscaled(Messenger):
    """Removes scales: a scaled density is not the law of a draw."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        msg["scale"] = 1.0


class Uncondition(UnconditionMessenger):
    """Pyro's handler, but not for deterministic sites: it would repeat them along their plates."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not site_is_deterministic(msg):
            super()._pyro_sample(msg)


class _Sampler:
    def __init__(
        self,
        model: Callable,
        guide: Callable | None,
        args: tuple,
        kwargs: dict,
        infer_discrete: bool,
    ) -> None:
        self._model = _bound(model, args, kwargs)
        self._prior = Uncondition()(self._model)
        self._guide = _bound(guide, args, kwargs) if guide else lambda: None
        self._trace = poutine.trace(self._model).get_trace()
        guide_trace = poutine.trace(self._guide).get_trace()
        check_traces(guide_trace, self._trace)
        self.layout = _layout(self._trace)
        enumerated = self._setup_enumeration() if infer_discrete else []
        in_guide = _layout(guide_trace).named("latent") if guide else None
        self.layout.check(in_guide, enumerated)
        self._infer_discrete = infer_discrete
        self.method = "infer_discrete" if infer_discrete else "guide"
        self.method += ", guide" if infer_discrete and guide else ""

    def _setup_enumeration(self) -> list[str]:
        """The sites that are enumerated; the guide does not draw them."""
        nodes = poutine.trace(config_enumerate(self._model)).get_trace().nodes
        names = [n for n, node in nodes.items() if node.get("infer", {}).get("enumerate")]
        frames = [f.dim for n in self._trace.nodes.values() for f in n.get("cond_indep_stack", ())]
        self._elbo = TraceEnumSample_ELBO(
            max_plate_nesting=-min(filter(None, frames), default=0),
            strict_enumeration_warning=False,  # the program may have nothing to sum
        )
        self._recorded = poutine.trace(self._model)  # the model gets one-hot vectors
        self._enumerated = config_enumerate(self._recorded)
        self._guide = poutine.block(self._guide, hide=names)
        return names

    def _draw_latents(self) -> tuple[dict[str, Tensor], Tensor | None, float | None]:
        """Latents by site, and the log density of the draw, or, without one, its log weight."""
        if not self._infer_discrete:
            trace = poutine.trace(self._guide).get_trace()
            return _values(trace, self.layout.named("latent")), trace.log_prob_sum(), None
        log_weight = -self._elbo.loss(self._enumerated, self._guide)
        self._elbo.sample_saved()
        latents = _values(self._recorded.trace, self.layout.named("latent"))
        return (
            {n: _unpacked(x, self.layout.sites[n].value.shape) for n, x in latents.items()},
            None,
            log_weight,
        )

    def draw(self) -> dict[str, dict[str, Tensor]]:
        """One draw of each group."""
        latents, log_q, log_weight = self._draw_latents()
        joint = poutine.trace(poutine.condition(self._model, data=latents)).get_trace()
        joint.compute_log_prob()
        lp = joint.log_prob_sum()
        if log_weight is None:
            log_weight = lp - log_q
        else:
            log_q = lp - log_weight
        predictive = poutine.trace(poutine.condition(self._prior, data=latents)).get_trace()
        prior = poutine.trace(self._prior).get_trace()
        shown = self.layout.named("latent") + self.layout.named("deterministic")
        observed = self.layout.named("observed")
        return {
            "posterior": _values(joint, shown),
            "log_likelihood": {n: _pointwise(joint.nodes[n]) for n in observed},
            "posterior_predictive": _values(predictive, observed),
            "prior": _values(prior, shown),
            "prior_predictive": _values(prior, observed),
            "sample_stats": {
                name: torch.as_tensor(value, dtype=lp.dtype)
                for name, value in (("lp", lp), ("log_q", log_q), ("log_weight", log_weight))
            },
        }


def _bound(fn: Callable, args: tuple, kwargs: dict) -> Callable:
    return Unscaled()(partial(discretize(annealed(fn)), 1.0, *args, **kwargs))


def _layout(trace: Any) -> Layout:
    sites = {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        stack = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
        for frame in stack:
            if frame.full_size not in (None, frame.size):
                inference_data.refuse_subsampling(frame.name, frame.size, frame.full_size)
        frames = {frame.dim: frame.name for frame in stack}
        fn, law, value = node["fn"], innermost(node["fn"]), node["value"]
        if site_is_deterministic(node):
            plates = inference_data.plate_axes(frames, -min(frames, default=0))
            sites[name] = Site("deterministic", _numpy(value), plates)
        elif not (isinstance(law, Unit) or _is_auxiliary(node)):
            kind = "observed" if node["is_observed"] else "latent"
            if node["is_observed"]:
                check_observed(name, node)
            plates = inference_data.plate_axes(frames, len(fn.batch_shape))
            value = _numpy(value.expand(fn.shape()))
            sites[name] = Site(kind, value, plates, event_dims(law))
    return Layout(sites)


def _is_auxiliary(node: dict[str, Any]) -> bool:
    return site_is_subsample(node) or bool(node["infer"].get("is_auxiliary"))


def _values(trace: Any, sites: Sequence[str]) -> dict[str, Tensor]:
    return {name: trace.nodes[name]["value"] for name in sites}


def _unpacked(value: Tensor, shape: Sequence[int]) -> Tensor:
    """What enumeration drew, in its full shape: enumeration drops and adds axes of size 1."""
    if value.numel() == math.prod(shape):
        return value.reshape(shape)
    return value.reshape(value.shape[value.dim() - len(shape) :]).expand(shape)


def _pointwise(node: dict[str, Any]) -> Tensor:
    return node["log_prob"].expand(node["fn"].batch_shape)


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
