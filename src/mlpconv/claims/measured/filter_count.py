"""Claim 13: the best number of filters depends on the data set."""

from __future__ import annotations

from mlpconv.claims.schema import Arm, Claim, Comparison

__all__ = ["CLAIM"]

ERROR = {"digits": 1.0, "mnist": 0.3, "cifar10": 1.0}


def network(width: int) -> Arm:
    """Return the mlpconv network with this number of filters in every layer."""
    block = f"3x3:{width} 1x1:{width} 1x1:{width}"
    return Arm(f"{block} max {block} max 3x3:{width} 1x1:{width} 1x1:K gap")


CLAIM = Claim(
    number=13,
    name="filters",
    title="How many filters?",
    words="The number of 1x1 filters is a hyperparameter whose best value depends on the data set.",
    source="Common answer to 'how do I choose the number of 1x1 filters?'",
    method="All layers have 4, 8, 16 or 32 filters. Doubling is tested twice: 16 against 8 and 32 against 16. Where a "
    "doubling is worth less than the smallest effect of interest on one data set and more on another, the best value "
    "depends on the data set.",
    overturn="Data sets on which the same doubling pays, or does not pay, everywhere.",
    arms={f"{width} filters": network(width) for width in (4, 8, 16, 32)},
    comparisons=(
        Comparison("16 filters, against 8", "16 filters", "8 filters", "lower", ERROR),
        Comparison("32 filters, against 16", "32 filters", "16 filters", "lower", ERROR),
    ),
)
