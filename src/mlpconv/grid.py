"""How the cells of a network's maps lie over the image, found by following an image through the network.

A cell belongs to the centre of its receptive field. Every operation is followed, not the list of modules, so that
padding, branches and pooling windows are right to the half pixel. Pixel centres are whole numbers: the top left
pixel is (0, 0).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Axis", "Box", "Grid", "trace_grid"]


class Box(NamedTuple):
    """A rectangle of whole pixels; right and bottom are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Axis:
    """How cells lie along one side of the image, in pixels."""

    first: float = 0.0
    """Centre of the first cell's receptive field."""
    stride: float = 1.0
    """From one cell's centre to the next."""
    field: float = 1.0
    """Length of the receptive field."""

    def windowed(self, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
        """The axis after a convolution or a pooling; rounding sizes up adds cells at the end and moves none."""
        reach = (kernel - 1) * dilation
        return Axis(
            self.first + (reach / 2 - padding) * self.stride, self.stride * stride, self.field + reach * self.stride
        )

    def joined(self, other: Axis) -> Axis:
        """The axis of two branches put together: its field covers both fields."""
        low = min(self.first - self.field / 2, other.first - other.field / 2)
        high = max(self.first + self.field / 2, other.first + other.field / 2)
        return Axis((low + high) / 2, self.stride, high - low)

    def centres(self, cells: int) -> npt.NDArray[np.float64]:
        """The centre of each of so many cells."""
        return self.first + self.stride * np.arange(cells, dtype=np.float64)

    def span(self, first: int, last: int, reach: float, size: int) -> tuple[int, int]:
        """The pixels from cell `first` to cell `last`, `reach` long around each centre, inside an image of `size`."""
        low = math.floor(self.first + first * self.stride - reach / 2 + 1)
        high = math.floor(self.first + last * self.stride + reach / 2 + 1)
        return min(max(low, 0), size - 1), max(min(high, size), 1)


@dataclass(frozen=True)
class Grid:
    """How the cells of a category map lie over the image."""

    rows: Axis
    columns: Axis

    def field_box(self, row: int, column: int, size: tuple[int, int]) -> Box:
        """The pixels of an (H, W) image that can influence one cell."""
        top, bottom = self.rows.span(row, row, self.rows.field, size[0])
        left, right = self.columns.span(column, column, self.columns.field, size[1])
        return Box(left, top, right, bottom)


class _Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow an image through a network: which grid each tensor's cells lie on."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The tensor is kept beside its grid, so that its id is not given to another one.
        self.known: dict[int, tuple[Tensor, Grid]] = {id(image): (image, Grid(Axis(), Axis()))}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to mark this for PyTorch's compiler would import it, which takes longer than to follow an image."""
        return False

    def grid_of(self, tensor: Tensor) -> Grid | None:
        return self.known[id(tensor)][1] if id(tensor) in self.known else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
        given.update(kwargs or {})
        out = func(*args, **(kwargs or {}))
        if "kernel_size" in given or func.overloadpacket is torch.ops.aten.convolution:
            self._window(given, out)
        else:
            self._pass_on(tree_leaves((args, kwargs)), tree_leaves(out))
        return out

    def _window(self, given: Mapping[str, Any], out: Any) -> None:
        """A convolution or a pooling over rows and columns."""
        source = given["input"] if "input" in given else given["self"]
        grid = self.grid_of(source)
        if grid is None or given.get("transposed"):
            return
        kernel = given["kernel_size"] if "kernel_size" in given else given["weight"].shape[2:]
        settings = (kernel, given.get("stride") or kernel, given.get("padding", 0), given.get("dilation", 1))
        # One number holds for both sides; a window over channels too, as in response normalisation, has three.
        pairs = [
            (value, value) if isinstance(value, int) else (value[-2:] if len(value) > 1 else value * 2)
            for value in settings
        ]
        axes = [axis.windowed(*(pair[side] for pair in pairs)) for side, axis in enumerate((grid.rows, grid.columns))]
        for tensor in tree_leaves(out):
            self.known[id(tensor)] = (tensor, Grid(*axes))

    def _pass_on(self, given: Iterable[Any], out: Iterable[Any]) -> None:
        """Anything else: cells stay where they are as long as rows and columns stay what they are."""
        sources = [(t, grid) for t in given if isinstance(t, Tensor) and (grid := self.grid_of(t)) is not None]
        for tensor in out:
            if not isinstance(tensor, Tensor):
                continue
            grids = [grid for source, grid in sources if source.shape[-2:] == tensor.shape[-2:]]
            for grid in grids:
                known = self.grid_of(tensor) or grid
                joined = Grid(known.rows.joined(grid.rows), known.columns.joined(grid.columns))
                self.known[id(tensor)] = (tensor, joined)


def trace_grid(model: Any, size: tuple[int, int, int]) -> Grid:
    """How the cells of `model.category_maps` lie over a (C, H, W) image.

    Where an operation hides it (a resize, a transposed convolution), the cells are taken to divide the image evenly.
    Raises UsageError for a network without category maps.
    """
    parameter = next(iter(model.parameters()), torch.zeros(()))
    image = torch.zeros(1, *size, device=parameter.device, dtype=parameter.dtype)
    follow = _Follow(image)
    with torch.inference_mode(False), torch.no_grad(), follow:  # inference mode would hide what an operation is made of
        maps = model.category_maps(image)
    return follow.grid_of(maps) or Grid(*(_evenly(*pair) for pair in zip(size[1:], maps.shape[2:], strict=True)))


def _evenly(side: int, cells: int) -> Axis:
    return Axis((side / cells - 1) / 2, side / cells, side)
