"""Parts of the drawings in `plots.constructions`: stacks of feature maps, grids of pixels, neurons, arrows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Polygon, Rectangle

from mlpconv.plots.style import BASE, INK, QUIET, new_figure

__all__ = ["arrow", "canvas", "grid", "heat", "label", "neuron", "volume", "wire"]

FACE, SIDE, TOP = "#dbe9f4", "#b7d2e8", "#eaf2f9"
SLANT = 0.45


def canvas(width: float = 10.0, height: float = 4.0) -> tuple[Figure, Axes]:
    """Return a figure of the common width and axes of this many units without ticks."""
    figure = new_figure(6.4, 6.4 * height / width)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    return figure, axes


def label(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write centred text."""
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 10, "color": INK, **style})


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", colour: str = QUIET
) -> None:
    """Draw an arrow with text above its middle."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=1.3))
    if text:
        label(axes, (start[0] + end[0]) / 2, max(start[1], end[1]) + 0.3, text, fontsize=9, color=QUIET)


def volume(axes: Axes, x: float, y: float, side: float, depth: float, column: bool = False) -> None:
    """Draw feature maps as a box whose front is at (x, y); `column` marks the channels of one pixel."""
    dx = dy = SLANT * depth
    edge: dict[str, Any] = {"edgecolor": BASE, "linewidth": 1.0}
    right, top = x + side, y + side
    roof = [(x, top), (x + dx, top + dy), (right + dx, top + dy), (right, top)]
    wall = [(right, y), (right + dx, y + dy), (right + dx, top + dy), (right, top)]
    axes.add_patch(Polygon(roof, facecolor=TOP, **edge))
    axes.add_patch(Polygon(wall, facecolor=SIDE, **edge))
    axes.add_patch(Rectangle((x, y), side, side, facecolor=FACE, **edge))
    if column:
        cell = 0.16 * side
        left, bottom = x + side - 1.6 * cell, y + side - cell
        style: dict[str, Any] = {"facecolor": "#d55e00", "edgecolor": "white", "linewidth": 0.6, "zorder": 5}
        axes.add_patch(Rectangle((left, bottom), cell, cell, **style))
        axes.add_patch(Polygon([(left, y + side), (left + dx, y + side + dy), (left + cell + dx, y + side + dy),
                                (left + cell, y + side)], alpha=0.75, **style))  # fmt: skip


def heat(axes: Axes, image: npt.ArrayLike, x: float, y: float, size: float, **style: Any) -> None:
    """Show an image (H, W) with its lower left corner at (x, y)."""
    pixels = np.asarray(image)
    height = size * pixels.shape[0] / pixels.shape[1]
    axes.imshow(pixels, extent=(x, x + size, y, y + height), interpolation="nearest", **{"cmap": "gray_r", **style})
    axes.add_patch(Rectangle((x, y), size, height, fill=False, edgecolor=QUIET, linewidth=0.8))
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())


def grid(
    axes: Axes, x: float, y: float, cells: int, size: float, marked: Sequence[tuple[int, int]], colour: str
) -> None:
    """Draw a square of cells; those of `marked` (row from the top, column) have the colour."""
    step = size / cells
    for row in range(cells):
        for column in range(cells):
            face = colour if (row, column) in marked else "white"
            corner = (x + column * step, y + size - (row + 1) * step)
            axes.add_patch(Rectangle(corner, step, step, facecolor=face, edgecolor="#c3cbd4", linewidth=0.8))


def neuron(axes: Axes, x: float, y: float, text: str = "", colour: str = BASE, radius: float = 0.3) -> None:
    """Draw a unit with a text in it."""
    axes.add_patch(Circle((x, y), radius, facecolor="white", edgecolor=colour, linewidth=1.5, zorder=3))
    label(axes, x, y, text, fontsize=9, zorder=4)


def wire(axes: Axes, start: tuple[float, float], end: tuple[float, float], weight: str = "", at: float = 0.5) -> None:
    """Draw a connection with its weight beside it."""
    axes.plot([start[0], end[0]], [start[1], end[1]], color="#9fb0c0", linewidth=1.1, zorder=1)
    if weight:
        x, y = start[0] + at * (end[0] - start[0]), start[1] + at * (end[1] - start[1])
        label(axes, x, y, weight, fontsize=8.5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6}, zorder=2)
