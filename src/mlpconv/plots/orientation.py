"""Plot first-layer filters before and after training, with their orientation index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mlpconv.errors import UsageError
from mlpconv.plots.filters import filter_images
from mlpconv.plots.style import ACCENT, BASE, INK, QUIET, new_figure, styled

__all__ = ["orientation"]

SHOWN = 8
WIDTH, LABELS = 6.4, 1.2  # inches
CELL = (WIDTH - LABELS) / SHOWN
GAP = 0.08
TITLE, INDEX = 0.36, 0.24


@styled
def orientation(panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Plot the first eight filters of each row of each panel (one per data set), and under each filter its index.

    Each row has `name`, `weights` (F, C, k, k) and `indices` (F numbers); the mean is over all filters. Rows show the
    same filters, so that each stands above itself. Raises UsageError if there are no filters.
    """
    if not any(panels.values()):
        raise UsageError("There are no filters to plot: run the claim on a data set first.")
    height = sum(TITLE + len(rows) * (CELL + INDEX) for rows in panels.values())
    figure = new_figure(WIDTH, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    top = 0.0
    for name, rows in panels.items():
        axes.text(0.02, top + 0.2, name, fontsize=11, fontweight="bold", va="center")
        top += TITLE
        for row, colour in zip(rows, (BASE, ACCENT), strict=False):
            _row(axes, top, row, colour)
            top += CELL + INDEX
    axes.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="auto")
    return figure


def _row(axes: Axes, top: float, row: Mapping[str, Any], colour: str) -> None:
    """Draw a line of filters whose upper edge is `top` inches below that of the figure."""
    weights: npt.NDArray[np.float64] = np.asarray(row["weights"], dtype=np.float64)
    middle = top + (CELL - GAP) / 2
    axes.text(0.02, middle - 0.1, row["name"], fontsize=9, color=INK, va="center")
    axes.text(0.02, middle + 0.1, f"mean {np.mean(row['indices']):.2f}", fontsize=9, color=colour, va="center")
    side = CELL - GAP
    for position, image in enumerate(filter_images(weights[:SHOWN])):
        left = LABELS + position * CELL
        axes.imshow(image, extent=(left, left + side, top + side, top), interpolation="nearest", vmin=0, vmax=1)
        axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=QUIET, linewidth=0.5))
        index = f"{row['indices'][position]:.2f}"
        axes.text(left + side / 2, top + side + 0.1, index, fontsize=8, color=colour, ha="center", va="center")
