"""How the cells of a network's maps lie over the image, found by following an image through the network.

A cell belongs to the centre of its receptive field. Every operation is followed, not the list of modules, so that
padding, branches and pooling windows are right to the half pixel. Pixel centres are whole numbers: the top left
pixel is (0, 0).
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
    """A rectangle of whole pixels; right and bottom are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class MapAxis:
    """How cells lie along one side of the image, in pixels."""

    first: float = 0.0
    """Centre of the first cell's receptive field."""
    stride: float = 1.0
    """From one cell's centre to the next."""
    field: float = 1.0
    """Length of the receptive field."""

    def centres(self, cells: int) -> npt.NDArray[np.float64]:
        """The centre of each of so many cells."""
        return self.first + self.stride * np.arange(cells, dtype=np.float64)

    def span(self, first: int, last: int, reach: float, size: int) -> tuple[int, int]:
        """The pixels from cell `first` to cell `last`, `reach` long around each centre, inside an image of `size`."""
        low = math.floor(self.first + first * self.stride - reach / 2 + 1)
        high = math.floor(self.first + last * self.stride + reach / 2 + 1)
        return min(max(low, 0), size - 1), max(min(high, size), 1)


@dataclass(frozen=True)
class MapGrid:
    """How the cells of a category map lie over the image."""

    rows: MapAxis
    columns: MapAxis

    def field_box(self, row: int, column: int, size: tuple[int, int]) -> Box:
        """The pixels of an (H, W) image that can influence one cell."""
        top, bottom = self.rows.span(row, row, self.rows.field, size[0])
        left, right = self.columns.span(column, column, self.columns.field, size[1])
        return Box(left, top, right, bottom)


def trace_grid(model: Any, size: tuple[int, int, int]) -> MapGrid:
    """How the cells of `model.category_maps` lie over a (C, H, W) image.

    Where cells see different numbers of pixels, as after a resize, each is taken to see all of the image; where they
    lie in no rows and columns, they are taken to divide it evenly.
    Raises UsageError for a network without category maps.
    """
    parameter = next(iter(model.parameters()), torch.zeros(()))
    image = torch.zeros(1, *size, device=parameter.device, dtype=parameter.dtype)
    made: list[Tensor] = []

    def maps_of(x: Tensor) -> Tensor:
        made.append(model.category_maps(x))
        return made[0]

    field = field_of(image, maps_of)
    rows, columns = (
        _axis(field[k].grid if field is not None else None, size[k + 1], made[0].shape[k + 2]) for k in (0, 1)
    )
    return MapGrid(rows, columns)


def _axis(grid: Grid | None, side: int, cells: int) -> MapAxis:
    """The cells as they were found to lie, else as ones that divide the image evenly and may see all of it."""
    if grid is None:
        return MapAxis((side / cells - 1) / 2, side / cells, side)
    return MapAxis(float(grid.start), float(grid.jump), side if grid.size is None else float(grid.size))
