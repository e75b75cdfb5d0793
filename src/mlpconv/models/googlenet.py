"""GoogLeNet as published (Szegedy et al., Going deeper with convolutions, arXiv 1409.4842, Table 1).

It has a 7x7 stem, 5x5 branches, local response normalisation, no batch norm, and pools whose size is rounded up:
6,998,552 parameters, and 13,378,280 with the two auxiliary heads. Its 1x1 reductions and its pooled head come from
Network In Network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mlpconv.errors import UsageError
from mlpconv.layers import GlobalAveragePool, MLPConv, activation_pieces, make_activation, make_pool
from mlpconv.models.base import Network
from mlpconv.models.dropout import Dropout
from mlpconv.models.googlenet_config import (
    AUX_AFTER,
    AUX_CHANNELS,
    AUX_DROPOUT,
    AUX_HIDDEN,
    INCEPTION,
    MIN_SIZE,
    POOL_BEFORE,
    STEM,
    GoogLeNetConfig,
    aux_size,
    map_size,
)
from mlpconv.models.initialise import init_convs, init_linear

__all__ = ["CONFIG", "GoogLeNet", "GoogLeNetConfig", "GoogLeNetOutputs"]

LAST = INCEPTION[-1][0]
BIAS = 0.2
"""Initial bias of the published model's convolutions; their weights are Glorot's uniform ones."""


class GoogLeNetOutputs(NamedTuple):
    """The outputs of GoogLeNet by name; the auxiliary logits are None without auxiliary heads."""

    logits: Tensor
    """(N, K)"""
    aux1: Tensor | None
    """(N, K) from module 4a"""
    aux2: Tensor | None
    """(N, K) from module 4d"""


class Inception(nn.Module):
    """Four parallel branches: 1x1; 1x1 and 3x3; 1x1 and 5x5; 3x3 max-pool and 1x1. (N, C, H, W) -> (N, D, H, W)."""

    def __init__(self, config: GoogLeNetConfig, channels: int, published: Sequence[int]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, project = (config.wide(width) for width in published)
        self.one = _unit(config, channels, one)
        self.three = nn.Sequential(_unit(config, channels, reduce3), _unit(config, reduce3, three, 3, padding=1))
        self.five = nn.Sequential(_unit(config, channels, reduce5), _unit(config, reduce5, five, 5, padding=2))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), _unit(config, channels, project))
        self.out_channels = one + three + five + project

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D, H, W)."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class GoogLeNet(Network):
    """GoogLeNet: (N, C, H, W) float -> logits (N, K); `outputs` also returns the auxiliary logits, by name.

    Raises UsageError for images with another number of channels, or smaller than `min_size`.
    """

    config: GoogLeNetConfig

    def __init__(self, config: GoogLeNetConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes, self.in_channels = config.num_classes, config.in_channels
        self.input_size = (config.in_channels, *config.size)
        self.fixed_size = config.head != "gap"
        self.min_size = min(config.size) if self.fixed_size else MIN_SIZE
        first, reduced, channels = (config.wide(width) for width in STEM)
        self.stem = nn.Sequential(
            _unit(config, config.in_channels, first, 7, 2, 3, pool=make_pool("max")),
            _response_norm(config),
            _unit(config, first, reduced),
            _unit(config, reduced, channels, 3, padding=1),
            _response_norm(config),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception = nn.ModuleDict()
        self.aux = nn.ModuleDict()  # in the order of AUX_AFTER
        for name, published in INCEPTION:
            module = Inception(config, channels, published)
            self.inception[name], channels = module, module.out_channels
            if config.aux_heads and name in AUX_AFTER:
                self.aux[name] = _aux_head(config, channels)
        self.average = GlobalAveragePool() if config.head == "gap" else nn.Flatten()
        self.dropout = Dropout(config.dropout) if config.head != "fc" and config.dropout else nn.Identity()
        pixels = 1 if config.head == "gap" else map_size(config.size[0]) * map_size(config.size[1])
        self.linear = nn.Linear(channels * pixels, config.num_classes)
        _initialise(self)

    @property
    def num_features(self) -> int:
        """D, the channels of the last Inception module."""
        return cast("Inception", self.inception[LAST]).out_channels

    @property
    def first_stages(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The 7x7 convolution and its norm, then its whole unit."""
        first = cast("MLPConv", self.stem[0])
        return [first.convs[0], first.norms[0]], [first]

    @property
    def last_conv(self) -> None:
        """None: the classifier is a linear layer on the pooled features."""
        return None

    @property
    def last_layer(self) -> nn.Linear:
        """The classifier layer."""
        return self.linear

    def _stages(self, x: Tensor) -> dict[str, Tensor]:
        """Return the feature maps of modules 4a and 4d, for the auxiliary heads, and of 5b, the last, by name."""
        self.check_input(x)
        stages = {}
        x = self.stem(x)
        for name, module in self.inception.items():
            x = module(self.pool(x) if name in POOL_BEFORE else x)
            if name in (*AUX_AFTER, LAST):
                stages[name] = x
        return stages

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the output of the last Inception module: (N, C, H, W) -> (N, D, h, w)."""
        return self._stages(x)[LAST]

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits of feature maps: (N, D, h, w) -> (N, K)."""
        if self.config.last_relu:
            return cast("Tensor", self.average(self._maps(self.dropout(features))))
        return cast("Tensor", self.linear(self.dropout(self.average(features))))

    def _maps(self, features: Tensor) -> Tensor:
        maps = cast("Tensor", self.linear(features.movedim(1, -1))).movedim(-1, 1)  # like a 1x1 convolution
        return maps.relu() if self.config.last_relu else maps

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last linear layers of the head and the auxiliary heads by new ones for `num_classes` classes."""
        self.config = replace(self.config, num_classes=num_classes)
        renewed = GoogLeNet(self.config).to(self.linear.weight).train(self.training)
        self.linear, self.num_classes = renewed.linear, num_classes
        for name, head in self.aux.items():
            cast("nn.Sequential", head)[-1] = cast("nn.Sequential", renewed.aux[name])[-1]

    def category_maps(self, x: Tensor) -> Tensor:
        """Apply the linear layer at each position: (N, K, h, w), whose spatial mean is the logits without dropout."""
        if self.fixed_size:
            raise UsageError(f"googlenet has head={self.config.head!r}; only head='gap' has category maps.")
        return self._maps(self.forward_features(x))

    def outputs(self, x: Tensor) -> GoogLeNetOutputs:
        """Return the logits (N, K) of the head and, if the network has them, of the auxiliary heads.

        Raises UsageError for images of a size that the auxiliary heads do not accept.
        """
        stages = self._stages(x)
        logits = self.forward_head(stages[LAST])
        if not self.config.aux_heads:
            return GoogLeNetOutputs(logits, None, None)
        rows, columns = self.config.size
        if (aux_size(x.shape[2]), aux_size(x.shape[3])) != (aux_size(rows), aux_size(columns)):
            raise UsageError(
                f"googlenet's auxiliary heads got images of {x.shape[2]}x{x.shape[3]}; {rows}x{columns} are accepted. "
                "Resize them, or create the model with that size."
            )
        aux1, aux2 = (head(stages[name]) for name, head in self.aux.items())
        return GoogLeNetOutputs(logits, aux1, aux2)


def _unit(
    config: GoogLeNetConfig,
    channels: int,
    out: int,
    kernel: int = 1,
    stride: int = 1,
    padding: int = 0,
    pool: nn.Module | None = None,
) -> MLPConv:
    """Return a convolution with norm, activation and pool."""
    return MLPConv(channels, (out,), kernel, stride, padding, config.activation, config.norm, pool=pool)


def _response_norm(config: GoogLeNetConfig) -> nn.Module:
    """Return local response normalisation over 5 channels, as published; an Identity with batch norm."""
    enabled = config.norm is None if config.response_norm is None else config.response_norm
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75) if enabled else nn.Identity()


def _aux_head(config: GoogLeNetConfig, channels: int) -> nn.Sequential:
    """Return a 5x5 average pool of stride 3, a 1x1, and two linear layers with dropout between them (section 5)."""
    width, hidden = config.wide(AUX_CHANNELS), config.wide(AUX_HIDDEN)
    pixels = aux_size(config.size[0]) * aux_size(config.size[1])
    return nn.Sequential(
        nn.AvgPool2d(5, 3),
        _unit(config, channels, width),
        nn.Flatten(),
        nn.Linear(width * pixels, hidden * activation_pieces(config.activation)),
        make_activation(config.activation),
        Dropout(AUX_DROPOUT),
        nn.Linear(hidden, config.num_classes),
    )


@torch.no_grad()
def _initialise(model: GoogLeNet) -> None:
    """Initialise the weights; for "paper" uniform with variance 1 / fan in, and biases of 0.2, 0 for the logits."""
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if model.config.init != "paper":
        pieces = activation_pieces(model.config.activation)
        init_convs(convs, model.config.init, [0.0] * len(convs), pieces=pieces, maps_last=False)
        for linear in linears:
            init_linear(linear, model.config.init, 0.0, last=linear.out_features == model.num_classes)
        return
    layers: list[nn.Conv2d | nn.Linear] = [*convs, *linears]
    for layer in layers:
        bound = (3 / layer.weight[0].numel()) ** 0.5
        layer.weight.uniform_(-bound, bound)
        if layer.bias is not None:
            layer.bias.fill_(0.0 if isinstance(layer, nn.Linear) and layer.out_features == model.num_classes else BIAS)


CONFIG = GoogLeNetConfig()
