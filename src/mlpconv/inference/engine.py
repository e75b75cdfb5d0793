"""A trained network rearranged for inference on a CPU: norms folded in, and oneDNN given the whole of it as a graph.

PyTorch asks oneDNN for one operator at a time: each call lays the weights out anew, finds its kernel again and reads
and writes every activation once more for ReLU. As a graph of fixed shapes all that is done once. The way there is
TorchScript, which PyTorch has deprecated without offering another; where it fails, the rearranged layers compute
without it. The result is that of the plain network up to rounding.

`torch.jit.trace` and `freeze` store what they make in a registry of the process, weights included, and nothing removes
it. Here a graph is a function in a compilation unit of its own, which is freed with the engine that holds it.
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

LARGEST_INPUT = 1e6  # of a preprocessed pixel; what is larger, or NaN, is left to the plain network
LARGEST_VALUE = 1e30  # that such a pixel may lead to: fused ReLU makes NaN zero, so none must come up
WORKING_SET = 30 << 20  # bytes of the largest activation: below, glibc keeps the memory, and a large cache holds it
PARTS = (32, 8, 1)  # images that graphs are made for: every batch is a sum of these
MOST_GRAPHS = len(PARTS) * 2
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # of the largest value, between two ways of computing the same
MAKING = threading.Lock()  # of a graph: what turns oneDNN's graphs on is a setting of the process
CONVS, NORMS, ACTIVATIONS = (nn.Conv2d,), (nn.BatchNorm2d, nn.Identity), (nn.ReLU, nn.Identity)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, NoneType)


@dataclass(frozen=True)
class FusedConv:
    """A convolution, and what follows it: ReLU, a pool, and a scale and shift (C, 1, 1) before the ReLU."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    relu: bool
    pool: nn.Module | None = None
    affine: tuple[Tensor, Tensor] | None = None

    def modules(self) -> list[nn.Module]:
        """The same as modules with weights of their own, ReLU as near to the convolution as it may be."""
        conv = _Convolution(self.weight.clone(), self.bias.clone(), self.stride, self.padding)
        relu: list[nn.Module] = [nn.ReLU()] if self.relu else []
        pool = [] if self.pool is None else [copy.deepcopy(self.pool)]
        return [conv, *relu, *pool] if self.affine is None else [conv, *pool, _Affine(*self.affine), *relu]

    def bound(self, largest: float) -> float:
        """The largest size of an output, where no input is larger than `largest`."""
        value = float((self.weight.abs().sum((1, 2, 3)) * largest + self.bias.abs()).max())
        if self.affine is not None:
            value = float((self.affine[0].abs() * value + self.affine[1].abs()).max())
        return value


class _Convolution(nn.Module):
    """nn.Conv2d of weights that are there already: to make one first draws random numbers."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.bias, self.stride, self.padding = nn.Parameter(weight), nn.Parameter(bias), stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class _Affine(nn.Module):
    """x * scale + shift."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class Engine:
    """Layers, then the head, in one number format: preprocessed float32 (N, C, H, W) -> logits (N, K) float32."""

    def __init__(self, layers: Sequence[FusedConv], head: Forward, dtype: torch.dtype) -> None:
        self.layers, self.head, self.dtype = layers, head, dtype
        network = nn.Sequential(*(module for layer in layers for module in layer.modules()))
        network.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network.to(dtype)
        self.graphs: dict[torch.Size, Forward] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, of so many images at a time that the activations stay small; for use without gradients."""
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)  # faster than both in one step
        maps = [self.graph(part)(part) for part in self.parts(x)]
        return self.head((maps[0] if len(maps) == 1 else torch.cat(maps)).float())

    def parts(self, x: Tensor) -> Iterator[Tensor]:
        """The images as few batches of the sizes that there are graphs for."""
        while len(x):
            count = next(count for count in PARTS if count == 1 or (count <= len(x) and self.fits(count, x)))
            yield x[:count]
            x = x[count:]

    def fits(self, count: int, x: Tensor) -> bool:
        """Whether so many images of that size keep to the working set."""
        return count * work_of(self.layers, x.shape[2:])[0] * x.element_size() <= WORKING_SET

    def graph(self, x: Tensor) -> Forward:
        """What computes the maps of images of that shape: made once, compared once, and then kept."""
        if x.shape not in self.graphs:
            if len(self.graphs) >= MOST_GRAPHS:
                self.graphs.clear()
            self.graphs[x.shape] = graph_of(self.network, x)
        return self.graphs[x.shape]


def graph_of(network: nn.Module, x: Tensor) -> Forward:
    """A network as one graph of oneDNN for images like these; the network itself where that does not work."""
    with MAKING, torch.no_grad():
        before = torch.jit.onednn_fusion_enabled()  # type: ignore[no-untyped-call]
        torch.jit.enable_onednn_fusion(True)
        try:
            traced, _ = torch._C._create_graph_by_tracing(network, (x,), lambda _: "", True, False)
            graph: Forward = torch._C._create_function_from_graph("forward", traced)
            graph(x)  # notes the shapes; the next run makes the kernels
            return graph if close(graph(x), network(x), x.dtype) else network
        except (RuntimeError, AttributeError, TypeError):  # the last two: a build whose tracer has another signature
            return network
        finally:
            torch.jit.enable_onednn_fusion(before)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether two ways of computing the same agree as well as the format lets them."""
    size = expected.abs().max().clamp_min(1e-6)
    return bool((found - expected).abs().max() <= ALLOWED[dtype] * size)


def work_of(layers: Sequence[FusedConv], size: tuple[int, ...]) -> tuple[int, int]:
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
    """Whether this build of torch has oneDNN, and the way to its graphs."""
    available = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return available and hasattr(torch.jit, "enable_onednn_fusion")


@torch.no_grad()
def layers_of(model: nn.Module) -> list[FusedConv] | None:
    """The layers of a Network In Network of ReLUs; None for any other, and where a value could become infinite.

    Types are compared exactly: a part that was put in from outside may compute something else.
    """
    if type(model) is not NIN or any(tensor.dtype != torch.float32 for tensor in model.parameters()):
        return None
    if any(type(dropout) not in (Dropout, nn.Dropout, nn.Identity) for dropout in model.dropouts):
        return None
    layers: list[FusedConv] = []
    for block in model.blocks:
        of_block = _layers_of_block(block) if type(block) is MLPConv else None
        if of_block is None:
            return None
        layers += of_block
    largest = LARGEST_INPUT
    for layer in layers:
        largest = layer.bound(largest)
    return layers if largest < LARGEST_VALUE else None


def _layers_of_block(block: MLPConv) -> list[FusedConv] | None:
    layers, last = [], len(block.convs) - 1
    for index, (conv, norm, activation) in enumerate(zip(block.convs, block.norms, block.activations, strict=True)):
        pool = block.pool if index == last else None
        parts = list(conv) if type(conv) is nn.Sequential else [conv]  # a convolution of lower rank is a chain of them
        kinds = (*((part, CONVS) for part in parts), (norm, NORMS), (activation, ACTIVATIONS), (pool, POOLS))
        if not parts or any(type(part) not in accepted for part, accepted in kinds):
            return None
        convs = cast("list[nn.Conv2d]", parts)
        if not all(_usual(conv) for conv in convs):
            return None
        layers += [fuse(part, nn.Identity(), relu=False) for part in convs[:-1]]
        pool_first = pool is not None and block.pool_at == "conv"
        layers.append(fuse(convs[-1], norm, type(activation) is nn.ReLU, pool, pool_first))
    return layers


def _usual(conv: nn.Conv2d) -> bool:
    """Whether it is padded with zeros of a fixed width and neither grouped nor dilated, as those that we make."""
    zeros = conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
    return zeros and conv.groups == 1 and conv.dilation == (1, 1)


def fuse(
    conv: nn.Conv2d, norm: nn.Module, relu: bool, pool: nn.Module | None = None, pool_first: bool = False
) -> FusedConv:
    """A convolution with its norm multiplied into it; apart where a pool comes between and a weight is negative."""
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
