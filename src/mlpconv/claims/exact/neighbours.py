"""Claim 3: a 1x1 cannot combine neighbouring pixels, so the first kernel must be larger."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from mlpconv.claims.cases import apart, image, integer, pointwise
from mlpconv.claims.schema import Arm, Check, Claim, Comparison

__all__ = ["CLAIM"]


def jacobian(rng: np.random.Generator) -> float:
    """Return the largest derivative of an output at one position by an input at another."""
    x = image(rng)[:1].requires_grad_()
    conv = pointwise(rng, x.shape[1], integer(rng, 1, 17))
    row, column = integer(rng, 0, x.shape[2] - 1), integer(rng, 0, x.shape[3] - 1)
    (gradient,) = torch.autograd.grad(conv(x)[0, :, row, column].sum(), x)
    gradient[0, :, row, column] = 0
    return float(gradient.abs().max())


def blind_to_order(rng: np.random.Generator) -> float:
    """Compare the logits of an image and of its shuffled pixels: three 1x1s and global average pooling."""
    x = image(rng)
    widths = [x.shape[1], *(integer(rng, 1, 17) for _ in range(3))]
    shuffled = x.flatten(2)[:, :, torch.from_numpy(rng.permutation(x.shape[2] * x.shape[3]))].reshape(x.shape)
    for channels, filters in pairwise(widths):
        conv = pointwise(rng, channels, filters)
        x, shuffled = conv(x).relu(), conv(shuffled).relu()
    return apart(x.mean((2, 3)), shuffled.mean((2, 3)))


ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}

CLAIM = Claim(
    number=3,
    name="neighbours",
    title="Someone else must look at the neighbours",
    words="A 1x1 convolution cannot combine neighbouring pixels; a network needs a larger kernel first.",
    source="Common answer to 'what is the use of a 1x1 kernel?'",
    method="The Jacobian of a 1x1 must vanish off the position itself, and a network of 1x1s with global average "
    "pooling must give an image and its shuffled pixels the same logits. Measured: 1x1s alone against a first kernel "
    "of 3x3, and 5x5 against 3x3, at equal parameters.",
    overturn="A larger first kernel that does not lower the error of a network of 1x1s.",
    checks=(
        Check("no output depends on a pixel at another position", jacobian, bound=0),
        Check("1x1s and global average pooling cannot tell an image from its shuffled pixels", blind_to_order),
    ),
    arms={
        "1x1 first": Arm("1x1:16 1x1:16 max2 1x1:32 1x1:32 max2 1x1:32 1x1:K gap", match="3x3 first"),
        "3x3 first": Arm("3x3:16 1x1:16 max2 1x1:32 1x1:32 max2 1x1:32 1x1:K gap"),
        "5x5 first": Arm("5x5:16 1x1:16 max2 1x1:32 1x1:32 max2 1x1:32 1x1:K gap", match="3x3 first"),
    },
    comparisons=(
        Comparison("a 3x3 first, against 1x1s alone", "3x3 first", "1x1 first", "lower", ERROR),
        Comparison("a 5x5 first, against a 3x3", "5x5 first", "3x3 first", "lower", ERROR),
    ),
)
