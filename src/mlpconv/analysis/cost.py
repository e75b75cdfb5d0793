"""What an operation costs: multiply-adds, and the small work beside them, counted apart.

One multiply-add (MAC) is one multiplication and one addition. Convolutions, linear layers and matrix products have
them. Additions of biases, pooling, norms, activations and sums of branches have none and are counted by themselves: one
operation for each element made or, where many become one, for each element read; two for a batch norm (a
multiplication and an addition), four for a norm that works out its mean and variance first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mlpconv.fields.call import Call

__all__ = ["KINDS", "Cost", "cost_of", "size_in_bytes"]

KINDS = ("kxk", "1x1", "depthwise", "linear", "matmul", "norm", "pool", "activation", "merge", "other")
"""What a layer is, the kind that decides first: a layer of several operations takes the first of theirs."""

POOLS = ("avg_pool", "max_pool", "_adaptive_avg_pool", "adaptive_max_pool")
NORMS = ("_native_batch_norm", "native_batch_norm", "native_layer_norm", "native_group_norm")
ACTIVATIONS = frozenset({
    "_log_softmax", "_prelu_kernel", "_safe_softmax", "_softmax", "celu", "clamp", "clamp_min", "elu", "gelu", "glu",
    "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid_forward", "mish", "prelu", "relu", "relu6",
    "selu", "sigmoid", "silu", "softplus", "tanh", "threshold",
})  # fmt: skip
MERGES = frozenset({"add", "cat", "maximum", "minimum", "mul", "stack", "sub"})
REDUCTIONS = frozenset({"amax", "amin", "max", "mean", "min", "sum"})
STILL = frozenset({
    "_reshape_alias", "_to_copy", "_unsafe_view", "cat", "clone", "constant_pad_nd", "copy", "flip", "index",
    "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "repeat", "roll", "stack",
})  # fmt: skip
"""Operations that only move elements about."""
PRODUCTS = frozenset({"addmm", "addmv", "baddbmm", "bmm", "dot", "mm", "mv"})


@dataclass(frozen=True)
class Cost:
    """The work of one operation on one image."""

    kind: str
    """One of KINDS."""
    macs: int = 0
    """Multiply-adds."""
    bias_adds: int = 0
    pool_ops: int = 0
    other_ops: int = 0
    """Norms, activations, sums of branches."""
    traffic: int = 0
    """Bytes of activations that an operation with multiply-adds reads and writes."""
    weight_bytes: int = 0
    """Bytes of weights that it reads, once for a whole batch."""


def size_in_bytes(tensor: Tensor) -> int:
    """The bytes of a tensor's own elements."""
    return tensor.numel() * tensor.element_size()


def cost_of(call: Call, tracked: Sequence[Tensor]) -> Cost:
    """The cost of a call, given those of its inputs that depend on the image."""
    out, name = call.outputs[0], call.name
    if name == "convolution":
        return _convolution(call)
    if name in PRODUCTS:
        return _product(call, tracked)
    if name.startswith(POOLS):
        if "kernel_size" not in call.args:
            return Cost("pool", pool_ops=call.inputs[0].numel())
        count = int(name.split("pool")[1][0])
        return Cost("pool", pool_ops=out.numel() * math.prod(call.numbers("kernel_size", count)))
    if name.startswith(NORMS):
        simple = name.endswith("no_training") or call.args.get("training") is False
        return Cost("norm", other_ops=out.numel() * (2 if simple else 4))
    if name in REDUCTIONS and len(call.inputs) == 1:
        return _reduction(call)
    merges = name in MERGES and len(tracked) > 1
    if call.func.is_view or name in STILL:
        return Cost("merge" if merges else "other")
    kind = "activation" if name in ACTIVATIONS else "merge" if merges else "other"
    return Cost(kind, other_ops=max(out.numel(), call.inputs[0].numel() if call.inputs else 0))


def _convolution(call: Call) -> Cost:
    """Each output element (transposed: input element) meets the whole of its group's kernel once."""
    image, weight, out = call.inputs[0], call.inputs[1], call.outputs[0]
    each = weight[0].numel()
    macs = (image if call["transposed"] else out).numel() * each
    return Cost(
        _convolution_kind(weight, call["groups"], image.shape[1]),
        macs,
        bias_adds=out.numel() if call["bias"] is not None else 0,
        traffic=size_in_bytes(image) + size_in_bytes(out),
        weight_bytes=sum(map(size_in_bytes, call.inputs[1:])),
    )


def _convolution_kind(weight: Tensor, groups: int, channels: int) -> str:
    if groups == channels > 1:
        return "depthwise"
    return "1x1" if math.prod(weight.shape[2:]) == 1 else "kxk"


def _product(call: Call, tracked: Sequence[Tensor]) -> Cost:
    """A matrix product: linear where one side is weights."""
    out = call.outputs[0]
    biased = call.name in ("addmm", "addmv", "baddbmm") and call["beta"] != 0
    factors = call.inputs[-2:]
    data = [factor for factor in factors if any(factor is tensor for tensor in tracked)]
    moved = sum(map(size_in_bytes, data))
    return Cost(
        "matmul" if len(data) > 1 else "linear",
        out.numel() * factors[0].shape[-1],
        bias_adds=out.numel() if biased else 0,
        traffic=moved + size_in_bytes(out),
        weight_bytes=sum(map(size_in_bytes, factors)) - moved,
    )


def _reduction(call: Call) -> Cost:
    """A mean over the image is a pool; a maximum over channels is an activation (maxout)."""
    image = call.inputs[0]
    dims = call.dims()
    if image.dim() == 4 and sorted(dims) in ([-2, -1], [-3, -2]):
        return Cost("pool", pool_ops=image.numel())
    kind = "activation" if call.name in ("amax", "max") and image.dim() > 2 and len(dims) == 1 else "other"
    return Cost(kind, other_ops=image.numel())
