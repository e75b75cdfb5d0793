"""Where data sets lie: files opened without surprises, and room for pixels in memory or on the disk."""

from __future__ import annotations

import io
import math
import os
import tempfile
from pathlib import Path

import numpy as np

from mlpconv.errors import DataError
from mlpconv.files import NotRegularError, open_regular

__all__ = ["IN_MEMORY", "allocate", "cache_folder", "open_data_file"]

IN_MEMORY = 10**9  # bytes; more than this lies in a file that the system pages in and out
FOLDER_VARIABLE = "MLPCONV_DATA"
ZEROS = 1 << 24


def cache_folder() -> Path:
    """Where named data sets are kept: $MLPCONV_DATA, or ~/.cache/mlpconv; without a home in the temporary folder."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "mlpconv"
    except RuntimeError:  # a user that the system does not know, as in a container
        return Path(tempfile.gettempdir(), f"mlpconv-{os.getuid()}")


def open_data_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading (see `files.open_regular`).

    Raises DataError for what is not a regular file, OSError where the system refuses.
    """
    try:
        return open_regular(path)
    except NotRegularError as error:
        raise DataError(f"{str(path)!r} is {error.strerror}; give a file.") from error


def allocate(shape: tuple[int, ...]) -> np.ndarray:
    """Room (uint8) for pixels: in memory up to IN_MEMORY bytes, else in a nameless file in the cache folder.

    The room on the disk is claimed beforehand, so that a full disk is an error here and not a crash later.
    Raises DataError where there is none.
    """
    length = math.prod(shape)
    if length <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix="pixels-") as file:
            _claim(file.fileno(), length)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"no room for {length / 1e9:.1f} GB of pixels in {str(folder)!r} ({error.strerror or error}): free some "
            f"space, choose another folder with {FOLDER_VARIABLE}=FOLDER, or ask for smaller images."
        ) from error


def _claim(descriptor: int, length: int) -> None:
    """Take that many bytes of disk for an open file; raises OSError where they are not there."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, length)
        return
    for start in range(0, length, ZEROS):
        os.write(descriptor, bytes(min(ZEROS, length - start)))
