"""Classify the nodes of a graph by what they compute, however the network spells them.

A node calls a module, a function or a method: `torch.flatten(x, 1)`, `x.view(x.size(0), -1)` and `nn.Flatten()` are
all of kind "shape".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from mlpconv.receptive_field import op_names
from mlpconv.receptive_field.op_names import ACTIVATIONS
from mlpconv.surgery.tracing.graph import module_of, shape_of

__all__ = ["ARITHMETIC", "MAP", "Kind", "argument_of", "as_pair", "data_inputs", "describe", "op_kind", "op_name"]

Kind = Literal[
    "shape", "elementwise", "dropout", "linear", "pool", "conv1x1", "batch_norm", "layer_norm", "softmax", "join",
    "feature", "open", "other",
]  # fmt: skip

SHAPES = frozenset({
    "chunk", "contiguous", "expand", "flatten", "flip", "getitem", "index_select", "movedim", "narrow", "permute",
    "ravel", "reshape", "select", "split", "squeeze", "swapaxes", "transpose", "unbind", "unflatten", "unsqueeze",
    "view",
})  # fmt: skip
"""Operations that only rearrange elements."""
ELEMENTWISE = ACTIVATIONS | {
    "abs", "clip", "clone", "detach", "double", "exp", "float", "half", "hardshrink", "identity", "log", "log_sigmoid",
    "logsigmoid", "neg", "softshrink", "softsign", "sqrt", "square", "tanhshrink", "to",
}  # fmt: skip
ARITHMETIC = op_names.ARITHMETIC | {"div", "truediv"}
DROPOUTS = frozenset({"dropout", "alpha_dropout"})
FEATURE_DROPOUTS = frozenset({"dropout2d", "feature_dropout", "feature_alpha_dropout", "featurealphadropout"})
ADAPTIVE = frozenset({
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptiveavgpool2d", "adaptivemaxpool2d", "avg_pool2d", "avgpool2d",
    "amax", "mean", "sum",
})  # fmt: skip
MAXIMA = ("max_pool2d", "maxpool2d")
PLAIN = ("torch.nn.", "torch.ao.nn.")
BINARY = 2
MAP = 4
"""Rank of a feature map (N, C, H, W)."""


def op_name(node: fx.Node, root: nn.Module) -> str:
    """Return the lower-case name of a node's module class, function or method, without any in-place marker."""
    if node.op == "call_module":
        return type(module_of(node, root)).__name__.lower()
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    name = str(name).lower().strip("_")
    return name[1:] if node.op == "call_function" and name in {f"i{operator}" for operator in ARITHMETIC} else name


def describe(node: fx.Node, root: nn.Module) -> str:
    """Describe a node for a message: its module and its operation."""
    if node.op == "call_module":
        return f"{node.target} ({type(module_of(node, root)).__name__})"
    stack = node.meta.get("nn_module_stack") or {}
    place = next(reversed(stack.values()))[0] if stack else ""
    return f"{op_name(node, root)}() in {place or 'the forward'}"


def op_kind(node: fx.Node, root: nn.Module) -> Kind:  # noqa: C901  (one line per kind)
    """Return the kind of a node; "open" for a module that must be traced into, "other" for everything else."""
    if not node.op.startswith("call_"):
        return "other"
    name, module = op_name(node, root), module_of(node, root)
    if module is not None and (isinstance(module, nn.Sequential) or not type(module).__module__.startswith(PLAIN)):
        return "open"
    if isinstance(module, nn.Linear) or name == "linear":
        return "linear"
    if (module is None and name in SHAPES) or isinstance(module, nn.Flatten | nn.Unflatten):
        return "shape"
    if name == "getattr" and _reads_part(node):
        return "shape"
    if name in ADAPTIVE or _is_maximum(node, name):
        return "pool"
    if name in DROPOUTS or name == "alphadropout":
        return "dropout"
    if name in FEATURE_DROPOUTS:
        return "feature"
    if name in ELEMENTWISE or (name == "prelu" and _one_slope(node, module)):
        return "elementwise"
    if name in ARITHMETIC:
        tensors = sum(isinstance(arg, fx.Node) and shape_of(arg) is not None for arg in node.args[:BINARY])
        return "join" if tensors == BINARY else "elementwise"
    if name in ("cat", "concat"):
        return "join"
    if isinstance(module, nn.Conv2d):
        return "conv1x1" if _is_1x1(module) else "other"
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) or name == "batch_norm":
        return "batch_norm"
    if isinstance(module, nn.LayerNorm) or name in ("layer_norm", "layernorm"):
        return "layer_norm"
    return "softmax" if name in ("softmax", "log_softmax", "logsoftmax") else "other"


def _reads_part(node: fx.Node) -> bool:
    """Return whether a node takes a tensor out of a container, such as a named tuple or dataclass."""
    owner = node.args[0]
    container = owner.meta.get("val") if isinstance(owner, fx.Node) else None
    return not isinstance(container, Tensor) and shape_of(node) is not None


def _is_maximum(node: fx.Node, name: str) -> bool:
    """Return whether a node takes the maximum of whole feature maps, or along a dimension."""
    size_in = (shape_of(node.all_input_nodes[0]) or ())[2:] if node.all_input_nodes else ()
    whole = name in MAXIMA and (shape_of(node) or ())[2:] == (1, 1) != size_in
    return whole or (name == "max" and isinstance(node.meta.get("val"), tuple))


def _one_slope(node: fx.Node, module: nn.Module | None) -> bool:
    if isinstance(module, nn.PReLU):
        return module.num_parameters == 1
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return isinstance(weight, fx.Node) and shape_of(weight) == (1,)


def _is_1x1(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding in ((0, 0), 0, "valid", "same")


def data_inputs(node: fx.Node, image: set[fx.Node]) -> Iterator[fx.Node]:
    """Yield the inputs of a node that depend on the image and hold tensors."""
    for source in node.all_input_nodes:
        value = source.meta.get("val")
        holds_tensors = isinstance(value, Tensor | tuple | list | dict) or is_dataclass(value)
        if source in image and holds_tensors and not isinstance(value, torch.Size):
            yield source


def as_pair(value: Any) -> tuple[Any, Any]:
    """Return a size argument as (rows, columns)."""
    if isinstance(value, fx.Node):
        value = value.meta["val"]
    if isinstance(value, tuple | list):
        sizes = [size.meta["val"] if isinstance(size, fx.Node) else size for size in value]
        return (sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])
    return value, value


def argument_of(node: fx.Node, position: int, name: str) -> Any:
    """Return an argument of a function or method by position or name; None if it is missing."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)
