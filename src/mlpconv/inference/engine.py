"""Compile a trained network for inference on a CPU: fold batch norm and run all layers as one oneDNN graph.

PyTorch calls oneDNN for one operator at a time: each call reorders the weights, looks up its kernel, and reads and
writes every activation again for ReLU. A graph of fixed shapes does all that once. It is reached through TorchScript,
which PyTorch has deprecated without a replacement; if that fails, the folded layers run without it. The outputs are
those of the plain network up to rounding.

`torch.jit.trace` and `freeze` store their results, weights included, in a registry of the process and never free them.
Here a graph is a function in its own compilation unit, which is freed with the engine.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpconv.layers import MLPConv, convolved_size, pooled_size
from mlpconv.models.dropout import Dropout
from mlpconv.models.folding import norm_scale_and_shift
from mlpconv.models.nin import NIN

__all__ = ["Engine", "FusedConv", "close", "layers_of", "supported", "work_of"]

Forward = Callable[[Tensor], Tensor]

LARGEST_INPUT = 1e6  # preprocessed pixels; the plain network handles larger values and NaN
LARGEST_VALUE = 1e30  # bound of all activations: a fused ReLU turns NaN into 0, so none may occur
WORKING_SET = 30 << 20  # bytes of the largest activation: glibc keeps smaller blocks, and a large cache holds them
BATCH_SIZES = (32, 8, 1)  # of the graphs: every batch is split into these
MAX_GRAPHS = len(BATCH_SIZES) * 2
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # difference of outputs, relative to the largest output
TRACING = threading.Lock()  # enabling oneDNN graphs is a process-wide setting
CONVS, NORMS, ACTIVATIONS = (nn.Conv2d,), (nn.BatchNorm2d, nn.Identity), (nn.ReLU, nn.Identity)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, NoneType)


@dataclass(frozen=True)
class FusedConv:
    """A convolution with folded norm, its ReLU and pool, and a scale and shift (C, 1, 1) before the ReLU."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    relu: bool
    pool: nn.Module | None = None
    affine: tuple[Tensor, Tensor] | None = None

    def modules(self) -> list[nn.Module]:
        """Return modules with copied weights; ReLU follows the convolution directly if the result is the same."""
        conv = _Convolution(self.weight.clone(), self.bias.clone(), self.stride, self.padding)
        relu: list[nn.Module] = [nn.ReLU()] if self.relu else []
        pool = [] if self.pool is None else [copy.deepcopy(self.pool)]
        return [conv, *relu, *pool] if self.affine is None else [conv, *pool, _Affine(*self.affine), *relu]

    def bound(self, largest: float) -> float:
        """Return an upper bound of the absolute outputs for absolute inputs of at most `largest`."""
        value = float((self.weight.abs().sum((1, 2, 3)) * largest + self.bias.abs()).max())
        if self.affine is not None:
            value = float((self.affine[0].abs() * value + self.affine[1].abs()).max())
        return value


class _Convolution(nn.Module):
    """A convolution with given weights; nn.Conv2d would draw random ones first."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.bias, self.stride, self.padding = nn.Parameter(weight), nn.Parameter(bias), stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class _Affine(nn.Module):
    """Compute x * scale + shift."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class Engine:
    """Layers and head in one dtype: map preprocessed float32 (N, C, H, W) to float32 logits (N, K)."""

    def __init__(self, layers: Sequence[FusedConv], head: Forward, dtype: torch.dtype) -> None:
        self.layers, self.head, self.dtype = layers, head, dtype
        network = nn.Sequential(*(module for layer in layers for module in layer.modules()))
        network.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network.to(dtype)
        self.graphs: dict[torch.Size, Forward] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits, in batches whose activations stay small; for use without gradients."""
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)  # faster than a single call of to()
        maps = [self.graph(batch)(batch) for batch in self.split(x)]
        return self.head((maps[0] if len(maps) == 1 else torch.cat(maps)).float())

    def split(self, x: Tensor) -> Iterator[Tensor]:
        """Split a batch into as few batches as possible of the sizes that graphs accept."""
        while len(x):
            count = next(count for count in BATCH_SIZES if count == 1 or (count <= len(x) and self.fits(count, x)))
            yield x[:count]
            x = x[count:]

    def fits(self, count: int, x: Tensor) -> bool:
        """Return whether the activations of `count` images stay within the working set."""
        return count * work_of(self.layers, x.shape[2:])[0] * x.element_size() <= WORKING_SET

    def graph(self, x: Tensor) -> Forward:
        """Return the graph for the shape of `x`; it is compiled and compared with the layers once."""
        if x.shape not in self.graphs:
            if len(self.graphs) >= MAX_GRAPHS:
                self.graphs.clear()
            self.graphs[x.shape] = graph_of(self.network, x)
        return self.graphs[x.shape]


def graph_of(network: nn.Module, x: Tensor) -> Forward:
    """Compile a network as one oneDNN graph for the shape of `x`; return the network itself if that fails."""
    with TRACING, torch.no_grad():
        before = torch.jit.onednn_fusion_enabled()
        torch.jit.enable_onednn_fusion(True)
        try:
            traced, _ = torch._C._create_graph_by_tracing(network, (x,), lambda _: "", True, False)
            graph: Forward = torch._C._create_function_from_graph("forward", traced)
            graph(x)  # records the shapes; the next run compiles the kernels
            return graph if close(graph(x), network(x), x.dtype) else network
        except (RuntimeError, AttributeError, TypeError):  # the last two: another signature of the tracer
            return network
        finally:
            torch.jit.enable_onednn_fusion(before)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Return whether two outputs agree within the tolerance of a dtype."""
    largest = expected.abs().max().clamp_min(1e-6)
    return bool((actual - expected).abs().max() <= TOLERANCE[dtype] * largest)


def work_of(layers: Sequence[FusedConv], size: tuple[int, ...]) -> tuple[int, int]:
    """Return the largest number of outputs of a convolution, and all multiply-adds, for an image of (H, W)."""
    largest = total = 0
    for layer in layers:
        channels, _, *kernel = layer.weight.shape
        size = tuple(map(convolved_size, size, kernel, layer.stride, layer.padding))
        values = channels * size[0] * size[1]
        largest, total = max(largest, values), total + values * layer.weight[0].numel()
        size = tuple(map(pooled_size, size)) if layer.pool is not None else size
    return largest, total


def supported() -> bool:
    """Return whether this build of torch has oneDNN and its graphs."""
    available = bool(torch.backends.mkldnn.is_available())
    return available and hasattr(torch.jit, "enable_onednn_fusion")


@torch.no_grad()
def layers_of(model: nn.Module) -> list[FusedConv] | None:
    """Return the layers of a Network In Network with ReLUs; None for any other, or if a value could overflow.

    Types are compared exactly, because a subclass may compute something else.
    """
    if type(model) is not NIN or any(tensor.dtype != torch.float32 for tensor in model.parameters()):
        return None
    if any(type(dropout) not in (Dropout, nn.Dropout, nn.Identity) for dropout in model.dropouts):
        return None
    layers: list[FusedConv] = []
    for block in model.blocks:
        block_layers = _layers_of_block(block) if type(block) is MLPConv else None
        if block_layers is None:
            return None
        layers += block_layers
    largest = LARGEST_INPUT
    for layer in layers:
        largest = layer.bound(largest)
    return layers if largest < LARGEST_VALUE else None


def _layers_of_block(block: MLPConv) -> list[FusedConv] | None:
    layers, last = [], len(block.convs) - 1
    for index, (conv, norm, activation) in enumerate(zip(block.convs, block.norms, block.activations, strict=True)):
        pool = block.pool if index == last else None
        parts = list(conv) if type(conv) is nn.Sequential else [conv]  # a low-rank convolution is a chain
        kinds = (*((part, CONVS) for part in parts), (norm, NORMS), (activation, ACTIVATIONS), (pool, POOLS))
        if not parts or any(type(part) not in accepted for part, accepted in kinds):
            return None
        convs = cast("list[nn.Conv2d]", parts)
        if not all(_is_plain(conv) for conv in convs):
            return None
        layers += [fuse(part, nn.Identity(), relu=False) for part in convs[:-1]]
        pool_first = pool is not None and block.pool_at == "conv"
        layers.append(fuse(convs[-1], norm, type(activation) is nn.ReLU, pool, pool_first))
    return layers


def _is_plain(conv: nn.Conv2d) -> bool:
    """Return whether a convolution has fixed zero padding and neither groups nor dilation."""
    zeros = conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
    return zeros and conv.groups == 1 and conv.dilation == (1, 1)


def fuse(
    conv: nn.Conv2d, norm: nn.Module, relu: bool, pool: nn.Module | None = None, pool_first: bool = False
) -> FusedConv:
    """Fold batch norm into a convolution, or keep it separate after a pool if one of its scales is negative."""
    weight = conv.weight.detach()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
    stride, padding = conv.stride, cast("tuple[int, ...]", conv.padding)
    if not isinstance(norm, nn.BatchNorm2d):
        return FusedConv(weight, bias, stride, padding, relu, pool)
    scale, shift = norm_scale_and_shift(norm, "norm")
    if pool_first and bool((scale < 0).any()):
        affine = (scale.float()[:, None, None], shift.float()[:, None, None])
        return FusedConv(weight, bias, stride, padding, relu, pool, affine)
    weight = (weight.double() * scale[:, None, None, None]).float()
    return FusedConv(weight, (bias.double() * scale + shift).float(), stride, padding, relu, pool)
