"""The reader of SVHN's cropped digits: two arrays of a MATLAB 5 file, X and y, read piece by piece and nothing else.

A file is a header of 128 bytes and then elements: type, length (32 bits each), content. An array is an element that
holds four others: flags, dimensions, name and numbers; the whole of it may be packed with zlib.
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
from mlpconv.data.storage import allocate, open_data_file
from mlpconv.errors import DataError

__all__ = ["read_svhn"]

MAGIC, HEADER = b"MATLAB 5.0 MAT-file", 128
MATRIX, PACKED = 14, 15
UINT8 = 9  # the class of an array of bytes
VARIABLES = 16  # an official file has two
LONGEST_NAME, MOST_AXES = 64, 8
PIECE = 1 << 16
IMAGE = 32 * 32 * 3
# How numbers are stored: MATLAB's code and NumPy's name.
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


@dataclass(frozen=True)
class _Variable:
    """An array of a file: where its element starts, how it is stored, and what its head declares."""

    start: int
    packed: bool
    length: int
    kind: int
    shape: tuple[int, ...]


def read_svhn(paths: list[Path], limits: list[int]) -> Split:
    """Read SVHN files one after the other: images (N, 3, 32, 32); the label 10 of the files is the digit 0.

    `limits` gives the most images that each may hold. Raises DataError for any other file.
    """
    counts = []
    for path, limit in zip(paths, limits, strict=True):
        with _opened(path) as (file, order):
            counts.append(_count(path, _variables(file, order), limit))
    images = allocate((sum(counts), 3, 32, 32))
    labels = np.empty(sum(counts), np.int64)
    start = 0
    for path, count in zip(paths, counts, strict=True):
        stop = start + count
        with _opened(path) as (file, order):
            variables = _variables(file, order)
            _read_images(_Stream(file, order, variables["X"]), images[start:stop])
            labels[start:stop] = _read_labels(_Stream(file, order, variables["y"]), count)
        start = stop
    return Split(images, labels)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """A file behind its header, and its byte order; whatever is wrong inside becomes a DataError with its name."""
    with open_data_file(path) as file:
        header = file.read(HEADER)
        if len(header) < HEADER or not header.startswith(MAGIC):
            raise DataError(f"{str(path)!r} is not a MATLAB 5 file: fetch it again.")
        try:
            yield file, "<" if header.endswith(b"IM") else ">"
        except (_DamageError, zlib.error, struct.error) as error:
            raise DataError(f"{str(path)!r} is damaged ({error}): fetch it again.") from error


class _DamageError(Exception):
    """The bytes are not what a MATLAB file has there."""


def _count(path: Path, variables: dict[str, _Variable], limit: int) -> int:
    """How many images a file declares, from the heads of its arrays alone."""
    pixels, labels = variables.get("X"), variables.get("y")
    if pixels is None or len(pixels.shape) != 4 or pixels.shape[:3] != (32, 32, 3) or pixels.kind != UINT8:
        raise DataError(f"{str(path)!r}: X must be uint8 of 32 x 32 x 3 x N: this is not a file of cropped digits.")
    count = pixels.shape[3]
    if not 1 <= count <= limit:
        raise DataError(f"{str(path)!r} declares {count:,} images; accepted: 1 to {limit:,}.")
    if labels is None or labels.shape not in ((count, 1), (1, count)):
        raise DataError(f"{str(path)!r}: y must hold one label for each of the {count:,} images.")
    return count


def _variables(file: BinaryIO, order: str) -> dict[str, _Variable]:
    """The arrays of a file by name; their numbers are skipped."""
    end = os.fstat(file.fileno()).st_size
    found: dict[str, _Variable] = {}
    for _ in range(VARIABLES):
        tag = file.read(8)
        if not tag:
            return found
        kind, length = struct.unpack(order + "II", tag)
        start = file.tell()
        if kind not in (MATRIX, PACKED) or start + length > end:
            raise _DamageError("an array is cut off, or is none")
        stream = _Stream(file, order, _Variable(start, kind == PACKED, length, 0, ()))
        found.setdefault(stream.name, _Variable(start, kind == PACKED, length, stream.kind, stream.shape))
        file.seek(start + length)
    raise _DamageError(f"more than {VARIABLES} arrays")


class _Stream:
    """One array from its start: the head (kind, shape, name) is read at once, the numbers when they are asked for."""

    def __init__(self, file: BinaryIO, order: str, variable: _Variable) -> None:
        file.seek(variable.start)
        self._file, self._order, self._left = file, order, variable.length
        self._unpacker = zlib.decompressobj() if variable.packed else None
        self._waiting = b""
        if variable.packed and self._numbers(2)[0] != MATRIX:
            raise _DamageError("a packed element is no array")
        flags = self._element(16)
        self.kind = struct.unpack(order + "I", flags[:4])[0] & 0xFF
        axes = self._element(4 * MOST_AXES)
        self.shape: tuple[int, ...] = struct.unpack(f"{order}{len(axes) // 4}i", axes[: len(axes) // 4 * 4])
        self.name = self._element(LONGEST_NAME).decode("ascii", "replace")

    def read(self, length: int) -> bytes:
        """Exactly that many bytes of the array, unpacked."""
        if self._unpacker is None:
            content = self._file.read(min(length, self._left))
            self._left -= len(content)
        else:
            content = self._unpack(length)
        if len(content) != length:
            raise _DamageError(f"it ends {length - len(content):,} bytes early")
        return content

    def _unpack(self, length: int) -> bytes:
        parts = []
        while length > 0 and self._unpacker is not None:
            if not self._waiting:
                self._waiting = self._file.read(min(PIECE, self._left))
                self._left -= len(self._waiting)
            part = self._unpacker.decompress(self._waiting, length)
            if not part and not self._waiting:
                break
            self._waiting = self._unpacker.unconsumed_tail
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def numbers_follow(self) -> tuple[str, int, int]:
        """How the numbers are stored, their length in bytes, and the padding behind them."""
        kind, length, padding = self._tag()
        if kind not in STORED:
            raise _DamageError(f"numbers of the unknown kind {kind}")
        return self._order + STORED[kind], length, padding

    def finish(self, padding: int) -> None:
        """Read to the end, where zlib compares its checksum; raises where there is more than was declared."""
        self.read(padding)
        if self._unpacker is not None and (self._unpack(1) or not self._unpacker.eof):
            raise _DamageError("an array holds more, or less, than it declares")

    def _numbers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"{self._order}{count}I", self.read(4 * count))

    def _tag(self) -> tuple[int, int, int]:
        """Type, length and padding of an element; one of up to four bytes has its length beside its type."""
        (word,) = self._numbers(1)
        if word >> 16:
            if word >> 16 > 4:
                raise _DamageError("a short element is too long")
            return word & 0xFFFF, word >> 16, 4 - (word >> 16)
        (length,) = self._numbers(1)
        return word, length, -length % 8

    def _element(self, most: int) -> bytes:
        """The content of one small element of the head."""
        _, length, padding = self._tag()
        if length > most:
            raise _DamageError("the head of an array is too long")
        return self.read(length + padding)[:length]


def _read_images(stream: _Stream, images: np.ndarray) -> None:
    """Fill images (N, 3, 32, 32); in the file the rows run fastest, then columns, channels and images."""
    stored, length, padding = stream.numbers_follow()
    if stored[1:] != "u1" or length != len(images) * IMAGE:
        raise _DamageError("X does not hold what it declares")
    for start in range(0, len(images), CHUNK):
        count = min(CHUNK, len(images) - start)
        pixels = np.frombuffer(stream.read(count * IMAGE), np.uint8).reshape(count, 3, 32, 32)
        images[start : start + count] = pixels.transpose(0, 1, 3, 2)
    stream.finish(padding)


def _read_labels(stream: _Stream, count: int) -> np.ndarray:
    """The labels (N,) as digits 0 to 9."""
    stored, length, padding = stream.numbers_follow()
    if length != count * np.dtype(stored).itemsize:
        raise _DamageError("y does not hold what it declares")
    digits = np.frombuffer(stream.read(length), stored)
    stream.finish(padding)
    if not np.isin(digits, np.arange(11)).all():
        raise _DamageError("labels must be 1 to 10, where 10 is the digit 0")
    return digits.astype(np.int64) % 10
