"""Steps that stay behind a pool, since an average of maps would notice them: a softmax, say."""

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

KEEPS = ("elementwise", "layer_norm", "softmax", "dropout", "feature", "shape")
"""Steps after which the places of a row are the classes that they were, or known ones of them."""
DIVISOR = 6
"""Place of `divisor_override` among the arguments of avg_pool2d."""


class AfterPool(Rewriter):
    """The pool that waits, put in where a step needs its numbers, and what is known of them from there on."""

    whole = False

    def __init__(self, graph: fx.Graph, head: Head, shadow: nn.Module, edits: ModuleEdits) -> None:
        super().__init__(graph, head, shadow, edits)
        self.settled: dict[fx.Node, str] = {}
        """Steps that stay after the pool, each with the first of them on its path."""
        self.before: dict[fx.Node, fx.Node] = {}
        """The maps that are pooled for such a step."""
        self.maxima: set[fx.Node] = set()
        """Pools that take maxima."""
        self.outside = head.outside

    def stay(self, node: fx.Node, inputs: list[fx.Node]) -> Layout:
        """A step that is not linear, or behind one: as in the original, on pooled numbers."""
        first = next((self.settled[each] for each in inputs if each in self.settled), "") or self._bend(node, inputs)
        self._check_norm(node, first)
        maps = {self.before[each] if each in self.settled else self.layouts[each].base for each in inputs}
        if len(maps) > 1:
            raise SurgeryError(
                f"{describe(node, self.shadow)} joins the numbers of several maps and is not linear, so no average of "
                "maps gives the logits. For such heads there is convolutionalize."
            )
        layout = max((self.layouts[each] for each in inputs), key=lambda each: each.index.numel())
        index = self._index(node, layout, first)
        for each in inputs:
            if each not in self.settled:
                node.replace_input_with(each, self.settle(each, self.layouts[each]))
        self.settled[node], self.before[node] = first, maps.pop()
        return replace(layout, base=node, index=index, pending=None)

    def _bend(self, node: fx.Node, inputs: list[fx.Node]) -> str:
        """What is not linear: this step, or the pool before it."""
        pool = self.layouts[inputs[0]].pending
        return describe(pool if pool in self.maxima and pool is not None else node, self.shadow)

    def _check_norm(self, node: fx.Node, first: str) -> None:
        """Refuse a norm over the batch."""
        if op_kind(node, self.shadow) == "batch_norm":
            raise SurgeryError(
                f"{first} normalises the pooled numbers, in training over their batch, which no step before the pool "
                "does: fold the network first, which takes the norm into a linear layer beside it, or take "
                "convolutionalize."
            )

    def _index(self, node: fx.Node, layout: Layout, first: str) -> Tensor:
        """Which channel of the maps each number belongs to after a step that is not linear."""
        kind, value, here = op_kind(node, self.shadow), node.meta["val"], describe(node, self.shadow)
        source = node.all_input_nodes[0]
        if source in self.parts:
            return self.part(node).index
        if kind == "shape":
            layouts = move_layout(layout, node, self.shadow)
            if not isinstance(value, Tensor):
                self.parts[node] = layouts
            return layouts[0].index
        if kind in KEEPS or (kind == "join" and op_name(node, self.shadow) in ARITHMETIC):
            return layout.index
        if isinstance(value, Tensor) and value.shape[1:].numel() == 1:
            return torch.zeros(value.shape[1:], dtype=torch.int64)  # one number of all classes: a sum, or a norm
        if self.trial(node).keeps_places():
            return layout.index
        if first == here:
            what = "works on the pooled numbers"
        elif self._is_maximum(first):
            what = f"takes the maximum of each map before {here}"
        else:
            what = f"stands between the pool and {here}"
        raise SurgeryError(
            f"{first} {what} and is not linear, so no average of maps gives the logits. For such heads there is "
            "convolutionalize."
        )

    def _is_maximum(self, step: str) -> bool:
        """Whether a step of this description is a pool that takes maxima."""
        return any(describe(pool, self.shadow) == step for pool in self.maxima)

    def settle(self, node: fx.Node, layout: Layout) -> fx.Node:
        """What the original has at this node, from the maps by way of the pool."""
        if layout.pending is None or not layout.one_cell:
            raise SurgeryError(f"{describe(node, self.shadow)} is not made by a global average pool and linear steps.")
        pool, layout = layout.pending, self.compact(layout)
        if op_name(pool, self.shadow) in REDUCTIONS:
            pooled = self.call(torch.amax if pool in self.maxima else torch.mean, layout.base, (2, 3))
        else:
            maps = pool.all_input_nodes[0]
            pooled = self.graph.node_copy(pool, lambda each: layout.base if each is maps else each)
            pooled.args = pooled.args[:DIVISOR]
            pooled.kwargs = {key: value for key, value in pooled.kwargs.items() if key != "divisor_override"}
        return self.call(torch.reshape, pooled, (-1, *layout.index.shape))

    def entered(self, node: fx.Node, layout: Layout) -> fx.Node:
        """The maps of what enters the first step that is not linear, for each logit that is made of them."""
        maps = self.before[node]
        if layout.index.shape != (shape_of(node) or ())[1:] or not layout.has_each_once:
            raise SurgeryError(f"{describe(node, self.shadow)} does not give a number for each of the classes.")
        first = self.settled[node]
        if self._is_maximum(first):
            self.edits.note("The output is made of the maximum of each category map, not of its mean.")
        else:
            self.edits.note(f"The mean of the category maps is what enters {first}.")
        return self.compact(replace(layout, base=maps)).base
