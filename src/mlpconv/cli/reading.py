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

    from mlpconv.cli.paths import Found
    from mlpconv.decode_options import DecodeOptions

__all__ = ["finer", "readable", "say_left_out", "say_skipped"]

KINDS = 5  # endings that are named

T = TypeVar("T")


def readable(files: Iterable[Path], read: Callable[[Path], T]) -> Iterator[tuple[Path, T]]:
    """Each file with what `read` makes of it; where it raises ImageError or OSError the file is named on stderr."""
    for file in files:
        try:
            made = read(file)
        except ImageError as error:
            say_skipped(str(error))
        except OSError as error:
            say_skipped(f"{file}: {error.strerror}.")
        else:
            yield file, made


def say_skipped(sentence: str) -> None:
    """Name on stderr what could not be read, and why."""
    print(f"mlpconv: skipped: {printable(sentence)}", file=sys.stderr)


def say_left_out(found: Found) -> None:
    """Name on stderr what the folders hold beside image files that can be read."""
    for sentence in found.unreadable:
        say_skipped(sentence)
    if found.foreign:
        kinds = ", ".join(f"{count:,} {printable(ending)}" for ending, count in found.foreign.most_common(KINDS))
        more = ", ..." if len(found.foreign) > KINDS else ""
        print(f"mlpconv: left out files that are not images of a kind read here: {kinds}{more}.", file=sys.stderr)


def finer(
    whole: np.ndarray, size: tuple[int, int], most: int, decode_options: DecodeOptions | None = None
) -> np.ndarray:
    """An image (C, H, W) brought to the network's (rows, columns) as it reads them, in as many times that as it has.

    A picture to draw on: at most `most` dots along its longer side, and never less than the network's own size.
    """
    from PIL import Image

    from mlpconv.data.decode import from_pil
    from mlpconv.decode_options import DecodeOptions

    channels, rows, columns = whole.shape
    height, width = size
    times = max(1, min(rows // height, columns // width, most // max(height, width)))
    image = Image.fromarray(whole[0] if channels == 1 else whole.transpose(1, 2, 0))
    return from_pil(image, channels, (height * times, width * times), decode_options or DecodeOptions())
