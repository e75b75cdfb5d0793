"""Claim 18: a strided 1x1 loses very little."""

from __future__ import annotations

from mlpconv.claims.schema import Arm, Claim, Comparison

__all__ = ["CLAIM"]

ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}

CLAIM = Claim(
    number=18,
    name="strided",
    title="A strided 1x1 loses very little",
    words="Reducing the resolution with a strided 1x1 convolution loses very little, although it ignores three "
    "positions in four.",
    source="Common remark on the downsampling 1x1s of residual networks",
    method="Twice the resolution halves: by a 1x1 with stride 2, by a 3x3 with stride 2, or by a 1x1 and max pooling. "
    "The other layers are the same; the strided 1x1 is the cheapest.",
    overturn="Networks in which a parallel path reads the ignored positions, as in residual networks.",
    arms={
        "strided 1x1": Arm("3x3:16 1x1:24/2 3x3:24 1x1:32/2 1x1:K gap"),
        "strided 3x3": Arm("3x3:16 3x3:24/2 3x3:24 3x3:32/2 1x1:K gap"),
        "1x1 and max pooling": Arm("3x3:16 1x1:24 max 3x3:24 1x1:32 max 1x1:K gap"),
    },
    comparisons=(
        Comparison("strided 1x1, against strided 3x3", "strided 1x1", "strided 3x3", "same", ERROR),
        Comparison("strided 1x1, against 1x1 and max pooling", "strided 1x1", "1x1 and max pooling", "same", ERROR),
    ),
)
