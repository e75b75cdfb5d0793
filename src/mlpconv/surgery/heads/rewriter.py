"""A head step by step as convolutions: what was flattened stays maps."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.heads.find import token_reason
from mlpconv.surgery.heads.layout import Layout, channels_last_rows, layout_of_maps, move_layout
from mlpconv.surgery.heads.linear_steps import LinearSteps
from mlpconv.surgery.heads.modules import as_map_norm
from mlpconv.surgery.heads.pools import pools_cells, window_averages
from mlpconv.surgery.heads.rows import Trial, cells_of, rows_of
from mlpconv.surgery.tracing.graph import module_of, shape_of
from mlpconv.surgery.tracing.ops import MAP, Kind, argument_of, describe, op_kind, op_name
from mlpconv.surgery.tracing.tracer import drop_shape_queries

__all__ = ["Rewriter"]

CHANNELS_LAST = ([1, 2], (1, 2))
"""Dimensions of rows and columns in (N, H, W, C)."""


class Rewriter(LinearSteps, ABC):
    """Rewrites the head of one graph; a subclass says what pools and the outputs become."""

    whole = True
    """Whether every output of the head is rewritten, and not the logits alone."""

    def run(self) -> None:
        """Rewrite every step of the head, and what the network returns of it."""
        for node in self.head.steps:
            with self.graph.inserting_before(node):
                self.layouts[node] = self._stepped(node)
        self.check_outside()
        for node in self.head.outputs:
            self.end(node)
        for node in drop_shape_queries(self.graph, set(self.head.steps)):
            if node in self.layouts and isinstance(module_of(node, self.shadow), nn.Flatten | nn.Unflatten):
                self.retire(node, nn.Identity)

    def _stepped(self, node: fx.Node) -> Layout:
        """One step rewritten; what cannot be is told by its cause where that lies further back."""
        try:
            return self.step(node)
        except SurgeryError as error:
            tokens = token_reason(self.head, self.shadow)
            if tokens:
                raise SurgeryError(tokens) from error
            raise

    def step(self, node: fx.Node) -> Layout:
        """Rewrite one step."""
        if node.all_input_nodes and node.all_input_nodes[0] in self.parts:
            return self.part(node)
        handlers: dict[Kind, Callable[[fx.Node], Layout]] = {
            "shape": self.move,
            "elementwise": self.each_cell,
            "dropout": self.dropout,
            "feature": self.whole_channels,
            "linear": self.linear,
            "pool": self.pool_or_row,
            "conv1x1": self.conv1x1,
            "batch_norm": self.batch_norm,
            "layer_norm": self.layer_norm,
            "softmax": self.softmax,
            "join": self.join,
        }
        return handlers.get(op_kind(node, self.shadow), self.on_rows)(node)

    # ---- what a subclass decides

    @abstractmethod
    def pool(self, node: fx.Node) -> Layout:
        """A pool of the head."""

    @abstractmethod
    def end(self, node: fx.Node) -> None:
        """Give back what the original returns at this node."""

    def check_outside(self) -> None:
        """Refuse a head whose numbers go back into maps, which have another size than maps of logits."""
        for node, users in self.head.outside.items():
            raise SurgeryError(
                f"{describe(users[0], self.shadow)} reads what {describe(node, self.shadow)} makes, and puts it into "
                "maps, which would be of another size than the map of logits."
            )

    # ---- steps

    def move(self, node: fx.Node) -> Layout:
        """A step that only moves elements."""
        layouts = move_layout(self.input_of(node), node, self.shadow)
        if not isinstance(node.meta["val"], Tensor):
            self.parts[node] = layouts
        return layouts[0]

    def part(self, node: fx.Node) -> Layout:
        """One of the tensors that a step made, or some of them."""
        source, key = node.all_input_nodes[0], node.args[1]
        value = source.meta["val"]
        if isinstance(key, str):  # the values or indices of a maximum
            key = next(place for place, each in enumerate(value) if each is getattr(value, key))
        if isinstance(key, slice):
            self.parts[node] = self.parts[source][key]
        layout = self.parts[node][0] if node in self.parts else self.parts[source][cast("int", key)]
        if layout is None:
            raise SurgeryError(f"{describe(node, self.shadow)} reads the places of maxima, which no pool gives.")
        return layout

    def on_rows(self, node: fx.Node) -> Layout:
        """A step on the numbers of one cell, whatever it is, on every cell as an image of its own."""
        inputs = self.inputs_of(node)
        layouts = [self.layouts[each] for each in inputs]
        if not layouts or not all(each.one_cell and each.mix is None for each in layouts):
            return self.refuse(node)
        if not self.trial(node).by_image():
            raise SurgeryError(
                f"{describe(node, self.shadow)} mixes the images of a batch, needs their number or draws at random, so "
                "it has no counterpart on the cells of maps."
            )
        if node.op != "call_module":
            self.edits.places.add(describe(node, self.shadow))
        bases = [self.compact(each) for each in layouts]
        rows = [self.call(rows_of, each.base, tuple(each.index.shape)) for each in bases]
        result, value = self.again(node, *rows), node.meta["val"]
        if isinstance(value, Tensor):
            return self._cells(result, value, bases[0])
        parts = [self.call(operator.getitem, result, place) for place in range(len(value))]
        cells = tuple(self._cells(part, each, bases[0]) for part, each in zip(parts, value, strict=True))
        self.parts[node] = cells
        return cells[0]

    def _cells(self, rows: fx.Node, value: Tensor, like: Layout) -> Layout:
        """What was made of every cell, as maps."""
        cells = self.call(cells_of, rows, like.base)
        return like.renumbered(cells, value.shape[1:].numel(), tuple(value.shape[1:]))

    def trial(self, node: fx.Node) -> Trial:
        """The step, to be tried on rows of random numbers."""
        shapes = {each: tuple(self.layouts[each].index.shape) for each in self.inputs_of(node)}
        return Trial(node, shapes, self.edits.root, self.shadow)

    def pool_or_row(self, node: fx.Node) -> Layout:
        """A pool; or a sum, mean or maximum of the numbers of one cell."""
        layout = self.input_of(node)
        if layout.one_cell and not pools_cells(node, layout, self.shadow):
            return self.on_rows(node)
        return self.pool(node)

    def maps_of(self, node: fx.Node) -> Layout:
        """The maps that a pool works on; (N, H, W, C) that it averages over H and W become (N, C, H, W)."""
        layout = self.input_of(node)
        last_first = op_name(node, self.shadow) == "mean" and argument_of(node, 1, "dim") in CHANNELS_LAST
        if not (last_first and layout.plain and layout.index.dim() == MAP - 1):
            return layout
        height, width, channels = layout.size
        base = self.call(torch.permute, layout.base, (0, 3, 1, 2))
        maps = layout_of_maps(base, (channels, height, width))
        return replace(maps, index=maps.index.permute(1, 2, 0))

    def each_cell(self, node: fx.Node) -> Layout:
        """A step on each number by itself."""
        return self._each(node, self.input_of(node))

    def _each(self, node: fx.Node, layout: Layout) -> Layout:
        """The same step on these maps."""
        if layout.mix is not None and op_name(node, self.shadow) not in ("identity", "to", "clone"):
            layout = self._spread(layout)
        return layout.on(self.again(node, layout.base))

    def _spread(self, layout: Layout) -> Layout:
        """The averages of uneven windows as channels of one cell, where something happens to them by themselves."""
        channels, rows, columns = layout.size
        size = tuple(layout.base.meta["val"].shape[2:])
        base = self.call(window_averages, layout.base, size, (rows, columns))
        return Layout(base, (channels * rows * columns, 1, 1), layout.index)

    def dropout(self, node: fx.Node) -> Layout:
        """Dropout of single numbers, in the order in which the original draws for them."""
        return self._each(node, self.compact(self.input_of(node)))

    def whole_channels(self, node: fx.Node) -> Layout:
        """Dropout of whole channels of maps."""
        layout = self.input_of(node)
        if layout.index.dim() != MAP - 1 or not layout.plain:
            self.refuse(node)
        return self.each_cell(node)

    def join(self, node: fx.Node) -> Layout:
        """A sum, product or concatenation of several tensors of the head."""
        inputs = [self.layouts[each] for each in self.inputs_of(node)]
        if not inputs:
            return self.refuse(node)
        if len(inputs) != len(node.all_input_nodes):
            return self.with_parameter(node)
        first = inputs[0]
        if any(each.mix is not None for each in inputs):
            return self.refuse(node)
        if any((each.size[1:], each.dilation) != (first.size[1:], first.dilation) for each in inputs):
            return self.refuse(node)
        bases = [each.base for each in inputs]
        if op_name(node, self.shadow) not in ("cat", "concat"):
            if not all(each.size == first.size and torch.equal(each.index, first.index) for each in inputs):
                return self.on_rows(node)
            return first.on(self.again(node, *bases))
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        if dim not in (1, -first.index.dim()):
            return self.refuse(node)
        sizes = [torch.Size(each.size).numel() for each in inputs]
        starts = [sum(sizes[:position]) for position in range(len(sizes))]
        index = torch.cat([each.index + start for each, start in zip(inputs, starts, strict=True)])
        size = (sum(each.size[0] for each in inputs), *first.size[1:])
        return replace(first, base=self.call(torch.cat, bases, 1), size=size, index=index)

    def with_parameter(self, node: fx.Node) -> Layout:
        """A sum, product or quotient with a parameter or buffer, such as a learned temperature."""
        layout, others = self.layouts[self.inputs_of(node)[0]], set(node.all_input_nodes) - set(self.inputs_of(node))
        single = all(shape_of(each) in ((), (1,)) for each in others)
        if len(self.inputs_of(node)) != 1 or not single:
            return self.on_rows(node)
        layout = layout if layout.mix is None else self._spread(layout)
        return layout.on(self.again(node, layout.base))

    def batch_norm(self, node: fx.Node) -> Layout:
        """The same norm over the cells of maps."""
        layout, name = self.compact(self.input_of(node)), str(node.target)
        module = module_of(node, self.shadow)
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
        layout = self.compact(self.input_of(node))
        if layout.one_cell and layout.index.dim() > 1 and not channels_last_rows(layout):
            return self.on_rows(node)
        if not channels_last_rows(layout) or _normalised(node, self.shadow) != (layout.size[0],):
            raise SurgeryError(
                f"{describe(node, self.shadow)} normalises over the places of a map, which slides with no convolution."
            )
        last = self.call(torch.permute, layout.base, (0, 2, 3, 1))
        return layout.on(self.call(torch.permute, self.again(node, last), (0, 3, 1, 2)))

    def softmax(self, node: fx.Node) -> Layout:
        """Softmax over the channels of each cell."""
        layout, module = self.input_of(node), module_of(node, self.shadow)
        dim = module.dim if isinstance(module, nn.Softmax | nn.LogSoftmax) else argument_of(node, 1, "dim")
        if not (layout.one_cell and layout.plain) or dim not in (1, -layout.index.dim()):
            return self.on_rows(node)
        function = F.log_softmax if "log" in op_name(node, self.shadow) else F.softmax
        return layout.on(self.call(function, layout.base, dim=1))


def _normalised(node: fx.Node, root: nn.Module) -> tuple[int, ...]:
    """The shape over which a layer norm normalises."""
    module = module_of(node, root)
    return (
        tuple(module.normalized_shape)
        if isinstance(module, nn.LayerNorm)
        else tuple(argument_of(node, 1, "normalized_shape"))
    )
