"""The configuration of a Network In Network: its blocks, its options, and the sizes and counts they imply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from mlpconv.errors import UsageError
from mlpconv.layers import ACTIVATIONS, activation_pieces, convolved_size, pooled_size
from mlpconv.models.initialise import INITS
from mlpconv.models.ranks import Ranks, parameters_of
from mlpconv.models.validate import LIMITS, check_count, check_size, choice, flag, integer, known_keys, rate, sequence

__all__ = ["HEADS", "STD", "Block", "NINConfig", "widened"]

HEADS = ("gap", "fc", "fc+dropout")
STD = 0.05
"""Default standard deviation of the paper's initial weights."""


@dataclass(frozen=True)
class Block:
    """An mlpconv layer with the pool and dropout after it."""

    kernel: int
    """Kernel size of the first convolution; the others are 1x1."""
    channels: tuple[int, ...]
    """Output channels of each convolution."""
    stride: int = 1
    padding: int = 0
    pool: str = "none"
    """"max", "avg" (3x3, stride 2, rounded up) or "none"."""
    dropout: bool = False
    """Whether dropout follows the pool."""
    stds: tuple[float, ...] = ()
    """Standard deviation of the initial weights of each convolution for init="paper"; empty: 0.05 each."""
    ranks: tuple[Ranks, ...] = ()
    """A pair of ranks for each factorized convolution; empty: full rank."""

    def __post_init__(self) -> None:
        integer("kernel", self.kernel, 1, LIMITS["kernel"])
        integer("stride", self.stride, 1, LIMITS["kernel"])
        integer("padding", self.padding, 0, self.kernel - 1)
        integer("the number of convolutions in a block", len(self.channels), 1, LIMITS["layers"])
        for width in self.channels:
            integer("channels", width, 1, LIMITS["channels"])
        choice("pool", self.pool, ("max", "avg", "none"))
        flag("a block's dropout", self.dropout)
        for std in self.stds:
            rate("a standard deviation", std)
        if len(self.stds) not in (0, len(self.channels)):
            raise UsageError(f"stds has {len(self.stds)} numbers; 0 or {len(self.channels)} are accepted.")
        if len(self.ranks) not in (0, len(self.channels)):
            raise UsageError(f"ranks has {len(self.ranks)} pairs; 0 or {len(self.channels)} are accepted.")
        for pair in self.ranks:
            integer("the number of a convolution's ranks", len(pair), 2, 2)
            for rank in pair:
                integer("a rank", rank, 0, LIMITS["channels"])

    def out_size(self, size: int) -> int:
        """Return the output rows for `size` input rows; 0 or less if the image is too small."""
        size = convolved_size(size, self.kernel, self.stride, self.padding)
        return pooled_size(size) if size > 0 and self.pool != "none" else size

    def with_depth(self, depth: int, *, last: bool) -> Block:
        """Return the block with `depth` convolutions: the k x k one and 1x1s; the `last` block keeps its 1x1 to K.

        The first widths are kept, and the last hidden one is repeated. Depth 1 is the linear baseline.
        """
        integer("depth", depth, 1, LIMITS["layers"] - 1)
        count, outputs = (max(depth - 1, 1), slice(-1, None)) if last else (depth, slice(0, 0))
        hidden = self.channels[:-1] if last and len(self.channels) > 1 else self.channels
        stds = self.stds or (STD,) * len(self.channels)
        return replace(
            self,
            channels=_resized(hidden, count) + self.channels[outputs],
            stds=_resized(stds[: len(hidden)], count) + stds[outputs] if self.stds else (),
            ranks=(),
        )

    def with_kernel(self, kernel: int) -> Block:
        """Return the block with another odd kernel size; a padded block keeps the size of its maps."""
        integer("kernel", kernel, 1, LIMITS["kernel"])
        if kernel % 2 == 0:
            raise UsageError(
                f"kernel is {kernel}; an odd number is accepted, which keeps the size of the feature maps."
            )
        return replace(self, kernel=kernel, padding=kernel // 2 if self.padding else 0, ranks=())


@dataclass(frozen=True)
class NINConfig:
    """Configuration of a Network In Network or a linear baseline; the last block ends in one channel per class."""

    name: str
    blocks: tuple[Block, ...]
    in_channels: int = 3
    size: tuple[int, int] = (32, 32)
    """Rows and columns of the images that the network is designed for."""
    activation: str = "relu"
    norm: Literal["batch"] | None = None
    dropout: float = 0.5
    last_relu: bool = True
    """Whether an activation follows the last 1x1, as in the paper; such networks can collapse in training."""
    head: str = "gap"
    init: str = "paper"
    pool_first: bool = False
    """Whether max-pooling precedes norm and activation: faster, but a different network."""
    family: str = "nin"

    def __post_init__(self) -> None:
        choice("family", self.family, ("nin", "conv"))
        integer("in_channels", self.in_channels, 1, LIMITS["channels"])
        integer("the number of blocks", len(self.blocks), 1, LIMITS["blocks"])
        choice("activation", self.activation, ACTIVATIONS)
        if self.norm is not None:
            choice("norm", self.norm, ("batch",))
        rate("dropout", self.dropout)
        flag("last_relu", self.last_relu)
        choice("head", self.head, HEADS)
        choice("init", self.init, INITS)
        flag("pool_first", self.pool_first)
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 64:
            raise UsageError(f"name is {str(self.name)[:80]!r}; a name of 1 to 64 characters is accepted.")
        integer("the number of sizes", len(self.size), 2, 2)
        check_size(self.name, self.size, self.min_size)
        check_count(self.name, max(self.parameters, self._parameters(full_rank=True)))

    @property
    def num_classes(self) -> int:
        """K."""
        return self.blocks[-1].channels[-1]

    @cached_property
    def min_size(self) -> int:
        """Smallest image side for which the category maps have at least one pixel."""
        for side in range(1, LIMITS["size"] + 1):
            if self.map_size(side) > 0:
                return side
        raise UsageError(f"{self.name} needs images of more than {LIMITS['size']} pixels a side: use smaller strides.")

    def map_size(self, side: int) -> int:
        """Return the rows of the category maps for images of `side` rows; 0 or less if the images are too small."""
        for block in self.blocks:
            if side <= 0:
                return side
            side = block.out_size(side)
        return side

    @property
    def parameters(self) -> int:
        """Number of trainable parameters: weights, biases and norms."""
        return self._parameters()

    def _parameters(self, *, full_rank: bool = False) -> int:
        """Return the number of parameters; with `full_rank` that before factorization, which building allocates."""
        pieces, total, channels = activation_pieces(self.activation), 0, self.in_channels
        for block_index, block in enumerate(self.blocks):
            ranks = block.ranks if block.ranks and not full_rank else ((0, 0),) * len(block.channels)
            for index, width in enumerate(block.channels):
                last = block_index == len(self.blocks) - 1 and index == len(block.channels) - 1
                out = width if last and not self.last_relu else width * pieces
                area = block.kernel**2 if index == 0 else 1
                total += parameters_of(channels, out, area, ranks[index]) + (2 * out if self.norm and not last else 0)
                channels = width
        if self.head != "gap":
            pixels = self.map_size(self.size[0]) * self.map_size(self.size[1])
            total += self.num_classes * (self.num_classes * pixels + 1)
        return total

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable data; `from_dict` is the inverse."""
        return asdict(self) | {"size": list(self.size), "blocks": [_block_dict(block) for block in self.blocks]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NINConfig:
        """Return the configuration that `to_dict` wrote; raise UsageError for anything else."""
        values = known_keys("The network", data, cls)
        values["size"] = sequence("size", values.get("size", [32, 32]), 2)
        blocks = []
        for entry in sequence("blocks", values["blocks"], LIMITS["blocks"]):
            block = known_keys("A block", entry, Block)
            block["channels"] = sequence("channels", block["channels"], LIMITS["layers"])
            block["stds"] = sequence("stds", block.get("stds", []), LIMITS["layers"])
            pairs = sequence("ranks", block.get("ranks", []), LIMITS["layers"])
            block["ranks"] = tuple(sequence("a convolution's ranks", pair, 2) for pair in pairs)
            blocks.append(Block(**block))
        return cls(**(values | {"blocks": tuple(blocks)}))


def _block_dict(block: Block) -> dict[str, Any]:
    """Return a block as data, without an empty `ranks`, so that older versions can read it."""
    plain = asdict(block) | {"channels": list(block.channels), "stds": list(block.stds)}
    ranks = plain.pop("ranks")
    return plain | ({"ranks": [list(pair) for pair in ranks]} if ranks else {})


def _resized(values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """Return the first `count` values; the last one is repeated if there are fewer."""
    return (values + values[-1:] * count)[:count]


def widened(channels: int, width: float) -> int:
    """Return the channels times the multiplier, rounded to a multiple of 8, at least 8; unchanged for width 1."""
    return channels if width == 1 else max(8, int(channels * width / 8 + 0.5) * 8)
