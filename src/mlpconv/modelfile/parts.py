"""The parts of a model file, and the check that they are compatible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, cast

from torch import nn

from mlpconv.errors import UsageError
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing

__all__ = ["ModelFile", "Size", "check_parts"]

Size: TypeAlias = tuple[int, int, int]
"""(C, H, W) of a network's input images."""
MAX_SIDE = 4096
MAX_CLASSES = 16384
MAX_NAME = 1000


class ModelFile(NamedTuple):
    """The content of a model file."""

    model: Network
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    input_size: Size
    info: dict[str, Any]
    """How the network was trained: recipe, data, metrics, versions."""


def check_parts(
    model: nn.Module, preprocessing: Preprocessing, classes: Sequence[str], input_size: Sequence[int]
) -> Network:
    """Return the network; raise UsageError unless it fits preprocessing, class names and `input_size` (C, H, W)."""
    if not all(hasattr(model, name) for name in ("config", "num_classes", "in_channels", "min_size", "input_size")):
        raise UsageError(f"A {type(model).__name__} is not a network of mlpconv: give one from create_model.")
    network = cast("Network", model)
    if len(input_size) != 3 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in input_size):
        raise UsageError(f"input_size is {input_size!r:.80}; expected (C, H, W), each from 1 to {MAX_SIDE}.")
    if not all(isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in classes):
        raise UsageError(f"A class name is empty, not a string, or longer than {MAX_NAME} characters: rename it.")
    if len(set(classes)) < len(classes) or not 0 < len(classes) <= MAX_CLASSES:
        raise UsageError(f"There are {len(classes)} class names; expected 1 to {MAX_CLASSES} unique names.")
    if len(classes) != network.num_classes:
        raise UsageError(
            f"There are {len(classes)} class names for {network.num_classes} classes: give one name per class."
        )
    channels, height, width = input_size
    if channels != network.in_channels:
        raise UsageError(f"input_size has {channels} channels; the network expects {network.in_channels}.")
    if min(height, width) < network.min_size:
        raise UsageError(
            f"Images of {height}x{width} are too small; expected at least {network.min_size} pixels per side."
        )
    if getattr(network, "fixed_size", False) and (height, width) != tuple(network.input_size[1:]):
        raise UsageError(f"Images of {height}x{width} do not fit: the network accepts only {network.input_size[1:]}.")
    if preprocessing.channels != channels or ("zca" in preprocessing.names and preprocessing.size != (height, width)):
        fitted = (preprocessing.channels, *preprocessing.size)
        raise UsageError(f"The preprocessing is for images {fitted}, the network for {tuple(input_size)}.")
    return network
