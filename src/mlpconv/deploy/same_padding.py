"""Padding that depends on the image's size (TensorFlow's SAME), in a graph for images of any size.

The number of zeros follows from the shape at run time. In ONNX it is an attribute of the convolution, which computes it
by itself; so a padding and the convolution after it are traced as one operator, and written as one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from mlpconv.models.efficientnet_lite import same_padding

__all__ = ["join_same_padding", "short_formulas", "translations"]

ATEN = torch.ops.aten
DEFAULTS = (None, [1, 1], [0, 0], [1, 1], 1)  # of conv2d: bias, stride, padding, dilation, groups


@torch.library.custom_op("mlpconv::same_conv2d", mutates_args=())
def same_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """Convolve (N, C, H, W) after padding it so that the output has ceil(H / stride) rows, and so the columns."""
    rows, columns = (
        same_padding(side, (kernel - 1) * apart + 1, step)
        for side, kernel, apart, step in zip(x.shape[2:], weight.shape[2:], dilation, stride, strict=True)
    )
    return F.conv2d(F.pad(x, (*columns, *rows)), weight, bias, stride, 0, dilation, groups)


@same_conv2d.register_fake
def _(x: Tensor, weight: Tensor, _bias: object, stride: Sequence[int], *_: object) -> Tensor:
    rows, columns = (-(-side // step) for side, step in zip(x.shape[2:], stride, strict=True))
    return x.new_empty(x.shape[0], weight.shape[0], rows, columns)


@contextmanager
def short_formulas() -> Iterator[None]:
    """Let timm's SAME padding compute its zeros by the formula of `same_padding`.

    timm's own, with a maximum and a division of floats, doubles in length from layer to layer of a trace.
    """
    padding = sys.modules.get("timm.layers.padding")
    if padding is None:
        yield
        return
    original: Callable[..., Any] = padding.get_same_padding

    def zeros(x: Any, kernel_size: int, stride: int, dilation: int) -> Any:
        extent = (kernel_size - 1) * dilation + 1
        if isinstance(x, Tensor) or extent < stride:
            return original(x, kernel_size, stride, dilation)
        return sum(same_padding(x, extent, stride))

    padding.get_same_padding = zeros  # type: ignore[attr-defined]
    try:
        yield
    finally:
        padding.get_same_padding = original  # type: ignore[attr-defined]


def join_same_padding(graph: fx.Graph) -> None:
    """Replace each SAME padding and the convolution after it by one operator, in a graph from `torch.export`.

    Only a padding whose formula is that of `same_padding` is replaced.
    """
    for conv in graph.find_nodes(op="call_function", target=ATEN.conv2d.default):
        pad, weight, *given = conv.args
        if pad.target is not ATEN.pad.default:
            continue
        settings: list[Any] = [*given, *DEFAULTS[len(given) :]]
        bias, stride, padding, dilation, groups = settings
        if any(padding) or not _is_same(pad, weight.meta["val"].shape[2:], stride, dilation):
            continue
        with graph.inserting_before(conv):
            arguments = (pad.args[0], weight, bias, list(stride), list(dilation), groups)
            new = graph.call_function(torch.ops.mlpconv.same_conv2d.default, arguments)
        new.meta = dict(conv.meta)
        conv.replace_all_uses_with(new)
        graph.erase_node(conv)
    graph.eliminate_dead_code()


def _is_same(pad: fx.Node, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Return whether a padding with zeros is, as a formula, the one of `same_padding`."""
    source, sides, *how = cast("tuple[Any, ...]", pad.args)
    shape = source.meta["val"].shape
    if len(shape) != 4 or tuple(how) not in ((), ("constant",), ("constant", None), ("constant", 0.0)):
        return False
    expected: list[Any] = []
    for axis in (1, 0):  # the last axis comes first
        extent = (kernel[axis] - 1) * dilation[axis] + 1
        expected += same_padding(shape[2 + axis], extent, stride[axis])
    return [_formula(side) for side in sides] == [_formula(side) for side in expected]


def _formula(side: Any) -> Any:
    """Return a size as a number, or as an expression of the size of the image."""
    value = side.meta["val"] if isinstance(side, fx.Node) else side
    return value.node.expr if isinstance(value, torch.SymInt) else value


def translations() -> dict[Any, Callable[..., Any]]:
    """Return how the operator is written in ONNX."""
    from onnxscript import opset20 as op

    def convolve(x: Any, weight: Any, bias: Any, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Any:
        return op.Conv(x, weight, bias, auto_pad="SAME_UPPER", strides=stride, dilations=dilation, group=groups)

    return {torch.ops.mlpconv.same_conv2d.default: convolve}
