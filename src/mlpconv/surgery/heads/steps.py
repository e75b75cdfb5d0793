"""Shared state and helpers of the head rewriters: layouts, new graph steps and replaced modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.heads.find import Head
from mlpconv.surgery.heads.layout import Layout, layout_of_maps
from mlpconv.surgery.heads.modules import ModuleEdits
from mlpconv.surgery.tracing.graph import shape_of
from mlpconv.surgery.tracing.ops import MAP, describe

__all__ = ["Steps", "select_channels"]


class Steps:
    """The steps of one graph's head, with their layouts on feature maps."""

    def __init__(self, graph: fx.Graph, head: Head, shadow: nn.Module, edits: ModuleEdits) -> None:
        self.graph, self.head, self.shadow, self.edits = graph, head, shadow, edits
        self.layouts: dict[fx.Node, Layout] = {}
        self.parts: dict[fx.Node, tuple[Layout | None, ...]] = {}
        """Layouts of steps that return several tensors; None for a tensor that cannot be tracked."""
        self.maps: dict[fx.Node, fx.Node] = {}
        """The maps (N, K, h, w) of each output."""
        self.calls = [node for node in graph.nodes if node.op == "call_module"]
        for start in head.starts:
            shape = shape_of(start) or ()
            if len(shape) != MAP:
                raise SurgeryError(f"{describe(start, shadow)} returns {shape[1:]}; maps (C, H, W) are accepted.")
            self.layouts[start] = layout_of_maps(start, cast("tuple[int, int, int]", shape[1:]))

    def refuse(self, node: fx.Node) -> Layout:
        """Raise SurgeryError: the step is not supported."""
        raise SurgeryError(
            f"{describe(node, self.shadow)}, between the last feature maps and the logits, cannot be applied to "
            "feature maps."
        )

    def inputs_of(self, node: fx.Node) -> list[fx.Node]:
        """Return the inputs of a step that belong to the head."""
        return [source for source in node.all_input_nodes if source in self.layouts]

    def input_of(self, node: fx.Node) -> Layout:
        """Return the layout of the only input of a step; raise SurgeryError if it has several."""
        inputs = self.inputs_of(node)
        if len(inputs) != 1 or node.all_input_nodes[0] is not inputs[0]:
            self.refuse(node)
        return self.layouts[inputs[0]]

    def copy_step(self, node: fx.Node, *inputs: fx.Node) -> fx.Node:
        """Copy a step with new inputs."""
        new = dict(zip(self.inputs_of(node), inputs, strict=True))
        return self.graph.node_copy(node, lambda source: new.get(source, source))

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Insert a function call into the graph."""
        return self.graph.call_function(function, args, kwargs)

    def replace_output(self, node: fx.Node, new: fx.Node) -> None:
        """Replace a network output."""
        for user in list(node.users):
            if user in self.head.ends:
                user.replace_input_with(node, new)

    def retire(self, node: fx.Node, make: Callable[[], nn.Module]) -> bool:
        """Replace the module of this step; return False if the step calls none or shares it with another step."""
        name = str(node.target)
        if node.op != "call_module" or self.call_count(name) != 1:
            return False
        self.edits.put(name, make)
        return True

    def call_count(self, name: str) -> int:
        """Return how often the network calls a module."""
        return sum(str(node.target) == name for node in self.calls)

    def compact(self, layout: Layout) -> Layout:
        """Select and reorder the channels of one-cell maps to match the tensor's elements."""
        if layout.plain or not layout.one_cell:
            return layout
        channels = layout.index.flatten()
        base = self.call(select_channels, layout.base, _as_slice(channels))
        return layout.renumbered(base, len(channels), tuple(layout.index.shape))


def select_channels(maps: Tensor, channels: slice | list[int]) -> Tensor:
    """Return K of the channels of maps: (N, C, h, w) -> (N, K, h, w)."""
    return maps[:, channels]


def _as_slice(indices: Tensor) -> slice | list[int]:
    """Return indices as a slice if they are evenly spaced."""
    steps = set(indices.diff().tolist())
    first = int(indices[0]) if len(indices) else 0
    if len(steps) <= 1 and min(steps, default=1) > 0:
        step = min(steps, default=1)
        return slice(first, first + step * len(indices), step)
    return [int(index) for index in indices]
