"""The cost of an operation: multiply-adds, and separately biases, pooling and other elementwise operations.

One multiply-add (MAC) is one multiplication and one addition. Convolutions, linear layers and matrix products consist
of MACs. Bias additions, pooling, norms, activations and sums of branches have none and are counted separately: one
operation per output element or, in a reduction, per input element; two for a batch norm (multiply and add), four for a
norm that computes its own mean and variance.

Operations of unknown cost are marked as not counted. A formula registered with
`torch.utils.flop_counter.register_flop_formula` is used, at half a flop per multiply-add.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from mlpconv.receptive_field import op_names
from mlpconv.receptive_field.call import Call
from mlpconv.receptive_field.op_names import ARITHMETIC, COPIES
from mlpconv.receptive_field.rules import ignores_values, rule_of

__all__ = ["KINDS", "Cost", "cost_of", "size_in_bytes"]

KINDS = ("kxk", "1x1", "depthwise", "linear", "matmul", "norm", "pool", "activation", "merge", "other")
"""Kinds of layers; a layer of several operations has the first of their kinds in this order."""

POOLS = ("avg_pool", "max_pool", "_adaptive_avg_pool", "adaptive_max_pool")
NORMS = ("_native_batch_norm", "native_batch_norm", "native_layer_norm", "native_group_norm")
ACTIVATIONS = op_names.ACTIVATIONS | {
    "_log_softmax", "_prelu_kernel", "_safe_softmax", "_softmax", "clamp_min", "glu", "log_sigmoid_forward", "prelu",
}  # fmt: skip
MERGES = ARITHMETIC | {"cat", "stack"}
REDUCTIONS = frozenset({"amax", "amin", "max", "mean", "min", "sum"})
FREE = COPIES | {"_to_copy", "cat", "copy", "stack"}
"""Operations without arithmetic."""
CONVOLUTIONS = frozenset({"convolution", "deform_conv2d"})
SUMMED: dict[str, tuple[int, ...]] = {
    "addbmm": (0, -1), "addmm": (-1,), "addmv": (-1,), "addr": (), "baddbmm": (-1,), "bmm": (-1,), "dot": (-1,),
    "mm": (-1,), "mv": (-1,), "vdot": (-1,), "_addmm_activation": (-1,), "_int_mm": (-1,),
    "affine_grid_generator": (-1,),
}  # fmt: skip
"""Matrix products, with the dimensions of the first factor that they sum over."""
CHEAP = frozenset({
    "aminmax", "arange", "argsort", "as_strided_scatter", "bincount", "bucketize", "col2im", "count_nonzero", "cummax",
    "cummin", "cumprod", "cumsum", "detach", "diagonal_scatter", "embedding", "eye", "gather", "grid_sampler_2d",
    "grid_sampler_3d", "histc", "im2col", "index_add", "index_copy", "index_fill", "index_put", "index_reduce", "isin",
    "kthvalue", "lift_fresh", "linalg_cross", "linspace", "logcumsumexp", "masked_fill", "masked_scatter",
    "masked_select", "max_unpool2d", "max_unpool3d", "mode", "multinomial", "nanmedian", "native_dropout", "nonzero",
    "one_hot", "put", "randint", "randperm", "renorm", "rrelu_with_noise", "scalar_tensor", "scatter", "scatter_add",
    "scatter_reduce", "searchsorted", "select_scatter", "slice_scatter", "take", "unique_dim", "_fused_rms_norm",
    "_local_scalar_dense", "_unique2", "_weight_norm_interface",
})  # fmt: skip
"""Operations without a receptive field rule that cost a few operations per element."""
SPATIAL = ("_upsample", "upsample", "reflection_pad", "replication_pad")


@dataclass(frozen=True)
class Cost:
    """The cost of one operation on one image."""

    kind: str
    """One of KINDS."""
    macs: int = 0
    """Multiply-adds."""
    bias_adds: int = 0
    pool_ops: int = 0
    other_ops: int = 0
    """Norms, activations, sums of branches."""
    traffic: int = 0
    """Bytes of activations read and written, if the operation has multiply-adds."""
    weight_bytes: int = 0
    """Bytes of weights read, once per batch."""
    counted: bool = True
    """Whether the cost is known; if not, all numbers are 0."""


def size_in_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def cost_of(call: Call, tracked: Sequence[Tensor]) -> Cost:
    """Return the cost of a call; `tracked` are its inputs that depend on the image."""
    out, name = call.outputs[0], call.name
    if name in CONVOLUTIONS:
        return _convolution(call)
    macs = _macs_of_product(call)
    if macs is not None:
        return _product(call, tracked, macs)
    if name.startswith(POOLS):
        if "kernel_size" not in call.args:
            return Cost("pool", pool_ops=call.inputs[0].numel())
        count = int(name.split("pool")[1][0])
        return Cost("pool", pool_ops=out.numel() * math.prod(call.sizes("kernel_size", count)))
    if name.startswith(NORMS):
        simple = name.endswith("no_training") or call.args.get("training") is False
        return Cost("norm", other_ops=out.numel() * (2 if simple else 4))
    if name in REDUCTIONS and len(call.inputs) == 1:
        return _reduction(call)
    merges = name in MERGES and len(tracked) > 1
    if call.func.is_view or name in FREE:
        return Cost("merge" if merges else "other")
    if not _is_cheap(call):
        return Cost("other", counted=False)
    kind = "activation" if name in ACTIVATIONS else "merge" if merges else "other"
    return Cost(kind, other_ops=max(out.numel(), call.inputs[0].numel() if call.inputs else 0))


def _convolution(call: Call) -> Cost:
    """Return the cost of a convolution: the size of a group's kernel per output (transposed: input) element."""
    image, weight, bias, out = call.inputs[0], call.tensor("weight"), call["bias"], call.outputs[0]
    macs = (image if call.args.get("transposed") else out).numel() * weight[0].numel()
    return Cost(
        _convolution_kind(weight, call["groups"], image.shape[1]),
        macs,
        bias_adds=out.numel() if bias is not None else 0,
        traffic=size_in_bytes(image) + size_in_bytes(out),
        weight_bytes=size_in_bytes(weight) + (size_in_bytes(bias) if bias is not None else 0),
    )


def _convolution_kind(weight: Tensor, groups: int, channels: int) -> str:
    if groups == channels > 1:
        return "depthwise"
    return "1x1" if math.prod(weight.shape[2:]) == 1 else "kxk"


def _macs_of_product(call: Call) -> int | None:
    """Return the multiply-adds of a matrix product or of a registered formula; None for other operations."""
    out, factors = call.outputs[0], call.inputs[-2:]
    if call.name in SUMMED:
        return out.numel() * math.prod(factors[0].shape[dim] for dim in SUMMED[call.name])
    if call.name == "_trilinear":
        return _terms(call)
    formula = flop_registry.get(call.func.overloadpacket)
    if formula is None:
        return None
    arguments = call.func._schema.arguments
    args = [call[argument.name] for argument in arguments if not argument.kwarg_only]
    kwargs = {argument.name: call[argument.name] for argument in arguments if argument.kwarg_only}
    results = call.outputs[0] if len(call.outputs) == 1 else call.outputs
    return int(formula(*args, **kwargs, out_val=results)) // 2


def _terms(call: Call) -> int:
    """Return the multiply-adds of a bilinear layer: one per pair of inputs and output."""
    shapes = []
    for number, tensor in enumerate(call.inputs, 1):
        shape = list(tensor.shape)
        for dim in call[f"expand{number}"]:
            shape.insert(dim, 1)
        shapes.append(shape)
    return math.prod(torch.broadcast_shapes(*shapes))


def _product(call: Call, tracked: Sequence[Tensor], macs: int) -> Cost:
    """Return the cost of a matrix product; its kind is "linear" if a factor is weights."""
    out, biased = call.outputs[0], bool(call.args.get("beta", 0))
    factors = call.inputs[1:] if "beta" in call.args else call.inputs
    data = [factor for factor in factors if any(factor is tensor for tensor in tracked)]
    moved = sum(map(size_in_bytes, data))
    return Cost(
        "matmul" if len(data) == len(factors) else "linear",
        macs,
        bias_adds=out.numel() if biased else 0,
        traffic=moved + size_in_bytes(out),
        weight_bytes=sum(map(size_in_bytes, factors)) - moved,
    )


def _is_cheap(call: Call) -> bool:
    """Return whether an operation is known to cost a few operations per element."""
    if call.func.namespace not in ("aten", "prims"):
        return False
    known = rule_of(call) is not None or ignores_values(call) or torch.Tag.inplace_view in call.func.tags
    return known or call.name in CHEAP or call.name.startswith(SPATIAL)


def _reduction(call: Call) -> Cost:
    """Return the cost of a reduction: the mean of an image is a pool, the maximum of channels an activation."""
    image = call.inputs[0]
    dims = call.dims()
    if image.dim() == 4 and sorted(dims) in ([-2, -1], [-3, -2]):
        return Cost("pool", pool_ops=image.numel())
    kind = "activation" if call.name in ("amax", "max") and image.dim() > 2 and len(dims) == 1 else "other"
    return Cost(kind, other_ops=image.numel())
