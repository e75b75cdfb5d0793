"""Read SVHN's cropped digits: the arrays X and y of a MATLAB 5 file, in chunks.

A file is a header of 128 bytes followed by elements: type, length (32 bits each), content. An array is an element with
four children: flags, dimensions, name and numbers. It may be compressed with zlib.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mlpconv.data.dataset import CHUNK, Split
from mlpconv.data.storage import DamagedFileError, allocate, open_data_file
from mlpconv.errors import DataError

__all__ = ["read_svhn"]

MAGIC, HEADER = b"MATLAB 5.0 MAT-file", 128
MATRIX, COMPRESSED = 14, 15
UINT8 = 9  # the class of an array of bytes
MAX_ARRAYS = 16  # an official file has two
MAX_NAME_BYTES, MAX_DIMENSIONS = 64, 8
READ_BYTES = 1 << 16
IMAGE_BYTES = 32 * 32 * 3
# MATLAB's code of each stored type, and NumPy's dtype.
DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


@dataclass(frozen=True)
class _Array:
    """An array in a file: where its element starts, whether it is compressed, and the class and shape it declares."""

    start: int
    compressed: bool
    length: int
    kind: int
    shape: tuple[int, ...]


def read_svhn(paths: list[Path], limits: list[int]) -> Split:
    """Read SVHN files in order as images (N, 3, 32, 32); label 10 in the files is the digit 0.

    `limits` are the most images that each file may contain. Raises DataError for an invalid file.
    """
    counts = []
    for path, limit in zip(paths, limits, strict=True):
        with _open_matlab(path) as (file, order):
            counts.append(_count_images(path, _find_arrays(file, order), limit))
    images = allocate((sum(counts), 3, 32, 32))
    labels = np.empty(sum(counts), np.int64)
    start = 0
    for path, count in zip(paths, counts, strict=True):
        stop = start + count
        with _open_matlab(path) as (file, order):
            arrays = _find_arrays(file, order)
            _read_images(_ArrayStream(file, order, arrays["X"]), images[start:stop])
            labels[start:stop] = _read_labels(_ArrayStream(file, order, arrays["y"]), count)
        start = stop
    return Split(images, labels)


@contextmanager
def _open_matlab(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Yield a file positioned after its header, and its byte order; raise DataError with its name for any damage."""
    with open_data_file(path) as file:
        header = file.read(HEADER)
        if len(header) < HEADER or not header.startswith(MAGIC):
            raise DataError(f"{str(path)!r} is not a MATLAB 5 file: fetch it again.")
        try:
            yield file, "<" if header.endswith(b"IM") else ">"
        except (DamagedFileError, zlib.error, struct.error) as error:
            raise DataError(f"{str(path)!r} is damaged ({error}): fetch it again.") from error


def _count_images(path: Path, arrays: dict[str, _Array], limit: int) -> int:
    """Return how many images a file declares in the headers of its arrays."""
    pixels, labels = arrays.get("X"), arrays.get("y")
    if pixels is None or len(pixels.shape) != 4 or pixels.shape[:3] != (32, 32, 3) or pixels.kind != UINT8:
        raise DataError(f"{str(path)!r}: X must be uint8 of 32 x 32 x 3 x N. Fetch the file of cropped digits.")
    count = pixels.shape[3]
    if not 1 <= count <= limit:
        raise DataError(f"{str(path)!r} declares {count:,} images; accepted: 1 to {limit:,}.")
    if labels is None or labels.shape not in ((count, 1), (1, count)):
        raise DataError(f"{str(path)!r}: y must have one label for each of the {count:,} images. Fetch it again.")
    return count


def _find_arrays(file: BinaryIO, order: str) -> dict[str, _Array]:
    """Return the arrays of a file by name, without reading their numbers."""
    end = os.fstat(file.fileno()).st_size
    arrays: dict[str, _Array] = {}
    for _ in range(MAX_ARRAYS):
        tag = file.read(8)
        if not tag:
            return arrays
        kind, length = struct.unpack(order + "II", tag)
        start = file.tell()
        if kind not in (MATRIX, COMPRESSED) or start + length > end:
            raise DamagedFileError("an element is truncated or is not an array")
        stream = _ArrayStream(file, order, _Array(start, kind == COMPRESSED, length, 0, ()))
        arrays.setdefault(stream.name, _Array(start, kind == COMPRESSED, length, stream.kind, stream.shape))
        file.seek(start + length)
    raise DamagedFileError(f"it has more than {MAX_ARRAYS} arrays")


class _ArrayStream:
    """One array: its header (class, shape, name) is read at once, its numbers on request."""

    def __init__(self, file: BinaryIO, order: str, array: _Array) -> None:
        file.seek(array.start)
        self._file, self._order, self._remaining = file, order, array.length
        self._decompressor = zlib.decompressobj() if array.compressed else None
        self._buffer = b""
        if array.compressed and self._integers(2)[0] != MATRIX:
            raise DamagedFileError("a compressed element is not an array")
        flags = self._element(16)
        self.kind = struct.unpack(order + "I", flags[:4])[0] & 0xFF
        dimensions = self._element(4 * MAX_DIMENSIONS)
        count = len(dimensions) // 4
        self.shape: tuple[int, ...] = struct.unpack(f"{order}{count}i", dimensions[: count * 4])
        self.name = self._element(MAX_NAME_BYTES).decode("ascii", "replace")

    def read(self, length: int) -> bytes:
        """Read exactly `length` decompressed bytes."""
        if self._decompressor is None:
            content = self._file.read(min(length, self._remaining))
            self._remaining -= len(content)
        else:
            content = self._decompress(length)
        if len(content) != length:
            raise DamagedFileError(f"it ends {length - len(content):,} bytes early")
        return content

    def _decompress(self, length: int) -> bytes:
        chunks = []
        while length > 0 and self._decompressor is not None:
            if not self._buffer:
                self._buffer = self._file.read(min(READ_BYTES, self._remaining))
                self._remaining -= len(self._buffer)
            chunk = self._decompressor.decompress(self._buffer, length)
            if not chunk and not self._buffer:
                break
            self._buffer = self._decompressor.unconsumed_tail
            chunks.append(chunk)
            length -= len(chunk)
        return b"".join(chunks)

    def begin_numbers(self) -> tuple[str, int, int]:
        """Return the dtype of the numbers, their length in bytes, and the padding after them."""
        kind, length, padding = self._tag()
        if kind not in DTYPES:
            raise DamagedFileError(f"numbers of unknown type {kind}")
        return self._order + DTYPES[kind], length, padding

    def finish(self, padding: int) -> None:
        """Read to the end, where zlib verifies its checksum; raise DamagedFileError if more data follows."""
        self.read(padding)
        if self._decompressor is not None and (self._decompress(1) or not self._decompressor.eof):
            raise DamagedFileError("an array contains more or less data than it declares")

    def _integers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"{self._order}{count}I", self.read(4 * count))

    def _tag(self) -> tuple[int, int, int]:
        """Return the type, length and padding of an element; up to four bytes are stored inside the tag."""
        (word,) = self._integers(1)
        if word >> 16:
            if word >> 16 > 4:
                raise DamagedFileError("a short element is too long")
            return word & 0xFFFF, word >> 16, 4 - (word >> 16)
        (length,) = self._integers(1)
        return word, length, -length % 8

    def _element(self, max_length: int) -> bytes:
        """Return the content of one small element of the header."""
        _, length, padding = self._tag()
        if length > max_length:
            raise DamagedFileError("the header of an array is too long")
        return self.read(length + padding)[:length]


def _read_images(stream: _ArrayStream, images: np.ndarray) -> None:
    """Fill images (N, 3, 32, 32); in the file, rows vary fastest, then columns, channels and images."""
    dtype, length, padding = stream.begin_numbers()
    if dtype[1:] != "u1" or length != len(images) * IMAGE_BYTES:
        raise DamagedFileError("X contradicts its declared type or shape")
    for start in range(0, len(images), CHUNK):
        count = min(CHUNK, len(images) - start)
        pixels = np.frombuffer(stream.read(count * IMAGE_BYTES), np.uint8).reshape(count, 3, 32, 32)
        images[start : start + count] = pixels.transpose(0, 1, 3, 2)
    stream.finish(padding)


def _read_labels(stream: _ArrayStream, count: int) -> np.ndarray:
    """Return the labels (N,) as digits 0 to 9."""
    dtype, length, padding = stream.begin_numbers()
    if length != count * np.dtype(dtype).itemsize:
        raise DamagedFileError("y contradicts its declared type or shape")
    digits = np.frombuffer(stream.read(length), dtype)
    stream.finish(padding)
    if not np.isin(digits, np.arange(11)).all():
        raise DamagedFileError("labels must be 1 to 10, where 10 is the digit 0")
    return digits.astype(np.int64) % 10
