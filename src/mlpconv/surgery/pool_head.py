"""Move the classifier before the global average pool: the same logits, plus an exact class activation map (CAM).

A linear layer and an average commute (Lin, Chen, Yan, arXiv 1312.4400, section 3.2; CAM: Zhou et al., arXiv 1512.04150,
section 2), so the maps are exact: they need no gradients and no choice of layer.
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
AFFINE = frozenset({
    "identity", "to", "type", "type_as", "float", "double", "half", "clone", "contiguous", "detach", "neg",
})  # fmt: skip
"""Elementwise steps that commute with an average."""
SUMS = frozenset({"add", "sub", "cat", "concat"})
"""Steps on several tensors that commute with an average."""
NONLINEAR = ("batch_norm", "layer_norm", "softmax")
"""Steps that are not moved before the pool, whatever their parameters."""


def pool_head(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    images: Tensor | None = None,
    latency: bool = True,
    output: int | str | None = None,
) -> Surgery:
    """Replace a global average pool and a linear layer by a 1x1 convolution and the pool (exact CAM).

    The new network returns the same logits (N, K) for images (N, C, H, W) of every size that the original accepts. Its
    `category_maps(x)` returns the class activation maps (N, K, h, w), whose spatial mean is the logits; for a network
    with a global max pool the maximum of each map is the logit, and the report notes it. Dropout between pool and
    linear layer becomes channel dropout before the 1x1 convolution, with identical random numbers.

    `images` (N, C, H, W) are compared in addition to random ones. `latency=False` skips the latency measurement. For a
    network that returns several tensors, `output` selects the logits by key, attribute name or index. The original is
    not modified.

    Raises SurgeryError if the head has no global average pool or has a nonlinear step after it; UsageError for an
    unknown output.
    """
    original, changed, edits = rewrite_head(model, input_shape, _MapsFirst, output)
    proof = prove(original, changed, input_shape, images)
    notes = list(edits.notes)
    if not edits.names:
        notes.append("No linear layer follows the pool; the logits already are averages of maps.")
    report = make_report(
        "pool_head", original, changed, input_shape, proof,
        names=edits.names, latency=latency, notes=notes, details={"output": edits.output},
    )  # fmt: skip
    return Surgery(changed, report)


class _MapsFirst(AfterPool):
    """Move the linear steps of a head before its pool; keep the first nonlinear step and everything after it."""

    def check_outside(self) -> None:
        """Accept other uses of the pooled features: their values do not change."""

    def step(self, node: fx.Node) -> Layout:
        """Move a linear step before the pool; insert the pool before a nonlinear one."""
        inputs = self.inputs_of(node)
        if not inputs:
            return self.refuse(node)
        if any(source in self.settled for source in inputs) or not self._commutes(node, inputs):
            return self.stay(node, inputs)
        layout = super().step(node)
        if layout.pending is not None:
            for user in self.outside.get(node, ()):
                self._feed(user, node, layout)
        return layout

    def _feed(self, user: fx.Node, node: fx.Node, layout: Layout) -> None:
        """Give a step outside the head the original value at this node."""
        if node not in self.parts:
            user.replace_input_with(node, self.settle(node, layout))
            return
        user.replace_all_uses_with(self.settle(user, self.part(user)))
        self.graph.erase_node(user)

    def _commutes(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        """Return whether a step can run on maps: no pool is pending, or the step commutes with it."""
        pools = [self.layouts[source].pending for source in inputs]
        kind, name = op_kind(node, self.shadow), op_name(node, self.shadow)
        if not all(pools):
            return True
        if any(pool in self.maxima for pool in pools):
            return kind in ("shape", "pool") or name == "identity"
        if kind in LINEAR or name in AFFINE or (kind == "join" and name in SUMS):
            return True
        candidate = name in ARITHMETIC if kind == "elementwise" else kind not in NONLINEAR
        return candidate and self.trial(node).is_affine()

    def pool(self, node: fx.Node) -> Layout:
        """Defer the pool until after the last linear step."""
        layout = self.maps_of(node)
        pool, partial = pool_of(node, layout, self.shadow), op_name(node, self.shadow) in REDUCTIONS
        self._check_pool(node, pool, partial)
        pending = layout.pending
        if pending is not None and not (
            partial and op_name(pending, self.shadow) in REDUCTIONS and pool.mean is (pending not in self.maxima)
        ):
            raise SurgeryError(f"{describe(node, self.shadow)} is a second pool; one global average is accepted.")
        if not pool.mean:
            self.maxima.add(node)
        if windows_of(node, self.shadow) is not None:
            self.edits.note(
                f"{describe(node, self.shadow)} pools fixed windows of {pool.size[0]}x{pool.size[1]} cells: on images "
                "of another size it pools a part of the category maps, or to more than one cell."
            )
        base = layout.base
        if pool.divisor is not None:
            base = self._scaled(node, base, pool, repeated=pending is not None)
        result = replace(layout, base=base, size=(layout.size[0], *pool.out), index=pool.index, pending=node)
        if not isinstance(node.meta["val"], Tensor):
            self.parts[node] = (result, None)
        return result

    def _check_pool(self, node: fx.Node, pool: Pool, partial: bool) -> None:
        """Raise SurgeryError for a pool that is not global."""
        if pool.is_global or partial:
            return
        verb = "averages" if pool.mean else "takes the maximum of"
        size, out = ("x".join(map(str, sides)) for sides in (pool.size, pool.out))
        windows = " with a fixed window size" if pool.out == (1, 1) else ""
        raise SurgeryError(
            f"{describe(node, self.shadow)} {verb} {size} cells to {out}{windows}; a global average pool is accepted. "
            "Use convolutionalize for other heads."
        )

    def _scaled(self, node: fx.Node, base: fx.Node, pool: Pool, *, repeated: bool) -> fx.Node:
        """Scale maps so that their average is the sum that the pool computes, or that sum over its divisor."""
        step = describe(node, self.shadow)
        if op_name(node, self.shadow) in REDUCTIONS:
            if 1 in pool.size and not repeated:
                raise SurgeryError(f"{step} sums maps of {pool.size[0]}x{pool.size[1]} cells. Use larger images.")
            return self.call(times_cells, base, *(out < size for out, size in zip(pool.out, pool.size, strict=True)))
        module: Any = module_of(node, self.shadow)
        if module is not None and not self.retire(node, lambda: nn.AvgPool2d(module.kernel_size, module.stride)):
            raise SurgeryError(f"{step} divides by {pool.divisor} and is called more than once.")
        return self.call(operator.mul, base, pool.size[0] * pool.size[1] / (pool.divisor or 1))

    def on_rows(self, node: fx.Node) -> Layout:
        """Apply an affine step at each cell of the maps."""
        if not self._same_map_size(node):
            return self.refuse(node)
        return super().on_rows(node)

    def linear(self, node: fx.Node) -> Layout:
        """Replace a linear layer on averages by a 1x1 convolution on maps."""
        return replace(super().linear(node), pending=self._pending_pool(node))

    def conv1x1(self, node: fx.Node) -> Layout:
        """Move a 1x1 convolution before the pool."""
        return replace(super().conv1x1(node), pending=self._pending_pool(node))

    def _pending_pool(self, node: fx.Node) -> fx.Node:
        """Return the deferred pool before a linear step; raise SurgeryError if there is none."""
        layout = self.input_of(node)
        if layout.pending is None or not layout.one_cell:
            raise SurgeryError(
                f"{describe(node, self.shadow)} works on flattened maps of {layout.size[1]}x{layout.size[2]} cells and "
                "not on their average. Use convolutionalize for this head."
            )
        return layout.pending

    def dropout(self, node: fx.Node) -> Layout:
        """Replace dropout of averages by channel dropout of the maps, with the same random numbers."""
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
        raise SurgeryError(f"{describe(node, self.shadow)} is in the head and is called more than once.")

    def join(self, node: fx.Node) -> Layout:
        """Add or concatenate maps of the same size before the pool."""
        return super().join(node) if self._same_map_size(node) else self.refuse(node)

    def _same_map_size(self, node: fx.Node) -> bool:
        """Return whether the inputs of a step all have pending pools, over maps of the same size."""
        pools = [self.layouts[source].pending for source in self.inputs_of(node)]
        sizes = {(shape_of(pool.all_input_nodes[0]) or ())[2:] for pool in pools if pool is not None}
        return len(sizes) == 1 and None not in pools

    def end(self, node: fx.Node) -> None:
        """Return the logits through the pool, if it is still pending."""
        layout = self.layouts[node]
        with self.graph.inserting_before(node):
            if node in self.settled:
                self.maps[node] = self.nonlinear_inputs(node, layout)
            elif layout.pending is not None or node is self.head.scores.node:
                self.replace_output(node, self.settle(node, layout))
                self.maps[node] = self.compact(layout).base
            if layout.pending in self.maxima:
                self.edits.note("The maximum of each category map is its logit; the mean is not.")
