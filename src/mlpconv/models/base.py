"""What every network of this package promises, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from mlpconv.errors import UsageError

__all__ = ["Config", "Network"]


class Config(Protocol):
    """A network as data: frozen, and JSON in and out."""

    @property
    def name(self) -> str:
        """The name that `create_model` takes."""

    @property
    def family(self) -> str:
        """The kind of configuration, which names the module that builds from it."""

    @property
    def parameters(self) -> int:
        """How many numbers training sets."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the key "family"; `registry.build` is the inverse."""


class Network(nn.Module, ABC):
    """An image classifier: (N, C, H, W) float -> logits (N, K), no softmax."""

    config: Config
    num_classes: int
    in_channels: int
    input_size: tuple[int, int, int]
    """(C, H, W) of the images it is meant for."""
    min_size: int
    """The smallest height and width accepted."""
    fixed_size: bool = False
    """Whether only `input_size` is accepted (networks with a fully connected head)."""

    @property
    @abstractmethod
    def num_features(self) -> int:
        """D, the channels of the feature maps that the classifier takes."""

    @property
    @abstractmethod
    def first_stages(self) -> Sequence[Sequence[nn.Module]]:
        """The modules of the first convolution, then of the whole first block: the order in which layers freeze."""

    @property
    def first_conv(self) -> nn.Conv2d:
        """The convolution that sees the image: its weights are the filters people look at."""
        return next(module for module in self.first_stages[0][0].modules() if isinstance(module, nn.Conv2d))

    @property
    @abstractmethod
    def last_conv(self) -> nn.Conv2d | None:
        """The 1x1 convolution that makes the category maps; None where another layer makes the logits."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Conv2d | nn.Linear:
        """The layer that makes the logits, convolution or linear."""

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D, h, w): the feature maps that the classifier takes."""

    @abstractmethod
    def forward_head(self, features: Tensor) -> Tensor:
        """(N, D, h, w) -> logits (N, K)."""

    @abstractmethod
    def reset_classifier(self, num_classes: int) -> None:
        """Replace the layer that makes the logits by a freshly initialised one of `num_classes` outputs."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, K)."""
        return self.forward_head(self.forward_features(x))

    @abstractmethod
    def category_maps(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, h, w), whose spatial mean is the logits; UsageError for fully connected heads."""

    def check_input(self, x: Tensor) -> None:
        """Refuse what this network cannot take, and say what it can: UsageError."""
        name = self.config.name
        if x.dim() != 4:
            raise UsageError(f"{name} got a tensor of {x.dim()} dimensions; images (N, C, H, W) are accepted.")
        channels, height, width = x.shape[1:]
        if not x.is_floating_point():
            raise UsageError(f"{name} got {x.dtype} pixels; floats are accepted: apply the preprocessing first.")
        if channels != self.in_channels:
            raise UsageError(
                f"{name} got images of {channels} channels; {self.in_channels} are accepted. "
                f"Convert them, or create the model with in_channels={channels}."
            )
        if self.fixed_size:
            if (height, width) != self.input_size[1:]:
                rows, columns = self.input_size[1:]
                raise UsageError(
                    f"{name} got images of {height}x{width}; its fully connected head accepts {rows}x{columns} only. "
                    "Resize them, or use head='gap'."
                )
        elif height < self.min_size or width < self.min_size:
            raise UsageError(
                f"{name} got images of {height}x{width}; at least {self.min_size}x{self.min_size} is accepted. "
                "Use larger images or resize them."
            )
