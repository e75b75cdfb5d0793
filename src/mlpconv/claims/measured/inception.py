"""Claim 22: the reductions of GoogLeNet and the squeeze layers of SqueezeNet pay."""

from __future__ import annotations

import numpy as np
from torch import nn

from mlpconv.analysis import profile
from mlpconv.claims.schema import Arm, Check, Claim, Comparison

__all__ = ["CLAIM"]

ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}
REDUCED = "[ 1x1:12 | 1x1:8 3x3:16 | 1x1:4 5x5:8 | same 1x1:8 ]"
NAIVE = "[ 1x1:12 | 3x3:16 | 5x5:8 | same 1x1:8 ]"
FIRE = "1x1:8 [ 1x1:16 | 3x3:16 ]"


def naive_cost(_: np.random.Generator) -> float:
    """Count the multiply-adds of GoogLeNet's first module (28 x 28 x 192) with and without its reductions."""
    wide, bottleneck = 0, 0
    for kernel, reduction, filters in ((3, 96, 128), (5, 16, 32)):
        direct = nn.Conv2d(192, filters, kernel, padding=kernel // 2)
        pair = nn.Sequential(nn.Conv2d(192, reduction, 1), nn.Conv2d(reduction, filters, kernel, padding=kernel // 2))
        wide += profile(direct, (192, 28, 28)).totals.macs
        bottleneck += profile(pair, (192, 28, 28)).totals.macs
    return abs(wide - 293_830_656) + abs(bottleneck - 113_598_464)


CLAIM = Claim(
    number=22,
    name="inception",
    title="Reductions pay",
    words="1x1 reductions before the expensive kernels cut the cost of Inception to a fraction without loss; likewise "
    "the squeeze layers of SqueezeNet.",
    source="Szegedy and others (2015), section 4; Iandola and others (2016), section 3",
    method="Counted: the 3x3 and 5x5 of GoogLeNet's first module cost 293.8 million multiply-adds without reductions "
    "and 113.6 million with them. Measured: two Inception modules with reductions against two without, and two fire "
    "modules against two 3x3s, each scaled to the same multiply-adds.",
    overturn="Equal error without reductions at equal multiply-adds.",
    checks=(Check("GoogLeNet's first module: 293.8 and 113.6 million multiply-adds", naive_cost, bound=0, cases=1),),
    arms={
        "with reductions": Arm(f"3x3:16 max {REDUCED} max {REDUCED} 1x1:K gap"),
        "without reductions": Arm(f"3x3:16 max {NAIVE} max {NAIVE} 1x1:K gap", match="with reductions", by="macs"),
        "fire modules": Arm(f"3x3:16 max {FIRE} max {FIRE} 1x1:K gap"),
        "plain 3x3": Arm("3x3:16 max 3x3:32 max 3x3:32 1x1:K gap", match="fire modules", by="macs"),
    },
    comparisons=(
        Comparison("Inception with reductions, against none", "with reductions", "without reductions", "lower", ERROR),
        Comparison("fire modules, against plain 3x3s", "fire modules", "plain 3x3", "lower", ERROR),
    ),
)
