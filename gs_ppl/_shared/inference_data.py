"""How draws of a program become ArviZ groups, for InferenceData (0.2x) and DataTree (1.x) alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

import gs_ppl
from gs_ppl._extras import require

Group = Mapping[str, np.ndarray]  # by site; the first axis is the draws


@dataclass(frozen=True)
class Site:
    """A site of a model, as in one run."""

    kind: str  # "latent", "deterministic" or "observed"
    value: np.ndarray
    plates: tuple[str | None, ...]  # by batch axis; None for an axis without a plate
    event_dims: int | None = None  # 1 for a one-hot vector, 0 for a bit

    def indices(self, values: np.ndarray) -> np.ndarray:
        """Class indices for one-hot vectors, integers for bits; soft data are left unchanged."""
        if self.event_dims is None or not np.isin(self.value, (0, 1)).all():
            return values
        return values.argmax(-1) if self.event_dims else values.astype(np.int64)


@dataclass(frozen=True)
class Layout:
    """The sites of a model."""

    sites: Mapping[str, Site]

    def named(self, kind: str) -> list[str]:
        """Names of the sites of a kind."""
        return [name for name, site in self.sites.items() if site.kind == kind]

    def check(self, in_guide: Collection[str] | None, enumerated: Collection[str]) -> None:
        """Refuses latents that are neither in the guide nor enumerated, or only in the guide."""
        latents = {*self.named("latent")}
        missing = latents - {*(in_guide or ())} - {*enumerated}
        extra = {*(in_guide or ())} - latents
        if missing and in_guide is None:
            raise ValueError(f"latent site {_listed(missing)} cannot be enumerated: pass a guide")
        if missing:
            raise ValueError(
                f"latent site {_listed(missing)} of the model is not in the guide: add it, or pass"
                " infer_discrete=True if it is discrete"
            )
        if extra:
            raise ValueError(f"latent site {_listed(extra)} of the guide is not in the model")


def plate_axes(frames: Mapping[int, str], batch_dims: int) -> tuple[str | None, ...]:
    """The plate of each batch axis; `frames` has the plates by their negative dim."""
    return tuple(frames.get(i - batch_dims) for i in range(batch_dims))


def refuse_subsampling(plate: str, size: int, full_size: int) -> None:
    """Groups have one row for each row of the data."""
    raise ValueError(
        f"plate {plate!r} is subsampled, {size} of {full_size} rows: give to_inference_data the"
        " program with all rows"
    )


@dataclass(frozen=True)
class Names:
    """Names of the dimensions by site, and labels by dimension."""

    dims: Mapping[str, list[str]]
    coords: Mapping[str, Any]

    @staticmethod
    def of(
        layout: Layout,
        coords: Mapping[str, Sequence[Any]] | None,
        dims: Mapping[str, Sequence[str]] | None,
    ) -> Names:
        """Names and labels of the plates, unless the user gives others.

        Raises:
            ValueError: naming what is in coords or dims and not in the program.
        """
        coords, dims = coords or {}, dims or {}
        _refuse_unknown("dims", "site", dims, layout.sites)
        names: dict[str, list[str]] = {}
        sizes: dict[str, int] = {}
        for name, site in layout.sites.items():
            shape = site.indices(site.value).shape
            own = list(dims.get(name, site.plates))
            if len(own) > len(shape):
                raise ValueError(f"dims: site {name!r} has shape {shape}, got the names {own}")
            own += [None] * (len(shape) - len(own))
            unnamed = (f"{name}_dim_{i}" for i in count())
            names[name] = [dim or next(unnamed) for dim in own]
            for dim, size in zip(names[name], shape, strict=True):
                if sizes.setdefault(dim, size) != size:
                    raise ValueError(f"dims: {dim!r} would have sizes {sizes[dim]} and {size}")
        for dim in {"chain", "draw"} & {*sizes}:
            raise ValueError(
                f"dims: {dim!r} is ArviZ's own dimension: give the dimension of the plate another"
                f" name, as in dims={{site: ['rows']}}"
            )
        for name in {*layout.sites} & {*sizes}:
            raise ValueError(f"dims: {name!r} is a site and a dimension: rename the dimension")
        _refuse_unknown("coords", "dimension", coords, sizes)
        for dim, given in coords.items():
            if len(given) != sizes[dim]:
                raise ValueError(f"coords: {len(given)} labels for {dim!r}, of size {sizes[dim]}")
        return Names(names, {dim: np.arange(n) for dim, n in sizes.items()} | dict(coords))


def build(layout: Layout, names: Names, groups: Mapping[str, Group], attrs: dict[str, str]) -> Any:
    """InferenceData or DataTree, the one that the installed ArviZ has."""
    arviz = require("arviz")
    scores = ("log_likelihood", "sample_stats")
    shown = {
        group: {
            name: (x if group in scores else layout.sites[name].indices(x))[None]
            for name, x in arrays.items()
        }
        for group, arrays in groups.items()
    }
    data = {name: layout.sites[name] for name in layout.named("observed")}
    shown["observed_data"] = {name: site.indices(site.value) for name, site in data.items()}
    shown = {group: arrays for group, arrays in shown.items() if arrays}
    if arviz.__version__.startswith("0."):
        tree = arviz.from_dict(**shown, coords=names.coords, dims=names.dims)
    else:
        tree = arviz.from_dict(shown, coords=names.coords, dims=names.dims)
    library = {"inference_library": "gs_ppl", "inference_library_version": gs_ppl.__version__}
    for part in [tree, *(tree[group] for group in ("posterior",) if group in shown)]:
        part.attrs.update(library | attrs)
    return tree


def _refuse_unknown(option: str, what: str, given: Collection, known: Collection) -> None:
    unknown = {*given} - {*known}
    if unknown:
        raise ValueError(
            f"{option}: no {what} is called {_listed(unknown)}; there are {_listed(known)}"
        )


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"
