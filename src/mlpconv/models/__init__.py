"""Networks: Network In Network, its linear baselines, GoogLeNet, SqueezeNet and EfficientNet-Lite."""

from __future__ import annotations

from mlpconv.models.base import Network
from mlpconv.models.blocks import Block, NINConfig
from mlpconv.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from mlpconv.models.googlenet import GoogLeNet, GoogLeNetConfig, GoogLeNetOutputs
from mlpconv.models.nin import NIN
from mlpconv.models.registry import FAMILY_OPTIONS, build, create_model, list_models
from mlpconv.models.squeezenet import SqueezeNet, SqueezeNetConfig

__all__ = [
    "FAMILY_OPTIONS",
    "NIN",
    "Block",
    "EfficientNetLite",
    "EfficientNetLiteConfig",
    "GoogLeNet",
    "GoogLeNetConfig",
    "GoogLeNetOutputs",
    "NINConfig",
    "Network",
    "SqueezeNet",
    "SqueezeNetConfig",
    "build",
    "create_model",
    "list_models",
]
