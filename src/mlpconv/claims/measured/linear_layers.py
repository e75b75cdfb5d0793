"""Claim 10: mlpconv layers beat linear convolution layers of the same cost."""

from __future__ import annotations

from mlpconv.claims.schema import Arm, Claim, Comparison

__all__ = ["CLAIM"]

ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}
LINEAR = "3x3:16 max 3x3:24 max 3x3:32 1x1:K gap"

CLAIM = Claim(
    number=10,
    name="mlpconv",
    title="mlpconv against linear convolution",
    words="An mlpconv layer, a small network slid over the image, works better than a linear convolution layer.",
    source="Lin, Chen and Yan (2014), sections 1 and 3.1",
    method="Three blocks of a 3x3 and two 1x1s against three blocks of one 3x3, whose widths are raised until the "
    "network has as many parameters, or as many multiply-adds.",
    overturn="Deeper or wider networks, stronger regularisation, or larger kernels, where the ranking may differ.",
    arms={
        "mlpconv": Arm("3x3:16 1x1:16 1x1:16 max 3x3:24 1x1:24 1x1:24 max 3x3:32 1x1:32 1x1:K gap"),
        "linear, same parameters": Arm(LINEAR, match="mlpconv"),
        "linear, same multiply-adds": Arm(LINEAR, match="mlpconv", by="macs"),
    },
    comparisons=(
        Comparison(
            "mlpconv, against linear with the same parameters", "mlpconv", "linear, same parameters", "lower", ERROR
        ),
        Comparison(
            "mlpconv, against linear with the same multiply-adds",
            "mlpconv",
            "linear, same multiply-adds",
            "lower",
            ERROR,
        ),
    ),
)
