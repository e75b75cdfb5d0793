"""Receptive fields as interval arithmetic: the first and the last pixel that each element of a tensor can see.

Pixels are numbered from 0 along an axis of the image, and a pixel's number is the place of its centre. First and last
pixel are kept for every element, in arrays of size 1 along each dimension in which nothing changes, so they stay small.
That account is exact: what lies outside the image is not seen.

A tensor that is a regular row of cells has a `Grid` beside it: size, jump and start as a textbook gives them, as if the
image had no border. Fractions keep them exact where an image is enlarged.
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
    "follow",
    "followed",
    "image_axis",
    "join_grids",
    "marked",
    "merge",
    "regroup",
    "squash",
    "stripped",
    "windows",
]

FIRST, LAST = float("inf"), float("-inf")
"""First and last pixel of an element that sees none: the neutral elements of minimum and maximum."""
UNMARKED = -1.0
"""In the place of a cell's number: an element that belongs to none."""


@dataclass(frozen=True)
class Grid:
    """Cells along one dimension of a tensor, as if the image had no border."""

    dim: int
    """The dimension they lie along, counted from the last: -1, -2, ..."""
    jump: Fraction
    """Pixels from one cell to the next."""
    start: Fraction
    """Where the centre of cell 0 is."""
    size: Fraction | None
    """Pixels that a cell sees; None where the cells see different numbers of them."""
    cells: int | None = None
    """How many there are before they begin again, where the dimension holds rows and columns in one; else None."""
    repeat: int = 1
    """How many elements in a row belong to one cell."""

    def numbers(self, length: int) -> Tensor:
        """(length,): the number of the cell that each element along the dimension belongs to."""
        return torch.arange(length) // self.repeat % (self.cells or length)

    @cached_property
    def reach(self) -> tuple[Fraction, Fraction]:
        """Where the field of cell 0 begins and ends, its outermost pixels included; without a size, its centre."""
        half = (self.size or Fraction(0)) / 2
        return self.start - half, self.start + half

    def lies_like(self, other: Grid) -> bool:
        """Whether the cells of two tensors are the same but for what they see."""
        return (self.dim, self.jump, self.cells, self.repeat) == (other.dim, other.jump, other.cells, other.repeat)


@dataclass(frozen=True)
class Axis:
    """What a tensor sees along one axis of the image: first and last pixel, broadcastable to the tensor's shape."""

    lo: Tensor
    hi: Tensor
    grid: Grid | None = None


Field = tuple[Axis, ...]
"""One Axis for each axis of the image: rows, then columns."""


def image_axis(dims: int, dim: int, size: int) -> Axis:
    """An image's own axis: a tensor of `dims` dimensions whose pixels lie along `dim` (negative)."""
    shape = [1] * dims
    shape[dim] = size
    place = torch.arange(size, dtype=torch.float32).reshape(shape)
    return Axis(place, place, Grid(dim, Fraction(1), Fraction(0), Fraction(1)))


def stripped(values: Tensor, kept: Sequence[int] = ()) -> Tensor:
    """Size 1 along every dimension in which one element stands for all (stride 0), but those to keep (negative)."""
    for dim in range(-values.dim(), 0):
        if values.stride(dim) == 0 and values.shape[dim] > 1 and dim not in kept:
            values = values.narrow(dim, 0, 1)
    return values


def compact(values: Tensor) -> Tensor:
    """Size 1 along every dimension in which nothing changes."""
    values = stripped(values)
    for dim, size in enumerate(values.shape):
        if size > 1:
            first = values.narrow(dim, 0, 1)
            values = first if bool((values == first).all()) else values
    return values


def squash(axis: Axis, dims: Sequence[int]) -> Axis:
    """Each element sees what all along `dims` (negative) saw; the dimensions stay, with size 1."""

    def each(values: Tensor, join: Callable[..., Tensor]) -> Tensor:
        there = [dim for dim in dims if -values.dim() <= dim and values.shape[dim] > 1]
        return join(values, there, True) if there else values

    kept = axis.grid if axis.grid is not None and axis.grid.dim not in dims else None
    return Axis(each(axis.lo, torch.amin), each(axis.hi, torch.amax), kept)


def regroup(axis: Axis, dim: int, groups: int, size: int) -> Axis:
    """Along `dim` each of `groups` equal groups becomes `size / groups` elements that see all of their group."""

    def each(values: Tensor, join: Callable[..., Tensor]) -> Tensor:
        if values.shape[dim] == 1:
            return values
        at = values.dim() + dim
        grouped = values.reshape(*values.shape[:at], groups, -1, *values.shape[at + 1 :])
        return compact(join(grouped, at + 1).repeat_interleave(size // groups, at))

    kept = axis.grid if axis.grid is not None and axis.grid.dim != dim else None
    return Axis(each(axis.lo, torch.amin), each(axis.hi, torch.amax), kept)


def windows(axis: Axis, dim: int, cells: int, taps: Tensor) -> Axis:
    """Element i along `dim` sees what the elements `taps[i]` of its `cells` saw (-1 is none); the grid is dropped."""
    outside = taps < 0

    def each(values: Tensor, nothing: float, join: Callable[..., Tensor]) -> Tensor:
        if values.shape[dim] == 1 and not bool(outside.all(1).any()):
            return values  # all see the same, wherever they look
        shape = list(values.shape)
        shape[dim] = cells
        last = values.expand(shape).movedim(dim, -1)[..., taps.clamp(min=0).flatten()]
        seen = last.reshape(*last.shape[:-1], *taps.shape).masked_fill(outside, nothing)
        return compact(join(seen, -1).movedim(-1, dim))

    return Axis(each(axis.lo, FIRST, torch.amin), each(axis.hi, LAST, torch.amax))


def merge(axes: Sequence[Axis], shape: Sequence[int], shapes: Sequence[Sequence[int]]) -> Axis:
    """Elements that see what the broadcast elements of several tensors see: a sum, a product, any pointwise operation.

    `shape` is the result's, `shapes` are those of the tensors. The grid is that of the tensors that have one along the
    whole of it; its size is unknown where a tensor without one sees further (a gate that has seen the whole image).
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
    """The grid of what sees all of these at once; None where they do not lie alike."""
    known = [grid for grid in grids if grid is not None]
    if not known or not all(known[0].lies_like(grid) for grid in known[1:]):
        return None
    sized = list(takewhile(lambda grid: grid.size is not None, known))
    if len(sized) < 2:
        start, size = known[0].start, known[0].size
    else:
        low, high = min(grid.reach[0] for grid in sized), max(grid.reach[1] for grid in sized)
        start, size = (low + high) / 2, high - low
    return replace(known[0], start=start, size=size if len(sized) == len(grids) else None)


def follow(grid: Grid, shape: Sequence[int], move: Callable[[Tensor, float], Tensor]) -> Grid | None:
    """The grid after elements were only moved about: cut, turned, reshaped, padded.

    `move(values, fill)` does to an array of `shape` what was done to the tensor; new elements get `fill`. None where
    the cells no longer lie in order along one dimension, alone or together with others (flattened rows and columns).
    """
    return followed(grid, shape, move(marked(grid, shape), UNMARKED))


def marked(grid: Grid, shape: Sequence[int]) -> Tensor:
    """The number of the cell that each element of a tensor of this shape belongs to."""
    wide = [1] * len(shape)
    wide[grid.dim] = shape[grid.dim]
    return grid.numbers(shape[grid.dim]).float().reshape(wide).expand(tuple(shape))


def followed(grid: Grid, shape: Sequence[int], numbers: Tensor) -> Grid | None:
    """The grid of a tensor of this shape after its cells moved to where their numbers are; new ones are UNMARKED."""
    high = stripped(numbers)
    low = torch.where(high == UNMARKED, FIRST, high)
    same = numbers.numel() == math.prod(shape)
    fits = [
        _along(grid, dim, low, high, same)
        for dim, length in zip(range(-numbers.dim(), 0), numbers.shape, strict=True)
        if length == 1 or high.shape[dim] > 1
    ]
    found = [fit for fit in fits if fit is not None]
    here = [fit for fit in found if fit.dim == grid.dim]
    return here[0] if here else found[0] if len(found) == 1 else None


def _along(grid: Grid, dim: int, low: Tensor, high: Tensor, moved: bool) -> Grid | None:
    """The grid along this dimension of the moved numbers, where they rise or fall evenly along it.

    Or, where the elements have only `moved` (none is new, none is there twice), where they do so again and again.
    """
    others = [other for other in range(-low.dim(), 0) if other != dim]
    first, last = low.amin(others) if others else low, high.amax(others) if others else high
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
    """Whether they rise or fall by the same step, not zero."""
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    return step != 0 and all(after - before == step for before, after in pairwise(numbers))


def _folded(numbers: Sequence[int]) -> tuple[int, int]:
    """How often in a row each number is there, and after how many different ones they begin again, as in 001122001122.

    That is (2, 3); (1, 1) for numbers that do neither, or do not rise or fall evenly in between.
    """
    repeat = next((i for i, number in enumerate(numbers) if number != numbers[0]), len(numbers))
    each = numbers[::repeat]
    cells = each.index(each[0], 1) if each[0] in each[1:] else len(each)
    same = all(number == each[i // repeat % cells] for i, number in enumerate(numbers))
    return (repeat, cells) if same and len(numbers) % (repeat * cells) == 0 and _even(each[:cells]) else (1, 1)
