"""Which pairings of guide and model give a finite but wrong loss, seen on one run of both."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from pyro.infer import RenyiELBO, TraceEnum_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from pyro.infer.inspect import site_is_deterministic
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions import (
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    biject_to,
    kl_divergence,
)

from gs_ppl._shared.observed import check_data
from gs_ppl._shared.pairings import (
    PairedSite,
    check_axes,
    check_divergence,
    check_masks,
    check_order,
    check_pairing,
    check_rows,
    check_tail,
    check_unpaired,
    divergence,
    has_auxiliary,
    number_of_classes,
    refuse_exchanged,
    refuse_pairs,
    to_probe,
)
from gs_ppl._shared.starting import are_equal, warn_of_equal
from gs_ppl._shared.wrappers import innermost, is_masked
from gs_ppl.pyro import trace_enum
from gs_ppl.pyro._base import LogitsDistribution, read
from gs_ppl.pyro.distributions import ExpGumbelSoftmax
from gs_ppl.pyro.handlers import random_state
from gs_ppl.pyro.integers import is_integer, tail
from gs_ppl.pyro.probe import Probe

__all__ = ["check"]

# the first has no score function; the second has one only in the limit of many particles
PATHWISE_LOSSES = (TraceMeanField_ELBO, RenyiELBO)
ANALYTIC_LOSSES = (TraceMeanField_ELBO, trace_enum.TraceEnum_ELBO)


def _site(node: dict[str, Any], auxiliary: Collection[str]) -> PairedSite:
    law, mask = innermost(node["fn"]), node["mask"]
    kind: str | None = None
    if isinstance(law, LogitsDistribution):
        kind = law.scored_as
    elif isinstance(law, TorchOneHotCategorical | TorchBernoulli):
        kind = "mass"
    elif isinstance(law, RelaxedOneHotCategorical | RelaxedBernoulli):
        kind = "density"
    elif is_integer(law):
        kind = "integer"
    frames = {f.dim: f for f in node["cond_indep_stack"] if f.vectorized}
    shape = node["fn"].batch_shape
    return PairedSite(
        law,
        kind,
        log_space=isinstance(law, ExpGumbelSoftmax),
        masked=(mask is not None and mask is not True) or is_masked(node["fn"]),
        unscored=mask is False or (isinstance(mask, Tensor) and not mask.any()),
        enumerated=node["infer"].get("enumerate") is not None,
        plates={dim: (f.name, f.size, f.full_size or f.size) for dim, f in frames.items()},
        loose=tuple(d for d in range(-len(shape), 0) if shape[d] > 1 and d not in frames),
        scale=torch.as_tensor(node["scale"]).numpy(force=True),
        classes=number_of_classes(law, kind),
        auxiliary=has_auxiliary(node["name"], auxiliary),
    )


def _latents(trace: Any) -> dict[str, PairedSite]:
    nodes = {n: trace.nodes[n] for n in trace.stochastic_nodes}
    auxiliary = {n for n, node in nodes.items() if node["infer"].get("is_auxiliary")}
    return {
        name: _site(node, auxiliary)
        for name, node in nodes.items()
        if not site_is_subsample(node)
        and name not in auxiliary
        and torch.as_tensor(node["value"]).numel()
    }


class _GivenRows(Messenger):
    """Reads the rows that the program is given, plate(..., subsample=rows), before replay does."""

    def __enter__(self) -> Any:
        self.rows: dict[str, Tensor] = {}
        return super().__enter__()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if site_is_subsample(msg) and msg["value"] is not None:
            self.rows[msg["name"]] = msg["value"]


def _parents(program: Callable, trace: Any, args: tuple, kwargs: dict) -> dict[str, set[str]]:
    """Which latents each latent's law depends on, read off the graph of its score."""
    names = [n for n in _latents(trace) if trace.nodes[n]["value"].is_floating_point()]
    fixed, leaves = poutine.Trace(), {}
    for name in trace.stochastic_nodes:
        node = trace.nodes[name]
        if name in names:
            leaves[name] = node["value"].detach().clone().requires_grad_()
        fixed.add_node(name, **{**node, "value": leaves.get(name, node["value"])})
    with random_state(), torch.enable_grad():
        replayed = poutine.replay(program, trace=fixed)
        again = poutine.trace(replayed).get_trace(*args, **kwargs)
        again.compute_log_prob(lambda name, site: name in leaves)
    parents = {}
    for name in names:
        score = again.nodes[name]["log_prob"].sum()
        others = {other: leaf for other, leaf in leaves.items() if other != name}
        slopes: Sequence[Tensor | None] = [None] * len(others)
        if score.requires_grad and others:
            slopes = torch.autograd.grad(
                score, list(others.values()), retain_graph=True, allow_unused=True
            )
        parents[name] = {o for o, slope in zip(others, slopes, strict=True) if slope is not None}
    return parents


def check_tails(model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> None:
    """Refuses truncations that leave out too much mass."""
    with random_state(), torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    for trace in (guide_trace, model_trace):
        for name, site in _latents(trace).items():
            check_tail(name, site, tail(site.law))


def check_observed(site: str, node: dict[str, Any]) -> None:
    """Refuses data with other rows than their plates, NaN, and what is no tensor.

    Pyro scores only tensors, and its own error comes late. A mask does not help against NaN: torch
    multiplies its gradient by 0, which is NaN.
    """
    value = node["value"]
    if not isinstance(value, Tensor):
        raise TypeError(
            f"site {site!r}: Pyro takes a tensor for obs, got {type(value).__name__}: write"
            " torch.as_tensor(x)"
        )
    if not site_is_deterministic(node):
        found = read(value.isnan().sum())
        check_data(site, node, int(found[0]) if found else 0)


def check_exchanged(guide_trace: Any, model_trace: Any) -> None:
    """Refuses data in the guide alone; terms by pyro.factor are no data."""
    observed = [
        name
        for name in guide_trace.observation_nodes
        for node in [guide_trace.nodes[name]]
        if not (isinstance(node["fn"], Unit) or site_is_deterministic(node))
    ]
    refuse_exchanged(observed, model_trace.nodes)


def check_traces(guide_trace: Any, model_trace: Any) -> None:
    """Refuses exchanged programs, and continuous latents that are masked in the model only: the
    guide would have terms for free. No loss is needed to see these.
    """
    check_exchanged(guide_trace, model_trace)
    in_guide, in_model = _latents(guide_trace), _latents(model_trace)
    for name in in_guide.keys() & in_model.keys():
        check_masks(name, in_guide[name], in_model[name])


def _centre(guide_trace: Any, model_trace: Any, name: str) -> Tensor:
    """The location that the guide gives a continuous latent."""
    base = guide_trace.nodes.get(f"{name}_unconstrained")  # the name that AutoNormal gives it
    if base is not None:
        return biject_to(model_trace.nodes[name]["fn"].support)(base["fn"].mean).detach()
    node = guide_trace.nodes[name]
    return node["value"].detach()


def _warn_of_equal(
    guide_trace: Any,
    model_trace: Any,
    relaxed: list[str],
    model: Callable,
    args: tuple,
    kwargs: dict,
) -> None:
    """Warns if all components are equal, and therefore all classes of a relaxed site."""
    continuous = [
        name
        for name, site in _latents(model_trace).items()
        if site.kind is None and name in guide_trace.nodes
    ]
    at = {name: _centre(guide_trace, model_trace, name) for name in continuous}
    equal = [name for name in continuous if are_equal(at[name].numpy(force=True))]
    if not equal:
        return
    apart = dict(at)
    for name in equal:
        bijection = biject_to(model_trace.nodes[name]["fn"].support)
        middle = bijection.inv(at[name])
        apart[name] = bijection(middle + torch.linspace(0.0, 1.0, middle.numel()).view_as(middle))
    probes = []
    for values in (at, apart):
        trace = model_trace.copy()
        for name, value in values.items():
            trace.nodes[name] = {**trace.nodes[name], "value": value}
        probes.append(Probe("model", model, trace, args, kwargs))
    for name in relaxed:

        def terms(moved: bool, i: int, name: str = name) -> list[Any]:
            probe = probes[moved]
            with torch.no_grad():
                sites, found = probe._terms({name: probe.corners(name)[i]})
            return [x.numpy(force=True) for x in found[: len(sites) - 1]]

        with random_state():
            warn_of_equal(name, equal, terms)


def check(model: Callable, guide: Callable, loss: Any, *args: Any, **kwargs: Any) -> None:
    """Runs guide and model, and refuses pairings whose loss would be finite but wrong.

    AnnealedSVI calls it at its first step, and again if the shapes of its arguments are new. A bare
    SVI does not call it. It does not change the random state. A program with relaxed sites runs
    about ten times more, with values along edges of the simplex: does the loss change as its
    gradient predicts? A jump below 8e-6 of the sum of the terms' absolute values is not found. It
    warns if all classes of a relaxed site are equal because the components start equal.

    Args:
        model: program, relaxed or enumerated, as it is given to SVI.
        guide: program, as it is given to SVI.
        loss: the ELBO object.
        *args: what the programs take.
        **kwargs: what the programs take.

    Raises:
        ValueError: naming the site and the cure, for: a density paired with a mass, class indices
            with vectors, log-space with the simplex; a straight-through guide with Pyro's own
            OneHotCategorical, whose log_prob has no gradient; a discrete site of the guide if the
            loss has no gradient for it; a soft mass if the loss has no analytic divergence; plates,
            rows, scales, masks or classes that differ; data with other rows than their plate, or
            NaN; a batch axis outside of plates; a latent that is neither in the guide nor
            enumerated; under TraceMeanField_ELBO dependent sites in another order than in the
            model; a relaxed value that is used as a class, by long(), argmax, == or if, which has
            no gradient.

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
        given = _GivenRows()
        replayed = poutine.replay(given(model), trace=guide_trace)
        try:
            model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        except Exception as error:
            alone = poutine.trace(model).get_trace(*args, **kwargs)
            refuse_pairs(_latents(guide_trace), _latents(alone), error)
            raise
    check_exchanged(guide_trace, model_trace)
    for plate, rows in given.rows.items():
        if plate in guide_trace.nodes:
            drawn = torch.as_tensor(guide_trace.nodes[plate]["value"])
            check_rows(plate, drawn.numpy(force=True), torch.as_tensor(rows).numpy(force=True))
    for name in model_trace.observation_nodes:
        check_observed(name, model_trace.nodes[name])
    in_guide, in_model = _latents(guide_trace), _latents(model_trace)
    for name, site in [*in_guide.items(), *in_model.items()]:
        check_tail(name, site, tail(site.law))
    for name, site in in_model.items():
        if name not in in_guide:
            check_axes(name, "model", site)
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
        laws = [trace.nodes[name]["fn"] for trace in (guide_trace, model_trace)]
        analytic = isinstance(loss, ANALYTIC_LOSSES) and pair.is_soft_mass
        kl = divergence(kl_divergence, *laws) if analytic else None
        if kl is not None:  # poutine.mask changes the site, not the law
            kl = scale_and_mask(kl, mask=guide_trace.nodes[name]["mask"])
        # a plain number if the law has no score
        infinite = kl is not None and bool(torch.as_tensor(kl).isposinf().any())
        named = type(loss).__name__
        check_divergence(name, pair, named, analytic=kl is not None, infinite=infinite)
    programs = (("model", model, model_trace), ("guide", guide, guide_trace))
    common = [
        [n for n in sites if n in in_guide and n in in_model] for sites in (in_guide, in_model)
    ]
    if isinstance(loss, TraceMeanField_ELBO) and common[0] != common[1]:
        parents, guide_parents = (_parents(fn, trace, args, kwargs) for _, fn, trace in programs)
        check_order(parents, guide_parents, type(loss).__name__)
    for side, program, trace in programs:
        relaxed = to_probe(side, in_guide, in_model)
        if any(relaxed):
            with random_state():
                Probe(side, program, trace, args, kwargs).run(*relaxed)
    if masses := to_probe("model", in_guide, in_model)[0]:
        _warn_of_equal(guide_trace, model_trace, masses, model, args, kwargs)
    if isinstance(loss, trace_enum.TraceEnum_ELBO) and any(
        s.is_soft_mass for s in in_guide.values()
    ):
        with random_state():
            loss.loss(model, guide, *args, **kwargs)  # refuses soft children of summed sites
