"""Improve any network with 1x1 convolutions: operations on an `nn.Module` that return a new one, and the proof.

Each takes a network and the size of its images, leaves the network untouched, and returns a `Surgery`: the new `model`
and a `report`. What cannot be done is refused with a SurgeryError that says why and where.
"""

from __future__ import annotations

from mlpconv.surgery.convolutionalize import convolutionalize
from mlpconv.surgery.deepen import deepen
from mlpconv.surgery.factorize import factorize
from mlpconv.surgery.fold import fold
from mlpconv.surgery.pool_head import pool_head
from mlpconv.surgery.report import Report, Surgery

__all__ = ["Report", "Surgery", "convolutionalize", "deepen", "factorize", "fold", "pool_head"]
