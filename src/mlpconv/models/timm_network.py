"""Networks of timm whose logits are linear in the mean of their feature maps, as networks of this package.

A model file stores the name of the architecture; opening it builds the architecture and downloads nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpconv.errors import UsageError
from mlpconv.models.base import Network
from mlpconv.models.external import create_timm, weightless
from mlpconv.models.validate import LIMITS, JSONConfig, integer, sides

__all__ = ["TimmConfig", "TimmNetwork", "check_linear_head"]

NAME = re.compile(r"timm:[A-Za-z0-9_]{1,100}")
MIN_SIZE = 32
TOLERANCE = 1e-3
"""Accepted difference of the logits, relative to the largest."""


@dataclass(frozen=True)
class TimmConfig(JSONConfig):
    """An architecture of timm with a number of classes and channels."""

    family: ClassVar[str] = "timm"
    name: str
    """timm:ARCHITECTURE, as timm:resnet18."""
    num_classes: int = 1000
    in_channels: int = 3
    size: tuple[int, int] = (224, 224)
    """Rows and columns of the images that the network is designed for."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise UsageError(f"name is {str(self.name)[:80]!r}; timm:ARCHITECTURE is accepted, such as timm:resnet18.")
        integer("num_classes", self.num_classes, 1, LIMITS["channels"])
        integer("in_channels", self.in_channels, 1, LIMITS["channels"])
        sides(self.size)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        with weightless():
            return sum(parameter.numel() for parameter in TimmNetwork(self).parameters())


class TimmNetwork(Network):
    """A network of timm: (N, C, H, W) float -> logits (N, K); raises UsageError if it has no linear classifier."""

    config: TimmConfig

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes, self.in_channels = config.num_classes, config.in_channels
        self.input_size, self.min_size = (config.in_channels, *config.size), MIN_SIZE
        architecture = config.name.partition(":")[2]
        self.network: nn.Module = create_timm(architecture, num_classes=config.num_classes, in_chans=config.in_channels)
        if not isinstance(self._timm.get_classifier(), nn.Linear):
            raise UsageError(
                f"{config.name} has no linear classifier; give a network that ends in an average pool and a linear "
                "layer, such as timm:resnet18."
            )

    @property
    def _timm(self) -> Any:
        """The network with the methods of timm."""
        return self.network

    @property
    def num_features(self) -> int:
        """D, the channels of the feature maps."""
        return self.last_layer.in_features

    @property
    def first_stages(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The first convolution; timm does not say where the first block ends."""
        first = next(module for module in self.network.modules() if isinstance(module, nn.Conv2d))
        return [first], [first]

    @property
    def last_conv(self) -> None:
        """None: the classifier is a linear layer on the pooled features."""
        return None

    @property
    def last_layer(self) -> nn.Linear:
        """The classifier layer."""
        return cast("nn.Linear", self._timm.get_classifier())

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the feature maps before the pool: (N, C, H, W) -> (N, D, h, w)."""
        self.check_input(x)
        return cast("Tensor", self._timm.forward_features(x))

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits of feature maps: (N, D, h, w) -> (N, K)."""
        return cast("Tensor", self._timm.forward_head(features))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the linear layer by a newly initialised one with `num_classes` outputs."""
        like = self.last_layer.weight
        self.config = replace(self.config, num_classes=num_classes)
        self._timm.reset_classifier(num_classes)
        self.last_layer.to(like).train(self.training)
        self.num_classes = num_classes

    def category_maps(self, x: Tensor) -> Tensor:
        """Apply the linear layer at each position: (N, K, h, w), whose spatial mean is the logits without dropout."""
        return F.conv2d(self.forward_features(x), self.last_layer.weight[:, :, None, None], self.last_layer.bias)


@torch.no_grad()
def check_linear_head(network: TimmNetwork) -> None:
    """Raise UsageError unless the logits are the classifier of the mean of the feature maps, on a random image."""
    training = network.training
    network.eval()
    image = torch.randn(1, *network.input_size, generator=torch.Generator().manual_seed(0))
    features, layer = network.forward_features(image), network.last_layer
    same = features.ndim == 4 and features.shape[1] == layer.in_features
    if same:
        logits, linear = network(image), layer(features.mean((2, 3)))
        same = bool((logits - linear).abs().max() <= TOLERANCE * logits.abs().max())
    network.train(training)
    if not same:
        raise UsageError(
            f"{network.config.name} has more than an average pool between its feature maps and its classifier, so its "
            "class activation maps are not exact: give a network without, such as timm:resnet18 or timm:regnetx_002."
        )
