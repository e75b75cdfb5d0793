"""Positions of the cells of a network's category maps in the image.

A cell's position is the centre of its receptive field. Tracing every operation, rather than listing modules, makes
padding, branches and pooling windows exact to the half pixel. Pixel centres are integers: the top left pixel is (0, 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlpconv.receptive_field import Grid, field_of

__all__ = ["Box", "MapAxis", "MapGrid", "trace_grid"]


class Box(NamedTuple):
    """A rectangle of whole pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class MapAxis:
    """Positions of cells along one axis of the image, in pixels."""

    first: float = 0.0
    """Centre of the first cell's receptive field."""
    stride: float = 1.0
    """Distance between the centres of adjacent cells."""
    field: float = 1.0
    """Length of the receptive field."""

    def centres(self, cells: int) -> npt.NDArray[np.float64]:
        """Return the centres of this many cells."""
        return self.first + self.stride * np.arange(cells, dtype=np.float64)

    def span(self, first: int, last: int, reach: float, size: int) -> tuple[int, int]:
        """Return the pixels from cell `first` to cell `last`, with `reach` pixels around each, clipped to `size`."""
        low = math.floor(self.first + first * self.stride - reach / 2 + 1)
        high = math.floor(self.first + last * self.stride + reach / 2 + 1)
        return min(max(low, 0), size - 1), max(min(high, size), 1)


@dataclass(frozen=True)
class MapGrid:
    """Positions of the cells of a category map in the image."""

    rows: MapAxis
    columns: MapAxis

    def field_box(self, row: int, column: int, size: tuple[int, int]) -> Box:
        """Return the pixels of an (H, W) image that can influence one cell."""
        top, bottom = self.rows.span(row, row, self.rows.field, size[0])
        left, right = self.columns.span(column, column, self.columns.field, size[1])
        return Box(left, top, right, bottom)


def trace_grid(model: Any, size: tuple[int, int, int]) -> MapGrid:
    """Return the positions of the cells of `model.category_maps` in a (C, H, W) image.

    If the cells' fields differ in size, as after a resize, each is assumed to see the whole image; if the cells form no
    grid, they are assumed to divide the image evenly.
    Raises UsageError for a network without category maps.
    """
    parameter = next(iter(model.parameters()), torch.zeros(()))
    image = torch.zeros(1, *size, device=parameter.device, dtype=parameter.dtype)
    outputs: list[Tensor] = []

    def maps_of(x: Tensor) -> Tensor:
        outputs.append(model.category_maps(x))
        return outputs[0]

    field = field_of(image, maps_of)
    rows, columns = (
        _axis(field[k].grid if field is not None else None, size[k + 1], outputs[0].shape[k + 2]) for k in (0, 1)
    )
    return MapGrid(rows, columns)


def _axis(grid: Grid | None, side: int, cells: int) -> MapAxis:
    """Return the cells of the grid; without one, cells that divide the image evenly and may see all of it."""
    if grid is None:
        return MapAxis((side / cells - 1) / 2, side / cells, side)
    return MapAxis(float(grid.start), float(grid.jump), side if grid.size is None else float(grid.size))
