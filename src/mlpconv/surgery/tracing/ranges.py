"""Between which bounds the numbers lie that a step makes, whatever the image: as far as its forward alone tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from mlpconv.surgery.tracing.graph import module_of
from mlpconv.surgery.tracing.ops import argument_of, op_name

__all__ = ["ANY", "Range", "range_of"]

Range = tuple[float, float]
ANY: Range = (-math.inf, math.inf)
BOUNDED: dict[str, Range] = {
    "relu": (0.0, math.inf), "softplus": (0.0, math.inf), "exp": (0.0, math.inf), "abs": (0.0, math.inf),
    "square": (0.0, math.inf), "relu6": (0.0, 6.0), "sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0),
}  # fmt: skip
STILL = frozenset({
    "identity", "dropout", "dropout2d", "flatten", "view", "reshape", "permute", "transpose", "contiguous", "clone",
    "maxpool2d", "max_pool2d", "adaptivemaxpool2d", "adaptive_max_pool2d", "adaptiveavgpool2d", "adaptive_avg_pool2d",
    "mean", "getitem", "maxout",
})  # fmt: skip
"""Steps that move numbers about, choose among them, or average them."""
PADDED = frozenset({"avgpool2d", "avg_pool2d"})
"""Averages that may count zeros around the maps."""


def range_of(node: fx.Node, root: nn.Module) -> Range:
    """The least and the largest number that the step can make in eval mode; infinite where it does not tell."""
    known: dict[fx.Node, Range] = {}
    for each in node.graph.nodes:  # in order, not by recursion: networks are deeper than Python's stack
        known[each] = _range(each, root, known.__getitem__)
        if each is node:
            break
    return known[node]


def _range(node: fx.Node, root: nn.Module, of: Callable[[fx.Node], Range]) -> Range:
    name = op_name(node, root)
    if not node.op.startswith("call_") or not node.all_input_nodes:
        return ANY
    if name in BOUNDED:
        return BOUNDED[name]
    if name in ("hardtanh", "clamp", "clip"):
        return _clamped(node, root, name)
    first = node.all_input_nodes[0]
    if name in STILL:
        return of(first)
    if name in PADDED:
        return min(0.0, of(first)[0]), max(0.0, of(first)[1])
    tensors = [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), Tensor)]
    bounds = [of(each) for each in tensors]
    if name in ("cat", "concat", "maximum") and bounds:
        lows = [low for low, _ in bounds]
        return (max(lows) if name == "maximum" else min(lows)), max(high for _, high in bounds)
    both = len(bounds) == len(node.args) == len(("one", "other"))
    if name == "add" and both:
        return bounds[0][0] + bounds[1][0], bounds[0][1] + bounds[1][1]
    if name == "mul" and both and all(low >= 0 for low, _ in bounds):
        return 0.0, math.inf
    return ANY


def _clamped(node: fx.Node, root: nn.Module, name: str) -> Range:
    module: Any = module_of(node, root)
    if module is not None:
        return float(module.min_val), float(module.max_val)
    words = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    low, high = argument_of(node, 1, words[0]), argument_of(node, 2, words[1])
    if name == "hardtanh":
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    if not all(isinstance(each, int | float | None) for each in (low, high)):
        return ANY
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)
