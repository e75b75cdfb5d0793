"""What a network costs and what it sees: parameters, multiply-adds, memory and receptive field, for any `nn.Module`."""

from __future__ import annotations

from mlpconv.analysis.profiling import profile
from mlpconv.analysis.result import AxisField, LayerProfile, Profile, Totals

__all__ = ["AxisField", "LayerProfile", "Profile", "Totals", "profile"]
