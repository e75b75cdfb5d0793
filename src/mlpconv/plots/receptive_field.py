"""What one cell of a layer sees, drawn over the image."""

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
"""The longer side of the picture, the least width of the figure, the room for words above, and a margin."""
BEYOND = 0.5
"""How far over the border a field is drawn, as a share of the image's side."""
MOST_DOTS = 20
"""Cells along a side whose places are shown; of more, every other one, every third, ..."""
PALER = 0.62
"""How much is left of the grey where nothing is seen."""
PAPER = "#f4f5f7"

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels; pixel 0 reaches from -0.5 to 0.5."""


@styled
def receptive_field(
    profile: Profile, layer: str, image: npt.ArrayLike | None = None, cell: tuple[int, int] | None = None
) -> Figure:
    """What one cell of a layer sees: its pixels in colour, the others in grey, and a dot in the middle of each cell.

    `image` is uint8 (C, H', W') in any resolution, a blank one if not given; `cell` is a row and a column of the
    layer's output, its middle if not given. Dashed is what the field would be without borders: padding is out there.
    Raises UsageError for a layer that the profile does not have, that has no cells, or not this one.
    """
    row = profile.row(layer)
    rows, columns = _axes_of(row)
    chosen = _chosen(cell, (len(rows.spans), len(columns.spans)), layer)
    size = profile.input_shape[1:]
    seen = _seen(rows, columns, chosen)
    whole = _whole(rows, columns, chosen) or seen
    frame = _frame(size, whole)
    figure, axes = _figure(frame)
    _draw_image(axes, image, size, seen)
    _draw_cells(axes, rows, columns, chosen)
    _outline(axes, whole, linestyle=(0, (4, 3)), linewidth=1.2)
    _outline(axes, seen, linewidth=2.0)
    axes.set_xlim(frame[0], frame[2])
    axes.set_ylim(frame[3], frame[1])
    _write(figure, (f"{profile.model}, {row.name}", *_sentences(row, rows, columns, chosen)))
    return figure


def _figure(frame: Box) -> tuple[Figure, Axes]:
    """A figure whose axes have the frame's shape, with room for words above them."""
    across, down = frame[2] - frame[0], frame[3] - frame[1]
    scale = INCHES / max(across, down)
    across, down = across * scale, down * scale
    width, height = max(across, NARROWEST) + 2 * EDGE, down + HEAD + EDGE
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((EDGE / width, EDGE / height, across / width, down / height))
    return figure, bare(axes)


def _write(figure: Figure, lines: tuple[str, ...]) -> None:
    """A title and some lines below it, above the picture."""
    width, height = figure.get_size_inches()
    for place, line in enumerate(lines):
        below = 0.26 + 0.21 * place + 0.03 * bool(place)
        words = figure.text(EDGE / width, 1 - below / height, short(line, 58), fontsize=9.5, color=QUIET)
        if place == 0:
            words.set(text=short(line, 42), fontsize=11, fontweight="bold", color=INK)


def _axes_of(row: LayerProfile) -> tuple[AxisField, AxisField]:
    """The layer's field; UsageError where its elements lie in no rows and columns of the image."""
    if row.field is None:
        raise UsageError(f"{row.name} does not depend on the image: choose another layer.")
    if any(axis.jump is None for axis in row.field):
        whole = all(axis.whole for axis in row.field)
        what = "sees all of the image" if whole else "has no cells in rows and columns"
        raise UsageError(f"{row.name} {what}: choose a layer before it.")
    return row.field


def _chosen(cell: tuple[int, int] | None, cells: tuple[int, int], layer: str) -> tuple[int, int]:
    if cell is None:
        return cells[0] // 2, cells[1] // 2
    if not all(0 <= place < count for place, count in zip(cell, cells, strict=True)):
        raise UsageError(
            f"The cell {cell[0]},{cell[1]} is outside {layer}, which has {cells[0]}x{cells[1]}; "
            f"0,0 to {cells[0] - 1},{cells[1] - 1} are accepted."
        )
    return cell


def _seen(rows: AxisField, columns: AxisField, cell: tuple[int, int]) -> Box:
    """The edges of what the cell sees of the image."""
    (top, bottom), (left, right) = rows.spans[cell[0]], columns.spans[cell[1]]
    return left - 0.5, top - 0.5, right + 0.5, bottom + 0.5


def _whole(rows: AxisField, columns: AxisField, cell: tuple[int, int]) -> Box | None:
    """The edges of its field as if the image had no border; None where cells see different numbers of pixels."""
    edges = []
    for axis, place in ((columns, cell[1]), (rows, cell[0])):
        if axis.outside is None or axis.start is None or axis.jump is None:
            return None
        centre = axis.start + place * axis.jump
        edges.append((centre - axis.size / 2, centre + axis.size / 2))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def _frame(size: tuple[int, int], whole: Box) -> Box:
    """The edges of the picture: the image, and what the field reaches beyond it, within bounds."""
    height, width = size
    over = [BEYOND * side for side in (width, height, width, height)]
    edges = (-0.5, -0.5, width - 0.5, height - 0.5)
    low = [max(min(edges[i], whole[i]), edges[i] - over[i]) for i in (0, 1)]
    high = [min(max(edges[i], whole[i]), edges[i] + over[i]) for i in (2, 3)]
    room = 0.012 * max(height, width)
    return low[0] - room, low[1] - room, high[0] + room, high[1] + room


def _draw_image(axes: Axes, image: npt.ArrayLike | None, size: tuple[int, int], seen: Box) -> None:
    """The image in light greys, and in its own colours where it is seen."""
    height, width = size
    drawn = picture(np.full((1, height, width), 205, np.uint8) if image is None else image)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    how = "nearest" if max(drawn.shape[:2]) < 64 else "antialiased"
    axes.set_facecolor(PAPER)
    axes.patch.set_visible(True)
    pale = 255 - (PALER * (255 - faded(drawn).astype(np.float64))).round().astype(np.uint8)
    axes.imshow(pale, extent=extent, interpolation=how)
    coloured = axes.imshow(drawn, extent=extent, interpolation=how)
    left, top, right, bottom = seen
    coloured.set_clip_path(Rectangle((left, top), right - left, bottom - top, transform=axes.transData))


def _draw_cells(axes: Axes, rows: AxisField, columns: AxisField, cell: tuple[int, int]) -> None:
    """A dot in the middle of each cell's field, a larger one for the chosen cell."""
    down, across = (_places(axis) for axis in (rows, columns))
    stepped = []
    for places, place in ((across, cell[1]), (down, cell[0])):
        step = -(-len(places) // MOST_DOTS)
        stepped.append(places[place % step :: step])
    x, y = (found.ravel() for found in np.meshgrid(*stepped))
    axes.scatter(x, y, s=5, color=INK, edgecolors="white", linewidths=0.5, zorder=3)
    axes.scatter(across[cell[1]], down[cell[0]], s=46, color=ACCENT, edgecolors="white", linewidths=1.4, zorder=5)


def _places(axis: AxisField) -> npt.NDArray[np.float64]:
    return (axis.start or 0.0) + (axis.jump or 0.0) * np.arange(len(axis.spans), dtype=np.float64)


def _outline(axes: Axes, box: Box, **style: object) -> None:
    left, top, right, bottom = box
    edge = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=ACCENT, zorder=4, **style)  # type: ignore[arg-type]
    axes.add_patch(edge)


def _sentences(row: LayerProfile, rows: AxisField, columns: AxisField, cell: tuple[int, int]) -> Iterator[str]:
    """What the picture shows, in numbers."""
    size = f"{rows.size}×{columns.size}" if rows.outside is not None else f"up to {rows.size}×{columns.size}"
    apart = f"{rows.jump:g}" if rows.jump == columns.jump else f"{rows.jump:g}×{columns.jump:g}"
    yield f"{len(rows.spans)}×{len(columns.spans)} cells, {apart} apart, see {size} pixels"
    (top, bottom), (left, right) = rows.spans[cell[0]], columns.spans[cell[1]]
    yield f"cell {cell[0]},{cell[1]}: rows {top} to {bottom}, columns {left} to {right}"
    if row.padded:
        yield f"{row.padded:.0%} of the cells reach over a border, into padding"
