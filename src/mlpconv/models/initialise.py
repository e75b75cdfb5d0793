"""Initialise weights, with torch's global generator: `torch.manual_seed` makes it reproducible."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["INITS", "init_convs", "init_linear"]

INITS = ("paper", "he", "identity")

LAST_GAIN = 0.03
"""Fraction of He's standard deviation for the last layer, so that the first loss is near ln K."""

IDENTITY_NOISE = 0.3
"""Fraction of He's standard deviation added to a 1x1 that starts as the identity."""


def _he(weight: torch.Tensor) -> float:
    """Return He's standard deviation sqrt(2 / fan in) for a weight (out, in, ...)."""
    return math.sqrt(2.0 / max(1, weight[0].numel()))


def _identity(weight: torch.Tensor, pieces: int) -> None:
    """Add the identity to a 1x1 weight (pieces*out, in, 1, 1), in place: channel c to the first piece of output c."""
    count = min(weight.shape[0] // pieces, weight.shape[1])
    channel = torch.arange(count)
    weight[channel * pieces, channel, 0, 0] += 1.0


@torch.no_grad()
def init_convs(convs: Sequence[nn.Conv2d], init: str, stds: Sequence[float], *, pieces: int, maps_last: bool) -> None:
    """Initialise the convolutions of a network in place, first to last, with biases of 0.

    "paper": N(0, std), with a standard deviation per convolution. "he": N(0, 2 / fan in). "identity": as "he", but a
    1x1 is the identity on its first min(in, out) channels plus noise of 0.3 of He's standard deviation. For the latter
    two, `maps_last` gives the last convolution 0.03 of He's standard deviation.
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
    """Initialise a linear layer in place: N(0, std) for "paper", otherwise He's, scaled by 0.03 for the `last` one."""
    gain = LAST_GAIN if last else 1.0
    linear.weight.normal_(0.0, std if init == "paper" else gain * _he(linear.weight))
    linear.bias.zero_()
