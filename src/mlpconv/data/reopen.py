"""Another look at the file of an image that Pillow has opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from PIL.ImageFile import ImageFile

from mlpconv.errors import ImageError

__all__ = ["file_of", "is_open"]


def is_open(image: ImageFile) -> bool:
    """Whether an image's file can still be read and its pixels have not been."""
    return bool(image.tile) and image.fp is not None and not image.fp.closed


@contextmanager
def file_of(image: ImageFile) -> Iterator[IO[bytes]]:
    """The file of an open image, which afterwards stands where it stood."""
    if image.fp is None:
        raise ImageError("the image's file is closed; open it again.")
    place = image.fp.tell()
    try:
        yield image.fp
    finally:
        image.fp.seek(place)
