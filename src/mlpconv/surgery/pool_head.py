"""Pool and linear layer as 1x1 convolution and pool: the same logits, and before them a map for each class.

A linear layer of averages is the average of a linear layer (Lin, Chen, Yan, arXiv 1312.4400, section 3.2; Zhou et al.,
arXiv 1512.04150, section 2), so the maps are exact: no gradients, no choice of layer.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.heads.after_pool import AfterPool
from mlpconv.surgery.heads.layout import Layout
from mlpconv.surgery.heads.pools import REDUCTIONS, Pool, pool_of, times_cells, windows_of
from mlpconv.surgery.heads.rewrite import rewrite_head
from mlpconv.surgery.proof.prove import prove
from mlpconv.surgery.report import Surgery, make_report
from mlpconv.surgery.tracing.graph import module_of, shape_of
from mlpconv.surgery.tracing.ops import ARITHMETIC, argument_of, describe, op_kind, op_name

__all__ = ["pool_head"]

LINEAR = ("shape", "linear", "conv1x1", "pool", "dropout", "feature")
UNBENT = frozenset({
    "identity", "to", "type", "type_as", "float", "double", "half", "clone", "contiguous", "detach", "neg",
})  # fmt: skip
"""Steps on each number by itself that an average does not notice."""
SUMS = frozenset({"add", "sub", "cat", "concat"})
"""Steps on several tensors that an average does not notice."""
BENT = ("batch_norm", "layer_norm", "softmax")
"""Steps that are not linear, whatever their parameters."""


def pool_head(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    images: Tensor | None = None,
    latency: bool = True,
    output: int | str | None = None,
) -> Surgery:
    """Turn a global average pool and a linear layer into a 1x1 convolution and the pool.

    The new network returns the same logits (N, K) for images (N, C, H, W) of any size that the original takes. Its
    `category_maps(x)` are (N, K, h, w): how much each place adds to each class; their spatial mean is the logits (their
    maximum, where the network takes maxima of maps, as the report then says). Dropout between pool and linear layer
    becomes dropout of whole channels before the 1x1, which is the same.

    `images` (N, C, H, W), where given, are compared beside random ones; `latency=False` leaves out the stopwatch.
    Of a network that returns several tensors, `output` names the logits: a key, a name or a place.
    The original is untouched. Raises SurgeryError for a head that is not linear from the pool on, with the step that is
    not, or that has no global average pool; UsageError for an unknown output.
    """
    original, changed, edits = rewrite_head(model, input_shape, _MapsFirst, output)
    proof = prove(original, changed, input_shape, images)
    notes = list(edits.notes)
    if not edits.names:
        notes.append("No linear layer follows the pool: its logits are averages of maps already, which are given.")
    report = make_report(
        "pool_head", original, changed, input_shape, proof,
        names=edits.names, latency=latency, notes=notes, details={"output": edits.output},
    )  # fmt: skip
    return Surgery(changed, report)


class _MapsFirst(AfterPool):
    """All linear steps of the head before its pool; from the first other step on, the original's steps."""

    def check_outside(self) -> None:
        """The pooled numbers may go elsewhere: they are what they were."""

    def step(self, node: fx.Node) -> Layout:
        """A linear step goes before the pool; another puts the pool in its place."""
        inputs = self.inputs_of(node)
        if not inputs:
            return self.refuse(node)
        if any(each in self.settled for each in inputs) or not self._goes_before(node, inputs):
            return self.stay(node, inputs)
        layout = super().step(node)
        if layout.pending is not None:
            for user in self.outside.get(node, ()):
                self._feed(user, node, layout)
        return layout

    def _feed(self, user: fx.Node, node: fx.Node, layout: Layout) -> None:
        """Let a step outside the head read what the original has at this node."""
        if node not in self.parts:
            user.replace_input_with(node, self.settle(node, layout))
            return
        user.replace_all_uses_with(self.settle(user, self.part(user)))
        self.graph.erase_node(user)

    def _goes_before(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        """Whether a step may be done on maps: where no pool waits yet, or where an average does not notice."""
        pools = [self.layouts[each].pending for each in inputs]
        kind, name = op_kind(node, self.shadow), op_name(node, self.shadow)
        if not all(pools):
            return True
        if any(pool in self.maxima for pool in pools):
            return kind in ("shape", "pool") or name == "identity"
        if kind in LINEAR or name in UNBENT or (kind == "join" and name in SUMS):
            return True
        may = name in ARITHMETIC if kind == "elementwise" else kind not in BENT
        return may and self.trial(node).affine()

    def pool(self, node: fx.Node) -> Layout:
        """The pool waits until the last linear step is done."""
        layout = self.maps_of(node)
        pool, partial = pool_of(node, layout, self.shadow), op_name(node, self.shadow) in REDUCTIONS
        self._check_pool(node, pool, partial)
        waiting = layout.pending
        if waiting is not None and not (
            partial and op_name(waiting, self.shadow) in REDUCTIONS and pool.mean is (waiting not in self.maxima)
        ):
            raise SurgeryError(f"{describe(node, self.shadow)} pools for the second time.")
        if not pool.mean:
            self.maxima.add(node)
        if windows_of(node, self.shadow) is not None:
            self.edits.note(
                f"{describe(node, self.shadow)} pools windows of {pool.size[0]}x{pool.size[1]} cells: on images of "
                "another size the category maps are pooled in part, or not to one cell."
            )
        base = layout.base if pool.divisor is None else self._summed(node, layout.base, pool, again=waiting is not None)
        result = replace(layout, base=base, size=(layout.size[0], *pool.out), index=pool.index, pending=node)
        if not isinstance(node.meta["val"], Tensor):
            self.parts[node] = (result, None)
        return result

    def _check_pool(self, node: fx.Node, pool: Pool, partial: bool) -> None:
        """Refuse a pool that is not global."""
        if pool.is_global or partial:
            return
        what = "averages" if pool.mean else "takes the maximum of"
        before, after = ("x".join(map(str, sides)) for sides in (pool.size, pool.out))
        windows = " by windows of a fixed size" if pool.out == (1, 1) else ""
        raise SurgeryError(
            f"{describe(node, self.shadow)} {what} {before} cells to {after}{windows}; a global average is accepted. "
            "For other heads there is convolutionalize."
        )

    def _summed(self, node: fx.Node, base: fx.Node, pool: Pool, *, again: bool) -> fx.Node:
        """Maps whose average is the sum of these, or the sum divided by a number of the pool's own."""
        here = describe(node, self.shadow)
        if op_name(node, self.shadow) in REDUCTIONS:
            if 1 in pool.size and not again:
                raise SurgeryError(f"{here} sums maps of {pool.size[0]}x{pool.size[1]} cells: give larger images.")
            return self.call(times_cells, base, *(out < size for out, size in zip(pool.out, pool.size, strict=True)))
        module: Any = module_of(node, self.shadow)
        if module is not None and not self.retire(node, lambda: nn.AvgPool2d(module.kernel_size, module.stride)):
            raise SurgeryError(f"{here} divides by {pool.divisor} and is used elsewhere as well.")
        return self.call(operator.mul, base, pool.size[0] * pool.size[1] / (pool.divisor or 1))

    def on_rows(self, node: fx.Node) -> Layout:
        """A weighted sum of averages, spelled in whatever way, at each cell of maps."""
        if not self._of_one_size(node):
            return self.refuse(node)
        return super().on_rows(node)

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
        layout = self.compact(self.input_of(node))
        module: Any = module_of(node, self.shadow)
        if layout.pending is None or op_name(node, self.shadow) != "dropout":
            return self.refuse(node)
        if module is None:
            p, training = argument_of(node, 1, "p"), argument_of(node, 2, "training")
            options = {"p": 0.5 if p is None else p, "training": True if training is None else training}
            return layout.on(self.call(F.dropout2d, layout.base, **options))
        if self.retire(node, lambda: nn.Dropout2d(module.p)):
            return layout.on(self.graph.call_module(str(node.target), (layout.base,)))
        raise SurgeryError(f"{describe(node, self.shadow)} stands in the head and is used elsewhere as well.")

    def join(self, node: fx.Node) -> Layout:
        """A sum or concatenation of averages, of maps of one size."""
        return super().join(node) if self._of_one_size(node) else self.refuse(node)

    def _of_one_size(self, node: fx.Node) -> bool:
        """Whether the tensors that a step joins are waiting for pools of maps of one size."""
        pools = [self.layouts[each].pending for each in self.inputs_of(node)]
        sizes = {(shape_of(pool.all_input_nodes[0]) or ())[2:] for pool in pools if pool is not None}
        return len(sizes) == 1 and None not in pools

    def end(self, node: fx.Node) -> None:
        """The logits, by way of the pool where it still waits."""
        layout = self.layouts[node]
        with self.graph.inserting_before(node):
            if node in self.settled:
                self.maps[node] = self.entered(node, layout)
            elif layout.pending is not None or node is self.head.scores.node:
                self.give(node, self.settle(node, layout))
                self.maps[node] = self.compact(layout).base
            if layout.pending in self.maxima:
                self.edits.note("The maximum of each category map is its logit; its mean is not.")
