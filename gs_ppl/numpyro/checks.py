"""Which pairings of guide and model give a finite but wrong loss, seen on one run of both."""

from collections.abc import Callable
from typing import Any

import jax
from numpyro import handlers
from numpyro.distributions import (
    BernoulliLogits,
    BernoulliProbs,
    CategoricalLogits,
    CategoricalProbs,
)
from numpyro.infer import TraceEnum_ELBO

from gs_ppl._shared.pairings import PairedSite, check_pairing, check_unpaired
from gs_ppl._shared.wrappers import innermost, is_masked
from gs_ppl.numpyro._base import LogitsDistribution
from gs_ppl.numpyro.distributions import ExpGumbelSoftmax
from gs_ppl.numpyro.handlers import is_latent

__all__ = ["check"]


def _site(msg: dict[str, Any]) -> PairedSite:
    law = innermost(msg["fn"])
    if isinstance(law, LogitsDistribution):
        kind = law.scored_as
    elif isinstance(law, BernoulliLogits | BernoulliProbs):
        kind = "mass"
    else:
        kind = "integer" if isinstance(law, CategoricalLogits | CategoricalProbs) else None
    return PairedSite(
        law,
        kind,
        log_space=isinstance(law, ExpGumbelSoftmax),
        masked=is_masked(msg["fn"]),
        enumerated=msg["infer"].get("enumerate") is not None,
    )


def _latents(trace: dict[str, Any]) -> dict[str, PairedSite]:
    return {
        name: _site(msg)
        for name, msg in trace.items()
        if is_latent(msg) and not msg["infer"].get("is_auxiliary")
    }


def check(model: Callable, guide: Callable, loss: Any, *args: Any, **kwargs: Any) -> None:
    """Runs guide and model once, and refuses pairings whose loss would be finite but wrong.

    AnnealedSVI does it at its initialisation. Under a bare SVI that nobody checks, a bare discrete
    law on one side stays unseen.

    Args:
        model: program, relaxed or enumerated as it is handed to SVI.
        guide: program, likewise.
        loss: the ELBO object.
        *args: what the programs take.
        **kwargs: what the programs take.

    Raises:
        ValueError: naming the site and the cure: a density paired with a mass, class indices with
            vectors, log-space with the simplex; a discrete guide site that the loss has no
            gradient for; a mask on one side alone; a latent that is neither in the guide nor
            enumerated by the loss.

    Example:
        >>> import jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import OneHotCategorical, check, relax
        >>> def program():
        ...     return numpyro.sample("z", OneHotCategorical(logits=jnp.zeros(3)))
        >>> guide = relax(program, 0.5, objective="relaxed")
        >>> check(program, guide, numpyro.infer.Trace_ELBO())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: site 'z': GumbelSoftmax in the guide over OneHotCategorical in the model ...
    """
    with handlers.block():
        seeded = handlers.seed(guide, jax.random.key(0))
        guide_trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        replayed = handlers.replay(handlers.seed(model, jax.random.key(0)), trace=guide_trace)
        model_trace = handlers.trace(replayed).get_trace(*args, **kwargs)
    in_guide, in_model = _latents(guide_trace), _latents(model_trace)
    for name, site in [*in_guide.items(), *in_model.items()]:
        if site.enumerated and isinstance(site.law, LogitsDistribution):
            raise ValueError(
                f"site {name!r}: NumPyro does not sum out {site.name} by its infer flag alone: use"
                " config_enumerate"
            )
    for name, site in in_model.items():
        if name not in in_guide:
            check_unpaired(name, site, loss_enumerates=isinstance(loss, TraceEnum_ELBO))
            continue
        pair = in_guide[name]
        check_pairing(name, pair, site)
        discrete = pair.kind is not None and not pair.law.has_rsample
        if discrete and not loss.can_infer_discrete:
            raise ValueError(
                f"site {name!r}: {type(loss).__name__} has no gradient for {pair.name} in the"
                " guide: relax model and guide, or use TraceGraph_ELBO or TraceEnum_ELBO"
            )
