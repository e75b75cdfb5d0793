"""A head step by step as convolutions: what was flattened stays maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.checks import advice, is_parametrized, sharers
from mlpconv.surgery.edits import Edits, as_convolution, as_map_norm
from mlpconv.surgery.graph import module_of, shape_of
from mlpconv.surgery.head import Head, on_tokens
from mlpconv.surgery.layout import Layout, channels_last_rows, moved, of_maps
from mlpconv.surgery.pools import window_averages
from mlpconv.surgery.spelling import MAP, Kind, argument, describe, kind_of, spelled
from mlpconv.surgery.tracer import drop_questions

__all__ = ["Rewriter"]

CHANNELS_LAST = ([1, 2], (1, 2))
"""Dimensions of rows and columns in (N, H, W, C)."""


class Rewriter(ABC):
    """Rewrites the head of one graph; a subclass says what pools, linear layers and the end become."""

    def __init__(self, graph: fx.Graph, head: Head, shadow: nn.Module, edits: Edits) -> None:
        self.graph, self.head, self.shadow, self.edits = graph, head, shadow, edits
        self.layouts: dict[fx.Node, Layout] = {}
        self.maps: list[fx.Node] = []
        """The maps of logits, one for each of the head's logits."""
        self.calls = [node for node in graph.nodes if node.op == "call_module"]
        for start in head.starts:
            shape = shape_of(start) or ()
            if len(shape) != MAP:
                raise SurgeryError(f"{describe(start, shadow)} gives {shape[1:]}; maps (C, H, W) are accepted.")
            self.layouts[start] = of_maps(start, cast("tuple[int, int, int]", shape[1:]))

    def run(self) -> None:
        """Rewrite every step of the head, and what the network returns of it."""
        for node in self.head.steps:
            with self.graph.inserting_before(node):
                self.layouts[node] = self._stepped(node)
        for node in self.head.logits:
            self.end(node)
        for node in drop_questions(self.graph, set(self.head.steps)):
            if node in self.layouts and isinstance(module_of(node, self.shadow), nn.Flatten | nn.Unflatten):
                self.retire(node, nn.Identity)

    def _stepped(self, node: fx.Node) -> Layout:
        """One step rewritten; what cannot be is told by its cause where that lies further back."""
        try:
            return self.step(node)
        except SurgeryError as error:
            tokens = on_tokens(self.head, self.shadow)
            if tokens:
                raise SurgeryError(tokens) from error
            raise

    def step(self, node: fx.Node) -> Layout:
        """Rewrite one step."""
        handlers: dict[Kind, Callable[[fx.Node], Layout]] = {
            "shape": lambda node: moved(self.input_of(node), node, self.shadow),
            "elementwise": self.each_cell,
            "dropout": self.dropout,
            "feature": self.whole_channels,
            "linear": self.linear,
            "pool": self.pool,
            "conv1x1": self.conv1x1,
            "batch_norm": self.batch_norm,
            "layer_norm": self.layer_norm,
            "softmax": self.softmax,
            "join": self.join,
        }
        return handlers.get(kind_of(node, self.shadow), self.refuse)(node)

    # ---- what a subclass decides

    @abstractmethod
    def pool(self, node: fx.Node) -> Layout:
        """A pool of the head."""

    @abstractmethod
    def end(self, node: fx.Node) -> None:
        """Give back what the original returns at this node."""

    # ---- steps

    def refuse(self, node: fx.Node) -> Layout:
        """No operation for this step."""
        raise SurgeryError(
            f"{describe(node, self.shadow)} stands between the last maps and the logits and has no counterpart on maps."
        )

    def input_of(self, node: fx.Node) -> Layout:
        """The layout of the one tensor that a step works on."""
        inputs = [each for each in node.all_input_nodes if each in self.layouts]
        if len(inputs) != 1 or node.all_input_nodes[0] is not inputs[0]:
            self.refuse(node)
        return self.layouts[inputs[0]]

    def maps_of(self, node: fx.Node) -> Layout:
        """The maps that a pool works on; (N, H, W, C) that it averages over H and W become (N, C, H, W)."""
        layout = self.input_of(node)
        last_first = spelled(node, self.shadow) == "mean" and argument(node, 1, "dim") in CHANNELS_LAST
        if not (last_first and layout.plain and layout.index.dim() == MAP - 1):
            return layout
        height, width, channels = layout.size
        base = self.call(torch.permute, layout.base, (0, 3, 1, 2))
        maps = of_maps(base, (channels, height, width))
        return replace(maps, index=maps.index.permute(1, 2, 0))

    def again(self, node: fx.Node, base: fx.Node, *inputs: fx.Node) -> fx.Node:
        """The same step on other tensors."""
        old = [each for each in node.all_input_nodes if each in self.layouts]
        new = dict(zip(old, (base, *inputs), strict=True))
        return self.graph.node_copy(node, lambda each: new.get(each, each))

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new step."""
        return self.graph.call_function(function, args, kwargs)

    def give(self, node: fx.Node, new: fx.Node) -> None:
        """Return another tensor in the place of one of the logits."""
        for user in list(node.users):
            if user in self.head.returned_by:
                user.replace_input_with(node, new)

    def retire(self, node: fx.Node, make: Callable[[], nn.Module]) -> bool:
        """Replace the module that only this step calls; False where there is none."""
        name = str(node.target)
        if node.op != "call_module" or self._times(name) != 1:
            return False
        self.edits.put(name, make)
        return True

    def each_cell(self, node: fx.Node) -> Layout:
        """A step on each number by itself."""
        layout = self.input_of(node)
        if layout.mix is not None and spelled(node, self.shadow) not in ("identity", "to", "clone"):
            layout = self._spread(layout)
        return layout.on(self.again(node, layout.base))

    def _spread(self, layout: Layout) -> Layout:
        """The averages of uneven windows as channels of one cell, where something happens to them by themselves."""
        channels, rows, columns = layout.size
        size = tuple(layout.base.meta["val"].shape[2:])
        base = self.call(window_averages, layout.base, size, (rows, columns))
        return Layout(base, (channels * rows * columns, 1, 1), layout.index)

    def dropout(self, node: fx.Node) -> Layout:
        """Dropout of single numbers."""
        return self.each_cell(node)

    def whole_channels(self, node: fx.Node) -> Layout:
        """Dropout of whole channels of maps."""
        layout = self.input_of(node)
        if layout.index.dim() != MAP - 1 or not layout.plain:
            self.refuse(node)
        return self.each_cell(node)

    def join(self, node: fx.Node) -> Layout:
        """A sum, product or concatenation of several tensors of the head."""
        inputs = [self.layouts[each] for each in node.all_input_nodes if each in self.layouts]
        first = inputs[0] if inputs else None
        if first is None or len(inputs) != len(node.all_input_nodes) or any(each.mix is not None for each in inputs):
            return self.refuse(node)
        if any((each.size[1:], each.dilation) != (first.size[1:], first.dilation) for each in inputs):
            return self.refuse(node)
        bases = [each.base for each in inputs]
        if spelled(node, self.shadow) not in ("cat", "concat"):
            if not all(each.size == first.size and torch.equal(each.index, first.index) for each in inputs):
                return self.refuse(node)
            return first.on(self.again(node, *bases))
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        if dim not in (1, -first.index.dim()):
            return self.refuse(node)
        sizes = [torch.Size(each.size).numel() for each in inputs]
        starts = [sum(sizes[:position]) for position in range(len(sizes))]
        index = torch.cat([each.index + start for each, start in zip(inputs, starts, strict=True)])
        size = (sum(each.size[0] for each in inputs), *first.size[1:])
        return replace(first, base=self.call(torch.cat, bases, 1), size=size, index=index)

    def batch_norm(self, node: fx.Node) -> Layout:
        """The same norm over the cells of maps."""
        layout, name, module = self.input_of(node), str(node.target), module_of(node, self.shadow)
        if layout.plain and layout.index.dim() == MAP - 1 and layout.mix is None:
            return layout.on(self.again(node, layout.base))
        if not (layout.one_cell and layout.plain):
            raise SurgeryError(
                f"{describe(node, self.shadow)} normalises each of {torch.Size(layout.size).numel()} flattened numbers "
                "by itself, which no convolution does."
            )
        if module is not None:
            self.edits.put(name, lambda: as_map_norm(cast("nn.BatchNorm1d", self.edits.root.get_submodule(name))))
        return layout.on(self.again(node, layout.base))

    def layer_norm(self, node: fx.Node) -> Layout:
        """The same norm over the channels of each cell."""
        layout = self.input_of(node)
        if not channels_last_rows(layout) or _normalised(node, self.shadow) != (layout.size[0],):
            raise SurgeryError(
                f"{describe(node, self.shadow)} normalises over the places of a map, which slides with no convolution."
            )
        last = self.call(torch.permute, layout.base, (0, 2, 3, 1))
        return layout.on(self.call(torch.permute, self.again(node, last), (0, 3, 1, 2)))

    def softmax(self, node: fx.Node) -> Layout:
        """Softmax over the channels of each cell."""
        layout, module = self.input_of(node), module_of(node, self.shadow)
        dim = module.dim if isinstance(module, nn.Softmax | nn.LogSoftmax) else argument(node, 1, "dim")
        if not (layout.one_cell and layout.plain) or dim not in (1, -layout.index.dim()):
            return self.refuse(node)
        function = F.log_softmax if "log" in spelled(node, self.shadow) else F.softmax
        return layout.on(self.call(function, layout.base, dim=1))

    def conv1x1(self, node: fx.Node) -> Layout:
        """A 1x1 convolution that is one already."""
        layout = self.input_of(node)
        if layout.index.dim() != MAP - 1 or not layout.plain or layout.mix is not None:
            return self.refuse(node)
        channels = (shape_of(node) or ())[1]
        return of_maps(self.again(node, layout.base), (channels, *layout.size[1:]), dilation=layout.dilation)

    def linear(self, node: fx.Node) -> Layout:
        """A linear layer on flattened maps, as a convolution as large as the maps."""
        layout = self.input_of(node)
        if layout.index.dim() != 1:
            raise SurgeryError(
                f"{describe(node, self.shadow)} works on {layout.index.dim()} dimensions; 1 is accepted."
            )
        module, name = module_of(node, self.shadow), str(node.target)
        if module is None:
            name = self._owner(node)
            if not name:
                return self.kernel_of(node, layout, node.args[1:], node.kwargs)
        own = self.edits.root.get_submodule(name)
        if module is not None and (type(module).forward is not nn.Linear.forward or module._forward_pre_hooks):
            what = advice(own) or "it is a linear layer of its own kind: replace it"
            raise SurgeryError(f"{describe(node, self.shadow)} cannot become a convolution: {what} first.")
        shared = sharers(self.edits.root, own)
        if shared or is_parametrized(own) or self._times(name) > 1:
            why = f"shares memory with {', '.join(shared)}" if shared else "is worked out anew or used twice"
            self.edits.note(f"{name} {why}: it stays, and its weight is used as the kernel of a convolution.")
            read = [self.graph.get_attr(f"{name}.{each}") for each in ("weight", "bias")[: 1 + (own.bias is not None)]]
            return self.kernel_of(node, layout, read, {})
        self.edits.rounded |= layout.mix is not None
        self.edits.put(name, lambda: as_convolution(cast("nn.Linear", own), layout))
        made = self.graph.call_module(name, (layout.base,))
        return _logits(made, cast("nn.Linear", own).out_features)

    def _owner(self, node: fx.Node) -> str:
        """The linear layer of a library's own class whose forward only calls this function; empty where it is none."""
        weight = argument(node, 1, "weight")
        if not isinstance(weight, fx.Node) or weight.op != "get_attr" or len(weight.users) != 1:
            return ""
        name = str(weight.target).removesuffix(".weight")
        own = self.edits.root.get_submodule(name) if name != weight.target else None
        bias = argument(node, 2, "bias")
        held = f"{name}.bias" if isinstance(own, nn.Linear) and own.bias is not None else None
        same = (bias.target if isinstance(bias, fx.Node) else bias) == held
        return name if isinstance(own, nn.Linear) and same and not own._buffers and len(own._modules) == 0 else ""

    def _times(self, name: str) -> int:
        """How often the network calls a module."""
        return sum(str(node.target) == name for node in self.calls)

    def kernel_of(self, node: fx.Node, layout: Layout, args: Sequence[Any], kwargs: Any) -> Layout:
        """A convolution whose kernel is worked out from a linear layer's weight each time."""
        given = dict(zip(("weight", "bias"), args, strict=False)) | dict(kwargs)
        if layout.mix is not None or not layout.plain:
            return self.refuse(node)
        outs = (shape_of(node) or ())[-1]
        self.edits.places.add(describe(node, self.shadow))
        kernel = self.call(torch.reshape, given["weight"], (outs, *layout.size))
        made = self.call(F.conv2d, layout.base, kernel, given.get("bias"), dilation=layout.dilation)
        return _logits(made, outs)


def _logits(base: fx.Node, count: int) -> Layout:
    """What a linear layer makes, as maps of one cell."""
    return Layout(base, (count, 1, 1), torch.arange(count))


def _normalised(node: fx.Node, root: nn.Module) -> tuple[int, ...]:
    """The shape over which a layer norm normalises."""
    module = module_of(node, root)
    return (
        tuple(module.normalized_shape)
        if isinstance(module, nn.LayerNorm)
        else tuple(argument(node, 1, "normalized_shape"))
    )
