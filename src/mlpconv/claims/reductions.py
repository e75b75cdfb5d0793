"""Reductions of channels without learned weights, to compare a 1x1 convolution with."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["REDUCTIONS", "GroupReduction", "PCAReduction", "RandomProjection"]

REFIT_STEPS = 10
MEMORY = 0.95
"""Weight of the past in the running mean and covariance of the channels."""


class RandomProjection(nn.Module):
    """Project the channels onto fixed random directions: (N, C, H, W) -> (N, width, H, W)."""

    projection: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(width, channels) / channels**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H, W)."""
        return F.conv2d(x, self.projection[:, :, None, None])


class PCAReduction(nn.Module):
    """Project the channels onto the principal components of a running covariance: (N, C, H, W) -> (N, width, H, W).

    In training the components are computed again every 10 steps and turned to agree with the previous ones as closely
    as a rotation allows, since the layers after them have learned to read those.
    """

    mean: Tensor
    covariance: Tensor
    components: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("covariance", torch.eye(channels))
        self.register_buffer("components", torch.eye(channels)[:width].clone())
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H, W)."""
        if self.training:
            self._observe(x.detach())
        return F.conv2d(x - self.mean[:, None, None], self.components[:, :, None, None])

    def _observe(self, x: Tensor) -> None:
        pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        memory = MEMORY if self.steps else 0.0
        # New tensors, since the graph of this step still reads the old ones.
        self.mean = memory * self.mean + (1 - memory) * pixels.mean(0)
        self.covariance = memory * self.covariance + (1 - memory) * torch.cov(pixels.T, correction=0)
        if self.steps % REFIT_STEPS == 0:
            self._refit()
        self.steps += 1

    def _refit(self) -> None:
        leading = torch.linalg.eigh(self.covariance.double())[1].T.flip(0)[: len(self.components)]
        left, _, right = torch.linalg.svd(self.components.double() @ leading.T)
        self.components = (left @ right @ leading).float()


class GroupReduction(nn.Module):
    """Add up, or take the maximum of, groups of consecutive channels: (N, C, H, W) -> (N, width, H, W)."""

    def __init__(self, channels: int, width: int, maximum: bool) -> None:
        super().__init__()
        self.channels, self.width, self.maximum = channels, width, maximum

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H, W)."""
        groups = -(-self.channels // self.width)
        missing = groups * self.width - self.channels
        padded = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
        grouped = padded.reshape(x.shape[0], self.width, groups, *x.shape[2:])
        return grouped.amax(2) if self.maximum else cast("Tensor", grouped.sum(2) / groups**0.5)


REDUCTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "pca": PCAReduction,
    "random": RandomProjection,
    "sum": lambda channels, width: GroupReduction(channels, width, maximum=False),
    "largest": lambda channels, width: GroupReduction(channels, width, maximum=True),
}
