"""A factorized convolution: a pair of ranks, and the sequence of convolutions that it describes."""

from __future__ import annotations

from typing import cast

from torch import nn

__all__ = ["Ranks", "low_rank", "parameters_of", "parts_of"]

Ranks = tuple[int, int]
"""Output channels of a 1x1 before the convolution, and input channels of a 1x1 after it; 0 without that 1x1."""


def low_rank(conv: nn.Conv2d, ranks: Ranks) -> nn.Module:
    """Return the convolution factorized as 1x1, k x k, 1x1 with new weights; only the last has a bias.

    Returns the convolution itself if both ranks are 0.
    """
    rank_in, rank_out = ranks
    if not (rank_in or rank_out):
        return conv
    kernel, stride, padding = (cast("tuple[int, int]", pair) for pair in (conv.kernel_size, conv.stride, conv.padding))
    convs = [nn.Conv2d(conv.in_channels, rank_in, 1, bias=False)] if rank_in else []
    channels, out = rank_in or conv.in_channels, rank_out or conv.out_channels
    convs.append(nn.Conv2d(channels, out, kernel, stride, padding, bias=not rank_out))
    if rank_out:
        convs.append(nn.Conv2d(rank_out, conv.out_channels, 1))
    return nn.Sequential(*convs)


def parts_of(conv: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions of an entry of `MLPConv.convs`: itself, or the two or three it is factorized into."""
    return [part for part in conv.modules() if isinstance(part, nn.Conv2d)]


def parameters_of(channels: int, out: int, area: int, ranks: Ranks = (0, 0)) -> int:
    """Return the number of weights and biases of a convolution with a kernel of `area` taps, at these ranks."""
    rank_in, rank_out = ranks
    core = (rank_in or channels) * area * (rank_out or out)
    return channels * rank_in + core + rank_out * out + out
