"""Grey and colour: what an image is, and one made into the other."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mlpconv.data.bit_depth import grey_by_layout
from mlpconv.errors import UsageError

__all__ = ["channels_of", "to_channels"]

_GREY = ("1", "L", "I", "LA")


def channels_of(image: Image.Image) -> int:
    """1 where an image is grey by its header, else 3."""
    if image.mode in _GREY or image.mode.startswith("I;16") or grey_by_layout(image):
        return 1
    if image.mode == "P" and image.palette is not None:
        stride = len(image.palette.rawmode or image.palette.mode)
        colours = bytes(image.palette.palette)
        planes = [colours[i::stride] for i in range(3)]
        return 1 if planes[0] == planes[1] == planes[2] else 3
    return 3


def to_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Turn uint8 (..., C, H, W) of 1, 3 or 4 (with opacity: laid on white) channels into 1 or 3.

    Grey is ITU-R 601 luma, as in Pillow. Raises UsageError for any other number of channels.
    """
    given = array.shape[-3] if array.ndim >= 3 else 0
    if given not in (1, 3, 4) or channels not in (1, 3) or array.dtype != np.uint8:
        raise UsageError(
            f"cannot turn {array.dtype} of shape {array.shape} into {channels} channels: give uint8 (..., C, H, W) "
            "with 1, 3 or 4 channels, and ask for 1 or 3."
        )
    if given == 4:
        colour, opacity = array[..., :3, :, :].astype(np.uint32), array[..., 3:, :, :].astype(np.uint32)
        array = ((colour * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
        given = 3
    if given == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=-3)
    red, green, blue = (array[..., i : i + 1, :, :].astype(np.uint32) for i in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)
