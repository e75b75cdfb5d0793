"""Random networks: branches, strides, dilations, groups, gates, and heads written in many ways.

`networks()` is a hypothesis strategy for classifiers; `randomised` gives a network weights and norm statistics that
expose errors; `vision` imports torchvision or timm, or skips the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor, nn

from mlpconv.errors import UsageError
from mlpconv.models.external import import_vision

CLASSES = 7
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "silu": nn.SiLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "none": nn.Identity,
}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Randomise weights, so that signals neither vanish nor explode, and norm statistics; return the network."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is None or not tensor.is_floating_point():
                    continue
                noise = torch.randn(tensor.shape, generator=source, dtype=torch.float64).to(tensor.dtype)
                if name == "running_var" or (name == "weight" and tensor.dim() == 1):
                    tensor.copy_(noise.abs() * 0.5 + 0.5)
                elif tensor.dim() > 1:
                    tensor.copy_(noise * (1.5 / max(1, tensor[0].numel())) ** 0.5)
                else:
                    tensor.copy_(noise * 0.3)
    return model


def vision(module: str) -> Any:
    """Import torchvision or timm; skip the test if the library is not installed."""
    try:
        return import_vision(module)
    except UsageError as error:
        pytest.skip(str(error))


# ---- trunks


class Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += self.shortcut(x)
        return F.relu(y)


class Branches(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool, self.down, self.up = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(self.pool(x)).relu()).sigmoid()


class Functions(nn.Module):
    """Functional convolution, norm, ReLU and pool, with the parameters of submodules."""

    def __init__(self, channels: int, out: int, stride: int, pool: Callable[..., Tensor], *, ceil: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, out, (3, 1)), nn.BatchNorm2d(out)
        self.stride, self.pool, self.ceil = stride, pool, ceil

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.conv.weight, self.conv.bias, padding=(1, 0))
        norm = self.norm
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training, 0.1, norm.eps)
        return self.pool(torch.relu(x), 2, self.stride, ceil_mode=self.ceil)


@dataclass(frozen=True)
class Rules:
    """Building blocks that a trunk may use."""

    padded: bool = True
    gates: bool = True
    strides: bool = True
    functions: bool = False
    """Whether to include functional blocks."""


@st.composite
def units(
    draw: Any, channels: int, out: int, rules: Rules, *, stride: int = 1, same: bool = False, bare: bool = False
) -> nn.Module:
    """Draw a convolution, optionally with a norm before or after it and (unless `bare`) an activation.

    `same` keeps the spatial size.
    """
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 1), (1, 3)])) if rules.padded or not same else (1, 1)
    dilation = draw(st.integers(1, 2)) if kernel != (1, 1) else 1
    padding = tuple(dilation * (size // 2) for size in kernel) if rules.padded else (0, 0)
    groups = draw(st.sampled_from([n for n in (1, 2, 3, 6) if channels % n == 0 and out % n == 0]))
    norm = draw(st.sampled_from(["after", "before", ""]))  # hypothesis shrinks towards the first option, here and below
    bias = draw(st.booleans()) or norm != "after"
    layers: list[nn.Module] = [nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias)]
    if norm == "before":
        layers.insert(0, nn.BatchNorm2d(channels))
    if norm == "after":
        layers.append(nn.BatchNorm2d(out))
    if not bare:
        layers.append(ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]())
    return nn.Sequential(*layers)


@st.composite
def blocks(draw: Any, channels: int, rules: Rules) -> tuple[nn.Module, int]:
    """Draw a block of a trunk; return it with its output channels."""
    kinds = ["residual", "branches", *["functions"] * (rules.functions and rules.padded), "unit", "pool", "dropout"]
    kinds += ["gate"] * rules.gates
    kind = draw(st.sampled_from(kinds))
    out = draw(st.sampled_from([6, 12]))
    stride = draw(st.integers(1, 2)) if rules.strides else 1
    if kind == "residual":
        body = draw(units(channels, out, rules, stride=stride, same=True, bare=True))
        plain = stride == 1 and out == channels
        shortcut = nn.Identity() if plain else nn.Conv2d(channels, out, 1, stride, bias=False)
        return Residual(body, shortcut), out
    if kind == "branches":
        branches = [draw(units(channels, 6, rules, stride=stride, same=True)) for _ in range(draw(st.integers(2, 3)))]
        return Branches(*branches), 6 * len(branches)
    if kind == "pool":
        pool = draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))
        padding = draw(st.integers(0, 1)) if rules.padded else 0
        return pool(2, stride, padding, ceil_mode=draw(st.booleans())), channels
    if kind == "functions":
        pool = draw(st.sampled_from([F.max_pool2d, F.avg_pool2d]))
        return Functions(channels, out, stride, pool, ceil=draw(st.booleans())), out
    if kind == "dropout":
        return nn.Dropout(0.3), channels
    if kind == "gate":
        return Gate(channels), channels
    return draw(units(channels, out, rules, stride=stride)), out


# ---- heads: equivalent forward passes, written in many ways


class Head(nn.Module):
    """Pool or flatten in one of many ways, then linear layers."""

    def __init__(self, spelling: str, flatten: Callable[[Tensor], Tensor], layers: nn.Module) -> None:
        super().__init__()
        self.spelling, self.layers = spelling, layers
        self.flattened = flatten

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.flattened(x))


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "adaptive, flatten": lambda x: torch.flatten(F.adaptive_avg_pool2d(x, 1), 1),
    "adaptive, squeeze": lambda x: F.adaptive_avg_pool2d(x, (1, 1)).squeeze(-1).squeeze(-1),
    "adaptive, sliced": lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0],
    "mean of two": lambda x: x.mean((2, 3)),
    "mean of two, named": lambda x: torch.mean(x, dim=[-2, -1]),
    "mean of two, kept": lambda x: x.mean(dim=(-1, -2), keepdim=True).view(len(x), -1),
    "mean of mean": lambda x: x.mean(3).mean(2),
    "mean of flat": lambda x: x.flatten(2).mean(-1),
    "channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "as large as the maps": lambda x: F.avg_pool2d(x, x.shape[2:]).reshape(x.shape[0], -1),
}
FLATTENS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: torch.flatten(x, 1),
    "method": lambda x: x.flatten(start_dim=1),
    "view": lambda x: x.view(x.size(0), -1),
    "view with sizes": lambda x: x.reshape(-1, x.shape[1] * x.shape[2] * x.shape[3]),
    "channels last": lambda x: x.permute(0, 2, 3, 1).reshape(x.size(0), -1),
    "columns first": lambda x: x.transpose(2, 3).flatten(1),
    "in two steps": lambda x: x.flatten(2).flatten(1),
}


class Pooled(nn.Module):
    """AdaptiveAvgPool2d to several cells, then flatten."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x).flatten(1)


class Dropped(nn.Dropout):
    """Functional dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


@st.composite
def linear_layers(draw: Any, features: int, *, hidden: bool) -> nn.Module:
    """Draw a linear layer, or two with a norm, an activation and dropout between them."""
    dropout = draw(st.sampled_from([Dropped, nn.Dropout]))
    if not hidden:
        drop = [dropout(0.5)] if draw(st.booleans()) else []
        return nn.Sequential(*drop, nn.Linear(features, CLASSES, bias=draw(st.booleans())))
    between: list[nn.Module] = [nn.Linear(features, 11), nn.ReLU(), dropout(0.4)]
    if draw(st.booleans()):
        between.insert(1, nn.BatchNorm1d(11))
    return nn.Sequential(*between, nn.Linear(11, CLASSES))


class Network(nn.Module):
    """A trunk and a head: (N, 3, H, W) -> (N, 7)."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


@st.composite
def networks(
    draw: Any,
    heads: tuple[str, ...] = ("pool", "flatten", "adaptive"),
    rules: Rules | None = None,
    hidden: bool = True,
    least: int = 0,
) -> tuple[nn.Module, tuple[int, int, int]]:
    """Draw a classifier with random weights, in eval or training mode; return it with the (C, H, W) of its images.

    Heads: "pool" to one cell, "flatten", and "adaptive" pools with even or ("uneven") any windows. The trunk has
    `least` to 3 blocks.
    """
    rules = rules or Rules(padded=draw(st.booleans()))
    shape = (3, draw(st.sampled_from([17, 19, 23])), draw(st.sampled_from([17, 21])))
    trunk, channels = nn.Sequential(nn.Conv2d(3, 6, 3, padding=int(rules.padded)), nn.ReLU()), 6
    for _ in range(draw(st.integers(least, 3))):
        block, channels = draw(blocks(channels, rules))
        trunk.append(block)
    seed = draw(st.integers(0, 9))
    try:
        with torch.no_grad():
            rows, columns = trunk.eval()(torch.zeros(1, *shape)).shape[2:]
    except RuntimeError:  # strides and unpadded kernels leave no pixels
        reject()
    kind, several = draw(st.sampled_from(heads)), hidden and draw(st.booleans())
    if kind == "pool":
        spelling = draw(st.sampled_from(sorted(POOLS)))
        head: nn.Module = Head(spelling, POOLS[spelling], draw(linear_layers(channels, hidden=several)))
    elif kind == "flatten":
        spelling = draw(st.sampled_from(sorted(FLATTENS)))
        head = Head(spelling, FLATTENS[spelling], draw(linear_layers(channels * rows * columns, hidden=several)))
    else:
        parts = [[part for part in range(1, n + 1) if kind == "uneven" or n % part == 0] for n in (rows, columns)]
        sides = [draw(st.sampled_from(sizes)) for sizes in parts]
        layers = draw(linear_layers(channels * sides[0] * sides[1], hidden=several))
        head = Head("adaptive", Pooled((sides[0], sides[1])), layers)
    return randomised(Network(trunk, head), seed).train(draw(st.booleans())), shape
