"""Decode large JPEG files in little memory: at a half, a quarter or an eighth of their size."""

from __future__ import annotations

import os
import struct

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from mlpconv.data.reopen import file_of, is_open
from mlpconv.errors import ImageError

__all__ = ["MAX_JPEG_PIXELS", "reopen", "set_draft"]

MAX_JPEG_PIXELS = 500_000_000  # in the file; `limit` applies to the decoded pixels
DRAFT_PIXELS = 4_000_000  # a larger JPEG is decoded at a fraction of its size ...
DRAFT_FACTOR = 4  # ... that is at least this many times the requested size
SCALES = (1, 2, 4, 8)  # the divisors that the decoder supports
START_OF_SCAN = 0xFFDA


def set_draft(image: JpegImageFile, size: tuple[int, int] | None, limit: int, name: str) -> None:
    """Set the fraction at which a JPEG is decoded: well above the requested size (H, W), at most `limit` pixels.

    Raises ImageError if decoding would need more memory: the decoder buffers progressive files at full size.
    """
    width, height = image.size
    if width * height > limit and _is_fully_buffered(image):
        raise ImageError(
            f"{name} is a progressive JPEG of {width:,} x {height:,} pixels, which is decoded at full size; accepted: "
            f"up to {limit:,} pixels in total. Save it as a baseline JPEG, or smaller."
        )
    scale = 1
    if size is not None and width * height > DRAFT_PIXELS:
        side = DRAFT_FACTOR * max(size)
        scale = max(step for step in SCALES if step == 1 or min(width, height) // side >= step)
    while width * height > limit * scale * scale and scale < SCALES[-1]:
        scale *= 2
    if scale > 1:
        image.draft(None, (max(1, width // scale), max(1, height // scale)))


def reopen(image: Image.Image) -> Image.Image:
    """Reopen a JPEG that Pillow has opened but not yet decoded, so that decoding leaves it unchanged.

    Any other image is returned as it is.
    """
    if not isinstance(image, JpegImageFile) or not is_open(image) or image.tile[0].offset != 0:  # a later frame
        return image
    with file_of(image) as file:
        file.seek(0)
        copy = JpegImageFile(file)
    if (copy.size, copy.mode) != (image.size, image.mode):  # the caller has set a draft
        return image
    copy.info = dict(image.info)
    return copy


def _is_fully_buffered(image: JpegImageFile) -> bool:
    """Return whether the decoder buffers all coefficients: progressive files, or scans without all components."""
    if image.info.get("progressive"):
        return True
    length = 6 + 2 * image.layers
    with file_of(image) as file:  # positioned after the header of the first scan
        file.seek(-length - 2, os.SEEK_CUR)
        header = file.read(5)
    return header != struct.pack(">HHB", START_OF_SCAN, length, image.layers)
