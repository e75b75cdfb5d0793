"""Detect whether an image is grey or colour, and convert between the two."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mlpconv.data.bit_depth import is_grey_alpha
from mlpconv.errors import UsageError

__all__ = ["channels_of", "to_channels"]

_GREY = ("1", "L", "I", "LA")


def channels_of(image: Image.Image) -> int:
    """Return 1 if an image is grey according to its header, else 3."""
    if image.mode in _GREY or image.mode.startswith("I;16") or is_grey_alpha(image):
        return 1
    if image.mode == "P" and image.palette is not None:
        stride = len(image.palette.rawmode or image.palette.mode)
        colours = bytes(image.palette.palette)
        planes = [colours[i::stride] for i in range(3)]
        return 1 if planes[0] == planes[1] == planes[2] else 3
    return 3


def to_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Convert uint8 (..., C, H, W) with 1, 3 or 4 channels (RGBA, composited on white) to 1 or 3 channels.

    Grey is ITU-R 601 luma, as in Pillow. Raises UsageError for any other number of channels.
    """
    depth = array.shape[-3] if array.ndim >= 3 else 0
    if depth not in (1, 3, 4) or channels not in (1, 3) or array.dtype != np.uint8:
        raise UsageError(
            f"cannot convert {array.dtype} of shape {array.shape} to {channels} channels: give uint8 (..., C, H, W) "
            "with 1, 3 or 4 channels, and ask for 1 or 3."
        )
    if depth == 4:
        rgb, alpha = array[..., :3, :, :].astype(np.uint32), array[..., 3:, :, :].astype(np.uint32)
        array = ((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        depth = 3
    if depth == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=-3)
    red, green, blue = (array[..., i : i + 1, :, :].astype(np.uint32) for i in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)
