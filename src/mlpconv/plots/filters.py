"""What the first layer looks for: its filters as little pictures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from mlpconv.errors import UsageError
from mlpconv.plots.style import QUIET, bare, new_figure, styled

__all__ = ["filters"]

MOST = 256


@styled
def filters(weights: Any) -> Figure:
    """First-layer weights (O, C, k, k), a tensor or an array, as a sheet of pictures: RGB for 3 channels, else grey.

    Zero is the middle grey, and each filter has its own contrast. Raises UsageError for another shape.
    """
    detach = getattr(weights, "detach", None)
    array = np.asarray(weights if detach is None else detach().float().cpu(), dtype=np.float64)
    if array.ndim != 4 or not array.size:
        raise UsageError(
            f"Weights of shape {array.shape} are no filters; (filters, channels, rows, columns) are accepted."
        )
    sheet = _sheet(_pictures(array[:MOST]))
    width = 6.4
    figure = new_figure(width, width * sheet.shape[0] / sheet.shape[1] + 0.4)
    axes = bare(figure.add_subplot())
    axes.imshow(sheet, interpolation="nearest", vmin=0, vmax=1, cmap="gray")
    count, channels, rows, columns = array.shape
    shown = f"the first {MOST} of {count}" if count > MOST else str(count)
    axes.set_title(f"{shown} filters, {rows}×{columns}×{channels}", fontsize=9, color=QUIET, fontweight="normal")
    return figure


def _pictures(array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(O, k, k, 3): each filter from 0 to 1, its zero at one half."""
    finite = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
    coloured = finite if finite.shape[1] == 3 else np.repeat(finite.mean(1, keepdims=True), 3, axis=1)
    largest = np.abs(coloured).max(axis=(1, 2, 3), keepdims=True)
    return (0.5 + 0.5 * coloured / np.where(largest > 0, largest, 1)).transpose(0, 2, 3, 1)


def _sheet(pictures: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The pictures beside and below one another, white between them; wider than high."""
    count, rows, columns = pictures.shape[:3]
    usual = min(count, math.ceil(math.sqrt(1.8 * count)))
    across = min(range(usual, usual * 3 // 4, -1), key=lambda width: -count % width)  # a full last row, if possible
    down = math.ceil(count / across)
    # Each weight is a square of several dots, so that the gap can be thinner than a weight.
    zoom = max(2, math.ceil(24 / columns))
    gap = max(2, zoom * columns // 12)
    sheet = np.ones((down * (rows * zoom + gap) - gap, across * (columns * zoom + gap) - gap, 3))
    for index, one in enumerate(pictures):
        top, left = index // across * (rows * zoom + gap), index % across * (columns * zoom + gap)
        sheet[top : top + rows * zoom, left : left + columns * zoom] = one.repeat(zoom, 0).repeat(zoom, 1)
    return sheet
