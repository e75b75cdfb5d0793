"""Claim 16: 1x1 kernels overfit less than larger ones."""

from __future__ import annotations

from mlpconv.claims.schema import Arm, Claim, Comparison

__all__ = ["CLAIM"]

ERROR = {"digits": 2.0, "mnist": 2.0, "cifar10": 2.0}
IMAGES = 200


def network(kernel: int) -> str:
    """Return a network with a 3x3 first and three layers of this kernel after it."""
    layer = f"{kernel}x{kernel}"
    return f"3x3:16 {layer}:16 max {layer}:16 {layer}:16 max 1x1:K gap"


CLAIM = Claim(
    number=16,
    name="overfitting",
    title="Do 1x1s overfit less?",
    words="1x1 convolutions overfit less because of their small kernel.",
    source="Common answer to 'why use a 1x1 kernel?'",
    method="Training on 200 images, for as many steps as with all. After a first 3x3 come three layers of 1x1, 3x3 or "
    "5x5, equally deep, scaled to the same number of parameters. Compared is the gap between test and training error.",
    overturn="Larger training sets, or a comparison at equal widths, where larger kernels have more parameters.",
    arms={
        "1x1": Arm(network(1), match="3x3", train_images=IMAGES),
        "3x3": Arm(network(3), train_images=IMAGES),
        "5x5": Arm(network(5), match="3x3", train_images=IMAGES),
    },
    comparisons=(
        Comparison("gap with 1x1, against 3x3", "1x1", "3x3", "lower", ERROR, metric="gap"),
        Comparison("gap with 1x1, against 5x5", "1x1", "5x5", "lower", ERROR, metric="gap"),
    ),
)
