"""What every network of this package promises, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from torch import Tensor, nn

from mlpconv.errors import UsageError
from mlpconv.layers import MLPConv
from mlpconv.models.ranks import parts_of

__all__ = ["Config", "Network"]


class Config(Protocol):
    """A network as data: frozen, and JSON in and out."""

    @property
    def name(self) -> str:
        """The name that `create_model` takes."""

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
    def first_mlpconv(self) -> MLPConv:
        """The layer that sees the image."""

    @property
    def first_conv(self) -> nn.Conv2d:
        """The convolution that sees the image: its weights are the filters people look at."""
        return parts_of(self.first_mlpconv.convs[0])[0]

    @property
    @abstractmethod
    def last_conv(self) -> nn.Conv2d | None:
        """The 1x1 convolution that makes the category maps; None where another layer makes the logits."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Conv2d | nn.Linear:
        """The layer that makes the logits, convolution or linear."""

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
