"""Bound the output values of a node in eval mode, for any image, from the graph alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from mlpconv.surgery.tracing.graph import module_of
from mlpconv.surgery.tracing.ops import BINARY, argument_of, op_name

__all__ = ["ANY", "Range", "range_of"]

Range = tuple[float, float]
ANY: Range = (-math.inf, math.inf)
BOUNDED: dict[str, Range] = {
    "relu": (0.0, math.inf), "softplus": (0.0, math.inf), "exp": (0.0, math.inf), "abs": (0.0, math.inf),
    "square": (0.0, math.inf), "relu6": (0.0, 6.0), "sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0),
}  # fmt: skip
PRESERVING = frozenset({
    "identity", "dropout", "dropout2d", "flatten", "view", "reshape", "permute", "transpose", "contiguous", "clone",
    "maxpool2d", "max_pool2d", "adaptivemaxpool2d", "adaptive_max_pool2d", "adaptiveavgpool2d", "adaptive_avg_pool2d",
    "mean", "getitem", "maxout",
})  # fmt: skip
"""Operations whose outputs lie in the range of their input: rearranging, selecting and averaging."""
PADDED = frozenset({"avgpool2d", "avg_pool2d"})
"""Average pools that may include zero padding."""


def range_of(node: fx.Node, root: nn.Module) -> Range:
    """Return the smallest and largest possible output value of a node in eval mode; infinite if unknown."""
    known: dict[fx.Node, Range] = {}
    for step in node.graph.nodes:  # a loop, because networks are deeper than Python's recursion limit
        known[step] = _range(step, root, known.__getitem__)
        if step is node:
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
    if name in PRESERVING:
        return of(first)
    if name in PADDED:
        return min(0.0, of(first)[0]), max(0.0, of(first)[1])
    bounds = [of(source) for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor)]
    if name in ("cat", "concat", "maximum") and bounds:
        lows = [low for low, _ in bounds]
        return (max(lows) if name == "maximum" else min(lows)), max(high for _, high in bounds)
    binary = len(bounds) == len(node.args) == BINARY
    if name == "add" and binary:
        return bounds[0][0] + bounds[1][0], bounds[0][1] + bounds[1][1]
    if name == "mul" and binary and all(low >= 0 for low, _ in bounds):
        return 0.0, math.inf
    return ANY


def _clamped(node: fx.Node, root: nn.Module, name: str) -> Range:
    module: Any = module_of(node, root)
    if module is not None:
        return float(module.min_val), float(module.max_val)
    names = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    low, high = argument_of(node, 1, names[0]), argument_of(node, 2, names[1])
    if name == "hardtanh":
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    if not all(isinstance(bound, int | float | None) for bound in (low, high)):
        return ANY
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)
