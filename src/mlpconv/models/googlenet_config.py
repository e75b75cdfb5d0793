"""GoogLeNet as frozen data: its channels, its options, and what follows from them by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlpconv.errors import UsageError
from mlpconv.layers import ACTIVATIONS, Norm, activation_pieces, convolved_size, pooled_size
from mlpconv.models.blocks import HEADS, widened
from mlpconv.models.initialise import INITS
from mlpconv.models.validate import (
    LIMITS,
    choice,
    flag,
    known_keys,
    large_enough,
    multiplier,
    rate,
    sides,
    too_big,
    whole,
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
class GoogLeNetConfig:
    """GoogLeNet as data; the published network is what the defaults say."""

    num_classes: int = 1000
    in_channels: int = 3
    size: tuple[int, int] = (224, 224)
    """Rows and columns of the images it is meant for; auxiliary and fully connected heads accept no other."""
    aux_heads: bool = False
    width: float = 1.0
    activation: str = "relu"
    norm: Norm | None = None
    """"batch" takes the place of the local response normalisation too."""
    dropout: float = 0.4
    last_relu: bool = False
    """Whether a ReLU follows the category maps, as in Network In Network; not published."""
    head: str = "gap"
    init: str = "paper"
    name: str = "googlenet"
    response_norm: bool | None = None
    """Whether there is local response normalisation; None: where there is no batch norm."""

    def __post_init__(self) -> None:
        choice("name", self.name, ("googlenet",))
        whole("num_classes", self.num_classes, 1, LIMITS["channels"])
        whole("in_channels", self.in_channels, 1, LIMITS["channels"])
        least = AUX_MIN_SIZE if flag("aux_heads", self.aux_heads) else MIN_SIZE
        large_enough(self.name, sides(self.size), least)
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
        too_big(self.name, self.parameters)

    @property
    def family(self) -> str:
        """The name of this kind of configuration."""
        return "googlenet"

    @property
    def parameters(self) -> int:
        """How many numbers training sets: weights, biases and norms."""
        pieces, norm = activation_pieces(self.activation), 2 if self.norm else 0
        total = sum(out * pieces * (area * fan + 1 + norm) for fan, out, area in self._convolutions())
        features = self.wide(384) + self.wide(384) + 2 * self.wide(128)
        cells = 1 if self.head == "gap" else map_size(self.size[0]) * map_size(self.size[1])
        total += self.num_classes * (features * cells + 1)
        if self.aux_heads:
            flat = self.wide(AUX_CHANNELS) * aux_size(self.size[0]) * aux_size(self.size[1])
            hidden = self.wide(AUX_HIDDEN)
            total += 2 * (hidden * pieces * (flat + 1) + self.num_classes * (hidden + 1))
        return total

    def wide(self, channels: int) -> int:
        """Channels under the width multiplier."""
        return widened(channels, self.width)

    def _convolutions(self) -> list[tuple[int, int, int]]:
        """Channels in, channels out and kernel area of every convolution."""
        first, reduced, before = (self.wide(channels) for channels in STEM)
        found = [(self.in_channels, first, 49), (first, reduced, 1), (reduced, before, 9)]
        for name, published in INCEPTION:
            one, reduce3, three, reduce5, five, pool = (self.wide(channels) for channels in published)
            found += [(before, width, 1) for width in (one, reduce3, reduce5, pool)]
            found += [(reduce3, three, 9), (reduce5, five, 25)]
            before = one + three + five + pool
            if self.aux_heads and name in AUX_AFTER:
                found.append((before, self.wide(AUX_CHANNELS), 1))
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` is its inverse."""
        return asdict(self) | {"size": list(self.size), "family": self.family}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> GoogLeNetConfig:
        """The configuration that `to_dict` wrote; UsageError for anything else."""
        values = known_keys("The network", {key: given[key] for key in given if key != "family"}, cls)
        values["size"] = sides(values.get("size", (224, 224)))
        return cls(**values)


def _grid(side: int, pools: int) -> int:
    """Rows left of `side` after the 7x7 of stride 2 and so many pools; 0 or less where the image is too small."""
    side = convolved_size(side, 7, 2, 3)
    for _ in range(pools):
        side = pooled_size(side) if side > 0 else side
    return side


def map_size(side: int) -> int:
    """Rows of the category maps for images of `side` rows."""
    return _grid(side, 4)


def aux_size(side: int) -> int:
    """Rows of what an auxiliary head's 5x5 pool of stride 3 makes of images of `side` rows."""
    return convolved_size(_grid(side, 3), 5, 3, 0)


MIN_SIZE = next(side for side in range(1, 225) if map_size(side) > 0)
AUX_MIN_SIZE = next(side for side in range(1, 225) if aux_size(side) > 0)
