"""Claim 12: dropout between mlpconv layers lowers the error by more than a fifth."""

from __future__ import annotations

from mlpconv.claims.schema import Arm, Claim, Comparison

__all__ = ["CLAIM"]

ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}

CLAIM = Claim(
    number=12,
    name="dropout",
    title="Dropout between mlpconv layers",
    words="Dropout on the outputs of all mlpconv layers but the last lowers the test error by more than 20 %.",
    source="Lin, Chen and Yan (2014), section 4.2",
    method="The same network with and without dropout 0.5 after both pools. The first comparison is the error itself; "
    "the second subtracts 80 % of the error without dropout, so that a negative difference is a reduction by more than "
    "20 %. The networks are narrow, have batch norm and are trained briefly, where the paper's are wide, have none and "
    "are trained for 230 epochs.",
    overturn="Networks that overfit: wide ones, without batch norm, trained for hundreds of epochs, as in the paper.",
    arms={
        "dropout": Arm("3x3:16 1x1:16 1x1:16 max drop 3x3:24 1x1:24 1x1:24 max drop 3x3:32 1x1:32 1x1:K gap"),
        "none": Arm("3x3:16 1x1:16 1x1:16 max 3x3:24 1x1:24 1x1:24 max 3x3:32 1x1:32 1x1:K gap"),
    },
    comparisons=(
        Comparison("error with dropout, against none", "dropout", "none", "lower", ERROR),
        Comparison("reduction by more than 20 %", "dropout", "none", "lower", ERROR, factor=0.8),
    ),
)
