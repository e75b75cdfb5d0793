"""How weights start. Everything is drawn from torch's global generator: `torch.manual_seed` decides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["INITS", "init_convs", "init_linear"]

INITS = ("paper", "he", "identity")

LAST_GAIN = 0.03
"""The last layer starts at this share of He's deviation, so that the first loss is near ln K."""

IDENTITY_NOISE = 0.3
"""How much of He's noise is added to a 1x1 that starts as the identity."""


def _he(weight: torch.Tensor) -> float:
    """He's standard deviation sqrt(2 / fan in) for a weight (out, in, ...)."""
    return math.sqrt(2.0 / max(1, weight[0].numel()))


def _identity(weight: torch.Tensor, pieces: int) -> None:
    """Add the identity to a 1x1 weight (pieces*out, in, 1, 1): channel c to the first piece of output c."""
    count = min(weight.shape[0] // pieces, weight.shape[1])
    channel = torch.arange(count)
    weight[channel * pieces, channel, 0, 0] += 1.0


@torch.no_grad()
def init_convs(convs: Sequence[nn.Conv2d], init: str, stds: Sequence[float], *, pieces: int, maps_last: bool) -> None:
    """Start a network's convolutions, first to last; biases are 0.

    "paper": N(0, std) with one standard deviation for each. "he": N(0, 2 / fan in). "identity": k x k as "he"; a 1x1
    is the identity on its first min(in, out) channels plus 0.3 of He's noise. In the latter two the last
    convolution, where it makes the maps, starts at 0.03 of He's deviation.
    """
    for index, (conv, std) in enumerate(zip(convs, stds, strict=True)):
        last = maps_last and index == len(convs) - 1
        pointwise = conv.kernel_size == (1, 1)
        if init == "paper":
            conv.weight.normal_(0.0, std)
        elif last:
            conv.weight.normal_(0.0, LAST_GAIN * _he(conv.weight))
        elif init == "identity" and pointwise:
            conv.weight.normal_(0.0, IDENTITY_NOISE * _he(conv.weight))
            _identity(conv.weight, pieces)
        else:
            conv.weight.normal_(0.0, _he(conv.weight))
        if conv.bias is not None:
            conv.bias.zero_()


@torch.no_grad()
def init_linear(linear: nn.Linear, init: str, std: float, *, last: bool = True) -> None:
    """Start a fully connected layer: N(0, std) for "paper", else He's, 0.03 of it for the one that makes the logits."""
    gain = LAST_GAIN if last else 1.0
    linear.weight.normal_(0.0, std if init == "paper" else gain * _he(linear.weight))
    linear.bias.zero_()
