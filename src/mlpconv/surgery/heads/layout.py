"""Track which element of the feature maps each element of a flattened tensor is.

Steps that only rearrange elements are run on a tensor of element indices, which shows where every element ends up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.tracing.graph import module_of
from mlpconv.surgery.tracing.ops import describe
from mlpconv.surgery.tracing.tracer import BATCH

__all__ = ["Layout", "channels_last_rows", "layout_of_maps", "move_layout"]


@dataclass(frozen=True)
class Layout:
    """A tensor of the original head, expressed by elements of maps (N, C, h, w) in the new graph."""

    base: fx.Node
    """The maps. For an image of the input shape they have h x w cells, or one window per cell."""
    size: tuple[int, int, int]
    """C, h and w of the maps for an image of the input shape."""
    index: Tensor
    """For one image: the index of each element of the tensor among the C*h*w elements."""
    dilation: tuple[int, int] = (1, 1)
    """Stride, in cells of `base`, between neighbouring rows (columns) of the h x w cells."""
    mix: Tensor | None = None
    """(h*w, cells of base): weights that average the cells of `base` to the h*w cells; None for the identity."""

    pending: fx.Node | None = None
    """The original's pool, if it is deferred; `base` then holds the maps before it and `size` the size after it."""

    @property
    def plain(self) -> bool:
        """Whether the tensor has all elements of the maps in their order."""
        return torch.equal(self.index.flatten(), torch.arange(torch.Size(self.size).numel()))

    @property
    def has_each_once(self) -> bool:
        """Whether the tensor repeats no element of the maps."""
        return len(set(self.index.flatten().tolist())) == self.index.numel()

    @property
    def one_cell(self) -> bool:
        """Whether the maps have one cell."""
        return self.size[1:] == (1, 1)

    def on(self, base: fx.Node) -> Layout:
        """Return the layout after a step that works on each cell separately."""
        return replace(self, base=base)

    def renumbered(self, base: fx.Node, count: int, shape: tuple[int, ...]) -> Layout:
        """Return the layout of a tensor of this shape per image that holds all channels of one-cell maps."""
        return replace(self, base=base, size=(count, 1, 1), index=torch.arange(count).reshape(shape))


def layout_of_maps(base: fx.Node, size: tuple[int, int, int], **options: Any) -> Layout:
    """Return the identity layout of maps."""
    return Layout(base, size, torch.arange(torch.Size(size).numel()).reshape(size), **options)


def move_layout(layout: Layout, node: fx.Node, root: nn.Module) -> tuple[Layout, ...]:
    """Return the layouts after a step that only rearranges elements; several for a step such as `chunk`.

    Raises SurgeryError for a step that mixes images or cannot be run on indices.
    """
    count = torch.Size(layout.size).numel()
    numbered = torch.stack([layout.index + image * count for image in range(BATCH)])
    module, data = module_of(node, root), node.all_input_nodes[0]
    try:
        args, kwargs = _arguments(node.args, data, numbered), _arguments(node.kwargs, data, numbered)
        if module is not None:
            result = module(numbered)
        elif node.op == "call_method":
            result = getattr(numbered, str(node.target))(*args[1:], **kwargs)
        else:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise SurgeryError(f"{describe(node, root)} cannot be traced on element indices: {error}.") from error
    results = [result] if isinstance(result, Tensor) else list(result)
    if not all(indices.shape[:1] == (BATCH,) and _is_per_image(indices, count) for indices in results):
        raise SurgeryError(f"{describe(node, root)} mixes the images of a batch or combines several tensors.")
    return tuple(replace(layout, index=indices[0]) for indices in results)


def _is_per_image(indices: Tensor, count: int) -> bool:
    """Return whether every image keeps its own elements, at the same positions as the other images."""
    images = torch.arange(BATCH).reshape(-1, *[1] * (indices.dim() - 1))
    return bool((indices // count == images).all()) and bool((indices % count == indices[:1] % count).all())


def _arguments(value: Any, data: fx.Node, numbered: Tensor) -> Any:
    """Return the arguments of a step with known sizes and index tables, and `numbered` in place of `data`."""

    def value_of(node: fx.Node) -> Any:
        if node is data:
            return numbered
        if isinstance(node.meta["val"], Tensor) and node.meta["val"].is_meta:
            raise ValueError(f"{node.name} is not a constant index table")
        return node.meta["val"]

    return fx.map_arg(value, value_of)


def channels_last_rows(layout: Layout) -> bool:
    """Return whether the last dimension holds all channels of one cell, in order."""
    channels, height, width = layout.size
    if layout.index.shape[-1:] != (channels,):
        return False
    rows = layout.index.reshape(-1, channels)
    steps = torch.arange(channels) * (height * width)
    return bool((rows == rows[:, :1] + steps).all())
