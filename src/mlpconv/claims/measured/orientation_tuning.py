"""Claim 20: first-layer filters become orientation-tuned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mlpconv.claims.budget import Images
from mlpconv.claims.schema import Arm, Claim, Comparison

__all__ = ["CLAIM", "orientation_index"]

INDEX = {"digits": 0.05, "mnist": 0.05, "cifar10": 0.05}
NETWORK = "5x5:16 1x1:16 max 3x3:24 1x1:24 max 1x1:K gap"
ORIENTATIONS, FREQUENCIES = 16, (0.1, 0.15, 0.2, 0.25)


def orientation_index(filters: Tensor) -> float:
    """Return the mean orientation selectivity of filters (F, C, k, k): 0 for none, 1 for one orientation only.

    The response r(angle) of a filter is its amplitude for gratings, at the best of four frequencies; the index is
    |sum r exp(2i angle)| / sum r. The channels of a filter are averaged.
    """
    weights = filters.detach().double().mean(1)
    weights = weights - weights.mean((1, 2), keepdim=True)
    size = weights.shape[-1]
    y, x = torch.meshgrid(torch.arange(size) - size // 2, torch.arange(size) - size // 2, indexing="ij")
    angles = torch.arange(ORIENTATIONS) * math.pi / ORIENTATIONS
    along = torch.cos(angles)[:, None, None] * x + torch.sin(angles)[:, None, None] * y  # (A, k, k)
    phase = 2 * math.pi * torch.tensor(FREQUENCIES)[:, None, None, None] * along
    gratings = torch.polar(torch.ones_like(phase), phase).to(torch.complex128)
    response = torch.einsum("fxy,qaxy->fqa", weights.to(torch.complex128), gratings).abs().amax(1)  # (F, A)
    tuning = (response * torch.exp(2j * angles)).sum(1).abs() / response.sum(1).clamp_min(1e-12)
    return float(tuning.mean())


def measure(network: nn.Sequential, images: Images, seed: int) -> dict[str, float]:  # noqa: ARG001
    """Return the mean orientation index of the first layer."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    return {"orientation": orientation_index(first.weight)}


CLAIM = Claim(
    number=20,
    name="orientation",
    title="First-layer filters become orientation-tuned",
    words="The filters of the first layer learn edges of one orientation, like simple cells of the visual cortex.",
    source="Zeiler and Fergus (2014); common remark beside pictures of first-layer filters",
    method="A network with 16 filters of 5x5 first. The index is 1 for a filter that answers to one orientation of "
    "gratings only and 0 for one that answers to all alike. Random filters have an index above 0 by chance, so the "
    "trained filters are compared with the same filters before training.",
    overturn="Random filters that are as selective as trained ones.",
    arms={"trained": Arm(NETWORK), "random": Arm(NETWORK, epochs=0)},
    comparisons=(
        Comparison("trained filters, against random ones", "trained", "random", "higher", INDEX, metric="orientation"),
    ),
    measure=measure,
)
