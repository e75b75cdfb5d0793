"""Accumulate the mean and covariance of channels over images and positions, batch by batch in float64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "as_rows"]


class Moments:
    """The mean and covariance of C channels; with `other`, also their cross-covariance with D other channels."""

    def __init__(self, channels: int, other: int | None = None) -> None:
        self.count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._other_sum = torch.zeros(other or 0, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)
        self._crossed = torch.zeros(other or 0, channels, dtype=torch.float64)
        self._origin: Tensor | None = None
        self._other_origin: Tensor | None = None

    def add(self, rows: Tensor, others: Tensor | None = None) -> None:
        """Add rows (P, C), and rows (P, D) of the other channels."""
        rows = rows.double()
        if self._origin is None:
            # Centre on the first batch: far from 0 the sums of products would lose the variance to rounding.
            self._origin = rows.mean(0)
        rows = rows - self._origin
        self.count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows
        if others is not None:
            others = others.double()
            if self._other_origin is None:
                self._other_origin = others.mean(0)
            others = others - self._other_origin
            self._other_sum += others.sum(0)
            self._crossed += others.T @ rows

    @property
    def mean(self) -> Tensor:
        """The mean (C,)."""
        return self._sum / self.count + (0 if self._origin is None else self._origin)

    @property
    def other_mean(self) -> Tensor:
        """The mean (D,) of the other channels."""
        return self._other_sum / self.count + (0 if self._other_origin is None else self._other_origin)

    @property
    def covariance(self) -> Tensor:
        """The covariance (C, C)."""
        mean = self._sum / self.count
        return self._products / self.count - mean[:, None] * mean

    @property
    def crossed(self) -> Tensor:
        """The covariance (D, C) of the other channels with the channels."""
        return self._crossed / self.count - (self._other_sum / self.count)[:, None] * (self._sum / self.count)


def as_rows(tensor: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return (N, C, H, W) as rows (N*H*W, C), or (N*P, C) at P of the H*W `positions`; (..., C) as rows (-1, C)."""
    if tensor.dim() == 4:
        flat = tensor.flatten(2)
        if positions is not None:
            flat = flat[:, :, positions.to(flat.device)]
        return flat.transpose(1, 2).reshape(-1, tensor.shape[1]).cpu()
    return tensor.reshape(-1, tensor.shape[-1]).cpu()
