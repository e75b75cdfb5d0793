"""Image files one after the other; those that cannot be read are named and passed over."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlpconv.errors import ImageError
from mlpconv.text import printable

if TYPE_CHECKING:
    import numpy as np

    from mlpconv.reading import Reading

__all__ = ["finer", "readable"]

T = TypeVar("T")


def readable(files: Iterable[Path], read: Callable[[Path], T]) -> Iterator[tuple[Path, T]]:
    """Each file with what `read` makes of it; where it raises ImageError or OSError the file is named on stderr."""
    for file in files:
        try:
            made = read(file)
        except ImageError as error:
            print(f"mlpconv: skipped: {printable(str(error))}", file=sys.stderr)
        except OSError as error:
            print(f"mlpconv: skipped: {printable(str(file))}: {error.strerror}.", file=sys.stderr)
        else:
            yield file, made


def finer(whole: np.ndarray, size: tuple[int, int], most: int, reading: Reading | None = None) -> np.ndarray:
    """An image (C, H, W) brought to the network's (rows, columns) as it reads them, in as many times that as it has.

    A picture to draw on: at most `most` dots along its longer side, and never less than the network's own size.
    """
    from PIL import Image

    from mlpconv.data.decode import from_pil
    from mlpconv.reading import Reading

    channels, rows, columns = whole.shape
    height, width = size
    times = max(1, min(rows // height, columns // width, most // max(height, width)))
    image = Image.fromarray(whole[0] if channels == 1 else whole.transpose(1, 2, 0))
    return from_pil(image, channels, (height * times, width * times), reading or Reading())
