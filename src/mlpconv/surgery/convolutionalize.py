"""Replace a fully connected head by convolutions, so that larger images give a map of logits.

A linear layer on flattened C x h x w feature maps is an h x w convolution, and every linear layer after it is a 1x1
convolution (Long, Shelhamer, Darrell, arXiv 1411.4038, section 3.1; Sermanet et al., arXiv 1312.6229).
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, fx, nn

from mlpconv.analysis import profile
from mlpconv.errors import SurgeryError
from mlpconv.surgery.heads.crops import MapsOnly, compare_crops
from mlpconv.surgery.heads.layout import Layout, layout_of_maps
from mlpconv.surgery.heads.pools import Pool, averaging_matrix, pool_of
from mlpconv.surgery.heads.rewrite import rewrite_head
from mlpconv.surgery.heads.rewriter import Rewriter
from mlpconv.surgery.proof.prove import prove
from mlpconv.surgery.report import Surgery, make_report
from mlpconv.surgery.tracing.accept import deep_copy
from mlpconv.surgery.tracing.ops import describe

__all__ = ["convolutionalize"]


def convolutionalize(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    images: Tensor | None = None,
    latency: bool = True,
    output: int | str | None = None,
) -> Surgery:
    """Replace flattening and linear layers by a k x k convolution and 1x1 convolutions.

    On images of `input_shape` (C, H, W) the new network returns the same logits (N, K) as the original. On larger
    images it returns a map of logits (N, K, h, w) in one pass, one cell per window of that size; `category_maps`
    returns the map for every size. Adaptive and global pools become sliding-window pools. The report compares the map
    with the original on crops and gives the difference that padding at crop borders causes.

    `images` (N, C, H, W) are compared in addition to random ones. `latency=False` skips the latency measurement. For a
    network that returns several tensors, `output` selects the logits by key, attribute name or index. The original is
    not modified.

    Raises SurgeryError if a step of the head cannot be expressed as a convolution, or if no larger image gives a larger
    map; UsageError for an unknown output.
    """
    original, changed, edits = rewrite_head(model, input_shape, _Windows, output)
    if not edits.names:
        raise SurgeryError(
            f"{type(original).__name__} has no pool, flattening or linear layer to turn into convolutions."
        )
    precise = rewrite_head(deep_copy(original).double(), input_shape, _Windows, output)[1] if edits.rounded else None
    proof = prove(original, changed, input_shape, images, precise=precise)
    profiled = profile(MapsOnly(changed), input_shape)
    crops = compare_crops(
        original, changed, input_shape, profiled, latency=latency, output=edits.output, precise=precise
    )
    report = make_report(
        "convolutionalize", original, changed, input_shape, proof, names=edits.names, latency=latency,
        profiled=profiled, notes=[*edits.notes, *crops.notes], details=crops.to_dict() | {"output": edits.output},
    )  # fmt: skip
    return Surgery(changed, report)


class _Windows(Rewriter):
    """Apply the head to every window of the feature maps."""

    def pool(self, node: fx.Node) -> Layout:
        """Replace a pool of the whole maps by a stride-1 pool over windows."""
        layout = self._pooled(node, self.maps_of(node))
        if not isinstance(node.meta["val"], Tensor):
            self.parts[node] = (layout, None)
        return layout

    def _pooled(self, node: fx.Node, layout: Layout) -> Layout:
        """Return the layout of the maps after a sliding-window pool."""
        pool = pool_of(node, layout, self.shadow)
        if layout.mix is not None or layout.dilation != (1, 1):
            raise SurgeryError(f"{describe(node, self.shadow)} pools feature maps that the head has already pooled.")
        result = replace(layout, size=(layout.size[0], *pool.out), index=pool.index)
        if pool.fixed:
            return layout_of_maps(self.copy_step(node, layout.base), result.size)
        if pool.changes_nothing:
            self.retire(node, nn.Identity)
            return result
        if pool.even is not None:
            pooled = self._sliding(node, layout.base, pool)
            rows, columns = (1 if out == 1 else step for out, step in zip(pool.out, pool.even, strict=True))
            return replace(result, base=pooled, dilation=(rows, columns))
        if not pool.mean:
            raise SurgeryError(f"{describe(node, self.shadow)} is a max pool with uneven windows, which cannot slide.")
        size, out = ("x".join(map(str, sides)) for sides in (pool.size, pool.out))
        self.edits.note(
            f"{describe(node, self.shadow)} averages {size} cells to {out} with uneven windows; "
            "a convolution computes them now."
        )
        self.retire(node, nn.Identity)
        return replace(result, mix=averaging_matrix(pool.size, pool.out))

    def _sliding(self, node: fx.Node, base: fx.Node, pool: Pool) -> fx.Node:
        """Pool windows at every cell, with stride 1."""
        kernel, divisor = pool.even or pool.size, pool.divisor

        def make() -> nn.Module:
            return nn.AvgPool2d(kernel, 1, divisor_override=divisor) if pool.mean else nn.MaxPool2d(kernel, 1)

        if self.retire(node, make):
            return self.graph.call_module(str(node.target), (base,))
        self.edits.places.add(describe(node, self.shadow))
        options = {} if divisor is None else {"divisor_override": divisor}
        return self.call(F.avg_pool2d if pool.mean else F.max_pool2d, base, kernel, 1, **options)

    def end(self, node: fx.Node) -> None:
        """Return the map of logits, or (N, K) if the map has one cell."""
        layout = self.layouts[node]
        if not layout.one_cell or layout.mix is not None:
            raise SurgeryError(f"{describe(node, self.shadow)} is returned and is not one number per class.")
        with self.graph.inserting_before(node):
            layout = self.compact(layout)
            self.maps[node] = layout.base
            self.replace_output(node, self.call(one_or_map, layout.base, tuple(layout.index.shape)))


def one_or_map(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Reshape (N, K, 1, 1) to (N, *shape); keep a larger map as (N, *shape, h, w)."""
    channels = tuple(size for axis, size in enumerate(shape) if axis == 0 or size > 1)
    if maps.shape[2:] == (1, 1):
        return maps.reshape(maps.shape[0], *shape)
    return maps.reshape(maps.shape[0], *channels, *maps.shape[2:])
