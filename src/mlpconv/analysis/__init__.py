"""Profile any `nn.Module`: parameters, multiply-adds, memory and receptive field of each layer."""

from __future__ import annotations

from mlpconv.analysis.profiling import profile
from mlpconv.analysis.result import AxisField, LayerProfile, Profile, Totals

__all__ = ["AxisField", "LayerProfile", "Profile", "Totals", "profile"]
