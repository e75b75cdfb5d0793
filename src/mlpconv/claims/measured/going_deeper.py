"""Claim 23: going deeper with identity-initialised 1x1s helps."""

from __future__ import annotations

from mlpconv.claims.schema import Arm, Claim, Comparison

__all__ = ["CLAIM"]

ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}
SHALLOW = "3x3:16 1x1:16 max 3x3:24 1x1:24 max 3x3:32 1x1:K gap"

CLAIM = Claim(
    number=23,
    name="deeper",
    title="Deeper by identity",
    words="Inserting 1x1s that start as the identity is a safe way to go deeper: nothing is lost, and further training "
    "gains.",
    source="Chen, Goodfellow and Shlens (2016), Net2Net; common advice",
    method="After half of the training `mlpconv surgery deepen` inserts an identity 1x1 and a ReLU before each pool, "
    "without changing any output; training goes on. Against the same network without the insertion, and against one "
    "that has the further 1x1s from the start, all with the same number of steps.",
    overturn="Longer training after the insertion, or networks that are too shallow for their task.",
    arms={
        "deepened": Arm(SHALLOW, deepen=True),
        "not deepened": Arm(SHALLOW),
        "deep from the start": Arm("3x3:16 1x1:16 1x1:16 max 3x3:24 1x1:24 1x1:24 max 3x3:32 1x1:K gap"),
    },
    comparisons=(
        Comparison("deepened, against not deepened", "deepened", "not deepened", "lower", ERROR),
        Comparison("deepened, against deep from the start", "deepened", "deep from the start", "same", ERROR),
    ),
)
