"""SqueezeNet 1.1 (Iandola et al., arXiv 1602.07360; version 1.1 as its authors published it): 1,235,496 parameters.

A fire module squeezes its channels with a 1x1 convolution and expands them with parallel 1x1 and 3x3 convolutions. The
head is that of Network In Network: a 1x1 convolution to one map per class, ReLU, global average pooling. Parameters
have torchvision's names. The size of all pools is rounded up, as in the published Caffe network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpconv.layers import GlobalAveragePool, convolved_size, make_pool, pooled_size
from mlpconv.models.base import Network, Stage
from mlpconv.models.blocks import widened
from mlpconv.models.dropout import Dropout
from mlpconv.models.initialise import init_convs
from mlpconv.models.validate import (
    LIMITS,
    JSONConfig,
    check_count,
    check_size,
    choice,
    flag,
    integer,
    multiplier,
    rate,
    sides,
)

__all__ = ["CONFIG", "Fire", "SqueezeNet", "SqueezeNetConfig"]

STEM = 64
"""Channels of the 3x3 convolution on the image."""
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
"""Channels of each fire module: squeeze, and each of its two expansions."""
POOL_BEFORE = (0, 2, 4)
"""Fire modules after a 3x3 max-pool of stride 2."""


@dataclass(frozen=True)
class SqueezeNetConfig(JSONConfig):
    """Configuration of SqueezeNet 1.1; the defaults are the published network."""

    family: ClassVar[str] = "squeezenet"
    num_classes: int = 1000
    in_channels: int = 3
    size: tuple[int, int] = (227, 227)
    """Rows and columns of the images that the network is designed for; any from `min_size` up is accepted."""
    width: float = 1.0
    """Multiplier of the hidden channels, rounded to multiples of 8."""
    dropout: float = 0.5
    last_relu: bool = True
    """Whether a ReLU follows the category maps, as published."""
    name: str = "squeezenet"

    def __post_init__(self) -> None:
        choice("name", self.name, ("squeezenet",))
        integer("num_classes", self.num_classes, 1, LIMITS["channels"])
        integer("in_channels", self.in_channels, 1, LIMITS["channels"])
        check_size(self.name, sides(self.size), MIN_SIZE)
        multiplier("width", self.width)
        rate("dropout", self.dropout)
        flag("last_relu", self.last_relu)
        check_count(self.name, self.parameters)

    @property
    def fires(self) -> list[tuple[int, int]]:
        """Channels of each fire module times the width multiplier: squeeze, and each expansion."""
        return [(widened(squeeze, self.width), widened(expand, self.width)) for squeeze, expand in FIRES]

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        channels = widened(STEM, self.width)
        total = channels * (9 * self.in_channels + 1)
        for squeeze, expand in self.fires:
            total += squeeze * (channels + 1) + expand * (squeeze + 1) + expand * (9 * squeeze + 1)
            channels = 2 * expand
        return total + self.num_classes * (channels + 1)


class Fire(nn.Module):
    """A fire module: 1x1 squeeze, then parallel 1x1 and 3x3 expansions. (N, C, H, W) -> (N, 2*expand, H, W)."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2*expand, H, W)."""
        squeezed = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(squeezed)), F.relu(self.expand3x3(squeezed))], 1)


class SqueezeNet(Network):
    """SqueezeNet 1.1: (N, C, H, W) float -> logits (N, K).

    Raises UsageError for images with another number of channels, or smaller than `min_size`.
    """

    config: SqueezeNetConfig

    def __init__(self, config: SqueezeNetConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes, self.in_channels = config.num_classes, config.in_channels
        self.input_size, self.min_size = (config.in_channels, *config.size), MIN_SIZE
        channels = widened(STEM, config.width)
        layers: list[nn.Module] = [nn.Conv2d(config.in_channels, channels, 3, 2), nn.ReLU(inplace=True)]
        for index, (squeeze, expand) in enumerate(config.fires):
            if index in POOL_BEFORE:
                layers.append(cast("nn.Module", make_pool("max")))
            layers.append(Fire(channels, squeeze, expand))
            channels = 2 * expand
        self.features = nn.Sequential(*layers)
        relu = nn.ReLU() if config.last_relu else nn.Identity()
        self.classifier = nn.Sequential(Dropout(config.dropout), nn.Conv2d(channels, config.num_classes, 1), relu)
        self.average = GlobalAveragePool()
        convs = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        init_convs(convs, "he", [0.0] * len(convs), pieces=1, maps_last=True)

    @property
    def num_features(self) -> int:
        """D, the channels of the last fire module."""
        return self.last_layer.in_channels

    @property
    def first_stages(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The first convolution, then all modules before the second pool."""
        return [self.features[0]], [self.features[index] for index in range(5)]

    @property
    def stages(self) -> list[Stage]:
        """The layers and fire modules."""
        return [Stage((module,), module) for module in self.features]

    @property
    def last_conv(self) -> nn.Conv2d:
        """The 1x1 convolution whose outputs are the category maps."""
        return cast("nn.Conv2d", self.classifier[1])

    @property
    def last_layer(self) -> nn.Conv2d:
        """The classifier layer."""
        return self.last_conv

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the output of the last fire module: (N, C, H, W) -> (N, D, h, w)."""
        self.check_input(x)
        return cast("Tensor", self.features(x))

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits of feature maps: (N, D, h, w) -> (N, K)."""
        return cast("Tensor", self.average(self.classifier(features)))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last 1x1 convolution by a newly initialised one with `num_classes` outputs."""
        self.config = replace(self.config, num_classes=num_classes)
        classifier = nn.Conv2d(self.num_features, num_classes, 1)
        init_convs([classifier], "he", [0.0], pieces=1, maps_last=True)
        self.classifier[1] = classifier.to(self.last_layer.weight).train(self.training)
        self.num_classes = num_classes

    def category_maps(self, x: Tensor) -> Tensor:
        """Return the category maps (N, K, h, w), whose spatial mean is the logits."""
        return cast("Tensor", self.classifier(self.forward_features(x)))


def map_size(side: int) -> int:
    """Return the rows of the category maps for images of `side` rows; 0 or less if the image is too small."""
    side = convolved_size(side, 3, 2, 0)
    for _ in POOL_BEFORE:
        side = pooled_size(side) if side > 0 else side
    return side


MIN_SIZE = next(side for side in range(1, 225) if map_size(side) > 0)
CONFIG = SqueezeNetConfig()
