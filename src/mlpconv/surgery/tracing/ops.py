"""The many ways in which networks spell the few steps of a head.

A step is a module, a function or a method; `torch.flatten(x, 1)`, `x.view(x.size(0), -1)` and `nn.Flatten()` are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

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
"""Steps that only move elements about."""
ACTIVATIONS = frozenset({
    "celu", "clamp", "clip", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid",
    "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh", "tanhshrink",
    "threshold", "identity", "clone", "detach", "float", "double", "half", "to", "exp", "log", "abs", "sqrt", "square",
    "neg", "hardshrink", "softshrink",
})  # fmt: skip
"""Steps on each number by itself."""
ARITHMETIC = frozenset({"add", "sub", "mul", "truediv", "div", "maximum", "minimum"})
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
"""Dimensions of a tensor (N, C, H, W)."""


def op_name(node: fx.Node, root: nn.Module) -> str:
    """The name of a step: a module's class or a function's name, in small letters, without the mark of in-place."""
    if node.op == "call_module":
        return type(module_of(node, root)).__name__.lower()
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    name = str(name).lower().strip("_")
    return name[1:] if node.op == "call_function" and name in {f"i{each}" for each in ARITHMETIC} else name


def describe(node: fx.Node, root: nn.Module) -> str:
    """A step for people: its place in the network and what it is."""
    if node.op == "call_module":
        return f"{node.target} ({type(module_of(node, root)).__name__})"
    stack = node.meta.get("nn_module_stack") or {}
    place = next(reversed(stack.values()))[0] if stack else ""
    return f"{op_name(node, root)}() in {place or 'the forward'}"


def op_kind(node: fx.Node, root: nn.Module) -> Kind:  # noqa: C901  (one line a kind)
    """What a step is, whatever its spelling; "open" for a module that must be looked into, "other" for the rest."""
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
    if name in ACTIVATIONS or (name == "prelu" and _one_slope(node, module)):
        return "elementwise"
    if name in ARITHMETIC:
        tensors = sum(isinstance(each, fx.Node) and shape_of(each) is not None for each in node.args[:BINARY])
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
    """Whether a step takes a tensor out of what holds several: a named tuple, a dataclass."""
    owner = node.args[0]
    held = owner.meta.get("val") if isinstance(owner, fx.Node) else None
    return not isinstance(held, Tensor) and shape_of(node) is not None


def _is_maximum(node: fx.Node, name: str) -> bool:
    """Whether a step takes the maxima of whole maps, or of a dimension."""
    before = (shape_of(node.all_input_nodes[0]) or ())[2:] if node.all_input_nodes else ()
    whole = name in MAXIMA and (shape_of(node) or ())[2:] == (1, 1) != before
    return whole or (name == "max" and isinstance(node.meta.get("val"), tuple))


def _one_slope(node: fx.Node, module: nn.Module | None) -> bool:
    if isinstance(module, nn.PReLU):
        return module.num_parameters == 1
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return isinstance(weight, fx.Node) and shape_of(weight) == (1,)


def _is_1x1(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding in ((0, 0), 0, "valid", "same")


def data_inputs(node: fx.Node, image: set[fx.Node]) -> Iterator[fx.Node]:
    """The inputs of a step that depend on the image and hold tensors."""
    for each in node.all_input_nodes:
        if each in image and not isinstance(each.meta.get("val"), int | float | bool | torch.Size):
            value = each.meta.get("val")
            if isinstance(value, Tensor | tuple | list | dict) or is_dataclass(value):
                yield each


def as_pair(value: Any) -> tuple[Any, Any]:
    """A size argument, one for rows and one for columns."""
    if isinstance(value, fx.Node):
        value = value.meta["val"]
    if isinstance(value, tuple | list):
        both = [each.meta["val"] if isinstance(each, fx.Node) else each for each in value]
        return (both[0], both[0]) if len(both) == 1 else (both[0], both[1])
    return value, value


def argument_of(node: fx.Node, place: int, name: str) -> Any:
    """An argument of a function or method, by its place or by its name; None where it is not given."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)
