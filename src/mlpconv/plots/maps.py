"""Category maps over their images (the paper's figure 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from mlpconv.maps import MapResult, Sighting
from mlpconv.plots.style import INK, QUIET, bare, faded, new_figure, picture, share, short, styled
from mlpconv.receptive_field.map_grid import MapAxis, MapGrid

__all__ = ["map_sheet", "overlay", "spread"]

SIDE, BANDS = 192, 16  # dots of a drawn map along its longer side, and its shades
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
    values: npt.NDArray[np.float32], grid: MapGrid, size: tuple[int, int], onto: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """An (h, w) map drawn over an (H, W) image with `onto` dots: each cell at its place, linear between them."""
    rows = _weights(grid.rows, values.shape[0], size[0], onto[0])  # (H', h)
    columns = _weights(grid.columns, values.shape[1], size[1], onto[1])  # (W', w)
    return np.asarray(rows @ values.astype(np.float64) @ columns.T)


def _weights(axis: MapAxis, cells: int, pixels: int, dots: int) -> npt.NDArray[np.float64]:
    """(dots, cells): how much of each cell is in each dot along one side."""
    places = (np.arange(dots) + 0.5) * pixels / dots - 0.5
    unit = np.eye(cells)
    centres = axis.centres(cells)
    return np.stack([np.interp(places, centres, row) for row in unit], axis=1)


@styled
def map_sheet(
    result: MapResult,
    top: int = 3,
    *,
    pictures: Sequence[npt.ArrayLike] | None = None,
    rows: Sequence[int] | None = None,
) -> Figure:
    """A row for each image: the image, then its `top` classes with their probability and where each was seen.

    `pictures` are finer versions (C, H', W') of the same images to draw on; `rows` chooses some of the images.
    """
    chosen = list(range(len(result)) if rows is None else rows)
    shown = min(top, len(result.classes))
    figure = new_figure(2.05 * (shown + 1), 2.35 * len(chosen))
    grid = figure.subplots(len(chosen), shown + 1, squeeze=False)
    for line, image in zip(grid, chosen, strict=True):
        _row(line, result, image, shown, result.pixels[image] if pictures is None else pictures[image])
    return figure


@styled
def overlay(result: MapResult, image: int = 0, top: int = 3, *, on: npt.ArrayLike | None = None) -> Figure:
    """One image and its `top` classes side by side; `on` is a finer version (C, H', W') of the image to draw on."""
    shown = min(top, len(result.classes))
    figure = new_figure(2.6 * (shown + 1), 2.95)
    line = figure.subplots(1, shown + 1, squeeze=False)[0]
    _row(line, result, image, shown, result.pixels[image] if on is None else on)
    return figure


def _row(line: npt.NDArray[np.object_], result: MapResult, image: int, top: int, on: npt.ArrayLike) -> None:
    """The image, then one class an axes, all maps on one scale."""
    size = (result.pixels.shape[2], result.pixels.shape[3])
    seen = result.top(image, top)
    drawn = picture(on)
    _place(line[0], drawn, size)
    source = result.sources[image]
    line[0].set_title(
        short(_file_name(source), 20) if source else "image", fontsize=9, color=QUIET, fontweight="normal", loc="center"
    )
    strongest = max(float(result.maps[image, one.index].max()) for one in seen)
    grey = faded(drawn)
    for axes, one in zip(line[1:], seen, strict=True):
        _place(axes, grey, size)
        if strongest > 0:
            scale = SIDE / max(size)
            onto = (max(round(size[0] * scale), 1), max(round(size[1] * scale), 1))
            heat = spread(result.maps[image, one.index], result.grid, size, onto) / strongest
            bands = np.round(np.clip(heat, 0, 1) * BANDS) / BANDS
            axes.imshow(bands, cmap=HEAT, vmin=0, vmax=1, extent=_extent(size), interpolation="nearest")
        _name(axes, one)


def _extent(size: tuple[int, int]) -> tuple[float, float, float, float]:
    return (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)


def _place(axes: Axes, image: npt.NDArray[np.uint8], size: tuple[int, int]) -> None:
    """The image in the pixels of the network's input, however fine it is drawn."""
    bare(axes)
    axes.imshow(image, extent=_extent(size), interpolation="nearest" if max(image.shape[:2]) < 64 else "antialiased")


def _name(axes: Axes, one: Sighting) -> None:
    axes.set_title(f"{short(one.label, 16)}, {share(one.probability)}", fontsize=10, color=INK, loc="center")
    if one.peak is not None:
        axes.plot(
            one.peak.x,
            one.peak.y,
            "o",
            markersize=7,
            markerfacecolor="none",
            markeredgecolor="white",
            markeredgewidth=2.6,
        )
        axes.plot(
            one.peak.x,
            one.peak.y,
            "o",
            markersize=7,
            markerfacecolor="none",
            clip_on=False,
            markeredgecolor=INK,
            markeredgewidth=1.2,
        )


def _file_name(source: str) -> str:
    return source.replace("\\", "/").rsplit("/", 1)[-1]
