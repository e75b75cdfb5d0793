"""Claim 9: 1x1s shrink channels, pooling shrinks the image; a strided 1x1 ignores most positions."""

from __future__ import annotations

import numpy as np
import torch

from mlpconv.claims.cases import apart, image, integer, pointwise
from mlpconv.claims.schema import Check, Claim

__all__ = ["CLAIM"]


def division_of_labour(rng: np.random.Generator) -> float:
    """Check that a 1x1 changes only the channels and 2 x 2 pooling only rows and columns."""
    x = image(rng)
    n, channels, rows, columns = x.shape
    filters = integer(rng, 1, 17)
    pooled = torch.nn.functional.max_pool2d(x, 2, ceil_mode=True)
    kept = pointwise(rng, channels, filters)(x).shape == (n, filters, rows, columns)
    return float(not kept) + float(pooled.shape != (n, channels, -(-rows // 2), -(-columns // 2)))


def ignores(rng: np.random.Generator) -> float:
    """Compare a strided 1x1 with the plain one on every s-th pixel, and count other pixels with a gradient."""
    x = image(rng)[:1].requires_grad_()
    stride = integer(rng, 2, 4)
    strided = pointwise(rng, x.shape[1], integer(rng, 1, 17), stride)
    plain = torch.nn.functional.conv2d(x[:, :, ::stride, ::stride], strided.weight, strided.bias)
    (gradient,) = torch.autograd.grad(strided(x).abs().sum(), x)
    gradient[:, :, ::stride, ::stride] = 0
    return apart(strided(x), plain) + float((gradient != 0).sum())


CLAIM = Claim(
    number=9,
    name="stride",
    title="Channels and pixels",
    words="1x1 convolutions shrink the number of channels, pooling shrinks height and width. A strided 1x1 reads one "
    "position in s x s and ignores the rest.",
    source="Ng, Deep Learning Specialization; discussions of the strided 1x1s in residual networks",
    method="A 1x1 must change only the channels, pooling only rows and columns. A 1x1 with stride s must equal the "
    "plain one on every s-th pixel, and no other pixel may have a gradient.",
    overturn="A pixel between the strides that changes an output.",
    checks=(
        Check("1x1: channels only; pooling: rows and columns only", division_of_labour, bound=0),
        Check("stride s: every s-th pixel, and no gradient elsewhere", ignores),
    ),
)
