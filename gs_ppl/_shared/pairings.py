"""Which pairings of guide and model would give a finite but wrong loss."""

from typing import Any


class PairedSite:
    """What a check needs to know of a latent site: its law, how that is scored, its mask.

    `kind` is "density", "mass", "integer", or None for a law that is no concern of ours.
    """

    def __init__(
        self, law: Any, kind: str | None, *, log_space: bool, masked: bool, enumerated: bool
    ) -> None:
        self.law, self.kind, self.log_space = law, kind, log_space
        self.masked, self.enumerated = masked, enumerated

    @property
    def name(self) -> str:
        return type(self.law).__name__

    @property
    def is_hard(self) -> bool:
        return getattr(self.law, "is_hard", True)  # the PPLs' own discrete laws are


def check_pairing(site: str, guide: PairedSite, model: PairedSite) -> None:
    """Refuses what would give a finite but wrong loss, naming the site and the cure."""
    pair = f"site {site!r}: {guide.name} in the guide over {model.name} in the model"
    if {guide.kind, model.kind} == {"density", "mass"}:
        raise ValueError(
            f"{pair} mixes a density with a mass, which have no common measure: relax model and"
            " guide alike, with one family and objective"
        )
    if guide.kind == model.kind == "density" and guide.log_space != model.log_space:
        raise ValueError(f"{pair} mixes log-space with the simplex: use one class on both sides")
    if {guide.kind, model.kind} in ({"integer", "mass"}, {"integer", "density"}):
        raise ValueError(
            f"{pair} mixes class indices with vectors: write both as OneHotCategorical, or"
            " config_enumerate both"
        )
    if guide.kind == model.kind == "mass" and model.is_hard and not guide.is_hard:
        raise ValueError(f"{pair} scores soft values by a law of hard ones: relax the model too")
    if guide.masked != model.masked and guide.kind is not None:
        side, other = ("guide", "model") if guide.masked else ("model", "guide")
        raise ValueError(
            f"{pair} is masked in the {side} alone: apply the same mask to the {other}, or its"
            " terms stay in the loss unpaired"
        )


def check_unpaired(site: str, model: PairedSite, *, loss_enumerates: bool) -> None:
    """Refuses a discrete or relaxed latent that neither the guide nor enumeration takes care of."""
    if model.kind is not None and not (model.enumerated and loss_enumerates):
        raise ValueError(
            f"site {site!r}: {model.name} in the model is neither in the guide nor enumerated: it"
            " would be drawn from the prior. Add it to the guide, or config_enumerate the model"
            " and use TraceEnum_ELBO"
        )
