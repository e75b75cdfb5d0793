"""What every rewriting of a head is made of: layouts, new steps in a graph, and modules in the place of others."""

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
    """The steps of one graph's head, and what they are on maps."""

    def __init__(self, graph: fx.Graph, head: Head, shadow: nn.Module, edits: ModuleEdits) -> None:
        self.graph, self.head, self.shadow, self.edits = graph, head, shadow, edits
        self.layouts: dict[fx.Node, Layout] = {}
        self.parts: dict[fx.Node, tuple[Layout | None, ...]] = {}
        """Of steps that make several tensors; None for a tensor that cannot be followed."""
        self.maps: dict[fx.Node, fx.Node] = {}
        """For each output, its maps (N, K, h, w)."""
        self.calls = [node for node in graph.nodes if node.op == "call_module"]
        for start in head.starts:
            shape = shape_of(start) or ()
            if len(shape) != MAP:
                raise SurgeryError(f"{describe(start, shadow)} gives {shape[1:]}; maps (C, H, W) are accepted.")
            self.layouts[start] = layout_of_maps(start, cast("tuple[int, int, int]", shape[1:]))

    def refuse(self, node: fx.Node) -> Layout:
        """No operation for this step."""
        raise SurgeryError(
            f"{describe(node, self.shadow)} stands between the last maps and the logits and has no counterpart on maps."
        )

    def inputs_of(self, node: fx.Node) -> list[fx.Node]:
        """The tensors of the head that a step works on."""
        return [each for each in node.all_input_nodes if each in self.layouts]

    def input_of(self, node: fx.Node) -> Layout:
        """The layout of the one tensor that a step works on."""
        inputs = self.inputs_of(node)
        if len(inputs) != 1 or node.all_input_nodes[0] is not inputs[0]:
            self.refuse(node)
        return self.layouts[inputs[0]]

    def again(self, node: fx.Node, base: fx.Node, *inputs: fx.Node) -> fx.Node:
        """The same step on other tensors."""
        new = dict(zip(self.inputs_of(node), (base, *inputs), strict=True))
        return self.graph.node_copy(node, lambda each: new.get(each, each))

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new step."""
        return self.graph.call_function(function, args, kwargs)

    def give(self, node: fx.Node, new: fx.Node) -> None:
        """Return another tensor in the place of one of the head's."""
        for user in list(node.users):
            if user in self.head.ends:
                user.replace_input_with(node, new)

    def retire(self, node: fx.Node, make: Callable[[], nn.Module]) -> bool:
        """Replace the module that only this step calls; False where there is none."""
        name = str(node.target)
        if node.op != "call_module" or self.times(name) != 1:
            return False
        self.edits.put(name, make)
        return True

    def times(self, name: str) -> int:
        """How often the network calls a module."""
        return sum(str(node.target) == name for node in self.calls)

    def compact(self, layout: Layout) -> Layout:
        """Maps of one cell whose channels are the tensor's elements, in its order."""
        if layout.plain or not layout.one_cell:
            return layout
        chosen = layout.index.flatten()
        base = self.call(select_channels, layout.base, _as_slice(chosen))
        return layout.renumbered(base, len(chosen), tuple(layout.index.shape))


def select_channels(maps: Tensor, channels: slice | list[int]) -> Tensor:
    """Some channels of maps: (N, C, h, w) -> (N, K, h, w)."""
    return maps[:, channels]


def _as_slice(places: Tensor) -> slice | list[int]:
    """Places as a slice, where they go up evenly."""
    steps = set(places.diff().tolist())
    first = int(places[0]) if len(places) else 0
    if len(steps) <= 1 and min(steps, default=1) > 0:
        step = min(steps, default=1)
        return slice(first, first + step * len(places), step)
    return [int(place) for place in places]
