"""Claim 1: what a 1x1 convolution does to the size, and what it costs."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mlpconv.analysis import profile
from mlpconv.claims.cases import image, integer, pointwise
from mlpconv.claims.schema import Check, Claim

__all__ = ["CLAIM"]


def arithmetic(rng: np.random.Generator) -> float:
    """Compare size, parameters and multiply-adds of a random 1x1 with H x W x F, C x F + F and H x W x C x F."""
    x = image(rng)
    _, channels, rows, columns = x.shape
    filters = integer(rng, 1, 40)
    conv = pointwise(rng, channels, filters)
    parameters = sum(weights.numel() for weights in conv.parameters())
    same = conv(x).shape == (len(x), filters, rows, columns) and parameters == channels * filters + filters
    counted = profile(conv, (channels, rows, columns)).totals.macs
    return abs(counted - rows * columns * channels * filters) + float(not same)


def examples(_: np.random.Generator) -> float:
    """Compare the two textbook examples with torch's own shapes and with counts by hand."""
    wrong = 0
    for side, channels, filters, macs in ((28, 192, 192, 28_901_376), (200, 50, 20, 40_000_000)):
        with torch.device("meta"):
            conv = nn.Conv2d(channels, filters, 1)
            wrong += conv(torch.empty(1, channels, side, side)).shape != (1, filters, side, side)
        wrong += profile(conv, (channels, side, side)).totals.macs != macs
    return float(wrong)


CLAIM = Claim(
    number=1,
    name="cost",
    title="A 1x1 keeps the size and sets the channels",
    words="A 28 x 28 x 192 volume convolved with 192 1x1 filters gives 28 x 28 x 192; 200 x 200 x 50 with 20 filters "
    "gives 200 x 200 x 20.",
    source="Textbook and lecture example; common question on question-and-answer sites",
    method="A 1x1 with F filters on H x W x C must give H x W x F, with C x F + F parameters and H x W x C x F "
    "multiply-adds, counted on the traced network. The examples: 37,056 parameters and 28.9 million multiply-adds; "
    "1,020 and 40 million.",
    overturn="A shape for which the count differs by one.",
    checks=(
        Check("H x W x C -> H x W x F with C x F + F parameters and H x W x C x F multiply-adds", arithmetic, bound=0),
        Check("the two examples, counted", examples, bound=0, cases=1),
    ),
)
