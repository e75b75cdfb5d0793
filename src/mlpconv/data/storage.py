"""Locate the cache, open data files safely, and allocate pixel arrays in memory or on disk."""

from __future__ import annotations

import io
import math
import os
import tempfile
from pathlib import Path

import numpy as np

from mlpconv.errors import DataError
from mlpconv.files import NotRegularError, open_regular

__all__ = ["MAX_IN_MEMORY", "DamagedFileError", "allocate", "cache_folder", "open_data_file"]

MAX_IN_MEMORY = 10**9  # bytes; larger arrays are mapped from a file
FOLDER_VARIABLE = "MLPCONV_DATA"
CHUNK = 1 << 24


class DamagedFileError(Exception):
    """The content of a file contradicts its format; readers turn it into a DataError with the file's name."""


def cache_folder() -> Path:
    """Return the folder of named data sets: $MLPCONV_DATA, ~/.cache/mlpconv, or a temporary folder without a home."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        return Path(folder)
    try:
        return Path.home() / ".cache" / "mlpconv"
    except RuntimeError:  # a user unknown to the system, as in a container
        return Path(tempfile.gettempdir(), f"mlpconv-{os.getuid()}")


def open_data_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading (see `files.open_regular`).

    Raises DataError if it is not a regular file, OSError if it cannot be opened.
    """
    try:
        return open_regular(path)
    except NotRegularError as error:
        raise DataError(f"{str(path)!r} is {error.strerror}; give a file.") from error


def allocate(shape: tuple[int, ...]) -> np.ndarray:
    """Allocate a uint8 array: in memory up to MAX_IN_MEMORY bytes, otherwise in an unnamed file in the cache folder.

    Disk space is reserved in advance, so that a full disk raises DataError here instead of crashing later.
    """
    length = math.prod(shape)
    if length <= MAX_IN_MEMORY:
        return np.empty(shape, np.uint8)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix="pixels-") as file:
            _reserve(file.fileno(), length)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"not enough space for {length / 1e9:.1f} GB of pixels in {str(folder)!r} ({error.strerror or error}): "
            f"free some, choose another folder with {FOLDER_VARIABLE}=FOLDER, or use smaller images."
        ) from error


def _reserve(descriptor: int, length: int) -> None:
    """Reserve disk space for an open file; raise OSError if there is too little."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, length)
        return
    for start in range(0, length, CHUNK):
        os.write(descriptor, bytes(min(CHUNK, length - start)))
