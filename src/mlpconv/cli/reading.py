"""Image files one after the other; those that cannot be read are named and passed over."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from mlpconv.errors import ImageError
from mlpconv.text import printable

__all__ = ["readable"]

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
