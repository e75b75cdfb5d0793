"""Describe the pools of a head: their windows, and whether they average, sum or take the maximum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.heads.layout import Layout
from mlpconv.surgery.tracing.graph import module_of, shape_of
from mlpconv.surgery.tracing.ops import MAP, argument_of, as_pair, describe, op_name

__all__ = [
    "REDUCTIONS",
    "Pool",
    "averaging_matrix",
    "pool_of",
    "pools_cells",
    "times_cells",
    "window_averages",
    "windows_of",
]

REDUCTIONS = {"mean": True, "sum": True, "amax": False, "max": False}
"""Reductions over dimensions; True for averages and sums, False for maxima."""


@dataclass(frozen=True)
class Pool:
    """A pool from h x w cells (`size`) to `out` cells."""

    mean: bool
    """True for an average or sum, False for a maximum."""
    fixed: bool
    """Whether the window size does not depend on the size of the maps."""
    size: tuple[int, int]
    out: tuple[int, int]
    index: Tensor
    """Layout of the result among the C * out elements."""
    divisor: int | None = None
    """Divisor of a window's sum, if it is not the number of cells."""

    @property
    def is_global(self) -> bool:
        """Whether each map is reduced to one number for every map size."""
        return self.out == (1, 1) and not self.fixed

    @property
    def changes_nothing(self) -> bool:
        """Whether every window is one cell."""
        return self.out == self.size and not self.fixed and self.divisor in (None, 1)

    @property
    def even(self) -> tuple[int, int] | None:
        """The window size if all windows are equal and do not overlap, else None."""
        if any(size % out for size, out in zip(self.size, self.out, strict=True)):
            return None
        return self.size[0] // self.out[0], self.size[1] // self.out[1]


def pool_of(node: fx.Node, layout: Layout, root: nn.Module) -> Pool:
    """Return the pool at this node; raise SurgeryError if it reduces other dimensions than rows and columns."""
    name, channels, size = op_name(node, root), layout.size[0], layout.size[1:]
    shape = (shape_of(node) or ())[1:]
    if name in REDUCTIONS:
        return _reduction(node, layout, root)
    if not layout.plain or layout.index.dim() != MAP - 1:
        raise SurgeryError(f"{describe(node, root)} does not pool maps (C, H, W).")
    out = (shape[1], shape[2])
    index = torch.arange(channels * out[0] * out[1]).reshape(shape)
    if "adaptive" in name:
        return Pool("max" not in name, False, size, out, index)
    module: Any = module_of(node, root)
    divisor = argument_of(node, 6, "divisor_override") if module is None else getattr(module, "divisor_override", None)
    return Pool("max" not in name, not _covers_maps(node, root, size), size, out, index, divisor)


def pools_cells(node: fx.Node, layout: Layout, root: nn.Module) -> bool:
    """Return whether a pool reduces the cells of maps and not their channels."""
    try:
        pool_of(node, layout, root)
    except SurgeryError:
        return False
    return True


def _reduction(node: fx.Node, layout: Layout, root: nn.Module) -> Pool:
    """Return a mean, sum or maximum over rows, columns or both, whatever their dimensions."""
    _, height, width = layout.size
    value, name = node.meta["val"], op_name(node, root)
    dims = argument_of(node, 1, "dim")
    dims = argument_of(node, 1, "axis") if dims is None else dims
    listed = list(dims) if isinstance(dims, tuple | list) else [dims]
    refusal = SurgeryError(f"{describe(node, root)} does not pool over the cells of maps (C, H, W).")
    if not all(isinstance(dim, int) for dim in listed) or 0 in listed or argument_of(node, 3, "dtype") is not None:
        raise refusal
    axes = [dim - 1 if dim > 0 else dim + layout.index.dim() for dim in listed]
    if min(axes) < 0:
        raise refusal
    groups = layout.index.movedim(axes, list(range(-len(axes), 0))).flatten(-len(axes))
    channel, row, column = groups // (height * width), groups // width % height, groups % width
    reduced = tuple(bool((indices.amax(-1) > indices.amin(-1)).any()) for indices in (channel, row, column))
    out = (1 if reduced[1] or height == 1 else height, 1 if reduced[2] or width == 1 else width)
    cells = (height // out[0]) * (width // out[1])
    if reduced[0] or groups.shape[-1] != cells or len(set(groups.flatten().tolist())) != layout.index.numel():
        raise refusal
    first = channel[..., 0] * (out[0] * out[1]) + (row[..., 0] % out[0]) * out[1] + column[..., 0] % out[1]
    shape = (value if isinstance(value, Tensor) else value[0]).shape[1:]
    return Pool(REDUCTIONS[name], False, (height, width), out, first.reshape(shape), 1 if name == "sum" else None)


def _covers_maps(node: fx.Node, root: nn.Module, size: tuple[int, int]) -> bool:
    """Return whether a window is as large as the maps, without padding."""
    module: Any = module_of(node, root)
    if module is not None:
        kernel, padding = as_pair(module.kernel_size), as_pair(module.padding)
    else:
        kernel, padding = as_pair(argument_of(node, 1, "kernel_size")), as_pair(argument_of(node, 3, "padding") or 0)
    return kernel == size and padding == (0, 0)


def windows_of(node: fx.Node, root: nn.Module) -> tuple[int, int] | None:
    """Return a pool's window size if it is fixed, or None for a pool that adapts to the size of the maps."""
    if op_name(node, root) in REDUCTIONS or "adaptive" in op_name(node, root):
        return None
    module: Any = module_of(node, root)
    kernel = argument_of(node, 1, "kernel_size") if module is None else module.kernel_size
    sides = kernel if isinstance(kernel, tuple | list) else [kernel]
    return None if any(isinstance(side, fx.Node) for side in sides) else as_pair(kernel)


def times_cells(maps: Tensor, rows: bool, columns: bool) -> Tensor:
    """Scale maps by the number of rows, columns or both, so that their mean is the sum of the original maps."""
    return maps * ((maps.shape[2] if rows else 1) * (maps.shape[3] if columns else 1))


def averaging_matrix(size: tuple[int, int], out: tuple[int, int]) -> Tensor:
    """Return the weights (out cells, cells) of adaptive average pooling from h x w cells, in float64."""
    rows, columns = (_windows(size[axis], out[axis]) for axis in (0, 1))
    return torch.kron(rows, columns)


def window_averages(maps: Tensor, size: tuple[int, int], out: tuple[int, int]) -> Tensor:
    """Pool every window of h x w cells adaptively: (N, C, H, W) -> (N, C * out cells, H - h + 1, W - w + 1)."""
    channels = maps.shape[1]
    weights = averaging_matrix(size, out).to(maps).reshape(-1, 1, *size)
    return F.conv2d(maps, weights.repeat(channels, 1, 1, 1), groups=channels)


def _windows(size: int, out: int) -> Tensor:
    """Return weights (out, size): window i is floor(i*size/out) to ceil((i+1)*size/out), as in AdaptiveAvgPool."""
    weights = torch.zeros((out, size), dtype=torch.float64)
    for cell in range(out):
        first, last = cell * size // out, -((-(cell + 1) * size) // out)
        weights[cell, first:last] = 1 / (last - first)
    return weights
