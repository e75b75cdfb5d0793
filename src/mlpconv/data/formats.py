"""Readers of the published binary formats, IDX and CIFAR records: lengths are checked before anything is read."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mlpconv.data.dataset import Split
from mlpconv.data.storage import allocate, open_data_file
from mlpconv.errors import DataError

__all__ = ["CIFAR10_RECORD", "CIFAR100_RECORD", "CifarRecord", "read_cifar", "read_cifar_archive", "read_idx_pair"]

GZIP = b"\x1f\x8b"
UBYTE = 8  # the IDX code of unsigned bytes
SLACK = 1 << 20  # headers, text files and padding beside the images
MEMBERS = 1000  # an official archive has 8
BLOCK = 512  # bytes of a tar header, and the unit to which contents are filled up
NO_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes


# IDX: two zero bytes, the type, the number of dimensions, each dimension (32 bits, big-endian), then the bytes.


def read_idx_pair(images: Path, labels: Path, size: int, limit: int, classes: int) -> Split:
    """Read the images (N, 1, size, size) and labels (N,) of two IDX files, gzip or plain, of at most `limit` images.

    Raises DataError where a header, a length or a label is not what the format says; never reads more than one
    byte beyond what a header declares.
    """
    pixels = _read_idx(images, (size, size), limit)
    numbers = _read_idx(labels, (), limit)
    if len(pixels) != len(numbers):
        raise DataError(
            f"{str(images)!r} has {len(pixels):,} images but {str(labels)!r} has {len(numbers):,} labels: "
            "take both files from the same place."
        )
    return Split(pixels[:, None], _labels(numbers, classes, labels))


def _read_idx(path: Path, item: tuple[int, ...], limit: int) -> np.ndarray:
    """The array (N, *item) uint8 of one IDX file."""
    most = limit * math.prod(item) + SLACK
    try:
        with open_data_file(path) as file:
            length = os.fstat(file.fileno()).st_size
            if length > most:
                raise DataError(f"{str(path)!r} has {length:,} bytes, more than the {most:,} of a whole data set.")
            if not file.peek(2).startswith(GZIP):
                return _idx_body(file, path, item, limit)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _idx_body(unpacked, path, item, limit)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{str(path)!r} is damaged ({error}): fetch it again.") from error


def _idx_body(stream: BinaryIO | gzip.GzipFile, path: Path, item: tuple[int, ...], limit: int) -> np.ndarray:
    """Check the header, then read what it declares and not a byte more."""
    header = stream.read(8 + 4 * len(item))
    start = bytes((0, 0, UBYTE, 1 + len(item)))
    dimensions = tuple(int(n) for n in np.frombuffer(header[4:], ">u4")) if len(header) % 4 == 0 else ()
    if not header.startswith(start) or dimensions[1:] != item or len(dimensions) != 1 + len(item):
        wanted = "labels" if not item else f"images of {item[0]} x {item[1]}"
        raise DataError(f"{str(path)!r} is not an IDX file of {wanted}: its header says {header[:20].hex()!r}.")
    if not 1 <= dimensions[0] <= limit:
        raise DataError(f"{str(path)!r} declares {dimensions[0]:,} items; accepted: 1 to {limit:,}.")
    length = math.prod(dimensions)
    body = stream.read(length)
    if len(body) != length or stream.read(1):
        held = f"only {len(body):,}" if len(body) < length else "more"
        raise DataError(f"{str(path)!r} declares {length:,} bytes of data but holds {held}: fetch it again.")
    return np.frombuffer(body, np.uint8).reshape(dimensions)


# CIFAR binary: records of one or two label bytes and 3,072 pixel bytes (red, green and blue planes of 32 x 32).


@dataclass(frozen=True)
class CifarRecord:
    """How a record of a CIFAR set is laid out: bytes before the pixels (the last is the label), classes, files."""

    head: int
    classes: int
    images: int  # of an official file, by name where they differ

    @property
    def bytes(self) -> int:
        return self.head + 3072


CIFAR10_RECORD = CifarRecord(head=1, classes=10, images=10_000)
CIFAR100_RECORD = CifarRecord(head=2, classes=100, images=50_000)


def read_cifar(paths: Sequence[Path], record: CifarRecord) -> Split:
    """Read CIFAR binary files in the order given: images (N, 3, 32, 32); raises DataError for any other length."""
    return _assemble([(path, _read_records(path, record)) for path in paths], record)


def _read_records(path: Path, record: CifarRecord) -> np.ndarray:
    with open_data_file(path) as file:
        length = os.fstat(file.fileno()).st_size
        _check_length(path, length, record)
        return _records(file.read(length), path, length, record)


def read_cifar_archive(
    path: Path, folder: str, splits: Mapping[str, Sequence[str]], record: CifarRecord
) -> dict[str, Split]:
    """Read the wanted members of an official .tar.gz as a stream: nothing is extracted, no other member is looked into.

    Raises DataError for a damaged archive, one that unpacks to more than the official one, or a wanted member that is
    not a plain file of the right length.
    """
    wanted = {f"{folder}/{name}": name for names in splits.values() for name in names}
    most = (len(wanted) * record.images + 1) * record.bytes + 16 * SLACK
    try:
        with open_data_file(path) as file, gzip.GzipFile(fileobj=file) as unpacked:
            found = dict(_members(_Bounded(unpacked, most), wanted, path, record))
    except (gzip.BadGzipFile, zlib.error, EOFError, _DamageError) as error:
        raise DataError(f"the archive {str(path)!r} cannot be read ({error}): fetch it again.") from error
    whole = {split: names for split, names in splits.items() if all(name in found for name in names)}
    return {
        split: _assemble([(path / name, found.pop(name)) for name in names], record) for split, names in whole.items()
    }


class _DamageError(Exception):
    """The bytes are not what an archive has there."""


class _Bounded:
    """An unpacked stream that refuses to give more bytes than an honest archive holds."""

    def __init__(self, stream: gzip.GzipFile, most: int) -> None:
        self._stream, self._left = stream, most

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise DataError("the archive unpacks to far more than the published one: it is refused.")
        content = self._stream.read(size)
        self._left -= len(content)
        return content

    def skip(self, size: int) -> None:
        while size > 0:
            piece = len(self.read(min(size, SLACK)))
            if not piece:
                raise _DamageError("it ends within a member")
            size -= piece


def _members(
    stream: _Bounded, wanted: dict[str, str], path: Path, record: CifarRecord
) -> Iterator[tuple[str, np.ndarray]]:
    """The records of every wanted member of a tar stream, as they come; everything else is skipped unread."""
    left = dict(wanted)
    for _ in range(MEMBERS):
        block = stream.read(BLOCK)
        if len(block) == BLOCK and not block.strip(b"\0"):  # the mark of the end
            return
        full_name, kind, size = _tar_header(block)
        name = left.pop(full_name, None)
        if name is not None:
            if kind not in (b"0", b"\0"):
                raise DataError(f"in the archive {str(path)!r}, {full_name!r} is not a plain file.")
            _check_length(path / name, size, record)
            yield name, _records(stream.read(size), path / name, size, record)
            if not left:
                return
            stream.skip(-size % BLOCK)
        elif kind not in NO_CONTENT:
            stream.skip(size + -size % BLOCK)
    raise DataError(f"the archive {str(path)!r} has over {MEMBERS} members: it is not the published one.")


def _tar_header(block: bytes) -> tuple[str, bytes, int]:
    """Name, type and length of a member, once the checksum of its header is right."""
    try:
        size, checksum = (int(block[a:b].strip(b" \0") or b"0", 8) for a, b in ((124, 136), (148, 156)))
    except ValueError:  # sizes beyond 8 GB are written in another way, and are none of ours
        size, checksum = -1, -1
    if len(block) < BLOCK or size < 0 or checksum != sum(block[:148]) + sum(block[156:]) + 8 * ord(" "):
        raise _DamageError("a header of the tar archive is damaged")
    return block[:100].split(b"\0")[0].decode("ascii", "replace"), block[156:157], size


def _check_length(path: Path, length: int, record: CifarRecord) -> None:
    if length == 0 or length % record.bytes or length > record.images * record.bytes:
        raise DataError(
            f"{str(path)!r} has {length:,} bytes; accepted: a multiple of {record.bytes:,} (one record) up to "
            f"{record.images * record.bytes:,}. Fetch it again."
        )


def _records(content: bytes, path: Path, length: int, record: CifarRecord) -> np.ndarray:
    if len(content) != length:
        raise DataError(f"{str(path)!r} ends after {len(content):,} of {length:,} bytes: fetch it again.")
    return np.frombuffer(content, np.uint8).reshape(-1, record.bytes)


def _assemble(files: list[tuple[Path, np.ndarray]], record: CifarRecord) -> Split:
    """Part records into images and labels, giving each file's memory back as soon as it is copied."""
    images = allocate((sum(len(records) for _, records in files), 3, 32, 32))
    labels: list[np.ndarray] = []
    start = 0
    files.reverse()
    while files:
        path, records = files.pop()
        images[start : start + len(records)] = records[:, record.head :].reshape(-1, 3, 32, 32)
        labels.append(_labels(records[:, record.head - 1], record.classes, path))
        start += len(records)
    return Split(images, np.concatenate(labels))


def _labels(numbers: np.ndarray, classes: int, path: Path) -> np.ndarray:
    """Labels (N,) as int64; raises DataError naming the first that is out of range."""
    wrong = np.flatnonzero(numbers >= classes)
    if len(wrong):
        raise DataError(
            f"{str(path)!r}: label {int(numbers[wrong[0]])} of image {int(wrong[0])} is out of range; "
            f"accepted: 0 to {classes - 1}. The file is damaged or of another data set."
        )
    return numbers.astype(np.int64)
