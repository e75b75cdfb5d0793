"""Network In Network (Lin, Chen and Yan, arXiv 1312.4400): the module, and the configurations of the networks.

The five published networks in `NETWORKS` have the layers of the author's configurations. Every convolution has a bias
and a ReLU, including the last 1x1 before global average pooling (`last_relu`); pools are 3x3 with stride 2 and without
padding, and their size is rounded up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from mlpconv.errors import UsageError
from mlpconv.layers import GlobalAveragePool, MLPConv, activation_pieces, make_pool
from mlpconv.models.base import Network, Stage, run_stages
from mlpconv.models.blocks import STD, Block, NINConfig
from mlpconv.models.dropout import Dropout
from mlpconv.models.initialise import init_convs, init_linear
from mlpconv.models.ranks import low_rank, parts_of

__all__ = ["NETWORKS", "NIN"]


class NIN(Network):
    """Network In Network: (N, C, H, W) float -> logits (N, K) (sections 3.1 to 3.3).

    Raises UsageError for images of another number of channels, or smaller than `min_size`.
    """

    config: NINConfig

    def __init__(self, config: NINConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes, self.in_channels = config.num_classes, config.in_channels
        self.input_size = (config.in_channels, *config.size)
        self.fixed_size = config.head != "gap"
        self.min_size = min(config.size) if self.fixed_size else config.min_size
        self.blocks = nn.ModuleList()
        self.dropouts = nn.ModuleList()
        channels = config.in_channels
        for index, block in enumerate(config.blocks):
            self.blocks.append(_make_block(config, block, channels, last=index == len(config.blocks) - 1))
            self.dropouts.append(Dropout(config.dropout) if block.dropout and config.dropout else nn.Identity())
            channels = block.channels[-1]
        self.head = _make_head(config)
        stds = [std for block in config.blocks for std in block.stds or (STD,) * len(block.channels)]
        stds = [std for std, conv in zip(stds, self._convs(), strict=True) for _ in parts_of(conv)]
        convs = [part for conv in self._convs() for part in parts_of(conv)]
        pieces = activation_pieces(config.activation)
        init_convs(convs, config.init, stds, pieces=pieces, maps_last=not self.fixed_size)
        if not isinstance(self.last_layer, nn.Conv2d):
            init_linear(self.last_layer, config.init, STD)

    def _convs(self) -> list[nn.Module]:
        """Return every convolution, or the Sequential that it is factorized into."""
        return [conv for block in self.blocks for conv in cast("MLPConv", block).convs]

    @property
    def num_features(self) -> int:
        """D, the channels before the last convolution; with a fully connected head K."""
        return self.num_classes if self.fixed_size else parts_of(self._convs()[-1])[0].in_channels

    @property
    def first_stages(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The first convolution and its norm, then the first block."""
        first = cast("MLPConv", self.blocks[0])
        return [first.convs[0], first.norms[0]], [first]

    @property
    def stages(self) -> list[Stage]:
        """The mlpconv layers and their dropouts, the last without its last convolution; empty with another head."""
        if self.fixed_size:
            return []
        *blocks, last = self.blocks
        first = [module for pair in zip(blocks, self.dropouts, strict=False) for module in pair]
        return [*(Stage((module,), module) for module in first), Stage((last,), cast("MLPConv", last).forward_hidden)]

    @property
    def last_conv(self) -> nn.Conv2d | None:
        """The 1x1 whose outputs are the category maps; None with a fully connected head."""
        return None if self.fixed_size else parts_of(self._convs()[-1])[-1]

    @property
    def last_layer(self) -> nn.Conv2d | nn.Linear:
        """The last 1x1, or the fully connected layer."""
        return self.last_conv or cast("nn.Linear", cast("nn.Sequential", self.head)[-1])

    def _maps(self, x: Tensor) -> Tensor:
        """Return the output of the last mlpconv layer: (N, C, H, W) -> (N, K, h, w)."""
        self.check_input(x)
        for block, dropout in zip(self.blocks, self.dropouts, strict=True):
            x = dropout(block(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, K)."""
        return cast("Tensor", self.head(self._maps(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the input of the last convolution, or of the fully connected head: (N, C, H, W) -> (N, D, h, w)."""
        if self.fixed_size:
            return self._maps(x)
        self.check_input(x)
        return run_stages(self.stages, x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits of feature maps: (N, D, h, w) -> (N, K)."""
        if not self.fixed_size:
            features = self.dropouts[-1](cast("MLPConv", self.blocks[-1]).forward_last(features))
        return cast("Tensor", self.head(features))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last convolution, and a fully connected head, by new ones for `num_classes` classes."""
        block = self.config.blocks[-1]
        ranks = (*block.ranks[:-1], (0, 0)) if block.ranks else ()
        block = replace(block, channels=(*block.channels[:-1], num_classes), ranks=ranks)
        self.config = replace(self.config, blocks=(*self.config.blocks[:-1], block))
        renewed = NIN(self.config).to(self.last_layer.weight).train(self.training)
        cast("MLPConv", self.blocks[-1]).convs[-1] = cast("MLPConv", renewed.blocks[-1]).convs[-1]
        self.head, self.num_classes = renewed.head, num_classes

    def category_maps(self, x: Tensor) -> Tensor:
        """Return the category maps (N, K, h, w), whose spatial mean is the logits.

        Raises UsageError for networks with a fully connected head.
        """
        if self.fixed_size:
            raise UsageError(f"{self.config.name} has head={self.config.head!r}; only head='gap' has category maps.")
        return self._maps(x)


def _make_block(config: NINConfig, block: Block, channels: int, *, last: bool) -> MLPConv:
    """Return one block; the last convolution of the network has no norm, and an activation only with `last_relu`."""
    layer = MLPConv(
        channels,
        block.channels,
        block.kernel,
        block.stride,
        block.padding,
        config.activation,
        config.norm,
        last_activation=not last or config.last_relu,
        pool=make_pool(block.pool),
        pool_first=config.pool_first,
    )
    if last:
        layer.norms[-1] = nn.Identity()
    for index, ranks in enumerate(block.ranks):
        layer.convs[index] = low_rank(cast("nn.Conv2d", layer.convs[index]), ranks)
    return layer


def _make_head(config: NINConfig) -> nn.Module:
    """Return global average pooling, or the fully connected layer of the paper's Table 5 on the flattened maps."""
    if config.head == "gap":
        return GlobalAveragePool()
    pixels = config.map_size(config.size[0]) * config.map_size(config.size[1])
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(config.num_classes * pixels, config.num_classes)]
    if config.head == "fc+dropout":
        layers.insert(1, Dropout(config.dropout))
    return nn.Sequential(*layers)


def _config(name: str, *blocks: Block, **settings: Any) -> NINConfig:
    return NINConfig(name, blocks, **settings)


_C1 = Block(5, (192, 160, 96), padding=2, pool="max", dropout=True)
_C2 = Block(5, (192, 192, 192), padding=2, pool="max", dropout=True)

_STABLE: dict[str, Any] = {"norm": "batch", "last_relu": False, "init": "identity"}

NETWORKS: dict[str, NINConfig] = {
    config.name: config
    for config in (
        _config("nin_cifar10", _C1, _C2, Block(3, (192, 192, 10), padding=1)),
        _config("nin_cifar100", replace(_C1, stds=(0.001, 0.01, 0.01)), _C2, Block(3, (192, 192, 100), padding=1)),
        _config(
            "nin_svhn",
            Block(5, (128, 96, 64), padding=2, pool="max", dropout=True),
            Block(5, (320, 256, 128), padding=2, pool="max", dropout=True),
            Block(5, (384, 256, 10), padding=2),
        ),
        _config(
            "nin_mnist",
            Block(5, (96, 64, 48), padding=2, pool="max", dropout=True),
            Block(5, (128, 96, 48), padding=2, pool="max", dropout=True),
            Block(5, (128, 96, 10), padding=2),
            in_channels=1,
            size=(28, 28),
        ),
        _config(
            "nin_imagenet",
            Block(11, (96, 96, 96), stride=4, pool="max", stds=(0.01, STD, STD)),
            Block(5, (256, 256, 256), padding=2, pool="max"),
            Block(3, (384, 384, 384), padding=1, pool="max", dropout=True, stds=(0.01, STD, STD)),
            Block(3, (1024, 1024, 1000), padding=1, stds=(STD, STD, 0.01)),
            size=(224, 224),
        ),
        _config(
            "nin_tiny",
            Block(3, (32, 32, 32), padding=1, pool="max", dropout=True),
            Block(3, (48, 48, 48), padding=1, pool="max", dropout=True),
            Block(3, (64, 64, 10), padding=1),
            in_channels=1,
            size=(8, 8),
            dropout=0.0,
            **_STABLE,
        ),
        _config(
            "nin_photo",
            Block(5, (48, 48, 48), stride=2, padding=2, pool="max"),
            Block(3, (96, 96, 96), padding=1, pool="max", dropout=True),
            Block(3, (128, 128, 128), padding=1, dropout=True),
            Block(3, (192, 192, 10), padding=1),
            size=(64, 64),
            dropout=0.2,
            **_STABLE,
        ),
    )
}
