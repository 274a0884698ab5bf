"""A comparison as an xarray data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gs_ppl._extras import require

if TYPE_CHECKING:
    from xarray import Dataset

    from gs_ppl.report import Comparison


def to_dataset(comparison: Comparison, all_kinds: Sequence[str]) -> Dataset:
    """All numbers; those by kind of parameter have all kinds, NaN for a missing one."""
    Dataset = require("xarray").Dataset
    rows, first = comparison.estimates, "estimate"
    names = list(dict.fromkeys(name for row in rows for name in row.gradients))
    data: dict[str, Any] = {
        "elbo": (first, [row.elbo.mean for row in rows]),
        "elbo_error": (first, [row.elbo.error for row in rows]),
        "gap": (first, [row.gap.mean if row.gap else math.nan for row in rows]),
    }
    for what in ("bias", "floor", "variance", "snr", "cosine"):
        table = [[getattr(row.gradients[n], what) for n in names] for row in rows]
        data[what] = ((first, "parameter"), np.array(table).reshape(len(rows), len(names)))
        kinds = [[getattr(row.kinds.get(k), what, math.nan) for k in all_kinds] for row in rows]
        data[f"{what}_by_kind"] = (
            (first, "kind"),
            np.array(kinds, float).reshape(len(rows), len(all_kinds)),
        )
    data["cost"] = (first, [row.cost for row in rows])
    for name in ("mean", "error"):
        data["squared_error" + "_error" * (name == "error")] = (
            first,
            [getattr(row.squared_error, name, math.nan) for row in rows],
        )
    for name, value in (("evidence", comparison.evidence), ("exact_elbo", comparison.elbo)):
        data[name] = ((), value.mean if value else math.nan)
    for site, marginal in comparison.marginals.items():
        for side in ("exact", "approximate"):
            array = getattr(marginal, side)
            if array is not None:
                data[f"{site}_{side}"] = ((*marginal.plates, f"{site}_class"), array)
    coords = {
        what: (first, [getattr(row, what) for row in rows])
        for what in ("family", "objective", "temperature")
    }
    return Dataset(data, coords={**coords, "parameter": names, "kind": list(all_kinds)})
