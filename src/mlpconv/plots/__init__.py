"""Plots: each function returns a matplotlib `Figure`; `save_figure` writes it to a file."""

from __future__ import annotations

from mlpconv.plots.confusion import confusion as confusion
from mlpconv.plots.confusion import mistakes as mistakes
from mlpconv.plots.curves import curves as curves
from mlpconv.plots.filters import filters as filters
from mlpconv.plots.maps import map_sheet as map_sheet
from mlpconv.plots.maps import overlay as overlay
from mlpconv.plots.pareto import pareto as pareto
from mlpconv.plots.receptive_field import receptive_field as receptive_field
from mlpconv.plots.style import save_figure as save_figure
from mlpconv.plots.tradeoff import tradeoff as tradeoff

__all__ = [
    "confusion",
    "curves",
    "filters",
    "map_sheet",
    "mistakes",
    "overlay",
    "pareto",
    "receptive_field",
    "save_figure",
    "tradeoff",
]
