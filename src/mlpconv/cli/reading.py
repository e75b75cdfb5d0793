"""Read image files one by one; report and skip those that cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlpconv.errors import ImageError
from mlpconv.text import printable

if TYPE_CHECKING:
    import numpy as np

    from mlpconv.cli.paths import ImageFiles
    from mlpconv.decode_options import DecodeOptions

__all__ = ["finer", "readable", "say_left_out", "say_skipped"]

MAX_EXTENSIONS = 5  # extensions that a message lists

T = TypeVar("T")


def readable(files: Iterable[Path], read: Callable[[Path], T]) -> Iterator[tuple[Path, T]]:
    """Yield each file with `read(file)`; report on stderr and skip a file whose read raises ImageError or OSError."""
    for file in files:
        try:
            content = read(file)
        except ImageError as error:
            say_skipped(str(error))
        except OSError as error:
            say_skipped(f"{file}: {error.strerror}.")
        else:
            yield file, content


def say_skipped(sentence: str) -> None:
    """Report on stderr a file that was skipped, and why."""
    print(f"mlpconv: skipped: {printable(sentence)}", file=sys.stderr)


def say_left_out(images: ImageFiles) -> None:
    """Report on stderr what the folders hold besides readable image files."""
    for sentence in images.unreadable:
        say_skipped(sentence)
    if images.foreign:
        common = images.foreign.most_common(MAX_EXTENSIONS)
        counts = ", ".join(f"{count:,} {printable(extension)}" for extension, count in common)
        ellipsis = ", ..." if len(images.foreign) > MAX_EXTENSIONS else ""
        print(f"mlpconv: ignored files that are not images: {counts}{ellipsis}.", file=sys.stderr)


def finer(
    image: np.ndarray, size: tuple[int, int], most: int, decode_options: DecodeOptions | None = None
) -> np.ndarray:
    """Resize an image (C, H, W) as the network reads it, to an integer multiple of the input size (rows, columns).

    The result is a background for plots: at most `most` pixels along its longer side, at least the input size.
    """
    from PIL import Image

    from mlpconv.data.decode import from_pil
    from mlpconv.decode_options import DecodeOptions

    channels, rows, columns = image.shape
    height, width = size
    scale = max(1, min(rows // height, columns // width, most // max(height, width)))
    opened = Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0))
    return from_pil(opened, channels, (height * scale, width * scale), decode_options or DecodeOptions())
