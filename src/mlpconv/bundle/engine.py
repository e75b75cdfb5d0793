"""A trained network rearranged for inference on a CPU: norms folded in, ReLU inside the convolution, weights laid out.

PyTorch lays a convolution's weights out anew at each call, and reads and writes every activation once more for ReLU.
oneDNN, which computes its convolutions, need do neither: the operators used here are those of torch.compile, without
compiling. The result is that of the plain network up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any, cast

import torch
from torch import Tensor, nn

from mlpconv.layers import MLPConv, convolved_size, pooled_size
from mlpconv.models.dropout import Dropout
from mlpconv.models.nin import NIN

__all__ = ["Engine", "Layer", "layers_of", "supported", "work_of"]

LARGEST_INPUT = 1e6  # of a preprocessed pixel; what is larger, or NaN, is left to the plain network
LARGEST_VALUE = 1e30  # that such a pixel may lead to: fused ReLU makes NaN zero, so none must come up
WORKING_SET = 16 << 20  # bytes of the largest activation: below, glibc keeps the memory, and a large cache holds it
MOST_SHAPES = 3  # of which the weights are kept laid out
CONVS, NORMS, ACTIVATIONS = (nn.Conv2d,), (nn.BatchNorm2d, nn.Identity), (nn.ReLU, nn.Identity)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, NoneType)


@dataclass
class Layer:
    """A convolution, and what follows it: ReLU, a pool, and a scale and shift (C, 1, 1) before the ReLU."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    relu: bool
    pool: nn.Module | None = None
    affine: tuple[Tensor, Tensor] | None = None
    laid_out: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> Layer:
        """The same in another number format, of a copy of the weights."""
        weight = self.weight.to(dtype, memory_format=torch.channels_last, copy=True)
        affine = None if self.affine is None else (self.affine[0].to(dtype), self.affine[1].to(dtype))
        return replace(self, weight=weight, bias=self.bias.to(dtype), affine=affine, laid_out={})

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', h, w), both channels-last."""
        fused = "relu" if self.relu and self.affine is None else "none"
        x = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight_for(x), self.bias, self.padding, self.stride, (1, 1), 1, fused, [], ""
        )
        if self.pool is not None:
            x = pooled_positive(x) if fused == "relu" and isinstance(self.pool, nn.MaxPool2d) else self.pool(x)
        if self.affine is not None:
            x = torch.addcmul(self.affine[1], x, self.affine[0])
            x = x.relu_() if self.relu else x
        return x

    def weight_for(self, x: Tensor) -> Tensor:
        """The weight as the fastest algorithm for images of that shape wants it."""
        shape = tuple(x.shape)
        if shape not in self.laid_out:
            if len(self.laid_out) >= MOST_SHAPES:
                self.laid_out.clear()
            self.laid_out[shape] = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self.padding, self.stride, (1, 1), 1, shape
            )
        return self.laid_out[shape]

    def bound(self, largest: float) -> float:
        """The largest size of an output, where no input is larger than `largest`."""
        value = float((self.weight.abs().sum((1, 2, 3)) * largest + self.bias.abs()).max())
        if self.affine is not None:
            value = float((self.affine[0].abs() * value + self.affine[1].abs()).max())
        return value


class Engine:
    """Layers, then the head, in one number format: preprocessed float32 (N, C, H, W) -> logits (N, K) float32."""

    def __init__(self, layers: Sequence[Layer], head: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        self.layers, self.head, self.dtype = [layer.to(dtype) for layer in layers], head, dtype

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, of so many images at a time that the activations stay small; for use without gradients."""
        x = x.to(self.dtype, memory_format=torch.channels_last)
        largest, _ = work_of(self.layers, tuple(x.shape[2:]))
        most = max(1, WORKING_SET // (largest * x.element_size()))
        parts = x.tensor_split(-(-len(x) // most)) if len(x) > most else (x,)
        logits = [self.part(part) for part in parts]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def part(self, x: Tensor) -> Tensor:
        """Logits of (n, C, H, W) in the engine's format."""
        for layer in self.layers:
            x = layer(x)
        return self.head(x.float())


def work_of(layers: Sequence[Layer], size: tuple[int, ...]) -> tuple[int, int]:
    """For an image of those rows and columns: the most values that a convolution makes, and all multiply-adds."""
    largest = total = 0
    for layer in layers:
        channels, _, *kernel = layer.weight.shape
        size = tuple(map(convolved_size, size, kernel, layer.stride, layer.padding))
        values = channels * size[0] * size[1]
        largest, total = max(largest, values), total + values * layer.weight[0].numel()
        size = tuple(map(pooled_size, size)) if layer.pool is not None else size
    return largest, total


def supported() -> bool:
    """Whether this build of torch has oneDNN with the operators that are needed."""
    operators = torch.ops.mkldnn
    names = ("_convolution_pointwise", "_reorder_convolution_weight", "_is_mkldnn_bf16_supported")
    available = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return available and all(hasattr(operators, name) for name in names)


@torch.no_grad()
def layers_of(model: nn.Module) -> list[Layer] | None:
    """The layers of a Network In Network of ReLUs; None for any other, and where a value could become infinite.

    Types are compared exactly: a part that was put in from outside may compute something else.
    """
    if type(model) is not NIN or any(tensor.dtype != torch.float32 for tensor in model.parameters()):
        return None
    if any(type(dropout) not in (Dropout, nn.Dropout, nn.Identity) for dropout in model.dropouts):
        return None
    layers: list[Layer] = []
    for block in model.blocks:
        of_block = _layers_of_block(block) if type(block) is MLPConv else None
        if of_block is None:
            return None
        layers += of_block
    largest = LARGEST_INPUT
    for layer in layers:
        largest = layer.bound(largest)
    return layers if largest < LARGEST_VALUE else None


def _layers_of_block(block: MLPConv) -> list[Layer] | None:
    layers, last = [], len(block.convs) - 1
    for index, (conv, norm, activation) in enumerate(zip(block.convs, block.norms, block.activations, strict=True)):
        pool = block.pool if index == last else None
        parts = list(conv) if type(conv) is nn.Sequential else [conv]  # a convolution of lower rank is a chain of them
        kinds = (*((part, CONVS) for part in parts), (norm, NORMS), (activation, ACTIVATIONS), (pool, POOLS))
        if not parts or any(type(part) not in accepted for part, accepted in kinds):
            return None
        convs = cast("list[nn.Conv2d]", parts)
        layers += [folded(part, nn.Identity(), relu=False) for part in convs[:-1]]
        pool_first = pool is not None and block.pool_at == "conv"
        layers.append(folded(convs[-1], norm, type(activation) is nn.ReLU, pool, pool_first))
    return layers


def folded(
    conv: nn.Conv2d, norm: nn.Module, relu: bool, pool: nn.Module | None = None, pool_first: bool = False
) -> Layer:
    """A convolution with its norm multiplied into it; apart where a pool comes between and a weight is negative."""
    weight = conv.weight.detach()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
    stride, padding = conv.stride, cast("tuple[int, ...]", conv.padding)
    if not isinstance(norm, nn.BatchNorm2d):
        return Layer(weight, bias, stride, padding, relu, pool)
    mean, variance = cast("Tensor", norm.running_mean).double(), cast("Tensor", norm.running_var).double()
    scale = norm.weight.double() / (variance + norm.eps).sqrt()
    shift = norm.bias.double() - mean * scale
    if pool_first and bool((scale < 0).any()):
        affine = (scale.float()[:, None, None], shift.float()[:, None, None])
        return Layer(weight, bias, stride, padding, relu, pool, affine)
    weight = (weight.double() * scale[:, None, None, None]).float()
    return Layer(weight, (bias.double() * scale + shift).float(), stride, padding, relu, pool)


def pooled_positive(x: Tensor) -> Tensor:
    """Max-pooling, 3x3, stride 2, from 0, rounded up, of (N, C, H, W) channels-last numbers that are not negative.

    Such floats are in the order of their bits, so they are compared as integers, of which twice as many fit a register
    in bfloat16; columns after rows, which are long.
    """
    bits = x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32).permute(0, 2, 3, 1)
    return thirds(thirds(bits, 1), 2).permute(0, 3, 1, 2).view(x.dtype)


def thirds(x: Tensor, axis: int) -> Tensor:
    """The largest of three neighbours along an axis, every second time, from 0; the last window may hold but two."""
    out = pooled_size(x.shape[axis])
    found = torch.maximum(stepped(x, axis, 0, 2 * out), stepped(x, axis, 1, 2 * out))
    third = stepped(x, axis, 2, 2 * out + 1)
    target = found.narrow(axis, 0, third.shape[axis])
    torch.maximum(target, third, out=target)
    return found


def stepped(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """Every second slice of an axis."""
    where: list[Any] = [slice(None)] * x.dim()
    where[axis] = slice(start, stop, 2)
    return x[tuple(where)]
