"""The networks: the paper's five, two small ones, their baselines, and GoogLeNet."""

from __future__ import annotations

from mlpconv.models.base import Network
from mlpconv.models.blocks import Block, NINConfig
from mlpconv.models.googlenet import GoogLeNet, GoogLeNetConfig, GoogLeNetOutputs
from mlpconv.models.nin import NIN
from mlpconv.models.registry import FAMILY_OPTIONS, build, create_model, list_models

__all__ = [
    "FAMILY_OPTIONS",
    "NIN",
    "Block",
    "GoogLeNet",
    "GoogLeNetConfig",
    "GoogLeNetOutputs",
    "NINConfig",
    "Network",
    "build",
    "create_model",
    "list_models",
]
