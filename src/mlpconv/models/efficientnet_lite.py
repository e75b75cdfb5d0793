"""EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946, without squeeze-and-excitation and with ReLU6).

A block expands its channels with a 1x1 convolution, filters each separately (depthwise k x k), and projects them with
a 1x1 convolution. The 4,652,008 parameters have timm's names for `tf_efficientnet_lite0`. Strided convolutions use
TensorFlow's SAME padding: for an odd number of zeros, the extra one is on the right and at the bottom.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from mlpconv.layers import GlobalAveragePool, Norm
from mlpconv.models.base import Network, Stage, run_stages
from mlpconv.models.blocks import widened
from mlpconv.models.depthwise import depthwise
from mlpconv.models.dropout import Dropout
from mlpconv.models.initialise import init_convs, init_linear
from mlpconv.models.validate import LIMITS, JSONConfig, check_count, choice, integer, multiplier, rate, sides

__all__ = ["CONFIG", "EfficientNetLite", "EfficientNetLiteConfig", "InvertedBottleneck", "same_padding"]


class StageConfig(NamedTuple):
    """Blocks of equal shape; the first has the stride."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    """Channels inside a block, as a multiple of its input channels; 1 is a block without expansion."""
    channels: int


STAGES = (
    StageConfig(1, 3, 1, 1, 16),
    StageConfig(2, 3, 2, 6, 24),
    StageConfig(2, 5, 2, 6, 40),
    StageConfig(3, 3, 2, 6, 80),
    StageConfig(3, 5, 1, 6, 112),
    StageConfig(4, 5, 2, 6, 192),
    StageConfig(1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
"""Channels of the 3x3 convolution on the image, and of the last 1x1 convolution before the pool."""
EPS = 1e-3
"""Of batch norm, as published."""
MIN_SIZE = 1


@dataclass(frozen=True)
class EfficientNetLiteConfig(JSONConfig):
    """Configuration of EfficientNet-Lite0; the defaults are the published network."""

    family: ClassVar[str] = "efficientnet_lite"
    num_classes: int = 1000
    in_channels: int = 3
    size: tuple[int, int] = (224, 224)
    """Rows and columns of the images that the network is designed for; any size is accepted."""
    width: float = 1.0
    """Multiplier of the hidden channels, rounded to multiples of 8."""
    norm: Norm | None = "batch"
    """Batch norm after every convolution; None if it is folded into them."""
    dropout: float = 0.2
    name: str = "efficientnet_lite0"

    def __post_init__(self) -> None:
        choice("name", self.name, ("efficientnet_lite0",))
        integer("num_classes", self.num_classes, 1, LIMITS["channels"])
        integer("in_channels", self.in_channels, 1, LIMITS["channels"])
        sides(self.size)
        multiplier("width", self.width)
        if self.norm is not None:
            choice("norm", self.norm, ("batch",))
        rate("dropout", self.dropout)
        check_count(self.name, self.parameters)

    def wide(self, channels: int) -> int:
        """Return the channels times the width multiplier."""
        return widened(channels, self.width)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        extra = 2 if self.norm else 1  # scale and shift of the norm, or the bias of the convolution
        channels = self.wide(STEM)
        total = channels * (9 * self.in_channels + extra)
        for stage in STAGES:
            for _ in range(stage.blocks):
                inner, out = channels * stage.expand, self.wide(stage.channels)
                total += inner * (channels + extra) if stage.expand > 1 else 0
                total += inner * (stage.kernel**2 + extra) + out * (inner + extra)
                channels = out
        head = self.wide(HEAD)
        return total + head * (channels + extra) + self.num_classes * (head + 1)


class InvertedBottleneck(nn.Module):
    """Expand (1x1), filter (depthwise k x k), project (1x1), with a shortcut if the shapes match.

    (N, C, H, W) -> (N, channels, h, w). Without expansion the 1x1 convolution before the depthwise one is absent.
    """

    def __init__(self, config: EfficientNetLiteConfig, channels: int, stage: StageConfig, stride: int) -> None:
        super().__init__()
        inner, out = channels * stage.expand, config.wide(stage.channels)
        self.expands, self.shortcut = stage.expand > 1, stride == 1 and channels == out
        bias = config.norm is None
        if self.expands:
            self.conv_pw = nn.Conv2d(channels, inner, 1, bias=bias)
            self.bn1 = _norm(config, inner)
        self.conv_dw = _conv(inner, inner, stage.kernel, stride, groups=inner, bias=bias)
        project = nn.Conv2d(inner, out, 1, bias=bias)
        # timm counts the norms, and calls the projection of a block without expansion conv_pw.
        if self.expands:
            self.bn2, self.conv_pwl, self.bn3 = _norm(config, inner), project, _norm(config, out)
        else:
            self.bn1, self.conv_pw, self.bn2 = _norm(config, inner), project, _norm(config, out)

    def pairs(self) -> list[tuple[str, str]]:
        """Return the names of each convolution and its norm, in order."""
        if self.expands:
            return [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
        return [("conv_dw", "bn1"), ("conv_pw", "bn2")]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, channels, h, w)."""
        shortcut = x
        if self.expands:
            x = F.relu6(self.bn1(self.conv_pw(x)))
            x = F.relu6(self.bn2(depthwise(same_padded(x, self.conv_dw), self.conv_dw)))
            x = self.bn3(self.conv_pwl(x))
        else:
            x = F.relu6(self.bn1(depthwise(same_padded(x, self.conv_dw), self.conv_dw)))
            x = self.bn2(self.conv_pw(x))
        return x + shortcut if self.shortcut else x


class EfficientNetLite(Network):
    """EfficientNet-Lite0: (N, C, H, W) float -> logits (N, K).

    Raises UsageError for images with another number of channels.
    """

    config: EfficientNetLiteConfig

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes, self.in_channels = config.num_classes, config.in_channels
        self.input_size, self.min_size = (config.in_channels, *config.size), MIN_SIZE
        channels, head, bias = config.wide(STEM), config.wide(HEAD), config.norm is None
        self.conv_stem = _conv(config.in_channels, channels, 3, 2, bias=bias)
        self.bn1 = _norm(config, channels)
        self.blocks = nn.ModuleList()
        for stage in STAGES:
            blocks = nn.Sequential()
            for index in range(stage.blocks):
                blocks.append(InvertedBottleneck(config, channels, stage, stage.stride if index == 0 else 1))
                channels = config.wide(stage.channels)
            self.blocks.append(blocks)
        self.conv_head = nn.Conv2d(channels, head, 1, bias=bias)
        self.bn2 = _norm(config, head)
        self.average = GlobalAveragePool()
        self.dropout = Dropout(config.dropout)
        self.classifier = nn.Linear(head, config.num_classes)
        convs = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        init_convs(convs, "he", [0.0] * len(convs), pieces=1, maps_last=False)
        init_linear(self.classifier, "he", 0.0)

    @property
    def num_features(self) -> int:
        """D, the channels of the last 1x1 convolution."""
        return self.classifier.in_features

    @property
    def first_stages(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The first convolution and its norm, then these and the first block."""
        return [self.conv_stem, self.bn1], [self.conv_stem, self.bn1, self.blocks[0]]

    @property
    def stages(self) -> list[Stage]:
        """The convolution of the image, the blocks of each shape, and the last 1x1 convolution."""
        first, last = Stage((self.conv_stem, self.bn1), self._stem), Stage((self.conv_head, self.bn2), self._last)
        return [first, *(Stage((blocks,), blocks) for blocks in self.blocks), last]

    def _stem(self, x: Tensor) -> Tensor:
        return F.relu6(self.bn1(self.conv_stem(same_padded(x, self.conv_stem))))

    def _last(self, x: Tensor) -> Tensor:
        return F.relu6(self.bn2(self.conv_head(x)))

    @property
    def last_conv(self) -> None:
        """None: the classifier is a linear layer on the pooled features."""
        return None

    @property
    def last_layer(self) -> nn.Linear:
        """The classifier layer."""
        return self.classifier

    def norm_pairs(self) -> Iterator[tuple[nn.Module, str, str]]:
        """Yield the parent, the name of the convolution and the name of the norm, for every norm."""
        yield self, "conv_stem", "bn1"
        for module in self.modules():
            if isinstance(module, InvertedBottleneck):
                for conv, norm in module.pairs():
                    yield module, conv, norm
        yield self, "conv_head", "bn2"

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the output of the last 1x1 convolution: (N, C, H, W) -> (N, D, h, w)."""
        self.check_input(x)
        return run_stages(self.stages, x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits of feature maps: (N, D, h, w) -> (N, K)."""
        return cast("Tensor", self.classifier(self.dropout(self.average(features))))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the linear layer by a newly initialised one with `num_classes` outputs."""
        self.config = replace(self.config, num_classes=num_classes)
        classifier = nn.Linear(self.num_features, num_classes)
        init_linear(classifier, "he", 0.0)
        self.classifier = classifier.to(self.classifier.weight).train(self.training)
        self.num_classes = num_classes

    def category_maps(self, x: Tensor) -> Tensor:
        """Apply the linear layer at each position: (N, K, h, w), whose spatial mean is the logits without dropout."""
        features = self.forward_features(x)
        return F.conv2d(features, self.classifier.weight[:, :, None, None], self.classifier.bias)


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and after `side` values for ceil(side / stride) outputs of a kernel >= its stride."""
    total = (-(-side // stride) - 1) * stride + kernel - side
    return total // 2, total - total // 2


def same_padded(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Pad (N, C, H, W) with zeros so that `conv` gives ceil(H / stride) rows and ceil(W / stride) columns."""
    if conv.stride == (1, 1):
        return x  # symmetric padding of an odd kernel, which the convolution itself applies
    kernels, strides = conv.kernel_size, conv.stride
    columns = same_padding(x.shape[3], kernels[1], strides[1])
    return F.pad(x, (*columns, *same_padding(x.shape[2], kernels[0], strides[0])))


def _conv(channels: int, out: int, kernel: int, stride: int, *, groups: int = 1, bias: bool) -> nn.Conv2d:
    """Return a convolution whose padding is left to `same_padded` if it has a stride."""
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=bias)


def _norm(config: EfficientNetLiteConfig, channels: int) -> nn.Module:
    return nn.Identity() if config.norm is None else nn.BatchNorm2d(channels, eps=EPS)


CONFIG = EfficientNetLiteConfig()
