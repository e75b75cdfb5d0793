"""Plot the filters of the first layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from mlpconv.errors import UsageError
from mlpconv.plots.style import QUIET, bare, new_figure, styled
from mlpconv.text import counted

__all__ = ["filter_images", "filters"]

MAX_FILTERS = 256


@styled
def filters(weights: Any) -> Figure:
    """Plot first-layer weights (O, C, k, k), a tensor or an array, as a sheet: RGB for 3 channels, else grey.

    Zero is mid-grey, and each filter is scaled to full contrast. Raises UsageError for another shape.
    """
    detach = getattr(weights, "detach", None)
    array = np.asarray(weights if detach is None else detach().float().cpu(), dtype=np.float64)
    if array.ndim != 4 or not array.size:
        raise UsageError(f"Expected weights of shape (filters, channels, rows, columns), got {array.shape}.")
    sheet = _sheet(filter_images(array[:MAX_FILTERS]))
    width = 6.4
    figure = new_figure(width, width * sheet.shape[0] / sheet.shape[1] + 0.4)
    axes = bare(figure.add_subplot())
    axes.imshow(sheet, interpolation="nearest", vmin=0, vmax=1, cmap="gray")
    count, channels, rows, columns = array.shape
    shown = f"the first {MAX_FILTERS} of " if count > MAX_FILTERS else ""
    axes.set_title(
        f"{shown}{counted(count, 'filter')}, {rows}×{columns}×{channels}", fontsize=9, color=QUIET, fontweight="normal"
    )
    return figure


def filter_images(array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return filters (O, C, k, k) as images (O, k, k, 3) from 0 to 1, with zero weights at 0.5."""
    finite = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
    coloured = finite if finite.shape[1] == 3 else np.repeat(finite.mean(1, keepdims=True), 3, axis=1)
    largest = np.abs(coloured).max(axis=(1, 2, 3), keepdims=True)
    return (0.5 + 0.5 * coloured / np.where(largest > 0, largest, 1)).transpose(0, 2, 3, 1)


def _sheet(pictures: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Tile images with white gaps into a sheet that is wider than high."""
    count, rows, columns = pictures.shape[:3]
    preferred = min(count, math.ceil(math.sqrt(1.8 * count)))
    across = min(range(preferred, preferred * 3 // 4, -1), key=lambda width: -count % width)  # prefers a full row
    down = math.ceil(count / across)
    # Each weight is a square of several pixels, so that the gap can be thinner than a weight.
    zoom = max(2, math.ceil(24 / columns))
    gap = max(2, zoom * columns // 12)
    sheet = np.ones((down * (rows * zoom + gap) - gap, across * (columns * zoom + gap) - gap, 3))
    for index, picture in enumerate(pictures):
        top, left = index // across * (rows * zoom + gap), index % across * (columns * zoom + gap)
        sheet[top : top + rows * zoom, left : left + columns * zoom] = picture.repeat(zoom, 0).repeat(zoom, 1)
    return sheet
