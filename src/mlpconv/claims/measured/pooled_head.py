"""Claim 11: global average pooling beats a fully connected head and acts as a structural regulariser."""

from __future__ import annotations

from mlpconv.claims.schema import Arm, Claim, Comparison

__all__ = ["CLAIM"]

ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}
BODY = "3x3:16 1x1:16 1x1:16 max 3x3:24 1x1:24 1x1:24 max 3x3:32 1x1:32 1x1:K "

CLAIM = Claim(
    number=11,
    name="average-pooling",
    title="Global average pooling as a regulariser",
    words="Global average pooling is a structural regulariser: it has no parameters and overfits less than a fully "
    "connected head, with or without dropout.",
    source="Lin, Chen and Yan (2014), sections 3.2 and 4.6, Table 5",
    method="The same mlpconv network ends in global average pooling of its K category maps, in a fully connected "
    "layer on them, or in dropout 0.5 and that layer. Compared are the test error, and the gap between test and "
    "training error.",
    overturn="Larger category maps, on which a fully connected layer has many more weights, or longer training.",
    arms={
        "average pooling": Arm(BODY + "gap"),
        "fully connected": Arm(BODY + "fc:K"),
        "dropout and fully connected": Arm(BODY + "drop fc:K"),
    },
    comparisons=(
        Comparison("error, against fully connected", "average pooling", "fully connected", "lower", ERROR),
        Comparison("error, against dropout and fully connected", "average pooling", "dropout and fully connected",
                   "lower", ERROR),
        Comparison("gap of test and training error, against fully connected", "average pooling", "fully connected",
                   "lower", ERROR, metric="gap"),
    ),
)  # fmt: skip
