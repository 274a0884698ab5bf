"""Which pairings of guide and model give a finite but wrong loss, seen on one run of both."""

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.infer import RenyiELBO, TraceEnum_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from pyro.poutine.util import site_is_subsample
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions import RelaxedBernoulli, RelaxedOneHotCategorical

from gs_ppl._shared.pairings import PairedSite, check_pairing, check_unpaired
from gs_ppl._shared.wrappers import innermost, is_masked
from gs_ppl.pyro._base import LogitsDistribution
from gs_ppl.pyro.distributions import ExpGumbelSoftmax
from gs_ppl.pyro.handlers import random_state

__all__ = ["check"]

# without a score function, and with one that is right for infinitely many particles alone
PATHWISE_LOSSES = (TraceMeanField_ELBO, RenyiELBO)


def _site(node: dict[str, Any]) -> PairedSite:
    law = innermost(node["fn"])
    if isinstance(law, LogitsDistribution):
        kind = law.scored_as
    elif isinstance(law, TorchOneHotCategorical | TorchBernoulli):
        kind = "mass"
    elif isinstance(law, RelaxedOneHotCategorical | RelaxedBernoulli):
        kind = "density"
    else:
        kind = "integer" if isinstance(law, TorchCategorical) else None
    masked = node["mask"] is not None and node["mask"] is not True
    return PairedSite(
        law,
        kind,
        log_space=isinstance(law, ExpGumbelSoftmax),
        masked=masked or is_masked(node["fn"]),
        enumerated=node["infer"].get("enumerate") is not None,
    )


def _latents(trace: Any) -> dict[str, PairedSite]:
    return {
        name: _site(trace.nodes[name])
        for name in trace.stochastic_nodes
        if not site_is_subsample(trace.nodes[name])
        and not trace.nodes[name]["infer"].get("is_auxiliary")
    }


def check(model: Callable, guide: Callable, loss: Any, *args: Any, **kwargs: Any) -> None:
    """Runs guide and model once, and refuses pairings whose loss would be finite but wrong.

    AnnealedSVI does it at its first step. The random state is left as it was. Under a bare SVI
    that nobody checks, a bare discrete law on one side stays unseen.

    Args:
        model: program, relaxed or enumerated as it is handed to SVI.
        guide: program, likewise.
        loss: the ELBO object.
        *args: what the programs take.
        **kwargs: what the programs take.

    Raises:
        ValueError: naming the site and the cure: a density paired with a mass, class indices with
            vectors, log-space with the simplex; a straight-through guide over Pyro's own
            OneHotCategorical, whose score has no gradient; a discrete guide site that the loss
            has no gradient for; a mask on one side alone; a latent that is neither in the guide
            nor enumerated by the loss.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import OneHotCategorical, check, relax
        >>> def program():
        ...     return pyro.sample("z", OneHotCategorical(logits=torch.zeros(3)))
        >>> guide = relax(program, 0.5, objective="relaxed")
        >>> check(program, guide, pyro.infer.Trace_ELBO())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: site 'z': GumbelSoftmax in the guide over OneHotCategorical in the model ...
    """
    with random_state():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    in_guide = _latents(guide_trace)
    for name, site in _latents(model_trace).items():
        if name not in in_guide:
            check_unpaired(
                name, site, loss_enumerates=isinstance(loss, TraceEnum_ELBO | TraceTMC_ELBO)
            )
            continue
        pair = in_guide[name]
        check_pairing(name, pair, site)
        own = isinstance(pair.law, LogitsDistribution) and pair.law.has_rsample
        if own and isinstance(site.law, TorchOneHotCategorical):
            raise ValueError(
                f"site {name!r}: Pyro scores {site.name} by argmax, so that {pair.name} in the"
                " guide has no gradient through it: relax the model too"
            )
        discrete = pair.kind is not None and not pair.law.has_rsample
        if discrete and isinstance(loss, PATHWISE_LOSSES):
            raise ValueError(
                f"site {name!r}: {type(loss).__name__} has no gradient for {pair.name} in the"
                " guide: relax model and guide, or use Trace_ELBO, TraceGraph_ELBO or"
                " TraceEnum_ELBO"
            )
