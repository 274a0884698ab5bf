"""Which pairings of guide and model would give a finite but wrong loss."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from gs_ppl._shared.families import cure_unbounded, is_unbounded

SCORE_FUNCTIONS = ("RLOO_ELBO", "NVIL_ELBO")  # they take any discrete program


@dataclass(frozen=True)
class PairedSite:
    """What a check needs to know about a latent site.

    Attributes:
        law: the law inside of to_event, mask and expand.
        kind: "density", "mass", "integer", or None for any other law.
        log_space: whether its values are logs of points on the simplex.
        masked: whether it has a mask; `unscored`: whether a mask is False everywhere.
        enumerated: whether the program marks it for enumeration.
        plates: (name, size, full size) by axis.
        loose: axes of the batch shape that lie in no plate.
        scale: the factor of its score; None if it is traced.
        classes: the number of values; None for a law without classes.
        auxiliary: whether the value is computed from an auxiliary site, as in AutoNormal of Pyro.
    """

    law: Any
    kind: str | None
    log_space: bool
    masked: bool
    unscored: bool
    enumerated: bool
    plates: Mapping[int, tuple[str, int, int]] = field(default_factory=dict)
    loose: tuple[int, ...] = ()
    scale: Any = 1.0
    classes: int | None = None
    auxiliary: bool = False

    @property
    def name(self) -> str:
        return type(self.law).__name__

    @property
    def is_hard(self) -> bool:
        return getattr(self.law, "is_hard", True)  # as the PPLs' own discrete laws are

    @property
    def is_relaxed(self) -> bool:
        return hasattr(self.law, "scored_as") and self.law.has_rsample

    @property
    def is_soft_mass(self) -> bool:
        return self.kind == "mass" and not self.is_hard

    @property
    def is_certain(self) -> bool:
        return self.name == "Delta"


def check_pairing(site: str, guide: PairedSite, model: PairedSite) -> None:
    """Refuses pairs that would give a finite but wrong loss; names the site and the cure."""
    pair = f"site {site!r}: {guide.name} in the guide over {model.name} in the model"
    if {guide.kind, model.kind} == {"density", "mass"}:
        raise ValueError(
            f"{pair} mixes a density with a mass: their difference has no meaning. Relax model and"
            " guide with the same family= and objective="
        )
    if guide.kind == model.kind == "density" and guide.log_space != model.log_space:
        raise ValueError(
            f"{pair} mixes log-space with the simplex: use the same class in guide and model"
        )
    if {guide.kind, model.kind} in ({"integer", "mass"}, {"integer", "density"}):
        raise ValueError(
            f"{pair} mixes class indices with vectors. Relax both, as in relax(model) and"
            " relax(guide), with the same sites=, or use relax(model) with AutoGumbelSoftmax as the"
            " guide; or write both as OneHotCategorical; or apply config_enumerate to both"
        )
    if None not in (guide.classes, model.classes) and guide.classes != model.classes:
        raise ValueError(
            f"{pair}: the guide has {guide.classes} classes, the model {model.classes}: make the"
            " guide from this model, or give it logits for the classes of the model"
        )
    if guide.kind == model.kind == "mass" and model.is_hard and not guide.is_hard:
        cure = "give both the same family=" if model.is_relaxed else "relax the model too"
        raise ValueError(f"{pair} gives soft values to a law that is only for hard ones: {cure}")
    check_masks(site, guide, model)
    if not guide.is_certain:
        _check_plates(site, pair, guide, model)
        _check_scale(pair, guide, model)


def check_masks(site: str, guide: PairedSite, model: PairedSite) -> None:
    """Refuses a mask in one program only; a certain value of the guide has no term to miss."""
    has_term = guide.auxiliary or not guide.is_certain
    free = model.masked and not guide.masked and has_term
    if free or (guide.kind is not None and guide.masked != model.masked):
        side, other = ("guide", "model") if guide.masked else ("model", "guide")
        cure = ""
        if site.endswith("_unobserved"):
            cure = ". In place of obs_mask=, write fn.mask(is_known) for data that are missing"
        raise ValueError(
            f"site {site!r}: {guide.name} in the guide over {model.name} in the model is masked"
            f" only in the {side}: apply the same mask to the {other}; without it, the loss has the"
            f" term of the {other} but not that of the {side}{cure}"
        )


def has_auxiliary(site: str, auxiliary: Collection[str]) -> bool:
    """Whether automatic guides draw a site by an auxiliary one: its own, or one for all sites."""
    joint = {name for name in auxiliary if name.startswith("_") and name.endswith("_latent")}
    return bool(joint) or f"{site}_unconstrained" in auxiliary


def number_of_classes(law: Any, kind: str | None) -> int | None:
    """Of a law over vectors or bits, the length of its event; None where it is not seen so."""
    if kind in ("mass", "density"):
        return int(law.event_shape[-1]) if law.event_shape else 2
    return None


def refuse_pairs(
    in_guide: Mapping[str, PairedSite], in_model: Mapping[str, PairedSite], error: Exception
) -> None:
    """Names the pair, if it is wrong, for which a model fails at the values of its guide.

    For example, a model that is not relaxed cannot index by the weights that a relaxed guide draws.
    An error that already names a site says more.
    """
    if str(error).startswith("site "):
        return
    for name in sorted(in_guide.keys() & in_model.keys()):
        try:
            check_pairing(name, in_guide[name], in_model[name])
        except ValueError as refusal:
            raise refusal from error


def _check_plates(site: str, pair: str, guide: PairedSite, model: PairedSite) -> None:
    ours = guide.kind is not None
    for dim in sorted({*guide.plates, *model.plates}, reverse=True):
        if dim in guide.plates and dim in model.plates:
            (name, *rows), (other, *wanted) = guide.plates[dim], model.plates[dim]
            if rows != wanted and (ours or name == other):
                raise ValueError(
                    f"{pair}: plate {name!r} of the guide has {_rows(*rows)}, plate {other!r} of"
                    f" the model has {_rows(*wanted)}: use the same number of rows in both. An"
                    " automatic guide keeps the plates of its first call unless it has"
                    " create_plates"
                )
            continue
        side, other = ("guide", "model") if dim in guide.plates else ("model", "guide")
        name, _, full_size = (guide if side == "guide" else model).plates[dim]
        if ours and full_size > 1:
            raise ValueError(
                f"{pair} is in plate {name!r} only in the {side}: put it into the same plate in"
                f" the {other}"
            )
    for side, paired in (("guide", guide), ("model", model)):
        check_axes(site, side, paired)


def check_axes(site: str, side: str, paired: PairedSite) -> None:
    """Refuses a batch of variables outside of plates; a temperature for each row can make one."""
    if paired.kind is not None and paired.loose:
        axes = ", ".join(map(str, paired.loose))
        raise ValueError(
            f"site {site!r}: axis {axes} of the batch shape of {paired.name} in the {side} lies in"
            " no plate: put the site into a plate, make the axis a part of the event by to_event,"
            " or give the site's parameters and temperature the shape of its plates"
        )


def _rows(size: int, full_size: int) -> str:
    return f"{size} rows" if size == full_size else f"{size} of {full_size} rows"


def _check_scale(pair: str, guide: PairedSite, model: PairedSite) -> None:
    if guide.scale is None or model.scale is None:
        return
    a, b = np.asarray(guide.scale, float), np.asarray(model.scale, float)
    try:
        agree = np.allclose(a, b, rtol=1e-5, atol=0)
    except ValueError:
        agree = False
    if not agree:
        of = [f"{x}" if x.ndim == 0 else f"an array of shape {x.shape}" for x in (a, b)]
        raise ValueError(
            f"{pair} is scaled by {of[0]} in the guide but by {of[1]} in the model: use the same"
            " scale, and the same subsampling of plates, in both"
        )


def check_tail(site: str, paired: PairedSite, tail: float | None) -> None:
    """Refuses a truncation that leaves out too much mass; `tail` is that of the worst row."""
    limit = getattr(paired.law, "max_tail", None)
    if limit is not None and tail is not None and not tail <= limit:
        raise ValueError(
            f"site {site!r}: its counts above {paired.law.values[-1]} have the probability"
            f" {tail:.2g}, more than max_tail={limit:g}: truncate at a larger count"
        )


def check_rows(plate: str, guide: np.ndarray, model: np.ndarray) -> None:
    """Refuses a guide that draws other rows of a plate than the model is given."""
    if guide.shape != model.shape or (guide != model).any():
        raise ValueError(
            f"plate {plate!r}: the model is given its rows, but the guide has other rows: give the"
            " guide the same rows, by subsample=rows in Pyro's plate or by substitute in NumPyro"
        )


def check_unpaired(site: str, model: PairedSite, *, loss_enumerates: bool) -> None:
    """Refuses a latent that is neither in the guide nor enumerated."""
    if model.is_certain or model.unscored or (model.enumerated and loss_enumerates):
        return
    if model.kind is not None or getattr(model.law, "has_enumerate_support", False):
        cure = "Add it to the guide, or config_enumerate the model and use TraceEnum_ELBO"
    elif is_unbounded(model.law):
        cure = f"Add it to the guide, or {cure_unbounded(site)}"
    else:
        cure = "Add it to the guide; auto_relaxed makes a guide for all latents"
    if site.endswith("_unobserved"):
        cure = "In place of obs_mask=, write fn.mask(is_known) for data that are missing"
    raise ValueError(
        f"site {site!r}: {model.name} in the model is neither in the guide nor enumerated: it would"
        f" be drawn from the prior. {cure}"
    )


def divergence(known: Callable, guide: Any, model: Any) -> Any:
    """The divergence in the registry; None if it has none of these laws."""
    try:
        return known(guide, model)
    except NotImplementedError:
        return None


def to_probe(
    side: str, in_guide: Mapping[str, PairedSite], in_model: Mapping[str, PairedSite]
) -> list[list[str]]:
    """Relaxed sites of one side that the probe moves: masses, and densities."""
    sites = in_model if side == "model" else in_guide
    if side == "guide" and len(sites) == 1:  # no other site reads it
        return [[], []]
    relaxed = [n for n, site in in_guide.items() if site.is_relaxed and n in in_model]
    return [[n for n in relaxed if sites[n].kind == kind] for kind in ("mass", "density")]


def check_divergence(
    site: str, guide: PairedSite, elbo: str, *, analytic: bool, infinite: bool = False
) -> None:
    """Refuses a soft mass if the loss has log q - log p: its optimum is not q = p.

    Also one that gives weight to what the model excludes: no gradient leads away from there.
    """
    if infinite:
        raise ValueError(
            f"site {site!r}: {guide.name} in the guide gives weight to a value that is impossible"
            " in the model, so that their divergence is infinite. Exclude the value by init_logits"
            " (-inf, or inf for a bit that is always 1), keep the model's probabilities away from 0"
            " and 1, or mask the site there"
        )
    if guide.is_soft_mass and not analytic:
        more = "; or discretize(model) and discretize(guide)" if elbo in SCORE_FUNCTIONS else ""
        raise ValueError(
            f"site {site!r}: {elbo} has no analytic divergence for {guide.name} in the guide."
            " Its soft values are scored by a mass, so that without data the optimum of this ELBO"
            " is not the prior. Use TraceMeanField_ELBO (with enumerated sites, gs_ppl's"
            " TraceEnum_ELBO) and the same event dimensions in guide and model; or a"
            f" straight-through family such as STGumbelSoftmax; or objective='relaxed'{more}"
        )


def refuse_mixed(p: Any, q: Any) -> NoReturn:
    """Refuses a divergence of a density and a mass."""
    raise ValueError(
        f"KL({type(p).__name__} || {type(q).__name__}) mixes a density with a mass, and has no"
        " meaning: use a density on both sides (GumbelSoftmax, GumbelSigmoid) or a mass on both"
        " (SoftOneHotCategorical, STGumbelSoftmax, SoftBernoulli, STGumbelSigmoid)"
    )


def refuse_spaces(p: Any, q: Any) -> NoReturn:
    """Refuses a divergence of two densities on different spaces."""
    raise ValueError(
        f"KL({type(p).__name__} || {type(q).__name__}) mixes the log-simplex with the simplex: use"
        " the same class on both sides"
    )


def refuse_temperatures(p: Any, q: Any) -> NoReturn:
    """The quadrature holds at one temperature; elsewhere the ELBOs fall back to Monte Carlo."""
    raise NotImplementedError(
        f"KL({type(p).__name__} || {type(q).__name__}) is known only at equal temperatures: give"
        " both laws the same temperature object, or equal numbers"
    )


def refuse_exchanged(observed: Collection[str], model: Collection[str]) -> None:
    """Refuses a guide with data that the model does not have."""
    for site in observed:
        if site not in model:
            raise ValueError(
                f"site {site!r} is observed in the guide, and not in the model: are model and guide"
                " exchanged? The model comes first"
            )


def check_order(
    parents: Mapping[str, set[str]], guide_parents: Mapping[str, set[str]], elbo: str
) -> None:
    """Refuses a guide that draws a site before its parents in the model.

    The analytic divergence of z is computed at one draw of the parents that z has in the model.
    It is wrong if the guide has drawn these parents given z.
    """
    descendants: dict[str, set[str]] = {name: set() for name in guide_parents}
    for name in reversed([*guide_parents]):  # the last first: later sites are complete
        for parent in guide_parents[name]:
            descendants[parent] |= {name} | descendants[name]
    for name in parents:
        wrong = sorted(parents[name] & descendants.get(name, set()))
        if wrong:
            raise ValueError(
                f"site {name!r}: the model draws it given {wrong[0]!r}, but the guide draws"
                f" {wrong[0]!r} given it, and {elbo} is wrong for this: draw them in the guide in"
                " the order of the model, or use another ELBO"
            )


def shapes(value: Any) -> Any:
    """The shapes of all arrays in arguments, hashable; other values are ignored."""
    if hasattr(value, "shape"):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return tuple((key, shapes(x)) for key, x in value.items())
    return tuple(map(shapes, value)) if isinstance(value, list | tuple) else None
