"""Random cases for exact claims: small float64 tensors of random shape, and how far two results are apart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["apart", "draw", "image", "integer", "pointwise"]


def integer(rng: np.random.Generator, low: int, high: int) -> int:
    """Return a random integer from low to high, both included."""
    return int(rng.integers(low, high + 1))


def draw(rng: np.random.Generator, *shape: int) -> Tensor:
    """Return standard normal numbers in float64."""
    return torch.from_numpy(rng.standard_normal(shape))


def image(rng: np.random.Generator, channels: int | None = None) -> Tensor:
    """Return a random image or batch: (1 to 3, `channels` or 1 to 17, 1 to 13, 1 to 13) float64."""
    sides = integer(rng, 1, 13), integer(rng, 1, 13)
    return draw(rng, integer(rng, 1, 3), channels or integer(rng, 1, 17), *sides)


def pointwise(rng: np.random.Generator, channels: int, filters: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1x1 convolution with random weights and biases in float64."""
    conv = nn.Conv2d(channels, filters, 1, stride, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(draw(rng, filters, channels, 1, 1))
        if conv.bias is not None:
            conv.bias.copy_(draw(rng, filters))
    return conv


def apart(first: Tensor, second: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinite for tensors of different shapes."""
    if first.shape != second.shape:
        return float("inf")
    scale = max(float(first.detach().abs().max()), float(second.detach().abs().max()), 1.0)
    return float((first - second).detach().abs().max()) / scale
