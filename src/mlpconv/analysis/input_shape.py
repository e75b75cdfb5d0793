"""Validate the shape (C, H, W) of a network's input image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mlpconv.errors import UsageError

__all__ = ["check_input_shape", "input_shape_of"]


def check_input_shape(input_shape: object) -> tuple[int, int, int]:
    """Return (C, H, W) as a tuple; raise UsageError for anything else."""
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else (input_shape,)
    if len(shape) != 3 or not all(type(size) is int and size > 0 for size in shape):
        raise UsageError(f"input_shape is {input_shape!r}; pass (channels, height, width), such as (3, 32, 32).")
    return shape


def input_shape_of(model: nn.Module) -> tuple[int, int, int]:
    """Return the (C, H, W) that the network states, as ours and timm's do; raise UsageError if it states none."""
    config = getattr(model, "default_cfg", None)
    size = getattr(model, "input_size", None) or (config.get("input_size") if isinstance(config, dict) else None)
    if not isinstance(size, tuple | list):
        raise UsageError(f"{type(model).__name__} does not state its input size: give input_shape=(C, H, W).")
    return check_input_shape(size)
