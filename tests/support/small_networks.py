"""Helpers for tests of surgery: networks with non-trivial norms, and images and outputs in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn


def shaken(model: nn.Module, seed: int = 1, *, negative: bool = False) -> nn.Module:
    """Randomise the biases and norms of a network; return it in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: torch.Tensor | None, low: float, high: float) -> None:
        if tensor is not None:
            with torch.no_grad():
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            fill(module.weight, -1.5 if negative else 0.2, 1.5)
            fill(module.bias, -1, 1)
            fill(module.running_mean, -1, 1)
            fill(module.running_var, 0.1, 2)
        elif isinstance(getattr(module, "bias", None), torch.Tensor):
            fill(module.bias, -1, 1)
    return model.eval()


def images(count: int, *shape: int, seed: int = 3) -> torch.Tensor:
    """Return standard normal float64 images (count, *shape)."""
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-9) -> bool:
    """Return whether two tensors have equal shapes and differ by rounding only, relative to the largest value."""
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance * max(1e-3, float(a.abs().max()))


def outputs(model: nn.Module, size: Sequence[int], count: int = 3) -> torch.Tensor:
    """Return the float64 outputs (count, ...) of a copy of the network in eval mode, on random images."""
    images = torch.randn(count, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(images)


def assert_same(first: nn.Module, second: nn.Module, size: Sequence[int], close: float = 1e-9) -> None:
    """Assert that two networks have equal, non-zero outputs."""
    a, b = outputs(first, size), outputs(second, size)
    assert a.abs().max() > 0
    assert (a - b).abs().max() <= close * a.abs().max()


def count(model: nn.Module, *kinds: type[nn.Module]) -> int:
    """Return the number of modules of these classes."""
    return sum(isinstance(module, kinds) for module in model.modules())
