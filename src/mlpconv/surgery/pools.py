"""What a pool of the head does: which windows of its maps, and how it makes one number of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.graph import module_of, shape_of
from mlpconv.surgery.layout import Layout
from mlpconv.surgery.spelling import MAP, argument, describe, pair, spelled

__all__ = ["Pool", "averages", "pool_of", "window_averages"]


@dataclass(frozen=True)
class Pool:
    """A pool over maps of h x w cells that leaves `out` cells."""

    mean: bool
    """Averages, or else maxima."""
    fixed: bool
    """Its windows have a size of their own, whatever the size of the maps."""
    size: tuple[int, int]
    out: tuple[int, int]
    index: Tensor
    """Layout of the result among the C * out elements."""

    @property
    def is_global(self) -> bool:
        """One number of each whole map."""
        return self.out == (1, 1)

    @property
    def even(self) -> tuple[int, int] | None:
        """The one size of its windows, which lie side by side; None where they are of several sizes or overlap."""
        if any(size % out for size, out in zip(self.size, self.out, strict=True)):
            return None
        return self.size[0] // self.out[0], self.size[1] // self.out[1]


def pool_of(node: fx.Node, layout: Layout, root: nn.Module) -> Pool:
    """What the pool at this node does to maps; SurgeryError for one that works along other dimensions."""
    name, channels, size = spelled(node, root), layout.size[0], layout.size[1:]
    shape = (shape_of(node) or ())[1:]
    if name == "mean":
        return _mean(node, layout, root)
    if not layout.plain or layout.index.dim() != MAP - 1:
        raise SurgeryError(f"{describe(node, root)} does not pool maps (C, H, W).")
    out = (shape[1], shape[2])
    index = torch.arange(channels * out[0] * out[1]).reshape(shape)
    if "adaptive" in name:
        return Pool("max" not in name, False, size, out, index)
    return Pool(True, not _as_large_as_maps(node, root, size), size, out, index)


def _mean(node: fx.Node, layout: Layout, root: nn.Module) -> Pool:
    """A mean over rows, columns or both, in whatever dimensions they lie."""
    _, height, width = layout.size
    dims = argument(node, 1, "dim") or argument(node, 1, "axis")
    listed = list(dims) if isinstance(dims, tuple | list) else [dims]
    if not all(isinstance(dim, int) for dim in listed) or 0 in listed:
        raise SurgeryError(f"{describe(node, root)} does not average over the cells of maps (C, H, W).")
    places = [dim - 1 if dim > 0 else dim + layout.index.dim() for dim in listed]
    groups = layout.index.movedim(places, list(range(-len(places), 0))).flatten(-len(places))
    channel, row, column = groups // (height * width), groups // width % height, groups % width
    over = tuple(bool((each.amax(-1) > each.amin(-1)).any()) for each in (channel, row, column))
    out = (1 if over[1] or height == 1 else height, 1 if over[2] or width == 1 else width)
    cells = (height // out[0]) * (width // out[1])
    if over[0] or groups.shape[-1] != cells or len(set(groups.flatten().tolist())) != layout.index.numel():
        raise SurgeryError(f"{describe(node, root)} does not average over the cells of maps (C, H, W).")
    first = channel[..., 0] * (out[0] * out[1]) + (row[..., 0] % out[0]) * out[1] + column[..., 0] % out[1]
    return Pool(True, False, (height, width), out, first.reshape((shape_of(node) or ())[1:]))


def _as_large_as_maps(node: fx.Node, root: nn.Module, size: tuple[int, int]) -> bool:
    """Whether a window is all of the maps, whatever they are padded with."""
    module: Any = module_of(node, root)
    if module is not None:
        kernel, padding = pair(module.kernel_size), pair(module.padding)
    else:
        kernel, padding = pair(argument(node, 1, "kernel_size")), pair(argument(node, 3, "padding") or 0)
    return kernel == size and padding == (0, 0)


def averages(size: tuple[int, int], out: tuple[int, int]) -> Tensor:
    """(out cells, cells): the weights of adaptive average pooling from h x w cells, in float64."""
    rows, columns = (_windows(size[axis], out[axis]) for axis in (0, 1))
    return torch.kron(rows, columns)


def window_averages(maps: Tensor, size: tuple[int, int], out: tuple[int, int]) -> Tensor:
    """Adaptive averages of every window of h x w cells: (N, C, H, W) -> (N, C * out cells, H - h + 1, W - w + 1)."""
    channels = maps.shape[1]
    weights = averages(size, out).to(maps).reshape(-1, 1, *size)
    return F.conv2d(maps, weights.repeat(channels, 1, 1, 1), groups=channels)


def _windows(size: int, out: int) -> Tensor:
    """(out, size): window i reaches from floor(i*size/out) to ceil((i+1)*size/out), as in torch.nn.AdaptiveAvgPool."""
    weights = torch.zeros((out, size), dtype=torch.float64)
    for cell in range(out):
        first, last = cell * size // out, -((-(cell + 1) * size) // out)
        weights[cell, first:last] = 1 / (last - first)
    return weights
