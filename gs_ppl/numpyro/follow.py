"""What an automatic guide reads from its model: sizes, rows, masks and scales."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.interpreters.partial_eval import dce_jaxpr
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide
from numpyro.primitives import Messenger

from gs_ppl._shared.following import (
    check_full_size,
    check_same_sites,
    refuse_mask_of_latent,
    refuse_order,
    refuse_rows_of_type,
    signature,
)
from gs_ppl._shared.wrappers import is_masked, masks
from gs_ppl.numpyro._base import read
from gs_ppl.numpyro.handlers import discretize, is_latent

__all__: list[str] = []


class SameRows(Messenger):
    """Gives a program the rows of these plates; records sizes, and the rows that it is given."""

    def __init__(self, fn: Callable | None, rows: Mapping[str, Array]) -> None:
        super().__init__(fn)
        self.rows = rows
        self.sizes: dict[str, tuple[int, int]] = {}
        self.given: dict[str, Array] = {}

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "plate":
            return
        name, (size, subsample_size) = msg["name"], msg["args"]
        if name in self.rows:
            msg["value"], subsample_size = self.rows[name], len(self.rows[name])
            msg["args"] = size, subsample_size
        elif (rows := msg["value"]) is not None:
            if not jnp.issubdtype(dtype := jnp.result_type(rows), jnp.integer):
                refuse_rows_of_type(name, dtype)
            if subsample_size in (None, size):
                check_order(name, rows)
            else:
                self.given[name], subsample_size = rows, len(rows)
        self.sizes[name] = size, subsample_size or size


def check_order(plate: str, rows: Array) -> None:
    """Refuses all rows in another order; passes if the values cannot be read."""
    values = read(rows)
    if values is not None and (values != np.arange(len(values))).any():
        refuse_order(plate)


class Reading(NamedTuple):
    """One run of a model."""

    sites: dict[str, Any]
    sizes: dict[str, tuple[int, int]]  # of each plate: all rows, and those of this run
    given: dict[str, Array]  # rows that the program is given


def read_model(model: Callable, args: tuple, kwargs: dict, rows: Mapping[str, Array]) -> Reading:
    """Runs it, at these rows; no key of an outer seed is used."""
    same = SameRows(discretize(model), rows)
    with handlers.block(), handlers.seed(rng_seed=0):
        trace = handlers.trace(same).get_trace(*args, **kwargs)
    sites = {name: site for name, site in trace.items() if is_latent(site)}
    for site in sites.values():
        frames = site["cond_indep_stack"]  # only this handler sees a plate inside of scan
        site["full_sizes"] = {f.name: same.sizes.get(f.name, (f.size,))[0] for f in frames}
    return Reading(sites, same.sizes, same.given)


def rows_of(plates: Mapping[str, Any]) -> dict[str, Array]:
    """Indices by name; under enumeration funsor replaces NumPyro's plates."""
    indices = {name: plate._indices for name, plate in plates.items()}
    return {name: i if isinstance(i, Array) else i.data for name, i in indices.items()}


def own_scale(site: dict[str, Any]) -> Any:
    """The scale of handlers, without that of subsampled plates."""
    scale = 1.0 if site["scale"] is None else site["scale"]
    for frame in site["cond_indep_stack"]:
        scale = scale * frame.size / site["full_sizes"][frame.name]
    return scale


def has_terms(site: dict[str, Any]) -> bool:
    """Whether the site has a mask or a scale."""
    scale = read(own_scale(site))
    return scale is None or not np.allclose(scale, 1.0) or is_masked(site["fn"])


@contextmanager
def terms_of(site: dict[str, Any]) -> Iterator[None]:
    """Gives another site the scale of this one; its masks are in its law."""
    with handlers.scale(scale=own_scale(site)):
        yield


def _used(fn: Callable, inputs: Mapping[str, Any]) -> set[str]:
    """The inputs that a result needs; NumPyro's provenance treats a scan as one operation."""
    jaxpr = jax.make_jaxpr(fn)(dict(inputs)).jaxpr
    _, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    names = (name for name in sorted(inputs) for _ in jax.tree.leaves(inputs[name]))
    return set(itertools.compress(names, used))


class Follows(AutoGuide):
    """An automatic guide that has the same rows as the model, for the arguments of each call."""

    whole: "Follows | None" = None  # the AutoGuideList that has this guide as a part

    _prototype_frames: dict[str, Any]  # by plate

    def __init__(self, model: Callable, **options: Any) -> None:
        super().__init__(discretize(model), **options)  # a first run needs no temperature

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        """The trace and its plates; NumPyro's own method is only for continuous latents."""
        with handlers.block():
            seeded = handlers.seed(self.model, numpyro.prng_key())
            self.prototype_trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        for name, site in self.prototype_trace.items():
            if site["type"] == "plate":
                self._prototype_frame_full_sizes[name] = site["args"][0]
            elif is_latent(site):
                for frame in site["cond_indep_stack"]:
                    self._prototype_frames[frame.name] = frame
                    self._prototype_frame_full_sizes.setdefault(frame.name, frame.size)

    def _known(self, args: tuple, kwargs: dict) -> tuple[dict, set, set]:
        """Sizes, plates with given rows, sites with masks or scales; computed once a signature."""
        known = self.__dict__.setdefault("_known_calls", {})
        key = signature((args, kwargs))
        if key not in known:
            sites, sizes, given = read_model(self.model, args, kwargs, {})
            marked = {n for n, site in sites.items() if has_terms(site)}
            for name in marked:
                self._check_masks(name, sites, args, kwargs)
            known[key] = sizes, set(given), marked
        return known[key]

    def _check_masks(self, name: str, sites: dict[str, Any], args: tuple, kwargs: dict) -> None:
        def masks_at(latents: dict[str, Array]) -> list[Array]:
            model = handlers.substitute(discretize(self.model), data=latents)
            now = read_model(model, args, kwargs, {}).sites[name]
            return [jnp.asarray(mask) for mask in masks(now["fn"])]

        latents = {other: site["value"] for other, site in sites.items()}
        for latent in sorted(_used(masks_at, latents)):
            refuse_mask_of_latent(name, latent)

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self.whole is not None:
            return super()._create_plates(*args, **kwargs)
        frames = self._prototype_frames
        sizes, given, _ = self._known(args, kwargs)
        for name, frame in frames.items():
            if name in sizes:
                check_full_size(name, self._prototype_frame_full_sizes[name], sizes[name][0])
                frames[name] = frame._replace(size=sizes[name][1])
        self._prototype_frames = {n: frame for n, frame in frames.items() if n not in given}
        try:
            plates = super()._create_plates(*args, **kwargs)
        finally:
            self._prototype_frames = frames
        if given - plates.keys():
            now = read_model(self.model, args, kwargs, rows_of(plates))
            with SameRows(None, now.given):
                for name in given & frames.keys() - plates.keys():
                    full_size = self._prototype_frame_full_sizes[name]
                    plates[name] = numpyro.plate(name, full_size, dim=frames[name].dim)
        return plates

    def _terms(self, plates: Mapping[str, Any], args: tuple, kwargs: dict) -> dict[str, Any]:
        """The sites with masks and scales, at these arguments and rows."""
        whole = self.whole or self  # a part may not see the plates
        *_, marked = whole._known(args, kwargs)
        if not marked:
            return {}
        sites = read_model(whole.model, args, kwargs, rows_of(plates)).sites
        check_same_sites(marked, sites, whole.prototype_trace)
        return {name: sites[name] for name in marked}
