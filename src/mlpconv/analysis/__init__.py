"""What a network costs and what it sees: parameters, multiply-adds, memory and receptive field, for any `nn.Module`."""

from __future__ import annotations

from mlpconv.analysis.profiling import profile
from mlpconv.analysis.result import AxisField, Profile, Row, Totals

__all__ = ["AxisField", "Profile", "Row", "Totals", "profile"]
