"""Receptive fields after convolutions, pools, upsampling and norms."""

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
"""Interpolation weights below this are rounding errors."""


def _convolution(call: Call, axis: Axis) -> Axis:
    """Convolution, transposed or not: windows in space, all channels of a group."""
    image, out = call.inputs[0], call.outputs[0]
    count = image.dim() - 2
    seen = regroup(_unfolded(axis), -1 - count, call["groups"], out.shape[1])
    grid, kernel = seen.grid, call.tensor("weight").shape[2:]
    slides = [call.sizes(name, count, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
    for j, (width, stride, padding, dilation) in enumerate(zip(kernel, *slides, strict=True)):
        dim = j - count
        make, slide = (_scattered, _enlarged_grid) if call["transposed"] else (_taps, _slid_grid)
        taps = make(image.shape[dim], out.shape[dim], width, stride, padding, dilation)
        seen = windows(seen, dim, image.shape[dim], taps)
        grid = slide(grid, width, stride, padding, dilation) if grid is not None and grid.dim == dim else grid
    return replace(seen, grid=grid)


def _pool(call: Call, axis: Axis) -> Axis:
    """Max and average pool; `ceil_mode` only adds windows that extend beyond the border."""
    image, out = call.inputs[0], call.outputs[0]
    axis, count = _unfolded(axis), int(call.name.split("pool")[1][0])
    kernel = call.sizes("kernel_size", count)
    stride = call.sizes("stride", count) if call.args.get("stride") else kernel
    padding, dilation = call.sizes("padding", count, 0), call.sizes("dilation", count)
    grid, seen = axis.grid, axis
    for j in range(count):
        dim, slide = j - count, (kernel[j], stride[j], padding[j], dilation[j])
        seen = windows(seen, dim, image.shape[dim], _taps(image.shape[dim], out.shape[dim], *slide))
        grid = _slid_grid(grid, *slide) if grid is not None and grid.dim == dim else grid
    return replace(seen, grid=grid)


def _adaptive_pool(call: Call, axis: Axis) -> Axis:
    """Adaptive pool: a single cell sees everything, several divide the input evenly."""
    image, out = call.inputs[0], call.outputs[0]
    axis = _unfolded(axis)
    for j in range(-len(call["output_size"]), 0):
        cells, size_out, grid = image.shape[j], out.shape[j], axis.grid
        if size_out == 1:
            axis = squash(axis, [j])
            continue
        spans = [range(i * cells // size_out, -(-(i + 1) * cells // size_out)) for i in range(size_out)]
        axis = windows(axis, j, cells, _ragged(spans))
        if grid is not None and grid.dim == j:
            share = Fraction(cells, size_out)
            size = None if cells % size_out or grid.size is None else grid.size + (share - 1) * abs(grid.jump)
            grid = Grid(j, grid.jump * share, grid.start + (share - 1) / 2 * grid.jump, size)
        axis = replace(axis, grid=grid)
    return axis


def _upsample(call: Call, axis: Axis) -> Axis:
    """Nearest, linear and cubic interpolation; neighbours of weight zero do not count."""
    image, out, axis = call.inputs[0], call.outputs[0], _unfolded(axis)
    grid, seen = axis.grid, axis
    scales = [value for name, value in call.args.items() if name.startswith("scales")]
    for j, scale in enumerate(scales):
        dim = j - len(scales)
        cells, size_out = image.shape[dim], out.shape[dim]
        corners = bool(call.args.get("align_corners")) and size_out > 1
        ratio = Fraction(cells - 1, size_out - 1) if corners else Fraction(cells, size_out)
        step = 1 / scale if scale and not corners else float(ratio)
        near = [_neighbours(call.name, i, step, cells, corners) for i in range(size_out)]
        seen = windows(seen, dim, cells, _ragged(near))
        if grid is not None and grid.dim == dim:
            shift = Fraction(0) if corners else (ratio - 1) / 2
            grid = Grid(dim, grid.jump * ratio, grid.start + shift * grid.jump, None) if ratio else None
    return replace(seen, grid=grid)


def _neighbours(name: str, i: int, step: float, cells: int, corners: bool) -> list[int]:
    """Return the cells that element i of an upsampled row depends on."""
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
    """Batch norm: sees the whole image only if it computes its own mean, as instance norm does."""
    rank = call.inputs[0].dim()
    if not call.args.get("training", call.name != "_native_batch_norm_legit_no_training"):
        return axis
    return squash(axis, [dim for dim in range(-rank, 0) if dim != 1 - rank])


def _layer_norm(call: Call, axis: Axis) -> Axis:
    return squash(axis, range(-len(call["normalized_shape"]), 0))


def _group_norm(call: Call, axis: Axis) -> Axis:
    """Group norm: sees the whole image, in the channels of its group."""
    rank = call.inputs[0].dim()
    return regroup(squash(axis, range(2 - rank, 0)), 1 - rank, call["group"], call["C"])


def _unfolded(axis: Axis) -> Axis:
    """Drop a grid of flattened rows and columns, over which windows have no meaning in the image."""
    return replace(axis, grid=None) if axis.grid is not None and axis.grid.cells is not None else axis


def _taps(cells: int, size_out: int, width: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Return the cells in each window, (size_out, width); -1 outside the border."""
    taps = torch.arange(size_out)[:, None] * stride - padding + torch.arange(width) * dilation
    return taps.masked_fill((taps < 0) | (taps >= cells), -1)


def _scattered(cells: int, size_out: int, width: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Return the cells that a transposed convolution adds to each element, (size_out, width); -1 for none."""
    places = torch.arange(size_out)[:, None] + padding - torch.arange(width) * dilation
    taps = places.div(stride, rounding_mode="floor")
    return taps.masked_fill((places % stride != 0) | (taps < 0) | (taps >= cells), -1)


def _ragged(spans: Sequence[Sequence[int]]) -> Tensor:
    """Return the spans as rows of equal length, padded with -1."""
    longest = max(len(span) for span in spans)
    return torch.tensor([[*span, *[-1] * (longest - len(span))] for span in spans])


def _slid_grid(grid: Grid, width: int, stride: int, padding: int, dilation: int) -> Grid:
    reach = (width - 1) * dilation
    size = None if grid.size is None else grid.size + reach * abs(grid.jump)
    return Grid(grid.dim, grid.jump * stride, grid.start + (HALF * reach - padding) * grid.jump, size)


def _enlarged_grid(grid: Grid, width: int, stride: int, padding: int, dilation: int) -> Grid:
    """Return the grid after a transposed convolution; with a stride, the fields of its elements differ in size."""
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
"""The rule of each operation: field of its first input -> field of its output."""
