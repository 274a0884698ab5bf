"""What an automatic guide reads from its model: sizes, rows, masks and scales."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import get_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from gs_ppl._shared.following import (
    check_full_size,
    check_same_sites,
    refuse_mask_of_latent,
    refuse_order,
    refuse_rows_of_type,
    signature,
)
from gs_ppl._shared.wrappers import is_masked, masks
from gs_ppl.pyro._base import read
from gs_ppl.pyro.handlers import discretize, is_latent, random_state

__all__: list[str] = []


class SameRows(Messenger):
    """Gives a program the rows of these plates; records sizes, and the rows that it is given."""

    def __init__(self, rows: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.rows = rows
        self.sizes: dict[str, tuple[int, int]] = {}
        self.given: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name, fn = msg["name"], msg["fn"]
        if not site_is_subsample(msg):
            return
        if msg["value"] is not None:
            self.given[name] = rows = torch.as_tensor(msg["value"])
            if rows.is_floating_point() or rows.dtype == torch.bool:
                refuse_rows_of_type(name, rows.dtype)
            self.sizes[name] = fn.size, len(msg["value"])
            return
        self.sizes[name] = fn.size, fn.subsample_size or fn.size
        msg["value"] = self.rows.get(name)


class Unrolled(Messenger):
    """Removes plates that are Python loops from the sites: each row has its own site name."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        frames = msg["cond_indep_stack"]
        for frame in frames:
            if not frame.vectorized and frame.full_size not in (None, frame.size):
                raise ValueError(
                    f"site {msg['name']!r}: an automatic guide cannot follow a loop over some rows"
                    f" of the plate {frame.name!r}: use `with plate`, or loop over all rows"
                )
        msg["cond_indep_stack"] = tuple(frame for frame in frames if frame.vectorized)


class Reading(NamedTuple):
    """One run of a model."""

    sites: dict[str, Any]
    sizes: dict[str, tuple[int, int]]  # of each plate: all rows, and those of this run
    given: dict[str, Tensor]  # rows that the program is given


def read_model(model: Callable, args: tuple, kwargs: dict, rows: Mapping[str, Tensor]) -> Reading:
    """Runs it, at these rows; the random state does not change."""
    same = SameRows(rows)
    with random_state(), poutine.block(), torch.no_grad():
        trace = poutine.trace(same(discretize(model))).get_trace(*args, **kwargs)
    sites = {n: trace.nodes[n] for n in trace.stochastic_nodes}
    return Reading(sites, same.sizes, same.given)


def check_order(plate: str, rows: Tensor) -> None:
    """Refuses all rows in another order; passes if the values cannot be read."""
    moved = read((rows != torch.arange(len(rows), device=rows.device)).any())
    if moved and moved[0]:
        refuse_order(plate)


def own_scale(site: dict[str, Any]) -> Any:
    """The scale of handlers, without that of subsampled plates."""
    scale = site["scale"]
    for frame in site["cond_indep_stack"]:
        if frame.vectorized and frame.full_size not in (None, frame.size):
            scale = scale * frame.size / frame.full_size
    return scale


def has_terms(site: dict[str, Any]) -> bool:
    """Whether the site has a mask or a scale."""
    scaled = not torch.allclose(torch.as_tensor(own_scale(site)).double(), torch.ones(()).double())
    masked = site["mask"] is not None and site["mask"] is not True
    return scaled or masked or is_masked(site["fn"])


@contextmanager
def terms_of(site: dict[str, Any]) -> Iterator[None]:
    """Gives another site the mask and the scale of this one."""
    mask = True if site["mask"] is None else site["mask"]
    with poutine.scale(scale=own_scale(site)), poutine.mask(mask=mask):
        yield


class Follows(AutoGuide):
    """An automatic guide that has the same rows as the model, for the arguments of each call."""

    _prototype_frames: dict[str, Any]  # by plate
    prototype_trace: Any

    def __init__(self, model: Callable, **options: Any) -> None:
        model = discretize(model)  # a first run needs no temperature
        super().__init__(Unrolled()(model), **options)

    def _known(self, args: tuple, kwargs: dict) -> tuple[dict, set, set]:
        """Sizes, plates with given rows, sites with masks or scales; computed once a signature."""
        known = self.__dict__.setdefault("_known_calls", {})
        key = signature((args, kwargs))
        if key not in known:
            sites, sizes, given = read_model(self.model, args, kwargs, {})
            marked = {n for n, site in sites.items() if is_latent(site) and has_terms(site)}
            if marked:
                self._check_masks(marked, args, kwargs)
            known[key] = sizes, set(given), marked
        return known[key]

    def _check_masks(self, marked: set[str], args: tuple, kwargs: dict) -> None:
        sites = read_model(TrackProvenance()(self.model), args, kwargs, {}).sites
        for name in marked:
            given = [sites[name]["mask"], *masks(sites[name]["fn"])]
            for latent in sites.keys() & frozenset().union(*map(get_provenance, given)):
                refuse_mask_of_latent(name, latent)

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self.master is not None:
            return super()._create_plates(*args, **kwargs)
        frames = self._prototype_frames
        sizes, given, _ = self._known(args, kwargs)
        for name, frame in frames.items():
            full_size = frame.full_size or frame.size
            if name in sizes:
                check_full_size(name, full_size, sizes[name][0])
                self._prototype_frames[name] = frame._replace(
                    size=sizes[name][1], full_size=full_size
                )
        drawn = {n: frame for n, frame in frames.items() if n not in given}
        self._prototype_frames = drawn
        try:
            plates = super()._create_plates(*args, **kwargs)
        finally:
            self._prototype_frames = frames
        if given - plates.keys():
            now = read_model(self.model, args, kwargs, {n: p.indices for n, p in plates.items()})
            for name in given & frames.keys() - plates.keys():
                rows, frame = now.given[name], frames[name]
                if len(rows) == frame.full_size:
                    check_order(name, rows)
                plates[name] = pyro.plate(name, frame.full_size, dim=frame.dim, subsample=rows)
        return plates

    def _terms(self, plates: Mapping[str, Any], args: tuple, kwargs: dict) -> dict[str, Any]:
        """The sites with masks and scales, at these arguments and rows."""
        whole = self if self.master is None else self.master()  # a part may not see the plates
        *_, marked = whole._known(args, kwargs)
        if not marked:
            return {}
        rows = {name: plate.indices for name, plate in plates.items()}
        sites = read_model(whole.model, args, kwargs, rows).sites
        now = {n for n in sites if is_latent(sites[n])}
        check_same_sites(marked, now, whole.prototype_trace.nodes)
        return {name: sites[name] for name in marked}
