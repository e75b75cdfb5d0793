"""Fully connected heads as convolutions: the network then takes larger images and gives a map of logits.

A linear layer on flattened C x h x w maps is a convolution with kernels as large as the maps (Long, Shelhamer, Darrell,
arXiv 1411.4038, section 3.1; Sermanet et al., arXiv 1312.6229); every linear layer after it is a 1x1 convolution.
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
from mlpconv.surgery.proof.accept import deep_copy
from mlpconv.surgery.proof.prove import prove
from mlpconv.surgery.report import Surgery, make_report
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
    """Turn flattening and linear layers into a k x k convolution and 1x1 convolutions.

    On images of `input_shape` (C, H, W) the new network returns what the original does, (N, K). On larger ones it
    returns a map of logits, (N, K, h, w): one for each window of that size, all in one pass; `category_maps` returns
    the map always. Adaptive and global pools become pools over windows. The report says whether the map equals the
    original on crops, measured, and by how much it does not where the original pads at the borders of a crop.

    `images` (N, C, H, W), where given, are compared beside random ones; `latency=False` leaves out the stopwatch.
    Of a network that returns several tensors, `output` names the logits: a key, a name or a place.
    The original is untouched. Raises SurgeryError where the head cannot be written as convolutions, with the step that
    prevents it, or where no larger image gives a larger map, with the reason; UsageError for an unknown output.
    """
    original, changed, edits = rewrite_head(model, input_shape, _Windows, output)
    if not edits.names:
        raise SurgeryError(
            f"{type(original).__name__} has no pool, flattening or linear layer to turn into convolutions."
        )
    precise = rewrite_head(deep_copy(original).double(), input_shape, _Windows, output)[1] if edits.rounded else None
    proof = prove(original, changed, input_shape, images, precise=precise)
    seen = profile(MapsOnly(changed), input_shape)
    crops = compare_crops(original, changed, input_shape, seen, latency=latency, output=edits.output, precise=precise)
    report = make_report(
        "convolutionalize", original, changed, input_shape, proof, names=edits.names, latency=latency, seen=seen,
        notes=[*edits.notes, *crops.notes], details=crops.to_dict() | {"output": edits.output},
    )  # fmt: skip
    return Surgery(changed, report)


class _Windows(Rewriter):
    """Each window of the maps as the whole of the maps was."""

    def pool(self, node: fx.Node) -> Layout:
        """An average (maximum) of windows, wherever a window can lie."""
        layout = self._pooled(node, self.maps_of(node))
        if not isinstance(node.meta["val"], Tensor):
            self.parts[node] = (layout, None)
        return layout

    def _pooled(self, node: fx.Node, layout: Layout) -> Layout:
        """The layout after a pool of windows."""
        pool = pool_of(node, layout, self.shadow)
        if layout.mix is not None or layout.dilation != (1, 1):
            raise SurgeryError(f"{describe(node, self.shadow)} pools what has been pooled before in the head.")
        result = replace(layout, size=(layout.size[0], *pool.out), index=pool.index)
        if pool.fixed:
            return layout_of_maps(self.again(node, layout.base), result.size)
        if pool.changes_nothing:
            self.retire(node, nn.Identity)
            return result
        if pool.even is not None:
            made = self._sliding(node, layout.base, pool)
            rows, columns = (1 if out == 1 else step for out, step in zip(pool.out, pool.even, strict=True))
            return replace(result, base=made, dilation=(rows, columns))
        if not pool.mean:
            raise SurgeryError(f"{describe(node, self.shadow)} takes maxima of uneven windows, as no pool does.")
        before, after = ("x".join(map(str, sides)) for sides in (pool.size, pool.out))
        self.edits.note(
            f"{describe(node, self.shadow)} averages {before} cells to {after} in uneven windows: they are worked out "
            "by a convolution now."
        )
        self.retire(node, nn.Identity)
        return replace(result, mix=averaging_matrix(pool.size, pool.out))

    def _sliding(self, node: fx.Node, base: fx.Node, pool: Pool) -> fx.Node:
        """Averages, sums or maxima of the pool's windows, one beginning at each cell."""
        kernel, divisor = pool.even or pool.size, pool.divisor

        def make() -> nn.Module:
            return nn.AvgPool2d(kernel, 1, divisor_override=divisor) if pool.mean else nn.MaxPool2d(kernel, 1)

        if self.retire(node, make):
            return self.graph.call_module(str(node.target), (base,))
        self.edits.places.add(describe(node, self.shadow))
        options = {} if divisor is None else {"divisor_override": divisor}
        return self.call(F.avg_pool2d if pool.mean else F.max_pool2d, base, kernel, 1, **options)

    def end(self, node: fx.Node) -> None:
        """The map of logits, or the logits alone where it has one cell."""
        layout = self.layouts[node]
        if not layout.one_cell or layout.mix is not None:
            raise SurgeryError(f"{describe(node, self.shadow)} is returned, which is no logit for each class.")
        with self.graph.inserting_before(node):
            layout = self.compact(layout)
            self.maps[node] = layout.base
            self.give(node, self.call(one_or_map, layout.base, tuple(layout.index.shape)))


def one_or_map(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(N, K, 1, 1) -> (N, *shape), as of one image; a larger map stays a map: (N, *shape, h, w)."""
    channels = tuple(size for place, size in enumerate(shape) if place == 0 or size > 1)
    if maps.shape[2:] == (1, 1):
        return maps.reshape(len(maps), *shape)
    return maps.reshape(len(maps), *channels, *maps.shape[2:])
