"""Which pairings of guide and model give a finite but wrong loss, seen on one run of both."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.distributions import (
    BernoulliLogits,
    BernoulliProbs,
    CategoricalLogits,
    CategoricalProbs,
    Normal,
    TransformedDistribution,
    Unit,
    biject_to,
    kl_divergence,
)
from numpyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from numpyro.primitives import Messenger

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
from gs_ppl._shared.wrappers import innermost, is_masked, is_wrapper
from gs_ppl.numpyro import trace_enum
from gs_ppl.numpyro._base import LogitsDistribution, read
from gs_ppl.numpyro.control_flow import is_scan
from gs_ppl.numpyro.distributions import ExpGumbelSoftmax
from gs_ppl.numpyro.handlers import is_latent
from gs_ppl.numpyro.integers import is_integer, tail
from gs_ppl.numpyro.probe import Probe
from gs_ppl.numpyro.scan_enumeration import refuse_taken_apart, runs_whole

__all__ = ["check"]

BITS, CATEGORIES = (BernoulliLogits, BernoulliProbs), (CategoricalLogits, CategoricalProbs)
ANALYTIC_LOSSES = (TraceMeanField_ELBO, trace_enum.TraceEnum_ELBO)


def _in_scan(trace: dict[str, Any]) -> set[str]:
    """The sites of scanned bodies, whose first batch axis is time."""
    return {name for name, msg in trace.items() if msg.get("_control_flow_done")}


def _site(
    msg: dict[str, Any], full_sizes: dict[str, int], in_scan: bool, auxiliary: Collection[str]
) -> PairedSite:
    law = innermost(msg["fn"])
    kind: str | None = None
    if isinstance(law, LogitsDistribution):
        kind = law.scored_as
    elif isinstance(law, BITS):
        kind = "mass"
    elif is_integer(law):
        kind = "integer"
    frames = {f.dim: f for f in msg["cond_indep_stack"]}
    shape, scale = msg["fn"].batch_shape, msg["scale"]
    first = in_scan - len(shape)
    return PairedSite(
        law,
        kind,
        log_space=isinstance(law, ExpGumbelSoftmax),
        masked=is_masked(msg["fn"]),
        unscored=_is_unscored(msg["fn"]),
        enumerated=msg["infer"].get("enumerate") is not None,
        plates={dim: (f.name, f.size, full_sizes.get(f.name, f.size)) for dim, f in frames.items()},
        loose=tuple(d for d in range(first, 0) if shape[d] > 1 and d not in frames),
        scale=1.0 if scale is None else read(scale),
        classes=number_of_classes(law, kind),
        auxiliary=has_auxiliary(msg["name"], auxiliary),
    )


def _is_unscored(fn: Any) -> bool:
    """Whether a mask around the law is False throughout."""
    while is_wrapper(fn):
        given: Any = getattr(fn, "_mask", True)
        mask = read(given)
        if mask is not None and not np.any(mask):
            return True
        fn = fn.base_dist
    return False


def _latents(trace: dict[str, Any], scanned: Collection[str] = ()) -> dict[str, PairedSite]:
    full_sizes = {n: msg["args"][0] for n, msg in trace.items() if msg["type"] == "plate"}
    latents = {name: msg for name, msg in trace.items() if is_latent(msg)}
    auxiliary = {name for name, msg in latents.items() if msg["infer"].get("is_auxiliary")}
    return {
        name: _site(msg, full_sizes, name in scanned, auxiliary)
        for name, msg in latents.items()
        if name not in auxiliary and jnp.size(msg["value"])
    }


def _is_subsampled(plate: dict[str, Any]) -> bool:
    size, subsample_size = plate["args"]
    return subsample_size not in (None, size)


def _subsampled(trace: dict[str, Any]) -> set[str]:
    """The plates that draw some of their rows."""
    return {n for n, msg in trace.items() if msg["type"] == "plate" and _is_subsampled(msg)}


class _GivenRows(Messenger):
    """Reads the rows that the program is given, for example by substitute, before replay does."""

    def __init__(self, fn: Callable) -> None:
        super().__init__(fn)
        self.rows: dict[str, Array] = {}

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "plate" and msg["value"] is not None and _is_subsampled(msg):
            self.rows[msg["name"]] = msg["value"]


class _TakenApart(Messenger):
    """Reads the scans that TraceEnum_ELBO takes apart."""

    found = False

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "control_flow" and is_scan(msg) and not runs_whole(msg):
            self.found = True


def _parents(
    program: Callable, trace: dict[str, Any], args: tuple, kwargs: dict
) -> dict[str, set[str]]:
    """Which latents each latent's law depends on, by the gradient of its score."""
    names = [
        n
        for n in _latents(trace)
        if jnp.issubdtype(jnp.result_type(trace[n]["value"]), jnp.floating)
    ]

    def scores(values: dict[str, Array]) -> dict[str, Array]:
        fixed = {
            name: {**site, "value": values.get(name, site["value"])}
            for name, site in trace.items()
            if site["type"] == "plate" or is_latent(site)
        }
        seeded = handlers.seed(program, jax.random.key(0))
        with handlers.block():
            again = handlers.trace(handlers.replay(seeded, fixed)).get_trace(*args, **kwargs)
        return {name: again[name]["fn"].log_prob(again[name]["value"]).sum() for name in names}

    slopes = jax.jacrev(scores)({name: trace[name]["value"] for name in names})
    return {
        name: {o for o in names if o != name and bool((slopes[name][o] != 0).any())}
        for name in names
    }


def check_observed(site: str, msg: dict[str, Any]) -> None:
    """Refuses data with other rows than their plates, NaN, and classes that the law does not have.

    Values behind a mask are not looked at.
    """
    law, value = innermost(msg["fn"]), msg["value"]
    if isinstance(value, list | tuple):
        raise TypeError(
            f"site {site!r}: NumPyro takes an array for obs, got {type(value).__name__}: write"
            " jnp.asarray(x)"
        )
    if isinstance(law, CATEGORIES) and jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(
            f"site {site!r}: NumPyro's Categorical takes integers for obs, got"
            f" {jnp.result_type(value)}: write x.astype(int)"
        )
    values = None if is_masked(msg["fn"]) else read(value)
    check_data(site, msg, 0 if values is None else int(np.isnan(values).sum()))
    if values is None or not isinstance(law, BITS + CATEGORIES):
        return
    largest = 1 if isinstance(law, BITS) else law.support.upper_bound
    if not ((values >= 0) & (values <= largest)).all():  # data of bits may be grey levels
        raise ValueError(
            f"site {site!r}: {type(law).__name__} has the classes 0 to {largest}, but its data have"
            f" values from {values.min():g} to {values.max():g}"
        )


def check_exchanged(guide_trace: dict[str, Any], model_trace: dict[str, Any]) -> None:
    """Refuses data in the guide alone; terms by numpyro.factor are no data."""
    observed = [
        name
        for name, msg in guide_trace.items()
        if msg["type"] == "sample" and msg["is_observed"] and not isinstance(msg["fn"], Unit)
    ]
    refuse_exchanged(observed, model_trace)


def check_traces(guide_trace: dict[str, Any], model_trace: dict[str, Any]) -> None:
    """Refuses exchanged programs, and continuous latents that are masked in the model only: the
    guide would have terms for free. No loss is needed to see these.
    """
    check_exchanged(guide_trace, model_trace)
    in_guide, in_model = _latents(guide_trace), _latents(model_trace)
    for name in in_guide.keys() & in_model.keys():
        check_masks(name, in_guide[name], in_model[name])


def check_tails(model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> None:
    """Refuses truncations that leave out too much mass."""
    for trace in _run(model, guide, args, kwargs)[:2]:
        for name, site in _latents(trace).items():
            check_tail(name, site, tail(site.law))


def _run(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Any, Any, Any]:
    """Traces of guide and model, and the rows that the model is given."""
    with handlers.block():
        seeded = handlers.seed(guide, jax.random.key(0))
        guide_trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        given = _GivenRows(model)
        seeded = handlers.seed(given, jax.random.key(0))
        replayed = handlers.replay(seeded, trace=guide_trace)
        try:
            model_trace = handlers.trace(replayed).get_trace(*args, **kwargs)
        except Exception as error:
            alone = handlers.trace(seeded).get_trace(*args, **kwargs)
            refuse_pairs(_latents(guide_trace), _latents(alone), error)
            raise
        return guide_trace, model_trace, given.rows


def _centre(guide_trace: dict[str, Any], name: str) -> Array:
    """The location that the guide gives a continuous latent."""
    law = innermost(guide_trace[name]["fn"])
    transforms: list[Any] = []
    while isinstance(law, TransformedDistribution):  # as in AutoNormal
        transforms[:0] = law.transforms
        law = innermost(law.base_dist)
    value = law.mean if transforms or isinstance(law, Normal) else guide_trace[name]["value"]
    for transform in transforms:
        value = transform(value)
    return jnp.broadcast_to(value, jnp.shape(guide_trace[name]["value"]))


def _warn_of_equal(
    guide_trace: dict,
    model_trace: dict,
    relaxed: list[str],
    model: Callable,
    args: tuple,
    kwargs: dict,
) -> None:
    """Warns if all components are equal, and therefore all classes of a relaxed site."""
    continuous = [
        name
        for name, site in _latents(model_trace).items()
        if site.kind is None and name in guide_trace
    ]
    at = {name: _centre(guide_trace, name) for name in continuous}
    equal = [name for name in continuous if are_equal(np.asarray(at[name]))]
    if not equal:
        return
    apart = dict(at)
    for name in equal:
        bijection = biject_to(model_trace[name]["fn"].support)
        middle = bijection.inv(at[name])
        steps = jnp.linspace(0.0, 1.0, middle.size).reshape(middle.shape)
        apart[name] = bijection(middle + steps)
    probes = []
    for values in (at, apart):
        moved = {n: {**model_trace[n], "value": value} for n, value in values.items()}
        probes.append(Probe("model", model, model_trace | moved, args, kwargs))
    for name in relaxed:

        def terms(moved: bool, i: int, name: str = name) -> list[Any]:
            probe = probes[moved]
            sites, found = probe._terms({name: probe.corners(name)[i]})
            return [np.asarray(x) for x in found[: len(sites) - 1]]

        warn_of_equal(name, equal, terms)


def check(model: Callable, guide: Callable, loss: Any, *args: Any, **kwargs: Any) -> None:
    """Runs guide and model, and refuses pairings whose loss would be finite but wrong.

    AnnealedSVI calls it in init, and again if the shapes of its arguments are new. A bare SVI does
    not call it. A program with relaxed sites runs about ten times more, with values along edges of
    the simplex: does the loss change as its gradient predicts? A jump below 8e-6 of the sum of the
    terms' absolute values is not found. Under jit values cannot be read, and only types and shapes
    are checked. It warns if all classes of a relaxed site are equal because the components start
    equal.

    Args:
        model: program, relaxed or enumerated, as it is given to SVI.
        guide: program, as it is given to SVI.
        loss: the ELBO object.
        *args: what the programs take.
        **kwargs: what the programs take.

    Raises:
        ValueError: naming the site and the cure, for: a density paired with a mass, class indices
            with vectors, log-space with the simplex; a discrete site of the guide if the loss has
            no gradient for it; a soft mass if the loss has no analytic divergence; plates, rows,
            scales, masks or classes that differ; data with other rows than their plate, or NaN; a
            batch axis outside of plates; a latent that is neither in the guide nor enumerated;
            under TraceMeanField_ELBO dependent sites in another order than in the model; a relaxed
            value that is used as a class, by astype(int), argmax or ==, which has no gradient.

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
    scans = _TakenApart(guide)
    guide_trace, model_trace, given = _run(model, scans, args, kwargs)
    check_exchanged(guide_trace, model_trace)
    for plate, rows in given.items():
        own = read(guide_trace[plate]["value"]) if plate in guide_trace else None
        wanted = read(rows)
        if own is not None and wanted is not None:
            check_rows(plate, own, wanted)
    if isinstance(loss, TraceEnum_ELBO) and not isinstance(loss, trace_enum.TraceEnum_ELBO):
        for plate in _subsampled(guide_trace) & _subsampled(model_trace) - given.keys():
            raise ValueError(
                f"plate {plate!r}: NumPyro's TraceEnum_ELBO draws other rows for the model than for"
                " the guide: use gs_ppl.numpyro.TraceEnum_ELBO, or give both the same rows by"
                " substitute"
            )
    for name, msg in model_trace.items():
        if msg["type"] == "sample" and msg["is_observed"]:
            check_observed(name, msg)
    scanned = _in_scan(guide_trace) | _in_scan(model_trace)
    in_guide, in_model = _latents(guide_trace, scanned), _latents(model_trace, scanned)
    if isinstance(loss, TraceEnum_ELBO) and scans.found:
        for name in in_guide.keys() & _in_scan(guide_trace):
            refuse_taken_apart(name)
    for name, site in [*in_guide.items(), *in_model.items()]:
        check_tail(name, site, tail(site.law))
        if site.enumerated and isinstance(site.law, LogitsDistribution):
            raise ValueError(
                f"site {name!r}: infer={{'enumerate': ...}} is not enough for NumPyro to sum out"
                f" {site.name}: use gs_ppl.numpyro.config_enumerate"
            )
    for name, site in in_model.items():
        if name not in in_guide:
            check_axes(name, "model", site)
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
        laws = [trace[name]["fn"] for trace in (guide_trace, model_trace)]
        drawn = tuple(guide_trace[name]["kwargs"].get("sample_shape") or ())
        analytic = isinstance(loss, ANALYTIC_LOSSES) and bool(pair.is_soft_mass or drawn)
        kl = divergence(kl_divergence, *laws) if analytic else None
        values = None if kl is None else read(kl)
        infinite = pair.is_soft_mass and values is not None and bool(np.isposinf(values).any())
        named = type(loss).__name__
        check_divergence(name, pair, named, analytic=kl is not None, infinite=infinite)
        if drawn and kl is not None:
            raise ValueError(
                f"site {name!r}: {type(loss).__name__} counts the divergence of one variable only,"
                f" but sample_shape={drawn} in the guide draws several: use a plate instead"
            )
    sites = [*guide_trace.values(), *model_trace.values()]
    if any(isinstance(site["value"], jax.core.Tracer) for site in sites):
        return
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
            Probe(side, program, trace, args, kwargs).run(*relaxed)
    if masses := to_probe("model", in_guide, in_model)[0]:
        _warn_of_equal(guide_trace, model_trace, masses, model, args, kwargs)
    if isinstance(loss, trace_enum.TraceEnum_ELBO) and any(
        s.is_soft_mass for s in in_guide.values()
    ):
        params = {s["name"]: s["value"] for s in sites if s["type"] == "param"}
        with handlers.block():  # the loss refuses soft children of summed sites
            loss.loss(jax.random.key(0), params, model, guide, *args, **kwargs)
