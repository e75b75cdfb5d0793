"""Scale, shift and merge convolutions and linear layers: arithmetic on weights, without a graph.

Results are computed in float64 and rounded once, to the dtype of the layer. Layers are copied, never changed; a copy
keeps the device, memory format, mode and requires_grad of the original.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = [
    "CONVS",
    "LAYERS",
    "TRANSPOSED",
    "is_plain",
    "is_pointwise",
    "merge_linear",
    "pads_zeros",
    "rescaled",
    "scale_input",
    "scale_output",
    "uninitialised",
]

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVS, *TRANSPOSED, nn.Linear)


def exact(tensor: Tensor) -> Tensor:
    """Return the tensor in float64 (float32 on mps, which has no float64)."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def is_plain(layer: nn.Module) -> bool:
    """Return whether the layer has no bias, or a bias of zeros."""
    return layer.bias is None or not bool(cast("Tensor", layer.bias).any())


def pads_zeros(layer: nn.Module) -> bool:
    """Return whether the layer pads its input with zeros, so that a constant input gives no constant output."""
    padding: Any = getattr(layer, "padding", ())
    if padding == "same":
        padding = [side - 1 for side in cast("nn.Conv2d", layer).kernel_size]
    return padding != "valid" and any(padding) and layer.padding_mode == "zeros"


def is_pointwise(layer: nn.Module) -> bool:
    """Return whether the layer is a 1x1 convolution without padding and groups, or a linear layer."""
    if isinstance(layer, nn.Linear):
        return True
    if not isinstance(layer, CONVS) or layer.groups > 1:
        return False
    padding: Any = layer.padding
    return math.prod(layer.kernel_size) == 1 and (padding in ("valid", "same") or not any(padding))


@torch.no_grad()
def rescaled(layer: nn.Module, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> nn.Module:
    """Return a copy of the layer with `change` applied to its weight and bias in float64; a missing bias is added."""
    changed = copy.deepcopy(layer)
    weight = cast("nn.Parameter", changed.weight)
    bias = cast("Tensor | None", changed.bias)
    out = changed.out_features if isinstance(changed, nn.Linear) else cast("nn.Conv2d", changed).out_channels
    new_weight, new_bias = change(exact(weight), exact(weight.new_zeros(out) if bias is None else bias))
    weight.copy_(new_weight)
    if bias is None:
        changed.bias = nn.Parameter(new_bias.to(weight.dtype), requires_grad=weight.requires_grad)
    else:
        bias.copy_(new_bias)
    return changed


def scale_output(layer: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
    """Return the layer followed by y -> scale * y + shift, with `scale` and `shift` (O,) per output channel."""

    def change(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(layer, TRANSPOSED):
            return weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), bias * scale + shift
        # (I, O / groups, ...): the rows of a group produce the outputs of that group.
        groups = layer.groups
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        factors = scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
        return (by_group * factors).reshape(weight.shape), bias * scale + shift

    return rescaled(layer, change)


def scale_input(layer: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
    """Return x -> scale * x + shift followed by the layer, with `scale` and `shift` (I,) per input channel.

    Exact if the shift is 0 or the layer does not pad with zeros (`pads_zeros`); not for transposed convolutions.
    """
    groups = 1 if isinstance(layer, nn.Linear) else cast("nn.Conv2d", layer).groups

    def change(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        ones = [1] * (weight.dim() - 2)
        added = by_group * shift.reshape(groups, 1, -1, *ones)
        factors = scale.reshape(groups, 1, -1, *ones)
        return (by_group * factors).reshape(weight.shape), bias + added.reshape(len(weight), -1).sum(1)

    return rescaled(layer, change)


@torch.no_grad()
def merge_linear(first: nn.Module, second: nn.Module) -> nn.Module:
    """Merge two consecutive layers, at least one of them pointwise, without groups and not transposed.

    The caller checks the padding: if the second has a kernel larger than 1, either the first has no bias or the second
    does not pad with zeros.
    """
    a, b = exact(cast("Tensor", first.weight)), exact(cast("Tensor", second.weight))
    if is_pointwise(second):
        product = (b.flatten(1) @ a.flatten(1)).reshape(len(b), *a.shape[1:])
    else:
        product = torch.einsum("om...,mi->oi...", b, a.flatten(1))
    merged = _merged_shape(first, second)
    bias = None
    for layer, matrix in ((first, b.flatten(2).sum(2) if b.dim() > 2 else b), (second, None)):
        if layer.bias is not None:
            term = exact(cast("Tensor", layer.bias))
            term = term if matrix is None else matrix @ term
            bias = term if bias is None else bias + term
    weight = cast("nn.Parameter", merged.weight)
    weight.copy_(product)
    if bias is not None:
        merged.bias = nn.Parameter(bias.to(weight.dtype))
    trained = any(parameter.requires_grad for layer in (first, second) for parameter in layer.parameters())
    return merged.requires_grad_(trained).train(first.training)


def _merged_shape(first: nn.Module, second: nn.Module) -> nn.Module:
    """Return an uninitialised layer of the merged shape, without bias, with the device and dtype of the first."""
    if isinstance(first, nn.Linear):
        return uninitialised(
            nn.Linear, first.weight, first.in_features, cast("nn.Linear", second).out_features, bias=False
        )
    conv, following = cast("nn.Conv2d", first), cast("nn.Conv2d", second)
    spatial = conv if is_pointwise(second) else following
    merged = uninitialised(
        type(conv),
        conv.weight,
        conv.in_channels,
        following.out_channels,
        spatial.kernel_size,
        stride=tuple(s * t for s, t in zip(conv.stride, following.stride, strict=True)),
        padding=spatial.padding,
        dilation=spatial.dilation,
        padding_mode=spatial.padding_mode,
        bias=False,
    )
    if conv.weight.dim() == 4 and _channels_last(conv, following):
        merged.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return merged


def uninitialised(kind: type[nn.Module], like: Tensor, *sizes: Any, **settings: Any) -> nn.Module:
    """Return a layer with uninitialised parameters and the device and dtype of `like`; no random number is drawn."""
    return kind(*sizes, device="meta", dtype=like.dtype, **settings).to_empty(device=like.device)


def _channels_last(*layers: nn.Conv2d) -> bool:
    """Return whether the weights are channels-last in memory; a 1x1 weight is in both formats and does not count."""
    strided = [layer.weight for layer in layers if not layer.weight.is_contiguous()]
    return bool(strided) and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in strided)
