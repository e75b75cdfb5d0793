"""A convolution of lower rank as data: a pair of ranks, and the chain of convolutions without activations they mean."""

from __future__ import annotations

from typing import cast

from torch import nn

__all__ = ["Ranks", "low_rank", "parameters_of", "parts_of"]

Ranks = tuple[int, int]
"""Channels behind a 1x1 before the convolution, and before a 1x1 behind it; 0 where there is no such 1x1."""


def low_rank(conv: nn.Conv2d, ranks: Ranks) -> nn.Module:
    """The convolution through so many channels: 1x1, k x k, 1x1, of which only the last has a bias; fresh weights.

    The convolution itself where both ranks are 0.
    """
    into, out = ranks
    if not (into or out):
        return conv
    kernel, stride, padding = (cast("tuple[int, int]", each) for each in (conv.kernel_size, conv.stride, conv.padding))
    parts = [nn.Conv2d(conv.in_channels, into, 1, bias=False)] if into else []
    parts.append(nn.Conv2d(into or conv.in_channels, out or conv.out_channels, kernel, stride, padding, bias=not out))
    if out:
        parts.append(nn.Conv2d(out, conv.out_channels, 1))
    return nn.Sequential(*parts)


def parts_of(conv: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of one of an mlpconv layer's `convs`, in order: itself, or its two or three of lower rank."""
    return [part for part in conv.modules() if isinstance(part, nn.Conv2d)]


def parameters_of(channels: int, out: int, area: int, ranks: Ranks = (0, 0)) -> int:
    """Weights and biases of a convolution with a kernel of `area` taps, of these ranks."""
    into, made = ranks
    core = (into or channels) * area * (made or out)
    return channels * into + core + made * out + out
