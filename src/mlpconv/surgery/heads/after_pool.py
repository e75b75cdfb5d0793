"""Keep steps that do not commute with an average, such as a softmax, after the pool."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.heads.find import Head
from mlpconv.surgery.heads.layout import Layout, move_layout
from mlpconv.surgery.heads.modules import ModuleEdits
from mlpconv.surgery.heads.pools import REDUCTIONS
from mlpconv.surgery.heads.rewriter import Rewriter
from mlpconv.surgery.tracing.graph import shape_of
from mlpconv.surgery.tracing.ops import ARITHMETIC, describe, op_kind, op_name

__all__ = ["AfterPool"]

KEEPS_CLASSES = ("elementwise", "layer_norm", "softmax", "dropout", "feature", "shape")
"""Steps after which each element still belongs to a known class."""
DIVISOR = 6
"""Index of `divisor_override` among the arguments of avg_pool2d."""


class AfterPool(Rewriter):
    """Insert the deferred pool before the first nonlinear step, and track the classes from there on."""

    all_outputs = False

    def __init__(self, graph: fx.Graph, head: Head, shadow: nn.Module, edits: ModuleEdits) -> None:
        super().__init__(graph, head, shadow, edits)
        self.settled: dict[fx.Node, str] = {}
        """Steps that stay after the pool, with the first nonlinear step on their path."""
        self.pooled_maps: dict[fx.Node, fx.Node] = {}
        """The maps that are pooled for such a step."""
        self.maxima: set[fx.Node] = set()
        """Max pools."""
        self.outside = head.outside

    def stay(self, node: fx.Node, inputs: list[fx.Node]) -> Layout:
        """Keep a nonlinear step, or a step after one, on the pooled features as in the original."""
        first = next((self.settled[source] for source in inputs if source in self.settled), "")
        first = first or self._nonlinear_step(node, inputs)
        self._check_norm(node, first)
        maps = {self.pooled_maps[node] if node in self.settled else self.layouts[node].base for node in inputs}
        if len(maps) > 1:
            raise SurgeryError(
                f"{describe(node, self.shadow)} combines features of several maps and is not linear, so no average of "
                "maps gives the logits. Use convolutionalize for this head."
            )
        layout = max((self.layouts[source] for source in inputs), key=lambda layout: layout.index.numel())
        index = self._index(node, layout, first)
        for source in inputs:
            if source not in self.settled:
                node.replace_input_with(source, self.settle(source, self.layouts[source]))
        self.settled[node], self.pooled_maps[node] = first, maps.pop()
        return replace(layout, base=node, index=index, pending=None)

    def _nonlinear_step(self, node: fx.Node, inputs: list[fx.Node]) -> str:
        """Return a description of the nonlinear step: this one, or the max pool before it."""
        pool = self.layouts[inputs[0]].pending
        return describe(pool if pool in self.maxima and pool is not None else node, self.shadow)

    def _check_norm(self, node: fx.Node, first: str) -> None:
        """Raise SurgeryError for a batch norm."""
        if op_kind(node, self.shadow) == "batch_norm":
            raise SurgeryError(
                f"{first} normalises the pooled features, in training over the batch, which has no equivalent before "
                "the pool: fold the network first, which merges the norm into the adjacent linear layer, or use "
                "convolutionalize."
            )

    def _index(self, node: fx.Node, layout: Layout, first: str) -> Tensor:
        """Return the map channel of each element after a nonlinear step."""
        kind, value, step = op_kind(node, self.shadow), node.meta["val"], describe(node, self.shadow)
        source = node.all_input_nodes[0]
        if source in self.parts:
            return self.part(node).index
        if kind == "shape":
            layouts = move_layout(layout, node, self.shadow)
            if not isinstance(value, Tensor):
                self.parts[node] = layouts
            return layouts[0].index
        if kind in KEEPS_CLASSES or (kind == "join" and op_name(node, self.shadow) in ARITHMETIC):
            return layout.index
        if isinstance(value, Tensor) and value.shape[1:].numel() == 1:
            return torch.zeros(value.shape[1:], dtype=torch.int64)  # one number for all classes, such as a sum
        if self.trial(node).is_equivariant():
            return layout.index
        if first == step:
            role = "works on the pooled features"
        elif self._is_max_pool(first):
            role = f"takes the maximum of each map before {step}"
        else:
            role = f"is between the pool and {step}"
        raise SurgeryError(
            f"{first} {role} and is not linear, so no average of maps gives the logits. Use convolutionalize for this "
            "head."
        )

    def _is_max_pool(self, step: str) -> bool:
        """Return whether the step with this description is a max pool."""
        return any(describe(pool, self.shadow) == step for pool in self.maxima)

    def settle(self, node: fx.Node, layout: Layout) -> fx.Node:
        """Insert the deferred pool and return the original's value at this node."""
        if layout.pending is None or not layout.one_cell:
            raise SurgeryError(
                f"{describe(node, self.shadow)} is not computed by a global average pool and linear steps."
            )
        pool, layout = layout.pending, self.compact(layout)
        if op_name(pool, self.shadow) in REDUCTIONS:
            pooled = self.call(torch.amax if pool in self.maxima else torch.mean, layout.base, (2, 3))
        else:
            maps = pool.all_input_nodes[0]
            pooled = self.graph.node_copy(pool, lambda source: layout.base if source is maps else source)
            pooled.args = pooled.args[:DIVISOR]
            pooled.kwargs = {key: value for key, value in pooled.kwargs.items() if key != "divisor_override"}
        return self.call(torch.reshape, pooled, (-1, *layout.index.shape))

    def nonlinear_inputs(self, node: fx.Node, layout: Layout) -> fx.Node:
        """Return the maps of the values that enter the first nonlinear step, one per class."""
        maps = self.pooled_maps[node]
        if layout.index.shape != (shape_of(node) or ())[1:] or not layout.has_each_once:
            raise SurgeryError(f"{describe(node, self.shadow)} does not return one number per class.")
        first = self.settled[node]
        if self._is_max_pool(first):
            self.edits.note("The output is computed from the maximum of each category map, not from its mean.")
        else:
            self.edits.note(f"The mean of the category maps is what enters {first}.")
        return self.compact(replace(layout, base=maps)).base
