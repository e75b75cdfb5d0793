"""Claim 14: as the resolution falls, the number of channels should rise."""

from __future__ import annotations

from mlpconv.claims.schema import Arm, Claim, Comparison

__all__ = ["CLAIM"]

ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}

CLAIM = Claim(
    number=14,
    name="rising-widths",
    title="Lower resolution, more channels",
    words="Each time the resolution falls the number of channels should rise.",
    source="Design rule of most convolutional networks since LeNet; lecture notes",
    method="Three blocks of a 3x3 and a 1x1, with pooling between them, whose widths rise (16, 32, 64), stay equal, or "
    "fall (64, 32, 16); all widths are scaled until the multiply-adds are equal. At equal multiply-adds rising "
    "widths have more parameters.",
    overturn="The same comparison at equal parameters, or at equal time.",
    arms={
        "rising": Arm("3x3:16 1x1:16 max 3x3:32 1x1:32 max 3x3:64 1x1:64 1x1:K gap"),
        "constant": Arm("3x3:32 1x1:32 max 3x3:32 1x1:32 max 3x3:32 1x1:32 1x1:K gap", match="rising", by="macs"),
        "falling": Arm("3x3:64 1x1:64 max 3x3:32 1x1:32 max 3x3:16 1x1:16 1x1:K gap", match="rising", by="macs"),
    },
    comparisons=(
        Comparison("rising, against constant", "rising", "constant", "lower", ERROR),
        Comparison("rising, against falling", "rising", "falling", "lower", ERROR),
    ),
)
