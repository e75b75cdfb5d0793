"""Claims about 1x1 convolutions, each one file: its words and source, a hypothesis fixed before the run, a verdict."""

from __future__ import annotations

from mlpconv.claims.schema import Arm as Arm
from mlpconv.claims.schema import Check as Check
from mlpconv.claims.schema import Claim as Claim
from mlpconv.claims.schema import Comparison as Comparison

__all__ = ["Arm", "Check", "Claim", "Comparison"]
