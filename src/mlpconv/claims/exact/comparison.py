"""Claim 5: relu(w.x + b) compares two detected amounts; ReLU alone cannot."""

from __future__ import annotations

import numpy as np
import torch

from mlpconv.claims.cases import apart, draw, integer, pointwise
from mlpconv.claims.schema import Arm, Check, Claim, Comparison

__all__ = ["CLAIM"]


def decides(rng: np.random.Generator) -> float:
    """Count the pixels where relu(cat - dog) > 0 disagrees with cat > dog."""
    x = draw(rng, 1, 2, integer(rng, 1, 13), integer(rng, 1, 13)).abs()
    conv = pointwise(rng, 2, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1))
        conv.bias.zero_()  # type: ignore[union-attr]
    return float(((conv(x).relu() > 0)[0, 0] != (x[0, 0] > x[0, 1])).sum())


def relu_cannot(rng: np.random.Generator) -> float:
    """Compare ReLU with the identity on amounts, which are never negative, and look for a mixture of channels."""
    x = draw(rng, 1, 2, integer(rng, 1, 13), integer(rng, 1, 13)).abs().requires_grad_()
    (gradient,) = torch.autograd.grad(x.relu()[:, 0].sum(), x)
    return apart(x.relu(), x) + float(gradient[:, 1].abs().max())


ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}

CLAIM = Claim(
    number=5,
    name="comparison",
    title="Cat minus dog",
    words="A 1x1 with ReLU can decide whether there is more cat than dog in the detected features; ReLU alone cannot. "
    "So a 1x1 from 192 to 192 channels is not useless.",
    source="Common question: 'why a 1x1 with as many filters as input channels?'",
    method="relu(cat - dog) must be positive exactly where cat > dog; ReLU alone must leave both amounts as they are. "
    "Measured: networks whose 1x1s keep the number of channels, against the same with ReLU alone in their place.",
    overturn="Networks with ReLU alone that reach the same error.",
    checks=(
        Check("relu(cat - dog) > 0 exactly where cat > dog", decides, bound=0),
        Check("ReLU alone changes no amount and mixes no channels", relu_cannot, bound=0),
    ),
    arms={
        "1x1": Arm("3x3:24 1x1:24 max 3x3:24 1x1:24 max 1x1:K gap"),
        "ReLU alone": Arm("3x3:24 relu max 3x3:24 relu max 1x1:K gap"),
    },
    comparisons=(Comparison("1x1s that keep the channels, against ReLU alone", "1x1", "ReLU alone", "lower", ERROR),),
)
