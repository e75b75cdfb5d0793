"""Claim 17: max pooling before or after a 1x1, and pooling beside 1x1s as in Inception."""

from __future__ import annotations

from mlpconv.claims.schema import Arm, Claim, Comparison

__all__ = ["CLAIM"]

ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}

CLAIM = Claim(
    number=17,
    name="pool-order",
    title="Pool before or after the 1x1?",
    words="It does not matter whether max pooling comes before or after a 1x1 convolution; and a pooling branch with a "
    "1x1, as in Inception, helps.",
    source="Common question; Szegedy and others (2015), section 4",
    method="The same layers in two orders: pooling first costs a quarter of the multiply-adds of the 1x1. Then an "
    "Inception module with the branches 1x1, 3x3 and 3x3 maximum with 1x1, against one without the last branch that is "
    "scaled to the same multiply-adds.",
    overturn="Average pooling, wider windows, or networks with many such layers.",
    arms={
        "1x1, then pool": Arm("3x3:16 1x1:24 max 3x3:24 1x1:32 max 1x1:K gap"),
        "pool, then 1x1": Arm("3x3:16 max 1x1:24 3x3:24 max 1x1:32 1x1:K gap"),
        "with pool branch": Arm(
            "3x3:16 max [ 1x1:12 | 1x1:8 3x3:16 | same 1x1:8 ] max [ 1x1:12 | 1x1:8 3x3:16 | same 1x1:8 ] 1x1:K gap"
        ),
        "without": Arm(
            "3x3:16 max [ 1x1:12 | 1x1:8 3x3:16 ] max [ 1x1:12 | 1x1:8 3x3:16 ] 1x1:K gap",
            match="with pool branch", by="macs",
        ),
    },
    comparisons=(
        Comparison("pool first, against 1x1 first", "pool, then 1x1", "1x1, then pool", "same", ERROR),
        Comparison("a pool branch, against none", "with pool branch", "without", "lower", ERROR),
    ),
)  # fmt: skip
