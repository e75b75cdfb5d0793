"""Rewrite any `nn.Module` with 1x1 convolutions and verify that it still computes the same.

Each operation takes a network and its input shape, leaves the network unchanged, and returns a `Surgery` with the new
`model` and a `report`. An operation that cannot be applied raises a SurgeryError that names the layer and the reason.
"""

from __future__ import annotations

from mlpconv.surgery.convolutionalize import convolutionalize
from mlpconv.surgery.deepen import deepen
from mlpconv.surgery.factorize import factorize
from mlpconv.surgery.fold import fold
from mlpconv.surgery.pool_head import pool_head
from mlpconv.surgery.report import Report, Surgery

__all__ = ["Report", "Surgery", "convolutionalize", "deepen", "factorize", "fold", "pool_head"]
