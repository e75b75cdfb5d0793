"""Rewrite a head step by step on feature maps instead of flattened features."""

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
from mlpconv.surgery.heads.rows import StepTest, cells_of, rows_of
from mlpconv.surgery.tracing.graph import module_of, shape_of
from mlpconv.surgery.tracing.ops import MAP, Kind, argument_of, describe, op_kind, op_name
from mlpconv.surgery.tracing.tracer import drop_shape_queries

__all__ = ["Rewriter"]

CHANNELS_LAST = ([1, 2], (1, 2))
"""Dimensions of rows and columns in (N, H, W, C)."""


class Rewriter(LinearSteps, ABC):
    """Rewrite the head of one graph; subclasses define how pools and outputs are rewritten."""

    all_outputs = True
    """Whether to rewrite every output of the head instead of the logits only."""

    def run(self) -> None:
        """Rewrite every step of the head and the network's outputs."""
        for node in self.head.steps:
            with self.graph.inserting_before(node):
                self.layouts[node] = self._step_or_explain(node)
        self.check_outside()
        for node in self.head.outputs:
            self.end(node)
        for node in drop_shape_queries(self.graph, set(self.head.steps)):
            if node in self.layouts and isinstance(module_of(node, self.shadow), nn.Flatten | nn.Unflatten):
                self.retire(node, nn.Identity)

    def _step_or_explain(self, node: fx.Node) -> Layout:
        """Rewrite one step; on failure, name an earlier step that works on tokens as the cause."""
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
            "elementwise": self.elementwise,
            "dropout": self.dropout,
            "feature": self.channel_dropout,
            "linear": self.linear,
            "pool": self.pool_or_reduction,
            "conv1x1": self.conv1x1,
            "batch_norm": self.batch_norm,
            "layer_norm": self.layer_norm,
            "softmax": self.softmax,
            "join": self.join,
        }
        return handlers.get(op_kind(node, self.shadow), self.on_rows)(node)

    # ---- to be defined by subclasses

    @abstractmethod
    def pool(self, node: fx.Node) -> Layout:
        """Rewrite a pool."""

    @abstractmethod
    def end(self, node: fx.Node) -> None:
        """Rewrite the network output at this node."""

    def check_outside(self) -> None:
        """Raise SurgeryError if head features are fed back into feature maps, whose size differs from the logit map."""
        for node, users in self.head.outside.items():
            raise SurgeryError(
                f"{describe(users[0], self.shadow)} feeds the result of {describe(node, self.shadow)} back into "
                "feature maps, whose size differs from the map of logits."
            )

    # ---- steps

    def move(self, node: fx.Node) -> Layout:
        """Rewrite a step that only rearranges elements."""
        layouts = move_layout(self.input_of(node), node, self.shadow)
        if not isinstance(node.meta["val"], Tensor):
            self.parts[node] = layouts
        return layouts[0]

    def part(self, node: fx.Node) -> Layout:
        """Select one or several of the tensors that a step returned."""
        source, key = node.all_input_nodes[0], node.args[1]
        value = source.meta["val"]
        if isinstance(key, str):  # the values or indices of a maximum
            key = next(index for index, tensor in enumerate(value) if tensor is getattr(value, key))
        if isinstance(key, slice):
            self.parts[node] = self.parts[source][key]
        layout = self.parts[node][0] if node in self.parts else self.parts[source][cast("int", key)]
        if layout is None:
            raise SurgeryError(f"{describe(node, self.shadow)} reads the indices of a maximum, which is not supported.")
        return layout

    def on_rows(self, node: fx.Node) -> Layout:
        """Apply a step on rows (N, C) at every cell, treating cells as images of the batch."""
        layouts = [self.layouts[source] for source in self.inputs_of(node)]
        if not layouts or not all(layout.one_cell and layout.mix is None for layout in layouts):
            return self.refuse(node)
        if not self.trial(node).is_per_image():
            raise SurgeryError(
                f"{describe(node, self.shadow)} mixes the images of a batch, depends on the batch size or is random, "
                "so it cannot be applied to each cell of feature maps."
            )
        if node.op != "call_module":
            self.edits.places.add(describe(node, self.shadow))
        layouts = [self.compact(layout) for layout in layouts]
        rows = [self.call(rows_of, layout.base, tuple(layout.index.shape)) for layout in layouts]
        result, value = self.copy_step(node, *rows), node.meta["val"]
        if isinstance(value, Tensor):
            return self._cells(result, value, layouts[0])
        parts = [self.call(operator.getitem, result, index) for index in range(len(value))]
        cells = tuple(self._cells(part, tensor, layouts[0]) for part, tensor in zip(parts, value, strict=True))
        self.parts[node] = cells
        return cells[0]

    def _cells(self, rows: fx.Node, value: Tensor, like: Layout) -> Layout:
        """Return per-cell results as maps."""
        cells = self.call(cells_of, rows, like.base)
        return like.renumbered(cells, value.shape[1:].numel(), tuple(value.shape[1:]))

    def trial(self, node: fx.Node) -> StepTest:
        """Return a numerical test of the step on random rows."""
        shapes = {source: tuple(self.layouts[source].index.shape) for source in self.inputs_of(node)}
        return StepTest(node, shapes, self.edits.root, self.shadow)

    def pool_or_reduction(self, node: fx.Node) -> Layout:
        """Rewrite a pool, or a sum, mean or maximum over the channels of one cell."""
        layout = self.input_of(node)
        if layout.one_cell and not pools_cells(node, layout, self.shadow):
            return self.on_rows(node)
        return self.pool(node)

    def maps_of(self, node: fx.Node) -> Layout:
        """Return the maps that a pool works on; permute channels-last maps (N, H, W, C) to (N, C, H, W)."""
        layout = self.input_of(node)
        channels_last = op_name(node, self.shadow) == "mean" and argument_of(node, 1, "dim") in CHANNELS_LAST
        if not (channels_last and layout.plain and layout.index.dim() == MAP - 1):
            return layout
        height, width, channels = layout.size
        base = self.call(torch.permute, layout.base, (0, 3, 1, 2))
        maps = layout_of_maps(base, (channels, height, width))
        return replace(maps, index=maps.index.permute(1, 2, 0))

    def elementwise(self, node: fx.Node) -> Layout:
        """Apply an elementwise step to the maps."""
        return self._elementwise(node, self.input_of(node))

    def _elementwise(self, node: fx.Node, layout: Layout) -> Layout:
        if layout.mix is not None and op_name(node, self.shadow) not in ("identity", "to", "clone"):
            layout = self._window_channels(layout)
        return layout.on(self.copy_step(node, layout.base))

    def _window_channels(self, layout: Layout) -> Layout:
        """Compute the averages of uneven windows as channels of one cell, before a step that needs their values."""
        channels, rows, columns = layout.size
        size = tuple(layout.base.meta["val"].shape[2:])
        base = self.call(window_averages, layout.base, size, (rows, columns))
        return Layout(base, (channels * rows * columns, 1, 1), layout.index)

    def dropout(self, node: fx.Node) -> Layout:
        """Apply elementwise dropout in the element order of the original, so that the random numbers match."""
        return self._elementwise(node, self.compact(self.input_of(node)))

    def channel_dropout(self, node: fx.Node) -> Layout:
        """Apply channel dropout to the maps."""
        layout = self.input_of(node)
        if layout.index.dim() != MAP - 1 or not layout.plain:
            self.refuse(node)
        return self.elementwise(node)

    def join(self, node: fx.Node) -> Layout:
        """Add, multiply or concatenate several tensors of the head."""
        layouts = [self.layouts[source] for source in self.inputs_of(node)]
        if not layouts:
            return self.refuse(node)
        if len(layouts) != len(node.all_input_nodes):
            return self.with_parameter(node)
        first = layouts[0]
        if any(layout.mix is not None for layout in layouts):
            return self.refuse(node)
        if any((layout.size[1:], layout.dilation) != (first.size[1:], first.dilation) for layout in layouts):
            return self.refuse(node)
        bases = [layout.base for layout in layouts]
        if op_name(node, self.shadow) not in ("cat", "concat"):
            if not all(layout.size == first.size and torch.equal(layout.index, first.index) for layout in layouts):
                return self.on_rows(node)
            return first.on(self.copy_step(node, *bases))
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        if dim not in (1, -first.index.dim()):
            return self.refuse(node)
        counts = [torch.Size(layout.size).numel() for layout in layouts]
        offsets = [sum(counts[:position]) for position in range(len(counts))]
        index = torch.cat([layout.index + offset for layout, offset in zip(layouts, offsets, strict=True)])
        size = (sum(layout.size[0] for layout in layouts), *first.size[1:])
        return replace(first, base=self.call(torch.cat, bases, 1), size=size, index=index)

    def with_parameter(self, node: fx.Node) -> Layout:
        """Combine a tensor with a parameter or buffer, such as a learned temperature."""
        inputs = self.inputs_of(node)
        layout, parameters = self.layouts[inputs[0]], set(node.all_input_nodes) - set(inputs)
        scalar = all(shape_of(parameter) in ((), (1,)) for parameter in parameters)
        if len(inputs) != 1 or not scalar:
            return self.on_rows(node)
        layout = layout if layout.mix is None else self._window_channels(layout)
        return layout.on(self.copy_step(node, layout.base))

    def batch_norm(self, node: fx.Node) -> Layout:
        """Apply batch norm to the maps."""
        layout, name = self.compact(self.input_of(node)), str(node.target)
        module = module_of(node, self.shadow)
        if layout.plain and layout.index.dim() == MAP - 1 and layout.mix is None:
            return layout.on(self.copy_step(node, layout.base))
        if not (layout.one_cell and layout.plain):
            raise SurgeryError(
                f"{describe(node, self.shadow)} normalises {torch.Size(layout.size).numel()} flattened features "
                "separately, which cannot slide over larger maps."
            )
        if module is not None:
            self.edits.put(name, lambda: as_map_norm(cast("nn.BatchNorm1d", self.edits.root.get_submodule(name))))
        return layout.on(self.copy_step(node, layout.base))

    def layer_norm(self, node: fx.Node) -> Layout:
        """Apply layer norm over the channels of each cell."""
        layout = self.compact(self.input_of(node))
        if layout.one_cell and layout.index.dim() > 1 and not channels_last_rows(layout):
            return self.on_rows(node)
        if not channels_last_rows(layout) or _normalised(node, self.shadow) != (layout.size[0],):
            raise SurgeryError(
                f"{describe(node, self.shadow)} normalises over the cells of a map, which cannot slide over larger "
                "ones."
            )
        last = self.call(torch.permute, layout.base, (0, 2, 3, 1))
        return layout.on(self.call(torch.permute, self.copy_step(node, last), (0, 3, 1, 2)))

    def softmax(self, node: fx.Node) -> Layout:
        """Apply softmax over the channels of each cell."""
        layout, module = self.input_of(node), module_of(node, self.shadow)
        dim = module.dim if isinstance(module, nn.Softmax | nn.LogSoftmax) else argument_of(node, 1, "dim")
        if not (layout.one_cell and layout.plain) or dim not in (1, -layout.index.dim()):
            return self.on_rows(node)
        function = F.log_softmax if "log" in op_name(node, self.shadow) else F.softmax
        return layout.on(self.call(function, layout.base, dim=1))


def _normalised(node: fx.Node, root: nn.Module) -> tuple[int, ...]:
    """Return the `normalized_shape` of a layer norm."""
    module = module_of(node, root)
    if isinstance(module, nn.LayerNorm):
        return tuple(module.normalized_shape)
    return tuple(argument_of(node, 1, "normalized_shape"))
