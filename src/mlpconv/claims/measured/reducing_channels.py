"""Claim 15: a learned 1x1 is the best way to reduce the number of channels."""

from __future__ import annotations

from mlpconv.claims.schema import Arm, Claim, Comparison

__all__ = ["CLAIM"]

ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}


def network(reduction: str) -> str:
    """Return a network that reduces 32 channels to 6 before each larger layer."""
    return f"3x3:32 {reduction} 3x3:32 max {reduction} 3x3:32 max 1x1:K gap"


CLAIM = Claim(
    number=15,
    name="reduction",
    title="The best way to reduce channels",
    words="A 1x1 convolution is the best way to reduce the number of channels.",
    source="Szegedy and others (2015), GoogLeNet; common answer to 'what are 1x1 convolutions for?'",
    method="Twice in a network 32 channels become 6, before a 3x3 back to 32: by a learned linear 1x1, by the "
    "principal components of the running covariance, by a fixed random projection, by summing groups, by the maximum "
    "over groups, or by a learned 3x3. The last three are scaled to the multiply-adds of the first.",
    overturn="A reduction that costs no more and has a lower error by the smallest effect of interest.",
    arms={
        "learned 1x1": Arm(network("1x1:6-")),
        "PCA": Arm(network("pca:6")),
        "random": Arm(network("random:6")),
        "sum of groups": Arm(network("sum:6"), match="learned 1x1", by="macs"),
        "maximum of groups": Arm(network("largest:6"), match="learned 1x1", by="macs"),
        "learned 3x3": Arm(network("3x3:6-"), match="learned 1x1", by="macs"),
    },
    comparisons=tuple(
        Comparison(f"learned 1x1, against {other}", "learned 1x1", other, "lower", ERROR)
        for other in ("PCA", "random", "sum of groups", "maximum of groups", "learned 3x3")
    ),
)
