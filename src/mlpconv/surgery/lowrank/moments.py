"""Means and covariances of a layer's channels over images and places, gathered batch by batch in float64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "as_rows"]


class Moments:
    """Sums from which the mean and the covariance of C channels follow; `other` adds the covariance with D others."""

    def __init__(self, channels: int, other: int | None = None) -> None:
        self.count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._other_sum = torch.zeros(other or 0, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)
        self._crossed = torch.zeros(other or 0, channels, dtype=torch.float64)
        self._origin: Tensor | None = None
        self._other_origin: Tensor | None = None

    def add(self, rows: Tensor, others: Tensor | None = None) -> None:
        """Take in rows (P, C), and with them rows (P, D) of the others."""
        rows = rows.double()
        if self._origin is None:
            # Far from 0 the products would lose the variance among their digits.
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
        """(C,)."""
        return self._sum / self.count + (0 if self._origin is None else self._origin)

    @property
    def other_mean(self) -> Tensor:
        """(D,)."""
        return self._other_sum / self.count + (0 if self._other_origin is None else self._other_origin)

    @property
    def covariance(self) -> Tensor:
        """(C, C)."""
        mean = self._sum / self.count
        return self._products / self.count - mean[:, None] * mean

    @property
    def crossed(self) -> Tensor:
        """(D, C): the covariance of the others with the channels."""
        return self._crossed / self.count - (self._other_sum / self.count)[:, None] * (self._sum / self.count)


def as_rows(tensor: Tensor, places: Tensor | None = None) -> Tensor:
    """(N, C, H, W) -> (N*H*W, C), or (N*len(places), C) at some of the H*W places; (..., C) of a linear layer alike."""
    if tensor.dim() == 4:
        flat = tensor.flatten(2)
        if places is not None:
            flat = flat[:, :, places.to(flat.device)]
        return flat.transpose(1, 2).reshape(-1, tensor.shape[1]).cpu()
    return tensor.reshape(-1, tensor.shape[-1]).cpu()
