"""Which element of the maps each element of a flattened tensor is, whatever the steps that flattened it.

The steps that only move elements are run on numbered elements: where the numbers end up is where the elements do.
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
    """A tensor of the original's head, as elements of maps (N, C, h, w) in the new graph."""

    base: fx.Node
    """The maps; at the size of the proof they have h x w cells, or one window for each of them."""
    size: tuple[int, int, int]
    """C, h and w of what one image's head sees."""
    index: Tensor
    """For one image: the place of each element of the tensor among the C*h*w elements."""
    dilation: tuple[int, int] = (1, 1)
    """Cells of `base` from one of the h (w) to the next."""
    mix: Tensor | None = None
    """(h*w, cells of base): how the h*w cells are averages of those of `base`; None where they are the same."""

    pending: fx.Node | None = None
    """The pool of the original that is still to come; `base` is then the maps before it, and `size` those after it."""

    @property
    def plain(self) -> bool:
        """Whether the tensor has the elements in the maps' own order, and every one of them."""
        return torch.equal(self.index.flatten(), torch.arange(torch.Size(self.size).numel()))

    @property
    def has_each_once(self) -> bool:
        """Whether no element of the maps stands in two places of the tensor."""
        return len(set(self.index.flatten().tolist())) == self.index.numel()

    @property
    def one_cell(self) -> bool:
        """Whether there is one cell, so that channels are all there is."""
        return self.size[1:] == (1, 1)

    def on(self, base: fx.Node) -> Layout:
        """The same elements after a step on each cell of the base by itself."""
        return replace(self, base=base)

    def renumbered(self, base: fx.Node, count: int, shape: tuple[int, ...]) -> Layout:
        """A tensor of this shape, for one image, that is all channels of maps of one cell."""
        return replace(self, base=base, size=(count, 1, 1), index=torch.arange(count).reshape(shape))


def layout_of_maps(base: fx.Node, size: tuple[int, int, int], **more: Any) -> Layout:
    """The maps themselves."""
    return Layout(base, size, torch.arange(torch.Size(size).numel()).reshape(size), **more)


def move_layout(layout: Layout, node: fx.Node, root: nn.Module) -> tuple[Layout, ...]:
    """The layouts of what a step makes that only moves elements; one, or several for a step such as `chunk`.

    Raises SurgeryError for a step that mixes images or does more than that.
    """
    count = torch.Size(layout.size).numel()
    numbered = torch.stack([layout.index + image * count for image in range(BATCH)])
    module, data = module_of(node, root), node.all_input_nodes[0]
    try:
        args, kwargs = _known(node.args, data, numbered), _known(node.kwargs, data, numbered)
        if module is not None:
            result = module(numbered)
        elif node.op == "call_method":
            result = getattr(numbered, str(node.target))(*args[1:], **kwargs)
        else:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise SurgeryError(f"{describe(node, root)} cannot be followed: {error}.") from error
    results = [result] if isinstance(result, Tensor) else list(result)
    if not all(each.shape[:1] == (BATCH,) and _own(each, count) for each in results):
        raise SurgeryError(f"{describe(node, root)} mixes the images of a batch, or moves more than one tensor.")
    return tuple(replace(layout, index=each[0]) for each in results)


def _own(numbers: Tensor, count: int) -> bool:
    """Whether each image has elements of its own only, and the same ones as the others."""
    images = torch.arange(BATCH).reshape(-1, *[1] * (numbers.dim() - 1))
    return bool((numbers // count == images).all()) and bool((numbers % count == numbers[:1] % count).all())


def _known(value: Any, data: fx.Node, numbered: Tensor) -> Any:
    """The arguments of a step: sizes and tables of indices as numbers, and the tensor that is moved."""

    def known(node: fx.Node) -> Any:
        if node is data:
            return numbered
        if isinstance(node.meta["val"], Tensor) and node.meta["val"].is_meta:
            raise ValueError(f"{node.name} is no table of indices that is known beforehand")
        return node.meta["val"]

    return fx.map_arg(value, known)


def channels_last_rows(layout: Layout) -> bool:
    """Whether the last dimension runs over all the channels of one cell, in order."""
    channels, height, width = layout.size
    if layout.index.shape[-1:] != (channels,):
        return False
    rows = layout.index.reshape(-1, channels)
    steps = torch.arange(channels) * (height * width)
    return bool((rows == rows[:, :1] + steps).all())
