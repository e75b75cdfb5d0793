"""Build a network from words, so that the arms of a claim read like a methods section.

    3x3:16 1x1:16 1x1:16 max drop 3x3:32 1x1:32 1x1:K gap

| word | layer |
|---|---|
| `3x3:16` | 3x3 convolution to 16 channels, batch norm, ReLU; keeps the size; `3x3:16/2` has stride 2 |
| `3x3:16-` | the same without batch norm and ReLU: a linear map |
| `1x1:K` | a convolution to one channel per class, without batch norm and ReLU |
| `max`, `avg` | the paper's pooling: 3x3, stride 2, size rounded up |
| `max2` | 2x2 pooling, stride 2, size rounded up |
| `same` | 3x3 maximum with stride 1, as in Inception's pool branch |
| `drop` | dropout with probability 0.5 |
| `relu` | ReLU alone |
| `gap` | global average pooling; `fc:K` a fully connected layer on all values; `fc:16` one with ReLU |
| `[ 1x1:8 | 3x3:8 ]` | branches, whose outputs are concatenated |
| `pca:8`, `random:8`, `sum:8`, `largest:8` | reductions to 8 channels without learned weights (`claims.reductions`) |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlpconv.claims.reductions import REDUCTIONS
from mlpconv.errors import UsageError, did_you_mean
from mlpconv.layers import GlobalAveragePool, MLPConv, convolved_size, make_pool, pooled_size
from mlpconv.models.dropout import Dropout
from mlpconv.models.initialise import init_convs, init_linear

__all__ = ["Branches", "Shape", "build", "cost_of_words", "scale_words"]

CONV = re.compile(r"([1-9]\d*)x\1:([1-9]\d*|K)(?:/([1-9]\d*))?(-?)")
COUNT = re.compile(r"[1-9]\d*")
WIDTH = re.compile(r"(?<=:)\d+")
DROPOUT = 0.5
PLAIN: dict[str, Callable[[], nn.Module | None]] = {
    "max": lambda: make_pool("max"),
    "avg": lambda: make_pool("avg"),
    "max2": lambda: nn.MaxPool2d(2, 2, ceil_mode=True),
    "same": lambda: nn.MaxPool2d(3, 1, padding=1),
    "drop": lambda: Dropout(DROPOUT),
    "relu": nn.ReLU,
    "gap": GlobalAveragePool,
}
POOL_KERNELS = {"max": 3, "avg": 3, "max2": 2}


class Shape(NamedTuple):
    """Channels and side of square feature maps, and the number of classes."""

    channels: int
    side: int
    classes: int


class Branches(nn.Module):
    """Concatenate the outputs of several branches along the channels: (N, C, H, W) -> (N, sum of channels, h, w)."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, sum of the branches' channels, h, w)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def build(words: str, shape: Shape) -> nn.Sequential:
    """Return the network that the words describe, for images of this shape, with He's initialisation.

    The last layer starts with small weights, so that the first loss is near ln K. Raises UsageError for unknown words.
    """
    tokens = iter(words.replace("[", " [ ").replace("]", " ] ").replace("|", " | ").split())
    layers, _ = _sequence(tokens, shape, closed=False)
    convs = [module for module in layers.modules() if isinstance(module, nn.Conv2d)]
    linears = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    init_convs(convs, "he", [0.0] * len(convs), pieces=1, maps_last=not linears)
    for linear in linears:
        init_linear(linear, "he", 0.0, last=linear is linears[-1])
    return layers


def _sequence(tokens: Iterator[str], shape: Shape, *, closed: bool) -> tuple[nn.Sequential, Shape]:
    """Build layers until the words end, or with `closed` until the branch ends."""
    layers: list[nn.Module] = []
    for word in tokens:
        if word == "[":
            layer, shape = _branches(tokens, shape)
        elif word in ("|", "]"):
            if closed:
                return _EndOfBranch(*layers, last=word == "]"), shape
            raise UsageError(f"The words of a network have {word!r} outside of [ ... ].")
        else:
            layer, shape = _layer(word, shape)
        layers.append(layer)
    if closed:
        raise UsageError("The words of a network have [ without ].")
    return nn.Sequential(*layers), shape


class _EndOfBranch(nn.Sequential):
    """A branch, with whether it is the last one of its group."""

    def __init__(self, *layers: nn.Module, last: bool) -> None:
        super().__init__(*layers)
        self.last = last


def _branches(tokens: Iterator[str], shape: Shape) -> tuple[nn.Module, Shape]:
    branches: list[nn.Module] = []
    shapes: list[Shape] = []
    while not branches or not branches[-1].last:
        branch, out = _sequence(tokens, shape, closed=True)
        branches.append(branch)
        shapes.append(out)
    if len({out.side for out in shapes}) > 1:
        raise UsageError("The branches of a network have different sizes; give all of them the same strides and pools.")
    return Branches(branches), shapes[0]._replace(channels=sum(out.channels for out in shapes))


def _layer(token: str, shape: Shape) -> tuple[nn.Module, Shape]:
    """Return the layer of one word and the shape after it."""
    if match := CONV.fullmatch(token):
        return _convolution(int(match[1]), match[2], int(match[3] or 1), bool(match[4]), shape)
    kind, _, width = token.partition(":")
    if kind == "fc" and (width == "K" or COUNT.fullmatch(width)):
        return _fully_connected(width, shape)
    if kind in REDUCTIONS and COUNT.fullmatch(width):
        return REDUCTIONS[kind](shape.channels, int(width)), shape._replace(channels=int(width))
    if token not in PLAIN:
        accepted = [*PLAIN, "3x3:16", "1x1:K", "fc:K", *(f"{name}:8" for name in REDUCTIONS)]
        raise UsageError(f"There is no layer {token!r}; {did_you_mean(token, accepted)}")
    layer = PLAIN[token]()
    side = pooled_size(shape.side, POOL_KERNELS[token]) if token in POOL_KERNELS else shape.side
    if layer is None or side < 1:
        raise UsageError(f"The layer {token!r} does not fit feature maps of {shape.side} x {shape.side}.")
    return layer, shape._replace(side=side)


def _convolution(kernel: int, width: str, stride: int, linear: bool, shape: Shape) -> tuple[nn.Module, Shape]:
    out = shape.classes if width == "K" else int(width)
    plain = linear or width == "K"
    padding = kernel // 2
    layer = MLPConv(
        shape.channels, (out,), kernel, stride, padding, norm=None if plain else "batch", last_activation=not plain
    )
    return layer, shape._replace(channels=out, side=convolved_size(shape.side, kernel, stride, padding))


def _fully_connected(width: str, shape: Shape) -> tuple[nn.Module, Shape]:
    inputs = shape.channels * shape.side**2
    if width == "K":
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, shape.classes)), shape._replace(
            channels=shape.classes, side=1
        )
    layer = nn.Sequential(nn.Flatten(), nn.Linear(inputs, int(width)), nn.ReLU())
    return layer, shape._replace(channels=int(width), side=1)


def cost_of_words(words: str, shape: Shape) -> dict[str, int]:
    """Return the parameters and the multiply-adds per image of a network."""
    from mlpconv.analysis import profile

    with torch.device("meta"):
        network = build(words, shape)
    totals = profile(network, (shape.channels, shape.side, shape.side)).totals
    return {"parameters": totals.params, "macs": totals.macs}


def scale_words(words: str, shape: Shape, target: int, by: str) -> str:
    """Scale all widths by a common factor, so that the cost ("parameters" or "macs") comes closest to the target."""

    def scaled(factor: float) -> str:
        return WIDTH.sub(lambda match: str(max(1, round(int(match[0]) * factor))), words)

    low, high = 0.05, 20.0
    candidates: dict[str, Any] = {}
    for _ in range(24):
        middle = (low * high) ** 0.5
        text = scaled(middle)
        cost = cost_of_words(text, shape)[by]
        candidates[text] = abs(cost - target)
        low, high = (middle, high) if cost < target else (low, middle)
    return min(candidates, key=lambda text: candidates[text])
