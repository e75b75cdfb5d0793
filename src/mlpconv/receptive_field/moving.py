"""Fields after operations that only rearrange elements: apply the operation to the arrays of first and last pixels.

Dimensions along which the field is constant are reduced to one element first, so that the cost does not grow with the
number of channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mlpconv.receptive_field.call import Call
from mlpconv.receptive_field.field import (
    FIRST,
    LAST,
    UNMARKED,
    Axis,
    Field,
    Grid,
    compact,
    drop_expanded,
    grid_of_moved,
    mark_cells,
)
from mlpconv.receptive_field.op_names import COPIES

__all__ = ["move_axis", "moves", "pad_circular"]

MOVES = COPIES | {
    "channel_shuffle", "contiguous", "index_select", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "rot90", "tril", "triu", "unsafe_chunk",
    "unsafe_split", "unsafe_split_with_sizes",
}  # fmt: skip
"""Operations besides views that rearrange elements and compute nothing."""
RESHAPES = frozenset({"view", "_unsafe_view", "_reshape_alias"})
BORDERS = ("reflection_pad", "replication_pad")


def moves(call: Call) -> bool:
    """Return whether an operation only rearranges elements."""
    return call.func.is_view or call.name in MOVES


def move_axis(call: Call, axis: Axis) -> list[Axis]:
    """Return one axis of the field of each output; `axis` is that of the first input."""
    shape = call.inputs[0].shape
    lows = _arranged(call, axis.lo.expand(shape), FIRST)
    highs = _arranged(call, axis.hi.expand(shape), LAST)
    grids: list[Grid | None] = [None] * len(lows)
    if axis.grid is not None:
        numbers = _arranged(call, mark_cells(axis.grid, shape), UNMARKED, cells=True)
        grids = [grid_of_moved(axis.grid, shape, moved_numbers) for moved_numbers in numbers]
    return [Axis(compact(lo), compact(hi), grid) for lo, hi, grid in zip(lows, highs, grids, strict=True)]


def pad_circular(padded: Field, source: Field, shape: Sequence[int], pad: Sequence[int]) -> Field:
    """Return the field after circular padding, whose grid continues beyond the border as with any padding."""
    axes = []
    for axis, unpadded in zip(padded, source, strict=True):
        grid = unpadded.grid
        if grid is not None:
            numbers = torch.constant_pad_nd(mark_cells(grid, shape), list(pad), UNMARKED)
            grid = grid_of_moved(grid, shape, numbers)
        axes.append(Axis(axis.lo, axis.hi, grid))
    return tuple(axes)


def _arranged(call: Call, values: Tensor, fill: float, *, cells: bool = False) -> list[Tensor]:
    """Apply the operation to `values` in place of its first input; new elements, and `cells` in padding, get `fill`."""
    name, shapes = call.name, [out.shape for out in call.outputs]
    if name in RESHAPES:
        return [_reshaped(values, shapes[0])]
    if name == "clone":
        return [values]
    first = next(iter(call.args))
    if name == "as_strided":
        source = call.inputs[0]
        values = torch.empty_strided(source.shape, source.stride()).copy_(values)
    elif not call.func.is_view:
        values = drop_expanded(values, _touched(call))
    if cells and name.startswith(BORDERS):
        moved_values = torch.constant_pad_nd(values, call["padding"], fill)
    else:
        filled = {"value": fill} if name == "constant_pad_nd" else {}
        moved_values = call.func(**{**call.args, first: values, **filled})
    results = [moved_values] if isinstance(moved_values, Tensor) else moved_values
    return [result.expand(shape) for result, shape in zip(results, shapes, strict=True)]


def _touched(call: Call) -> list[int]:
    """Return the dimensions (negative) along which the operation moves elements."""
    rank = call.inputs[0].dim()
    pad = call.args.get("pad", call.args.get("padding"))
    if pad is not None:
        return list(range(-(len(pad) // 2), 0))
    dims = call.args.get("dims") if call.name in ("flip", "roll") else None
    return [dim % rank - rank for dim in dims] if dims else list(range(-rank, 0))


def _reshaped(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape values; constant dimensions stay reduced where a group of dimensions maps onto another."""
    small = drop_expanded(values)
    if not values.numel():
        return values.reshape(shape)
    wide, target = list(small.shape), list(shape)
    for old, new in _groups(values.shape, shape):
        if all(small.shape[dim] == 1 for dim in old):
            for dim in new:
                target[dim] = 1
        else:
            for dim in old:
                wide[dim] = values.shape[dim]
    return small.expand(wide).reshape(target).expand(shape)


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yield the smallest runs of dimensions of two shapes, in order, with equal numbers of elements."""
    i = j = 0
    while i < len(old) or j < len(new):
        first, second = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (old_size := math.prod(old[first:i])) != (new_size := math.prod(new[second:j])):
            if (old_size < new_size and i < len(old)) or j == len(new):
                i += 1
            else:
                j += 1
        yield range(first, i), range(second, j)
