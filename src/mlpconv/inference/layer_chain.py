"""Rewrite a trained network as a chain of convolutions, activations and pools that oneDNN fuses: norms are folded.

The chain ends before the pool over all positions. Its outputs are those of the network up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import NoneType
from typing import cast

import torch
from torch import Tensor, nn

from mlpconv.layers import GlobalAveragePool, MLPConv
from mlpconv.models.base import Network
from mlpconv.models.dropout import Dropout
from mlpconv.models.efficientnet_lite import EfficientNetLite, InvertedBottleneck, same_padding
from mlpconv.models.folding import norm_scale_and_shift
from mlpconv.models.nin import NIN
from mlpconv.models.squeezenet import Fire, SqueezeNet

__all__ = ["LARGEST_INPUT", "Affine", "Forward", "LayerChain", "chain_of"]

Forward = Callable[[Tensor], Tensor]

LARGEST_INPUT = 1e6  # preprocessed pixels; the plain network handles larger values and NaN
LARGEST_VALUE = 1e30  # bound of all activations: a fused ReLU turns NaN into 0, so none may occur
CONVS, NORMS, ACTIVATIONS = (nn.Conv2d,), (nn.BatchNorm2d, nn.Identity), (nn.ReLU, nn.Identity)
POOLS, DROPOUTS = (nn.MaxPool2d, nn.AvgPool2d, NoneType), (Dropout, nn.Dropout, nn.Identity)


@dataclass(frozen=True)
class LayerChain:
    """The layers of a network for images of one size, in float32, and its head: maps (N, D, h, w) -> logits (N, K)."""

    layers: nn.Sequential
    head: Forward
    largest: int
    """Values in the largest output of a convolution, for one image."""
    macs: int
    """Multiply-adds of the convolutions, for one image."""


class Unsupported(Exception):
    """The network has a part of another type."""


@torch.no_grad()
def chain_of(model: nn.Module, size: tuple[int, ...], *, features: bool = False) -> LayerChain | None:
    """Return the chain of a network of this package for images of (H, W); None if it has other parts.

    With `features` the chain ends with the features, and the head returns their spatial means (N, D). Types are
    compared exactly, because a subclass may compute something else. A network whose values could overflow has no chain.
    """
    if any(tensor.dtype != torch.float32 for tensor in model.parameters()):
        return None
    try:
        modules = list(_modules_of(model, size, features))
    except Unsupported:
        return None
    layers = nn.Sequential(*modules).requires_grad_(False).eval()
    layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.full((1, cast("Network", model).in_channels, *size), LARGEST_INPUT)
    largest, macs, bound = survey(layers, image)
    head = GlobalAveragePool() if features else _head_of(model)
    return LayerChain(layers, head, largest, macs) if bound < LARGEST_VALUE else None


def survey(layers: nn.Module, image: Tensor) -> tuple[int, int, float]:
    """Return the largest number of outputs of a convolution, all multiply-adds, and a bound of all absolute values.

    With absolute weights every value bounds the one that any image within the values of `image` gives at its place.
    """
    layers, outputs, macs, bounds = copy.deepcopy(layers), [0], [0], [float(image.max())]

    def record(module: nn.Module, _: object, output: Tensor) -> None:
        bounds.append(float(output.max()))
        if isinstance(module, nn.Conv2d):
            outputs.append(output.numel())
            macs.append(output.numel() * module.weight[0].numel())

    for parameter in layers.parameters():
        parameter.abs_()
    for module in layers.modules():
        if isinstance(module, nn.Conv2d | Affine):
            module.register_forward_hook(record)
    layers(image.contiguous(memory_format=torch.channels_last))
    return max(outputs), sum(macs), float(torch.tensor(bounds).max())  # NaN if one is


class Affine(nn.Module):
    """Compute x * scale + shift with scale and shift (C, 1, 1)."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return torch.addcmul(self.shift, x, self.scale)


class _Shortcut(nn.Sequential):
    """Layers around which their input is added to their output."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        for layer in self:
            x = layer(x)
        return x + shortcut


def _head_of(model: nn.Module) -> Forward:
    """Return what follows the chain."""
    if type(model) is NIN:
        return cast("Forward", model.head)
    return model.average if type(model) is SqueezeNet else cast("Network", model).forward_head


def _modules_of(model: nn.Module, size: tuple[int, ...], features: bool) -> Iterator[nn.Module]:
    if type(model) is NIN and not features:
        yield from _nin(model)
    elif type(model) is SqueezeNet:
        yield from _squeezenet(model, features)
    elif type(model) is EfficientNetLite:
        yield from _efficientnet_lite(model, size)
    else:
        raise Unsupported


def _expect(module: object, accepted: tuple[type, ...]) -> None:
    if type(module) not in accepted:
        raise Unsupported


def _nin(model: NIN) -> Iterator[nn.Module]:
    for dropout in model.dropouts:
        _expect(dropout, DROPOUTS)
    for block in model.blocks:
        _expect(block, (MLPConv,))
        yield from _mlpconv(cast("MLPConv", block))


def _mlpconv(block: MLPConv) -> Iterator[nn.Module]:
    """Yield the layers of an mlpconv layer; ReLU follows a convolution directly if the result is the same."""
    last = len(block.convs) - 1
    for index, (conv, norm, activation) in enumerate(zip(block.convs, block.norms, block.activations, strict=True)):
        pool = block.pool if index == last else None
        parts = list(conv) if type(conv) is nn.Sequential else [conv]  # a low-rank convolution is a chain
        if not parts:
            raise Unsupported
        _expect(activation, ACTIVATIONS)
        _expect(pool, POOLS)
        yield from (_folded(part) for part in parts[:-1])
        pools = [] if pool is None else [copy.deepcopy(pool)]
        relu = [nn.ReLU()] if type(activation) is nn.ReLU else []
        pool_first = pool is not None and block.pool_at == "conv"
        if pool_first and _has_negative_scale(norm):
            scale, shift = norm_scale_and_shift(cast("nn.BatchNorm2d", norm), "norm")
            affine = Affine(scale.float()[:, None, None], shift.float()[:, None, None])
            yield from (_folded(parts[-1]), *pools, affine, *relu)
        else:
            yield from (_folded(parts[-1], norm), *relu, *pools)


def _has_negative_scale(norm: nn.Module) -> bool:
    """Return whether a norm turns the maximum of a pool before it into a minimum."""
    _expect(norm, NORMS)
    return isinstance(norm, nn.BatchNorm2d) and bool((norm_scale_and_shift(norm, "norm")[0] < 0).any())


def _squeezenet(model: SqueezeNet, features: bool) -> Iterator[nn.Module]:
    for module in model.features:
        _expect(module, (Fire, nn.Conv2d, nn.ReLU, nn.MaxPool2d))
        for part in module.modules():
            if part is not module or isinstance(part, nn.Conv2d):
                _expect_conv(part)
        yield copy.deepcopy(module)
    if not features:
        dropout, conv, activation = cast("Iterable[nn.Module]", model.classifier)
        _expect(dropout, DROPOUTS)
        _expect(activation, ACTIVATIONS)
        yield from (_folded(conv), copy.deepcopy(activation))


def _efficientnet_lite(model: EfficientNetLite, size: tuple[int, ...]) -> Iterator[nn.Module]:
    yield from (*_padded(model.conv_stem, model.bn1, size), nn.ReLU6())
    size = _strided(size, model.conv_stem)
    for block in (block for stage in model.blocks for block in cast("Iterable[InvertedBottleneck]", stage)):
        _expect(block, (InvertedBottleneck,))
        layers = _inverted(block, size)
        yield _Shortcut(*layers) if block.shortcut else nn.Sequential(*layers)
        size = _strided(size, block.conv_dw)
    yield from (_folded(model.conv_head, model.bn2), nn.ReLU6())


def _inverted(block: InvertedBottleneck, size: tuple[int, ...]) -> Iterator[nn.Module]:
    """Yield the layers of a block of EfficientNet-Lite: expand, filter, project."""
    pairs = [(getattr(block, conv), getattr(block, norm)) for conv, norm in block.pairs()]
    for conv, norm in pairs[:-1]:
        yield from (*_padded(conv, norm, size), nn.ReLU6())
    yield _folded(*pairs[-1])


def _padded(conv: nn.Conv2d, norm: nn.Module, size: tuple[int, ...]) -> Iterator[nn.Module]:
    """Yield the SAME padding of a strided convolution for images of (H, W), and the convolution."""
    folded = _folded(conv, norm)
    if conv.stride != (1, 1):
        (rows, columns), kernels, strides = size, conv.kernel_size, conv.stride
        yield nn.ZeroPad2d(
            (*same_padding(columns, kernels[1], strides[1]), *same_padding(rows, kernels[0], strides[0]))
        )
    yield folded


def _strided(size: tuple[int, ...], conv: nn.Conv2d) -> tuple[int, ...]:
    """Return the rows and columns after a convolution with SAME padding."""
    return tuple(-(-side // stride) for side, stride in zip(size, conv.stride, strict=True))


def _folded(conv: nn.Module, norm: nn.Module | None = None) -> nn.Conv2d:
    """Return a copy of a convolution with the norm after it folded in."""
    folded = copy.deepcopy(_expect_conv(conv))
    if norm is not None:
        _expect(norm, NORMS)
    if isinstance(norm, nn.BatchNorm2d):
        scale, shift = norm_scale_and_shift(norm, "norm")
        bias = shift if folded.bias is None else folded.bias.double() * scale + shift
        folded.weight = nn.Parameter((folded.weight.double() * scale[:, None, None, None]).float())
        folded.bias = nn.Parameter(bias.float())
    return folded


def _expect_conv(conv: nn.Module) -> nn.Conv2d:
    """Return a convolution; raise Unsupported for another module, and for padding other than with a number of zeros."""
    _expect(conv, CONVS)
    conv = cast("nn.Conv2d", conv)  # mypy knows no exact types
    if conv.padding_mode != "zeros" or not isinstance(conv.padding, tuple):
        raise Unsupported
    return conv
