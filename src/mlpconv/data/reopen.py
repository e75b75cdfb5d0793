"""Access the file of an image that Pillow has opened but not yet loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from PIL.ImageFile import ImageFile

from mlpconv.errors import ImageError

__all__ = ["file_of", "is_open"]


def is_open(image: ImageFile) -> bool:
    """Return whether an image's pixels are not yet loaded and its file is still open."""
    return bool(image.tile) and image.fp is not None and not image.fp.closed


@contextmanager
def file_of(image: ImageFile) -> Iterator[IO[bytes]]:
    """Yield the file of an open image, and restore its position afterwards."""
    if image.fp is None:
        raise ImageError("the image's file is closed; open it again.")
    position = image.fp.tell()
    try:
        yield image.fp
    finally:
        image.fp.seek(position)
