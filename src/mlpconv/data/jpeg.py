"""Big JPEG files in little memory: decoded at a half, a quarter or an eighth of their size."""

from __future__ import annotations

import os
import struct

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from mlpconv.data.reopen import file_of, is_open
from mlpconv.errors import ImageError

__all__ = ["MAX_JPEG_PIXELS", "reduce", "reopened"]

MAX_JPEG_PIXELS = 500_000_000  # in the file; of those decoded, `most` counts
DRAFT_PIXELS = 4_000_000  # above this a JPEG is decoded at a fraction of its size ...
DRAFT_FACTOR = 4  # ... that is still so many times the size asked for
SCALES = (1, 2, 4, 8)  # what the decoder can divide by
START_OF_SCAN = 0xFFDA


def reduce(image: JpegImageFile, size: tuple[int, int] | None, most: int, name: str) -> None:
    """Choose the fraction at which a JPEG is decoded: far above the size (H, W) asked for, and at most `most` pixels.

    Raises ImageError for a file that even so takes more memory: too large, or one of which the decoder keeps all.
    """
    width, height = image.size
    if width * height > most and _is_kept_whole(image):
        raise ImageError(
            f"{name} is {width:,} x {height:,} pixels in a progressive JPEG, which is decoded as a whole; accepted: up "
            f"to {most:,} pixels in all. Save it as a baseline JPEG, or smaller."
        )
    scale = 1
    if size is not None and width * height > DRAFT_PIXELS:
        side = DRAFT_FACTOR * max(size)
        scale = max(step for step in SCALES if step == 1 or min(width, height) // side >= step)
    while width * height > most * scale * scale and scale < SCALES[-1]:
        scale *= 2
    if scale > 1:
        image.draft(None, (max(1, width // scale), max(1, height // scale)))


def reopened(image: Image.Image) -> Image.Image:
    """A JPEG that Pillow has opened and not yet decoded, opened once more; any other image as it is.

    The first stays as it is, so that it gives the same pixels again.
    """
    if not isinstance(image, JpegImageFile) or not is_open(image) or image.tile[0].offset != 0:  # a later frame
        return image
    with file_of(image) as file:
        file.seek(0)
        again = JpegImageFile(file)
    if (again.size, again.mode) != (image.size, image.mode):  # it has a draft of its own
        return image
    again.info = dict(image.info)
    return again


def _is_kept_whole(image: JpegImageFile) -> bool:
    """Whether the decoder keeps every coefficient: of progressive files, and where a scan has not all components."""
    if image.info.get("progressive"):
        return True
    length = 6 + 2 * image.layers
    with file_of(image) as file:  # it stands behind the header of the first scan
        file.seek(-length - 2, os.SEEK_CUR)
        header = file.read(5)
    return header != struct.pack(">HHB", START_OF_SCAN, length, image.layers)
