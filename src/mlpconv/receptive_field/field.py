"""Receptive fields as interval arithmetic: the first and last pixel that each element of a tensor can see.

Pixels are numbered from 0 along an axis of the image; a pixel's number is the position of its centre. Every element has
a first and a last pixel, stored in arrays of size 1 along each dimension in which they are constant. They are exact and
lie inside the image.

A tensor whose elements form a regular grid of cells also has a `Grid`: receptive field size, jump (stride) and start of
the textbook formula, ignoring the image's border. Fractions keep them exact after upsampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise, takewhile

import torch
from torch import Tensor

__all__ = [
    "FIRST",
    "LAST",
    "UNMARKED",
    "Axis",
    "Field",
    "Grid",
    "compact",
    "drop_expanded",
    "grid_of_moved",
    "image_axis",
    "join_grids",
    "mark_cells",
    "merge",
    "regroup",
    "squash",
    "windows",
]

FIRST, LAST = float("inf"), float("-inf")
"""First and last pixel of an element that sees none: the neutral elements of min and max."""
UNMARKED = -1.0
"""Cell number of an element that belongs to no cell."""


@dataclass(frozen=True)
class Grid:
    """Cells along one dimension of a tensor, ignoring the image's border."""

    dim: int
    """The dimension of the cells, counted from the last: -1, -2, ..."""
    jump: Fraction
    """Stride: pixels from one cell to the next."""
    start: Fraction
    """Centre of cell 0."""
    size: Fraction | None
    """Receptive field of a cell in pixels; None if the cells' fields differ in size."""
    cells: int | None = None
    """Period of the cells, if the dimension holds flattened rows and columns; else None."""
    repeat: int = 1
    """Number of consecutive elements of one cell."""

    def cell_indices(self, length: int) -> Tensor:
        """Return the cell number of each element along the dimension, (length,)."""
        return torch.arange(length) // self.repeat % (self.cells or length)

    @cached_property
    def reach(self) -> tuple[Fraction, Fraction]:
        """Edges of the field of cell 0, including its outermost pixels; its centre if the size is unknown."""
        half = (self.size or Fraction(0)) / 2
        return self.start - half, self.start + half

    def has_same_cells(self, other: Grid) -> bool:
        """Return whether two grids agree in everything but start and size."""
        return (self.dim, self.jump, self.cells, self.repeat) == (other.dim, other.jump, other.cells, other.repeat)


@dataclass(frozen=True)
class Axis:
    """Receptive field along one axis of the image: first and last pixel, broadcastable to the tensor's shape."""

    lo: Tensor
    hi: Tensor
    grid: Grid | None = None


Field = tuple[Axis, ...]
"""One Axis for each axis of the image: rows, then columns."""


def image_axis(dims: int, dim: int, size: int) -> Axis:
    """Return the axis of an image with `dims` dimensions whose pixels lie along `dim` (negative)."""
    shape = [1] * dims
    shape[dim] = size
    pixels = torch.arange(size, dtype=torch.float32).reshape(shape)
    return Axis(pixels, pixels, Grid(dim, Fraction(1), Fraction(0), Fraction(1)))


def drop_expanded(values: Tensor, kept: Sequence[int] = ()) -> Tensor:
    """Reduce dimensions with stride 0 (expanded ones) to size 1, except those to keep (negative)."""
    for dim in range(-values.dim(), 0):
        if values.stride(dim) == 0 and values.shape[dim] > 1 and dim not in kept:
            values = values.narrow(dim, 0, 1)
    return values


def compact(values: Tensor) -> Tensor:
    """Reduce dimensions in which the values are constant to size 1."""
    values = drop_expanded(values)
    for dim, size in enumerate(values.shape):
        if size > 1:
            first = values.narrow(dim, 0, 1)
            values = first if bool((values == first).all()) else values
    return values


def squash(axis: Axis, dims: Sequence[int]) -> Axis:
    """Merge all elements along `dims` (negative); the dimensions stay, with size 1."""

    def reduce(values: Tensor, extremum: Callable[..., Tensor]) -> Tensor:
        varying = [dim for dim in dims if -values.dim() <= dim and values.shape[dim] > 1]
        return extremum(values, varying, True) if varying else values

    grid = axis.grid if axis.grid is not None and axis.grid.dim not in dims else None
    return Axis(reduce(axis.lo, torch.amin), reduce(axis.hi, torch.amax), grid)


def regroup(axis: Axis, dim: int, groups: int, size: int) -> Axis:
    """Turn each of `groups` equal groups along `dim` into `size / groups` elements that see their whole group."""

    def merge_groups(values: Tensor, extremum: Callable[..., Tensor]) -> Tensor:
        if values.shape[dim] == 1:
            return values
        at = values.dim() + dim
        grouped = values.reshape(*values.shape[:at], groups, -1, *values.shape[at + 1 :])
        return compact(extremum(grouped, at + 1).repeat_interleave(size // groups, at))

    grid = axis.grid if axis.grid is not None and axis.grid.dim != dim else None
    return Axis(merge_groups(axis.lo, torch.amin), merge_groups(axis.hi, torch.amax), grid)


def windows(axis: Axis, dim: int, cells: int, taps: Tensor) -> Axis:
    """Merge the elements `taps[i]` (-1 is none) of the `cells` along `dim` into element i; the grid is dropped."""
    outside = taps < 0

    def slide(values: Tensor, nothing: float, extremum: Callable[..., Tensor]) -> Tensor:
        if values.shape[dim] == 1 and not bool(outside.all(1).any()):
            return values  # all elements see the same pixels
        shape = list(values.shape)
        shape[dim] = cells
        last = values.expand(shape).movedim(dim, -1)[..., taps.clamp(min=0).flatten()]
        seen = last.reshape(*last.shape[:-1], *taps.shape).masked_fill(outside, nothing)
        return compact(extremum(seen, -1).movedim(-1, dim))

    return Axis(slide(axis.lo, FIRST, torch.amin), slide(axis.hi, LAST, torch.amax))


def merge(axes: Sequence[Axis], shape: Sequence[int], shapes: Sequence[Sequence[int]]) -> Axis:
    """Merge the fields of broadcast tensors, for pointwise operations such as sums and products.

    `shape` is the result's, `shapes` are those of the tensors. The grid is that of the tensors with a grid along a full
    dimension of the result; its size is unknown if a tensor without one sees more (a gate that saw the whole image).
    """
    lo, hi = axes[0].lo, axes[0].hi
    for axis in axes[1:]:
        lo, hi = torch.minimum(lo, axis.lo), torch.maximum(hi, axis.hi)
    grids = []
    for axis, own in zip(axes, shapes, strict=True):
        grid = axis.grid
        grids.append(grid if grid is not None and own[grid.dim] == shape[grid.dim] else None)
    return Axis(lo, hi, join_grids(grids))


def join_grids(grids: Sequence[Grid | None]) -> Grid | None:
    """Return the grid of the union of these fields; None if their cells differ."""
    known = [grid for grid in grids if grid is not None]
    if not known or not all(known[0].has_same_cells(grid) for grid in known[1:]):
        return None
    sized = list(takewhile(lambda grid: grid.size is not None, known))
    if len(sized) < 2:
        start, size = known[0].start, known[0].size
    else:
        low, high = min(grid.reach[0] for grid in sized), max(grid.reach[1] for grid in sized)
        start, size = (low + high) / 2, high - low
    return replace(known[0], start=start, size=size if len(sized) == len(grids) else None)


def mark_cells(grid: Grid, shape: Sequence[int]) -> Tensor:
    """Return the cell number of each element of a tensor of this shape."""
    wide = [1] * len(shape)
    wide[grid.dim] = shape[grid.dim]
    return grid.cell_indices(shape[grid.dim]).float().reshape(wide).expand(tuple(shape))


def grid_of_moved(grid: Grid, shape: Sequence[int], numbers: Tensor) -> Grid | None:
    """Return the grid of a tensor of this shape after its cells moved to `numbers`; new elements are UNMARKED."""
    high = drop_expanded(numbers)
    low = torch.where(high == UNMARKED, FIRST, high)
    same = numbers.numel() == math.prod(shape)
    fits = [
        _along(grid, dim, low, high, same)
        for dim, length in zip(range(-numbers.dim(), 0), numbers.shape, strict=True)
        if length == 1 or high.shape[dim] > 1
    ]
    grids = [fit for fit in fits if fit is not None]
    same_dim = [fit for fit in grids if fit.dim == grid.dim]
    return same_dim[0] if same_dim else grids[0] if len(grids) == 1 else None


def _along(grid: Grid, dim: int, low: Tensor, high: Tensor, moved: bool) -> Grid | None:
    """Return the grid of cell numbers that are evenly spaced along this dimension, or None.

    If the elements only `moved` (none is new or repeated), the numbers may also repeat periodically.
    """
    rest = [axis for axis in range(-low.dim(), 0) if axis != dim]
    first, last = low.amin(rest) if rest else low, high.amax(rest) if rest else high
    known = (last != UNMARKED).nonzero().flatten()
    if not len(known) or not torch.equal(first[known], last[known]):
        return None
    numbers = [int(number) for number in last[known].tolist()]
    if _even(numbers) and int(known[-1] - known[0]) == len(known) - 1:
        step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
        start = grid.start + (numbers[0] - step * int(known[0])) * grid.jump
        return Grid(dim, grid.jump * step, start, grid.size)
    repeat, cells = _folded(numbers) if moved else (1, 1)
    if cells == 1:
        return None
    step = numbers[repeat] - numbers[0]
    return Grid(dim, grid.jump * step, grid.start + numbers[0] * grid.jump, grid.size, cells, repeat)


def _even(numbers: Sequence[int]) -> bool:
    """Return whether the numbers are evenly spaced with a step other than 0."""
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    return step != 0 and all(after - before == step for before, after in pairwise(numbers))


def _folded(numbers: Sequence[int]) -> tuple[int, int]:
    """Return how often each number repeats in a row, and the period: (2, 3) for 001122001122.

    Returns (1, 1) if the numbers do not repeat or are not evenly spaced within a period.
    """
    repeat = next((i for i, number in enumerate(numbers) if number != numbers[0]), len(numbers))
    cycle = numbers[::repeat]
    cells = cycle.index(cycle[0], 1) if cycle[0] in cycle[1:] else len(cycle)
    same = all(number == cycle[i // repeat % cells] for i, number in enumerate(numbers))
    return (repeat, cells) if same and len(numbers) % (repeat * cells) == 0 and _even(cycle[:cells]) else (1, 1)
