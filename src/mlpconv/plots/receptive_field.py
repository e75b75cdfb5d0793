"""Draw the receptive field of one cell of a layer over the image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mlpconv.errors import UsageError
from mlpconv.plots.style import ACCENT, INK, QUIET, bare, faded, new_figure, picture, short, styled

if TYPE_CHECKING:
    from mlpconv.analysis import AxisField, LayerProfile, Profile

__all__ = ["receptive_field"]

INCHES, NARROWEST, HEAD, EDGE = 5.2, 4.6, 1.06, 0.08
"""Inches: longer side of the image, minimum width of the figure, height of the caption, margin."""
BEYOND = 0.5
"""How far beyond the border a field is drawn, as a fraction of the image's side."""
MAX_DOTS = 20
"""Most cells along a side to mark; with more, every second, every third, ..."""
CONTRAST = 0.62
"""Contrast of the grey outside the receptive field."""
BACKGROUND = "#f4f5f7"

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels; pixel 0 reaches from -0.5 to 0.5."""


@styled
def receptive_field(
    profile: Profile, layer: str, image: npt.ArrayLike | None = None, cell: tuple[int, int] | None = None
) -> Figure:
    """Draw the receptive field of one cell of a layer: its pixels in colour, the rest in grey.

    `image` is uint8 (C, H', W') at any resolution (default: blank); `cell` is a row and a column of the layer's output
    (default: the middle). Dots mark the centres of the cells; a dashed line marks the field without the image's border,
    where it extends into padding.
    Raises UsageError for a layer that the profile lacks or that has no cells, and for a cell outside the layer.
    """
    row = profile.row(layer)
    rows, columns = _axes_of(row)
    cell = _check_cell(cell, (len(rows.spans), len(columns.spans)), layer)
    size = profile.input_shape[1:]
    visible = _visible_box(rows, columns, cell)
    unclipped = _unclipped_box(rows, columns, cell) or visible
    frame = _frame(size, unclipped)
    figure, axes = _figure(frame)
    _draw_image(axes, image, size, visible)
    _draw_cells(axes, rows, columns, cell)
    _outline(axes, unclipped, linestyle=(0, (4, 3)), linewidth=1.2)
    _outline(axes, visible, linewidth=2.0)
    axes.set_xlim(frame[0], frame[2])
    axes.set_ylim(frame[3], frame[1])
    _write(figure, (f"{profile.model}, {row.name}", *_captions(row, rows, columns, cell)))
    return figure


def _figure(frame: Box) -> tuple[Figure, Axes]:
    """Return a figure whose axes have the frame's aspect ratio, with space for the caption above."""
    across, down = frame[2] - frame[0], frame[3] - frame[1]
    scale = INCHES / max(across, down)
    across, down = across * scale, down * scale
    width, height = max(across, NARROWEST) + 2 * EDGE, down + HEAD + EDGE
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((EDGE / width, EDGE / height, across / width, down / height))
    return figure, bare(axes)


def _write(figure: Figure, lines: tuple[str, ...]) -> None:
    """Write a title and lines of caption above the image."""
    width, height = figure.get_size_inches()
    for index, line in enumerate(lines):
        offset = 0.26 + 0.21 * index + 0.03 * bool(index)
        label = figure.text(EDGE / width, 1 - offset / height, short(line, 58), fontsize=9.5, color=QUIET)
        if index == 0:
            label.set(text=short(line, 42), fontsize=11, fontweight="bold", color=INK)


def _axes_of(row: LayerProfile) -> tuple[AxisField, AxisField]:
    """Return the layer's receptive field; raise UsageError if its elements form no grid over the image."""
    if row.field is None:
        raise UsageError(f"{row.name} does not depend on the image: choose another layer.")
    if any(axis.jump is None for axis in row.field):
        whole = all(axis.whole for axis in row.field)
        reason = "sees the whole image" if whole else "has no cells in rows and columns"
        raise UsageError(f"{row.name} {reason}: choose an earlier layer.")
    return row.field


def _check_cell(cell: tuple[int, int] | None, cells: tuple[int, int], layer: str) -> tuple[int, int]:
    """Return the cell, or by default the middle of (rows, columns) `cells`; raise UsageError if it is outside."""
    if cell is None:
        return cells[0] // 2, cells[1] // 2
    if not all(0 <= index < count for index, count in zip(cell, cells, strict=True)):
        raise UsageError(
            f"The cell {cell[0]},{cell[1]} is outside {layer}, which has {cells[0]}x{cells[1]}; "
            f"pass 0,0 to {cells[0] - 1},{cells[1] - 1}."
        )
    return cell


def _visible_box(rows: AxisField, columns: AxisField, cell: tuple[int, int]) -> Box:
    """Return the edges of the cell's receptive field inside the image."""
    (top, bottom), (left, right) = rows.spans[cell[0]], columns.spans[cell[1]]
    return left - 0.5, top - 0.5, right + 0.5, bottom + 0.5


def _unclipped_box(rows: AxisField, columns: AxisField, cell: tuple[int, int]) -> Box | None:
    """Return the edges of the cell's field, ignoring the image's border; None if the cells' fields differ in size."""
    edges = []
    for axis, index in ((columns, cell[1]), (rows, cell[0])):
        if axis.outside is None or axis.start is None or axis.jump is None:
            return None
        centre = axis.start + index * axis.jump
        edges.append((centre - axis.size / 2, centre + axis.size / 2))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def _frame(size: tuple[int, int], field: Box) -> Box:
    """Return the edges of the plot: the image, and up to BEYOND of what the field covers outside it."""
    height, width = size
    margin = [BEYOND * side for side in (width, height, width, height)]
    edges = (-0.5, -0.5, width - 0.5, height - 0.5)
    low = [max(min(edges[i], field[i]), edges[i] - margin[i]) for i in (0, 1)]
    high = [min(max(edges[i], field[i]), edges[i] + margin[i]) for i in (2, 3)]
    edge = 0.012 * max(height, width)
    return low[0] - edge, low[1] - edge, high[0] + edge, high[1] + edge


def _draw_image(axes: Axes, image: npt.ArrayLike | None, size: tuple[int, int], visible: Box) -> None:
    """Draw the image in light grey, and in colour inside the receptive field."""
    height, width = size
    drawn = picture(np.full((1, height, width), 205, np.uint8) if image is None else image)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    interpolation = "nearest" if max(drawn.shape[:2]) < 64 else "antialiased"
    axes.set_facecolor(BACKGROUND)
    axes.patch.set_visible(True)
    pale = 255 - (CONTRAST * (255 - faded(drawn).astype(np.float64))).round().astype(np.uint8)
    axes.imshow(pale, extent=extent, interpolation=interpolation)
    coloured = axes.imshow(drawn, extent=extent, interpolation=interpolation)
    left, top, right, bottom = visible
    coloured.set_clip_path(Rectangle((left, top), right - left, bottom - top, transform=axes.transData))


def _draw_cells(axes: Axes, rows: AxisField, columns: AxisField, cell: tuple[int, int]) -> None:
    """Draw a dot at the centre of each cell's field, a larger one for the chosen cell."""
    down, across = (_centres(axis) for axis in (rows, columns))
    marked = []
    for centres, index in ((across, cell[1]), (down, cell[0])):
        step = -(-len(centres) // MAX_DOTS)
        marked.append(centres[index % step :: step])
    x, y = (coordinates.ravel() for coordinates in np.meshgrid(*marked))
    axes.scatter(x, y, s=5, color=INK, edgecolors="white", linewidths=0.5, zorder=3)
    axes.scatter(across[cell[1]], down[cell[0]], s=46, color=ACCENT, edgecolors="white", linewidths=1.4, zorder=5)


def _centres(axis: AxisField) -> npt.NDArray[np.float64]:
    return (axis.start or 0.0) + (axis.jump or 0.0) * np.arange(len(axis.spans), dtype=np.float64)


def _outline(axes: Axes, box: Box, **style: object) -> None:
    left, top, right, bottom = box
    edge = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=ACCENT, zorder=4, **style)  # type: ignore[arg-type]
    axes.add_patch(edge)


def _captions(row: LayerProfile, rows: AxisField, columns: AxisField, cell: tuple[int, int]) -> Iterator[str]:
    """Yield the lines of the caption."""
    size = f"{rows.size}×{columns.size}" if rows.outside is not None else f"up to {rows.size}×{columns.size}"
    stride = f"{rows.jump:g}" if rows.jump == columns.jump else f"{rows.jump:g}×{columns.jump:g}"
    yield f"{len(rows.spans)}×{len(columns.spans)} cells, stride {stride}, receptive field {size}"
    (top, bottom), (left, right) = rows.spans[cell[0]], columns.spans[cell[1]]
    yield f"cell {cell[0]},{cell[1]}: rows {top} to {bottom}, columns {left} to {right}"
    if row.padded:
        yield f"{row.padded:.0%} of the cells' fields extend into padding"
