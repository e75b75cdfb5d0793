"""Claim 6: two things that are often said of 1x1 convolutions are wrong."""

from __future__ import annotations

import numpy as np
import torch

from mlpconv.claims.cases import draw, image, integer, pointwise
from mlpconv.claims.schema import Check, Claim

__all__ = ["CLAIM"]


def only_fewer_filters(rng: np.random.Generator) -> float:
    """Compare the rank of the map with min(C, F): it falls below C only with fewer filters than input channels."""
    channels, filters = integer(rng, 1, 17), integer(rng, 1, 34)
    conv = pointwise(rng, channels, filters)
    pixels = draw(rng, 1, channels, 7, 11)
    maps = (conv(pixels) - conv.bias[None, :, None, None])[0].flatten(1)  # type: ignore[index]
    return abs(int(torch.linalg.matrix_rank(maps)) - min(channels, filters))


def same_everywhere(rng: np.random.Generator) -> float:
    """Count positions whose Jacobian differs from that of the first: no pixel is emphasised over another."""
    x = image(rng)[:1].requires_grad_()
    conv = pointwise(rng, x.shape[1], 1)
    (gradient,) = torch.autograd.grad(conv(x).sum(), x)
    return float((gradient != gradient[:, :, :1, :1]).sum())


def sums_over_channels(rng: np.random.Generator) -> float:
    """Count input channels that an output map does not depend on: in a convolution per channel, all but one."""
    x = image(rng, integer(rng, 2, 17))[:1].requires_grad_()
    conv = pointwise(rng, x.shape[1], integer(rng, 1, 17))
    (gradient,) = torch.autograd.grad(conv(x)[:, 0].sum(), x)
    return float((gradient[0].abs().amax((1, 2)) == 0).sum())


CLAIM = Claim(
    number=6,
    name="dimensions",
    title="What a 1x1 does not do",
    words='"It emphasises or ignores single pixels and so reduces dimensionality" and "it is applied to each channel '
    'independently" are both wrong: dimensions fall only with fewer filters than input channels, and every filter sums '
    "over all channels.",
    source="Widespread answers on question-and-answer sites and in blog posts",
    method="The rank of a random 1x1 from C to F channels must be min(C, F); its derivative must be the same at every "
    "pixel; every output must depend on every input channel.",
    overturn="A 1x1 that treats two pixels differently, or a generic one of full width that loses a dimension.",
    checks=(
        Check("rank = min(C, F): dimensions fall only if F < C", only_fewer_filters, bound=0),
        Check("every pixel gets the same weights", same_everywhere, bound=0),
        Check("every output depends on every input channel", sums_over_channels, bound=0),
    ),
)
