"""Figures that a notebook shows."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from gs_ppl._extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def make_figure(**options: Any) -> Figure:
    """A figure of matplotlib that a notebook shows, even if pyplot was never imported."""
    figure = require("matplotlib.figure").Figure(**options)
    figure._repr_png_ = partial(_to_png, figure)
    return figure


def _to_png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
