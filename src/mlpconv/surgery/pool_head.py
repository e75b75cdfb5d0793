"""Pool and linear layer as 1x1 convolution and pool: the same logits, and before them a map for each class.

A linear layer of averages is the average of a linear layer (Lin, Chen, Yan, arXiv 1312.4400, section 3.2; Zhou et al.,
arXiv 1512.04150, section 2), so the maps are exact: no gradients, no choice of layer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.dense import Rewriter
from mlpconv.surgery.edits import Edits
from mlpconv.surgery.graph import module_of, shape_of
from mlpconv.surgery.head import Head
from mlpconv.surgery.layout import Layout
from mlpconv.surgery.operate import operate
from mlpconv.surgery.pools import pool_of
from mlpconv.surgery.proof import prove
from mlpconv.surgery.result import Surgery, report_on
from mlpconv.surgery.spelling import ARITHMETIC, argument, describe, kind_of, spelled

__all__ = ["pool_head"]

LINEAR = ("shape", "linear", "conv1x1", "pool", "dropout", "feature", "join")
AFFINE = ARITHMETIC - {"maximum", "minimum"} | {"identity", "to", "clone", "contiguous"}
"""Steps that an average does not notice: moving elements, weighted sums, sums and products with a number."""


def pool_head(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    images: Tensor | None = None,
    latency: bool = True,
) -> Surgery:
    """Turn a global average pool and a linear layer into a 1x1 convolution and the pool.

    The new network returns the same logits (N, K) for images (N, C, H, W) of any size that the original takes. Its
    `category_maps(x)` are (N, K, h, w): how much each place adds to each class; their spatial mean is the logits.
    Dropout between pool and linear layer becomes dropout of whole channels before the 1x1, which is the same.

    `images` (N, C, H, W), where given, are compared beside random ones; `latency=False` leaves out the stopwatch.
    The original is untouched. Raises SurgeryError for a head that is not linear from the pool on, with the step that is
    not, or that has no global average pool.
    """
    original, changed, edits = operate(model, input_shape, _MapsFirst)
    proof = prove(original, changed, input_shape, images)
    notes = list(edits.notes)
    if not edits.names:
        notes.append("No linear layer follows the pool: its logits are averages of maps already, which are given.")
    report = report_on(
        "pool_head", original, changed, input_shape, proof,
        names=edits.names, latency=latency, notes=notes,
    )  # fmt: skip
    return Surgery(changed, report)


class _MapsFirst(Rewriter):
    """All linear steps of the head before its pool; from the first other step on, the original's steps."""

    def __init__(self, graph: fx.Graph, head: Head, shadow: nn.Module, edits: Edits) -> None:
        super().__init__(graph, head, shadow, edits)
        self.settled: dict[fx.Node, str] = {}
        """Steps that stay after the pool, each with the first of them on its path."""
        self.before: dict[fx.Node, fx.Node] = {}
        """The maps that are averaged for such a step."""

    def step(self, node: fx.Node) -> Layout:
        """A linear step goes before the pool; another puts the pool in its place."""
        kind, inputs = kind_of(node, self.shadow), [each for each in node.all_input_nodes if each in self.layouts]
        if not inputs:
            return self.refuse(node)
        settled = [each for each in inputs if each in self.settled]
        linear = kind in LINEAR or spelled(node, self.shadow) in AFFINE
        if not settled and (linear or not all(self.layouts[each].pending for each in inputs)):
            return super().step(node)
        first = self.settled[settled[0]] if settled else describe(node, self.shadow)
        if settled and kind in ("linear", "conv1x1"):
            raise SurgeryError(
                f"{first} stands between the pool and {describe(node, self.shadow)} and is not linear, so no average "
                "of maps gives the logits. For such heads there is convolutionalize."
            )
        if kind == "batch_norm":
            raise SurgeryError(
                f"{first} normalises the pooled numbers, in training over their batch, which no step before the pool "
                "does: fold the network first, which takes the norm into a linear layer beside it, or take "
                "convolutionalize."
            )
        for each in inputs:
            if each not in self.settled:
                node.replace_input_with(each, self._settle(each))
        self.settled[node] = first
        self.before[node] = next(self.before[each] for each in inputs)
        return replace(self.layouts[inputs[0]], base=node, pending=None)

    def _settle(self, node: fx.Node) -> fx.Node:
        """What the original has at this node, from the maps by way of the pool."""
        layout = self.layouts[node]
        if layout.pending is None or not (layout.one_cell and layout.plain):
            raise SurgeryError(f"{describe(node, self.shadow)} is not made by a global average pool and linear steps.")
        self.before[node] = layout.base
        if spelled(layout.pending, self.shadow) == "mean":
            pooled = self.call(torch.mean, layout.base, (2, 3))
        else:
            maps = layout.pending.all_input_nodes[0]
            pooled = self.graph.node_copy(layout.pending, lambda each: layout.base if each is maps else each)
        return self.call(torch.reshape, pooled, (-1, *layout.index.shape))

    def pool(self, node: fx.Node) -> Layout:
        """The pool waits until the last linear step is done."""
        layout = self.maps_of(node)
        pool, partial = pool_of(node, layout, self.shadow), spelled(node, self.shadow) == "mean"
        if not pool.mean or not (pool.is_global or partial):
            what = "averages" if pool.mean else "takes the maximum of"
            before, after = ("x".join(map(str, sides)) for sides in (pool.size, pool.out))
            raise SurgeryError(
                f"{describe(node, self.shadow)} {what} {before} cells to {after}; a global average is accepted. "
                "For other heads there is convolutionalize."
            )
        if layout.pending is not None and not (partial and spelled(layout.pending, self.shadow) == "mean"):
            raise SurgeryError(f"{describe(node, self.shadow)} pools for the second time.")
        return replace(layout, size=(layout.size[0], *pool.out), index=pool.index, pending=node)

    def linear(self, node: fx.Node) -> Layout:
        """A linear layer on averages, as a 1x1 convolution on maps."""
        return replace(super().linear(node), pending=self._waiting(node))

    def conv1x1(self, node: fx.Node) -> Layout:
        """A 1x1 convolution of averages, on maps."""
        return replace(super().conv1x1(node), pending=self._waiting(node))

    def _waiting(self, node: fx.Node) -> fx.Node:
        """The pool that waits for a linear step; SurgeryError where there is none."""
        layout = self.input_of(node)
        if layout.pending is None or not layout.one_cell:
            raise SurgeryError(
                f"{describe(node, self.shadow)} works on flattened maps of {layout.size[1]}x{layout.size[2]} cells and "
                "not on their average. For such heads there is convolutionalize."
            )
        return layout.pending

    def dropout(self, node: fx.Node) -> Layout:
        """Dropout of averages is dropout of whole channels before averaging, with the same random numbers."""
        layout = self.input_of(node)
        module: Any = module_of(node, self.shadow)
        if layout.pending is None or spelled(node, self.shadow) != "dropout":
            return self.refuse(node)
        if module is None:
            p, training = argument(node, 1, "p"), argument(node, 2, "training")
            options = {"p": 0.5 if p is None else p, "training": True if training is None else training}
            return layout.on(self.call(F.dropout2d, layout.base, **options))
        if self.retire(node, lambda: nn.Dropout2d(module.p)):
            return layout.on(self.graph.call_module(str(node.target), (layout.base,)))
        raise SurgeryError(f"{describe(node, self.shadow)} stands in the head and is used elsewhere as well.")

    def join(self, node: fx.Node) -> Layout:
        """A sum or concatenation of averages, of maps of one size."""
        pools = [self.layouts[each].pending for each in node.all_input_nodes if each in self.layouts]
        sizes = {(shape_of(pool.all_input_nodes[0]) or ())[2:] for pool in pools if pool is not None}
        if len(sizes) != 1 or None in pools:
            return self.refuse(node)
        return super().join(node)

    def end(self, node: fx.Node) -> None:
        """The logits, by way of the pool where it still waits."""
        if node in self.settled:
            self.edits.note(f"The mean of the category maps is what enters {self.settled[node]}.")
        else:
            with self.graph.inserting_before(node):
                self.give(node, self._settle(node))
        self.maps.append(self.before[node])
