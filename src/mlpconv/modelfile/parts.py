"""The parts of a model file, and whether network, preprocessing, class names and image size fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, cast

from torch import nn

from mlpconv.errors import UsageError
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing

__all__ = ["ModelFile", "Size", "check_parts"]

Size: TypeAlias = tuple[int, int, int]
"""(C, H, W) of the images that a network takes."""
MAX_SIDE = 4096
MAX_CLASSES = 16384
LONGEST_NAME = 1000


class ModelFile(NamedTuple):
    """What a model file holds."""

    model: Network
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    input_size: Size
    info: dict[str, Any]
    """How the network was made: recipe, data, metrics, versions."""


def check_parts(
    model: nn.Module, preprocessing: Preprocessing, classes: Sequence[str], input_size: Sequence[int]
) -> Network:
    """The network, where it, its preprocessing, class names and (C, H, W) fit together; raises UsageError where not."""
    if not all(hasattr(model, name) for name in ("config", "num_classes", "in_channels", "min_size", "input_size")):
        raise UsageError(f"A {type(model).__name__} is no network of mlpconv: give one that create_model made.")
    network = cast("Network", model)
    if len(input_size) != 3 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in input_size):
        raise UsageError(f"input_size is {input_size!r:.80}; (C, H, W), each from 1 to {MAX_SIDE}, is accepted.")
    if not all(isinstance(name, str) and 0 < len(name) <= LONGEST_NAME for name in classes):
        raise UsageError(f"A class name is empty, no text, or longer than {LONGEST_NAME} characters: rename it.")
    if len(set(classes)) < len(classes) or not 0 < len(classes) <= MAX_CLASSES:
        raise UsageError(f"There are {len(classes)} class names; 1 to {MAX_CLASSES}, no two the same, are accepted.")
    if len(classes) != network.num_classes:
        raise UsageError(f"There are {len(classes)} class names for {network.num_classes} classes: give one each.")
    channels, height, width = input_size
    if channels != network.in_channels:
        raise UsageError(f"Images of {channels} channels do not fit a network of {network.in_channels} channels.")
    if min(height, width) < network.min_size:
        raise UsageError(f"Images of {height}x{width} are too small: at least {network.min_size} a side is accepted.")
    if getattr(network, "fixed_size", False) and (height, width) != tuple(network.input_size[1:]):
        raise UsageError(f"Images of {height}x{width} do not fit a network that takes {network.input_size[1:]} only.")
    if preprocessing.channels != channels or ("zca" in preprocessing.names and preprocessing.size != (height, width)):
        fitted = (preprocessing.channels, *preprocessing.size)
        raise UsageError(f"The preprocessing was made for images {fitted}, the network for {tuple(input_size)}.")
    return network
