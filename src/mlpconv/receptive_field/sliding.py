"""Fields after operations in which neighbours meet: convolutions, pools, enlargements and norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from mlpconv.receptive_field.call import Call
from mlpconv.receptive_field.field import Axis, Grid, regroup, squash, windows

__all__ = ["SLIDING"]

HALF = Fraction(1, 2)
ROUNDING = 1e-6
"""Weights of an interpolation below this come from rounding, not from the formula."""


def _convolution(call: Call, axis: Axis) -> Axis:
    """Any convolution, transposed or not: over windows in space, over the channels of a group."""
    image, out = call.inputs[0], call.outputs[0]
    count = image.dim() - 2
    seen = regroup(_unfolded(axis), -1 - count, call["groups"], out.shape[1])
    grid, kernel = seen.grid, call.tensor("weight").shape[2:]
    slides = [call.numbers(name, count, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
    for j, (width, stride, padding, dilation) in enumerate(zip(kernel, *slides, strict=True)):
        dim = j - count
        make, slide = (_scattered, _enlarged_grid) if call["transposed"] else (_taps, _slid_grid)
        taps = make(image.shape[dim], out.shape[dim], width, stride, padding, dilation)
        seen = windows(seen, dim, image.shape[dim], taps)
        grid = slide(grid, width, stride, padding, dilation) if grid is not None and grid.dim == dim else grid
    return replace(seen, grid=grid)


def _pool(call: Call, axis: Axis) -> Axis:
    """Maximum and average over windows; rounding sizes up only adds windows that reach over the end."""
    image, out = call.inputs[0], call.outputs[0]
    axis, count = _unfolded(axis), int(call.name.split("pool")[1][0])
    kernel = call.numbers("kernel_size", count)
    stride = call.numbers("stride", count) if call.args.get("stride") else kernel
    padding, dilation = call.numbers("padding", count, 0), call.numbers("dilation", count)
    grid, seen = axis.grid, axis
    for j in range(count):
        dim, slide = j - count, (kernel[j], stride[j], padding[j], dilation[j])
        seen = windows(seen, dim, image.shape[dim], _taps(image.shape[dim], out.shape[dim], *slide))
        grid = _slid_grid(grid, *slide) if grid is not None and grid.dim == dim else grid
    return replace(seen, grid=grid)


def _adaptive_pool(call: Call, axis: Axis) -> Axis:
    """Pools with a given number of cells: one cell sees everything, more of them share it out evenly."""
    image, out = call.inputs[0], call.outputs[0]
    axis = _unfolded(axis)
    for j in range(-len(call["output_size"]), 0):
        cells, made, grid = image.shape[j], out.shape[j], axis.grid
        if made == 1:
            axis = squash(axis, [j])
            continue
        spans = [range(i * cells // made, -(-(i + 1) * cells // made)) for i in range(made)]
        axis = windows(axis, j, cells, _ragged(spans))
        if grid is not None and grid.dim == j:
            share = Fraction(cells, made)
            size = None if cells % made or grid.size is None else grid.size + (share - 1) * abs(grid.jump)
            grid = Grid(j, grid.jump * share, grid.start + (share - 1) / 2 * grid.jump, size)
        axis = replace(axis, grid=grid)
    return axis


def _upsample(call: Call, axis: Axis) -> Axis:
    """Nearest, linear and cubic interpolation; neighbours of weight zero are not seen."""
    image, out, axis = call.inputs[0], call.outputs[0], _unfolded(axis)
    grid, seen = axis.grid, axis
    scales = [value for name, value in call.args.items() if name.startswith("scales")]
    for j, scale in enumerate(scales):
        dim = j - len(scales)
        cells, made = image.shape[dim], out.shape[dim]
        corners = bool(call.args.get("align_corners")) and made > 1
        ratio = Fraction(cells - 1, made - 1) if corners else Fraction(cells, made)
        step = 1 / scale if scale and not corners else float(ratio)
        near = [_neighbours(call.name, i, step, cells, corners) for i in range(made)]
        seen = windows(seen, dim, cells, _ragged(near))
        if grid is not None and grid.dim == dim:
            shift = Fraction(0) if corners else (ratio - 1) / 2
            grid = Grid(dim, grid.jump * ratio, grid.start + shift * grid.jump, None) if ratio else None
    return replace(seen, grid=grid)


def _neighbours(name: str, i: int, step: float, cells: int, corners: bool) -> list[int]:
    """The cells that element i of an enlarged row is made from."""
    if "nearest" in name:
        return [min(int((i + 0.5) * step if "exact" in name else i * step + ROUNDING), cells - 1)]
    place = i * step if corners else (i + 0.5) * step - 0.5
    place = place if "cubic" in name else max(place, 0.0)
    left = math.floor(place + ROUNDING)
    if abs(place - left) < ROUNDING:
        reach = [left]
    else:
        reach = [left - 1, left, left + 1, left + 2] if "cubic" in name else [left, left + 1]
    return sorted({min(max(cell, 0), cells - 1) for cell in reach})


def _batch_norm(call: Call, axis: Axis) -> Axis:
    """Batch norm sees beyond its own element only where it works out the mean itself: instance norm is one such."""
    rank = call.inputs[0].dim()
    if not call.args.get("training", call.name != "_native_batch_norm_legit_no_training"):
        return axis
    return squash(axis, [dim for dim in range(-rank, 0) if dim != 1 - rank])


def _layer_norm(call: Call, axis: Axis) -> Axis:
    return squash(axis, range(-len(call["normalized_shape"]), 0))


def _group_norm(call: Call, axis: Axis) -> Axis:
    """Group norm sees all of the image, in the channels of the group."""
    rank = call.inputs[0].dim()
    return regroup(squash(axis, range(2 - rank, 0)), 1 - rank, call["group"], call["C"])


def _unfolded(axis: Axis) -> Axis:
    """Without a grid that shares its dimension with another: windows in it are none of the image."""
    return replace(axis, grid=None) if axis.grid is not None and axis.grid.cells is not None else axis


def _taps(cells: int, made: int, width: int, stride: int, padding: int, dilation: int) -> Tensor:
    """(made, width): the cells in each window, -1 where it reaches over the border."""
    taps = torch.arange(made)[:, None] * stride - padding + torch.arange(width) * dilation
    return taps.masked_fill((taps < 0) | (taps >= cells), -1)


def _scattered(cells: int, made: int, width: int, stride: int, padding: int, dilation: int) -> Tensor:
    """(made, width): the cells that a transposed convolution spreads over each element, -1 for none."""
    places = torch.arange(made)[:, None] + padding - torch.arange(width) * dilation
    taps = places.div(stride, rounding_mode="floor")
    return taps.masked_fill((places % stride != 0) | (taps < 0) | (taps >= cells), -1)


def _ragged(spans: Sequence[Sequence[int]]) -> Tensor:
    """(len(spans), longest): rows of different lengths, filled up with -1."""
    longest = max(len(span) for span in spans)
    return torch.tensor([[*span, *[-1] * (longest - len(span))] for span in spans])


def _slid_grid(grid: Grid, width: int, stride: int, padding: int, dilation: int) -> Grid:
    reach = (width - 1) * dilation
    size = None if grid.size is None else grid.size + reach * abs(grid.jump)
    return Grid(grid.dim, grid.jump * stride, grid.start + (HALF * reach - padding) * grid.jump, size)


def _enlarged_grid(grid: Grid, width: int, stride: int, padding: int, dilation: int) -> Grid:
    """After a transposed convolution; with a stride its elements take turns in what they see."""
    reach = (width - 1) * dilation
    size = None if grid.size is None or stride > 1 else grid.size + reach * abs(grid.jump)
    return Grid(grid.dim, grid.jump / stride, grid.start + (padding - HALF * reach) * grid.jump / stride, size)


_RULES: dict[Callable[[Call, Axis], Axis], tuple[str, ...]] = {
    _convolution: ("convolution",),
    _layer_norm: ("native_layer_norm",),
    _group_norm: ("native_group_norm",),
    _batch_norm: ("_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "native_batch_norm"),
    _pool: ("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices"),
    _adaptive_pool: ("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    _upsample: (
        "_upsample_nearest_exact1d",
        "_upsample_nearest_exact2d",
        "upsample_bicubic2d",
        "upsample_bilinear2d",
        "upsample_linear1d",
        "upsample_nearest1d",
        "upsample_nearest2d",
    ),
}
SLIDING = {name: rule for rule, names in _RULES.items() for name in names}
"""The rule for each operation: the field of its first input -> the field of its result."""
