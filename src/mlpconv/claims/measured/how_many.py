"""Claim 19: an mlpconv layer has two 1x1s. Why two?"""

from __future__ import annotations

from mlpconv.claims.schema import Arm, Claim, Comparison

__all__ = ["CLAIM"]

ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}


def network(count: int) -> str:
    """Return the mlpconv network with this number of 1x1s after each 3x3; the last block ends in one more, to K."""
    block = [f"3x3:{width} " + f"1x1:{width} " * count for width in (16, 24, 32)]
    return f"{block[0]}max {block[1]}max 3x3:32 {'1x1:32 ' * (count - 1)}1x1:K gap"


CLAIM = Claim(
    number=19,
    name="two",
    title="One 1x1, two, or three?",
    words="An mlpconv layer needs two 1x1 convolutions: one is too few, a third adds nothing.",
    source="Exercise in Zhang and others, Dive into Deep Learning, section on NiN: 'Why are there two 1x1s?'",
    method="Three mlpconv blocks with one, two or three 1x1s after each 3x3, scaled to the same number of parameters.",
    overturn="Wider blocks or longer training, in which deeper mlpconv layers may pay.",
    arms={
        "one": Arm(network(1), match="two"),
        "two": Arm(network(2)),
        "three": Arm(network(3), match="two"),
    },
    comparisons=(
        Comparison("two, against one", "two", "one", "lower", ERROR),
        Comparison("three, against two", "three", "two", "same", ERROR),
    ),
)
