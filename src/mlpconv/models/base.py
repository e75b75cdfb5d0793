"""The interface of every network of this package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from mlpconv.errors import UsageError

__all__ = ["Config", "Network", "Stage", "run_stages"]


class Config(Protocol):
    """The configuration of a network: frozen, and convertible to and from JSON."""

    @property
    def name(self) -> str:
        """The name of the network in `create_model`."""

    @property
    def family(self) -> str:
        """The name of the network family that builds from this configuration."""

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable data with the key "family"; `registry.build` is the inverse."""


class Stage(NamedTuple):
    """A part of a network: its modules, and what they compute from the output of the stage before."""

    modules: tuple[nn.Module, ...]
    forward: Callable[[Tensor], Tensor]


def run_stages(stages: Sequence[Stage], x: Tensor) -> Tensor:
    """Return the output of consecutive stages: (N, C, H, W) -> (N, D, h, w)."""
    for stage in stages:
        x = stage.forward(x)
    return x


class Network(nn.Module, ABC):
    """An image classifier: (N, C, H, W) float -> logits (N, K), no softmax."""

    config: Config
    num_classes: int
    in_channels: int
    input_size: tuple[int, int, int]
    """(C, H, W) of the images that the network is designed for."""
    min_size: int
    """Smallest accepted height and width, in pixels."""
    fixed_size: bool = False
    """Whether only `input_size` is accepted (networks with a fully connected head)."""

    @property
    @abstractmethod
    def num_features(self) -> int:
        """D, the channels of the feature maps before the classifier."""

    @property
    @abstractmethod
    def first_stages(self) -> Sequence[Sequence[nn.Module]]:
        """The modules of the first convolution, then of the first block: the order in which layers are frozen."""

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages that `forward_features` runs one after another; empty if a network has none."""
        return ()

    @property
    def first_conv(self) -> nn.Conv2d:
        """The convolution applied to the image, whose filters can be plotted."""
        return next(module for module in self.first_stages[0][0].modules() if isinstance(module, nn.Conv2d))

    @property
    @abstractmethod
    def last_conv(self) -> nn.Conv2d | None:
        """The 1x1 convolution whose outputs are the category maps; None for networks with a linear classifier."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Conv2d | nn.Linear:
        """The classifier layer, a convolution or linear, whose outputs are the logits (before pooling)."""

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Return the feature maps before the classifier: (N, C, H, W) -> (N, D, h, w)."""

    @abstractmethod
    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits of feature maps: (N, D, h, w) -> (N, K)."""

    @abstractmethod
    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier layer by a newly initialised one with `num_classes` outputs."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, K)."""
        return self.forward_head(self.forward_features(x))

    @abstractmethod
    def category_maps(self, x: Tensor) -> Tensor:
        """Return the category maps (N, K, h, w), whose spatial mean is the logits.

        Raises UsageError for networks with a fully connected head.
        """

    def check_input(self, x: Tensor) -> None:
        """Raise UsageError unless `x` is a float tensor (N, C, H, W) of accepted channels and size."""
        name = self.config.name
        if x.dim() != 4:
            raise UsageError(f"{name} got a tensor of {x.dim()} dimensions; images (N, C, H, W) are accepted.")
        channels, height, width = x.shape[1:]
        if not x.is_floating_point():
            raise UsageError(f"{name} got {x.dtype} pixels; floats are accepted: apply the preprocessing first.")
        if channels != self.in_channels:
            raise UsageError(
                f"{name} got images of {channels} channels; {self.in_channels} are accepted. "
                f"Convert the images, or create the model with in_channels={channels}."
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
