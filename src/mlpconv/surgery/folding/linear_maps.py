"""Convolutions and linear layers as linear maps: scaled, shifted, and two of them made one. Numbers only, no graph.

Everything is worked out in float64 and rounded once, to the layer's own number format. Layers are copied, never
changed; device, memory format, mode and requires_grad are those of the layer that is copied.
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
    """In float64, where the device has it."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def is_plain(layer: nn.Module) -> bool:
    """Whether the layer adds nothing: no bias, or one of zeros."""
    return layer.bias is None or not bool(cast("Tensor", layer.bias).any())


def pads_zeros(layer: nn.Module) -> bool:
    """Whether zeros surround what the layer sees, so that a constant before it is no constant after it."""
    padding: Any = getattr(layer, "padding", ())
    if padding == "same":
        padding = [side - 1 for side in cast("nn.Conv2d", layer).kernel_size]
    return padding != "valid" and any(padding) and layer.padding_mode == "zeros"


def is_pointwise(layer: nn.Module) -> bool:
    """Whether it is a 1x1 convolution without padding and groups, or a linear layer."""
    if isinstance(layer, nn.Linear):
        return True
    if not isinstance(layer, CONVS) or layer.groups > 1:
        return False
    padding: Any = layer.padding
    return math.prod(layer.kernel_size) == 1 and (padding in ("valid", "same") or not any(padding))


@torch.no_grad()
def rescaled(layer: nn.Module, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> nn.Module:
    """A copy of the layer whose weight and bias are what `change` makes of them, in float64; a bias is added."""
    made = copy.deepcopy(layer)
    weight = cast("nn.Parameter", made.weight)
    old = cast("Tensor | None", made.bias)
    out = made.out_features if isinstance(made, nn.Linear) else cast("nn.Conv2d", made).out_channels
    new_weight, new_bias = change(exact(weight), exact(weight.new_zeros(out) if old is None else old))
    weight.copy_(new_weight)
    if old is None:
        made.bias = nn.Parameter(new_bias.to(weight.dtype), requires_grad=weight.requires_grad)
    else:
        old.copy_(new_bias)
    return made


def scale_output(layer: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
    """The layer followed by y -> scale * y + shift, one number of each an output channel."""

    def change(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(layer, TRANSPOSED):
            return weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), bias * scale + shift
        # (I, O / groups, ...): the rows of a group make the group's own outputs.
        groups = layer.groups
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        factors = scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
        return (by_group * factors).reshape(weight.shape), bias * scale + shift

    return rescaled(layer, change)


def scale_input(layer: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
    """x -> scale * x + shift, one number of each an input channel, followed by the layer.

    Exact where the shift is 0 or nothing but the input is seen (see `pads_zeros`); not for transposed convolutions.
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
    """One layer for two in a row, of which at least one is pointwise; neither has groups, nor is transposed.

    The caller sees to the padding: where the second has a kernel, the first must add nothing or the second must not
    pad with zeros.
    """
    a, b = exact(cast("Tensor", first.weight)), exact(cast("Tensor", second.weight))
    if is_pointwise(second):
        product = (b.flatten(1) @ a.flatten(1)).reshape(len(b), *a.shape[1:])
    else:
        product = torch.einsum("om...,mi->oi...", b, a.flatten(1))
    made = _sized(first, second)
    bias = None
    for layer, passed in ((first, b.flatten(2).sum(2) if b.dim() > 2 else b), (second, None)):
        if layer.bias is not None:
            own = exact(cast("Tensor", layer.bias))
            own = own if passed is None else passed @ own
            bias = own if bias is None else bias + own
    weight = cast("nn.Parameter", made.weight)
    weight.copy_(product)
    if bias is not None:
        made.bias = nn.Parameter(bias.to(weight.dtype))
    trained = any(parameter.requires_grad for layer in (first, second) for parameter in layer.parameters())
    return made.requires_grad_(trained).train(first.training)


def _sized(first: nn.Module, second: nn.Module) -> nn.Module:
    """An unfilled layer of the merged shape, without bias, on the device and in the format of the first."""
    if isinstance(first, nn.Linear):
        return uninitialised(
            nn.Linear, first.weight, first.in_features, cast("nn.Linear", second).out_features, bias=False
        )
    one, two = cast("nn.Conv2d", first), cast("nn.Conv2d", second)
    seeing = one if is_pointwise(second) else two
    made = uninitialised(
        type(one),
        one.weight,
        one.in_channels,
        two.out_channels,
        seeing.kernel_size,
        stride=tuple(s * t for s, t in zip(one.stride, two.stride, strict=True)),
        padding=seeing.padding,
        dilation=seeing.dilation,
        padding_mode=seeing.padding_mode,
        bias=False,
    )
    if one.weight.dim() == 4 and _channels_last(one, two):
        made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return made


def uninitialised(kind: type[nn.Module], like: Tensor, *sizes: Any, **settings: Any) -> nn.Module:
    """A layer whose numbers are still to come, on a tensor's device and in its format; no random number is drawn."""
    return kind(*sizes, device="meta", dtype=like.dtype, **settings).to_empty(device=like.device)


def _channels_last(*layers: nn.Conv2d) -> bool:
    """Whether the layers' memory is channels-last; a 1x1 weight alone is both and does not say."""
    told = [layer.weight for layer in layers if not layer.weight.is_contiguous()]
    return bool(told) and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in told)
