"""The configuration of GoogLeNet: its channels, its options, and the sizes and counts they imply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mlpconv.errors import UsageError
from mlpconv.layers import ACTIVATIONS, Norm, activation_pieces, convolved_size, pooled_size
from mlpconv.models.blocks import HEADS, widened
from mlpconv.models.initialise import INITS
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

__all__ = ["AUX_AFTER", "INCEPTION", "MIN_SIZE", "POOL_BEFORE", "STEM", "GoogLeNetConfig", "aux_size", "map_size"]

STEM = (64, 64, 192)
"""Channels of the 7x7, the 1x1 and the 3x3 before the first Inception module."""

INCEPTION: tuple[tuple[str, tuple[int, int, int, int, int, int]], ...] = (
    ("3a", (64, 96, 128, 16, 32, 32)),
    ("3b", (128, 128, 192, 32, 96, 64)),
    ("4a", (192, 96, 208, 16, 48, 64)),
    ("4b", (160, 112, 224, 24, 64, 64)),
    ("4c", (128, 128, 256, 24, 64, 64)),
    ("4d", (112, 144, 288, 32, 64, 64)),
    ("4e", (256, 160, 320, 32, 128, 128)),
    ("5a", (256, 160, 320, 32, 128, 128)),
    ("5b", (384, 192, 384, 48, 128, 128)),
)
"""Channels of each module: 1x1; 3x3's reduction, 3x3; 5x5's reduction, 5x5; the pool's projection."""

POOL_BEFORE = ("4a", "5a")
AUX_AFTER = ("4a", "4d")
AUX_CHANNELS, AUX_HIDDEN, AUX_DROPOUT = 128, 1024, 0.7


@dataclass(frozen=True)
class GoogLeNetConfig(JSONConfig):
    """Configuration of GoogLeNet; the defaults are the published network."""

    family: ClassVar[str] = "googlenet"
    num_classes: int = 1000
    in_channels: int = 3
    size: tuple[int, int] = (224, 224)
    """Rows and columns of the images that the network is designed for; auxiliary and fully connected heads accept no
    other."""
    aux_heads: bool = False
    width: float = 1.0
    activation: str = "relu"
    norm: Norm | None = None
    """"batch" also replaces the local response normalisation."""
    dropout: float = 0.4
    last_relu: bool = False
    """Whether a ReLU follows the category maps, as in Network In Network; the published network has none."""
    head: str = "gap"
    init: str = "paper"
    name: str = "googlenet"
    response_norm: bool | None = None
    """Whether to use local response normalisation; None: if there is no batch norm."""

    def __post_init__(self) -> None:
        choice("name", self.name, ("googlenet",))
        integer("num_classes", self.num_classes, 1, LIMITS["channels"])
        integer("in_channels", self.in_channels, 1, LIMITS["channels"])
        least = AUX_MIN_SIZE if flag("aux_heads", self.aux_heads) else MIN_SIZE
        check_size(self.name, sides(self.size), least)
        multiplier("width", self.width)
        choice("activation", self.activation, ACTIVATIONS)
        if self.norm is not None:
            choice("norm", self.norm, ("batch",))
        rate("dropout", self.dropout)
        choice("head", self.head, HEADS)
        if flag("last_relu", self.last_relu) and self.head != "gap":
            raise UsageError(
                f"last_relu=True got head={self.head!r}, which has no category maps; head='gap' is accepted."
            )
        choice("init", self.init, INITS)
        if self.response_norm is not None:
            flag("response_norm", self.response_norm)
        check_count(self.name, self.parameters)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters: weights, biases and norms."""
        pieces, norm = activation_pieces(self.activation), 2 if self.norm else 0
        total = sum(out * pieces * (area * fan + 1 + norm) for fan, out, area in self._convolutions())
        features = self.wide(384) + self.wide(384) + 2 * self.wide(128)
        pixels = 1 if self.head == "gap" else map_size(self.size[0]) * map_size(self.size[1])
        total += self.num_classes * (features * pixels + 1)
        if self.aux_heads:
            flat = self.wide(AUX_CHANNELS) * aux_size(self.size[0]) * aux_size(self.size[1])
            hidden = self.wide(AUX_HIDDEN)
            total += 2 * (hidden * pieces * (flat + 1) + self.num_classes * (hidden + 1))
        return total

    def wide(self, channels: int) -> int:
        """Return the channels times the width multiplier."""
        return widened(channels, self.width)

    def _convolutions(self) -> list[tuple[int, int, int]]:
        """Return input channels, output channels and kernel area of every convolution."""
        first, reduced, channels = (self.wide(width) for width in STEM)
        convs = [(self.in_channels, first, 49), (first, reduced, 1), (reduced, channels, 9)]
        for name, published in INCEPTION:
            one, reduce3, three, reduce5, five, pool = (self.wide(width) for width in published)
            convs += [(channels, width, 1) for width in (one, reduce3, reduce5, pool)]
            convs += [(reduce3, three, 9), (reduce5, five, 25)]
            channels = one + three + five + pool
            if self.aux_heads and name in AUX_AFTER:
                convs.append((channels, self.wide(AUX_CHANNELS), 1))
        return convs


def _rows(side: int, pools: int) -> int:
    """Return the rows after the 7x7 of stride 2 and `pools` pools; 0 or less if the image is too small."""
    side = convolved_size(side, 7, 2, 3)
    for _ in range(pools):
        side = pooled_size(side) if side > 0 else side
    return side


def map_size(side: int) -> int:
    """Return the rows of the category maps for images of `side` rows."""
    return _rows(side, 4)


def aux_size(side: int) -> int:
    """Return the rows after the 5x5 pool of an auxiliary head, for images of `side` rows."""
    return convolved_size(_rows(side, 3), 5, 3, 0)


MIN_SIZE = next(side for side in range(1, 225) if map_size(side) > 0)
AUX_MIN_SIZE = next(side for side in range(1, 225) if aux_size(side) > 0)
