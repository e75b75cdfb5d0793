"""Plot category maps, the exact class activation maps (CAM), over images (the paper's figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from mlpconv.maps import MapResult, Sighting
from mlpconv.plots.style import INK, QUIET, bare, faded, new_figure, picture, share, short, styled
from mlpconv.receptive_field.map_grid import MapAxis, MapGrid

__all__ = ["map_sheet", "overlay", "spread"]

SIDE, BANDS = 192, 16  # pixels of a drawn map along its longer side, and its shades
HEAT = LinearSegmentedColormap.from_list(
    "heat",
    [
        (0.0, (1.0, 0.78, 0.36, 0.0)),
        (0.3, (1.0, 0.70, 0.28, 0.28)),
        (0.65, (0.95, 0.42, 0.10, 0.66)),
        (1.0, (0.68, 0.06, 0.16, 0.84)),
    ],
)


def spread(
    values: npt.NDArray[np.float32], grid: MapGrid, size: tuple[int, int], shape: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Interpolate an (h, w) map over an (H, W) image at `shape` pixels, linearly between the centres of its cells."""
    rows = _weights(grid.rows, values.shape[0], size[0], shape[0])  # (H', h)
    columns = _weights(grid.columns, values.shape[1], size[1], shape[1])  # (W', w)
    return np.asarray(rows @ values.astype(np.float64) @ columns.T)


def _weights(axis: MapAxis, cells: int, pixels: int, points: int) -> npt.NDArray[np.float64]:
    """Return (points, cells) interpolation weights along one axis."""
    positions = (np.arange(points) + 0.5) * pixels / points - 0.5
    unit = np.eye(cells)
    centres = axis.centres(cells)
    return np.stack([np.interp(positions, centres, row) for row in unit], axis=1)


@styled
def map_sheet(
    result: MapResult,
    top: int = 3,
    *,
    pictures: Sequence[npt.ArrayLike] | None = None,
    rows: Sequence[int] | None = None,
) -> Figure:
    """Plot one row per image: the image, then the maps of its `top` classes with their probabilities.

    `pictures` are sharper versions (C, H', W') of the images to draw on; `rows` selects images by index.
    """
    selected = list(range(len(result)) if rows is None else rows)
    shown = min(top, len(result.classes))
    figure = new_figure(2.05 * (shown + 1), 2.35 * len(selected))
    grid = figure.subplots(len(selected), shown + 1, squeeze=False)
    for line, image in zip(grid, selected, strict=True):
        _row(line, result, image, shown, result.pixels[image] if pictures is None else pictures[image])
    return figure


@styled
def overlay(result: MapResult, image: int = 0, top: int = 3, *, on: npt.ArrayLike | None = None) -> Figure:
    """Plot one image and the maps of its `top` classes; `on` is a sharper version (C, H', W') to draw on."""
    shown = min(top, len(result.classes))
    figure = new_figure(2.6 * (shown + 1), 2.95)
    line = figure.subplots(1, shown + 1, squeeze=False)[0]
    _row(line, result, image, shown, result.pixels[image] if on is None else on)
    return figure


def _row(line: npt.NDArray[np.object_], result: MapResult, image: int, top: int, on: npt.ArrayLike) -> None:
    """Draw an image and the maps of its classes, all on one scale."""
    size = (result.pixels.shape[2], result.pixels.shape[3])
    sightings = result.top(image, top)
    background = picture(on)
    _show(line[0], background, size)
    source = result.sources[image]
    line[0].set_title(
        short(_file_name(source), 20) if source else "image", fontsize=9, color=QUIET, fontweight="normal", loc="center"
    )
    strongest = max(float(result.maps[image, seen.index].max()) for seen in sightings)
    grey = faded(background)
    for axes, seen in zip(line[1:], sightings, strict=True):
        _show(axes, grey, size)
        if strongest > 0:
            scale = SIDE / max(size)
            shape = (max(round(size[0] * scale), 1), max(round(size[1] * scale), 1))
            heat = spread(result.maps[image, seen.index], result.grid, size, shape) / strongest
            bands = np.round(np.clip(heat, 0, 1) * BANDS) / BANDS
            axes.imshow(bands, cmap=HEAT, vmin=0, vmax=1, extent=_extent(size), interpolation="nearest")
        _annotate(axes, seen)


def _extent(size: tuple[int, int]) -> tuple[float, float, float, float]:
    return (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)


def _show(axes: Axes, image: npt.NDArray[np.uint8], size: tuple[int, int]) -> None:
    """Show an image in the coordinates of the network's input, whatever its resolution."""
    bare(axes)
    axes.imshow(image, extent=_extent(size), interpolation="nearest" if max(image.shape[:2]) < 64 else "antialiased")


def _annotate(axes: Axes, seen: Sighting) -> None:
    axes.set_title(f"{short(seen.label, 16)}, {share(seen.probability)}", fontsize=10, color=INK, loc="center")
    if seen.peak is not None:
        ring: dict[str, Any] = {"markersize": 7, "markerfacecolor": "none"}
        axes.plot(*seen.peak, "o", markeredgecolor="white", markeredgewidth=2.6, **ring)
        axes.plot(*seen.peak, "o", markeredgecolor=INK, markeredgewidth=1.2, clip_on=False, **ring)


def _file_name(source: str) -> str:
    return source.replace("\\", "/").rsplit("/", 1)[-1]
