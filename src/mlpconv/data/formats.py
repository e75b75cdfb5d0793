"""Read the published binary formats, IDX and CIFAR records, and check all lengths before reading."""

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
from mlpconv.data.storage import DamagedFileError, allocate, open_data_file
from mlpconv.errors import DataError

__all__ = ["CIFAR10_RECORD", "CIFAR100_RECORD", "CifarRecord", "read_cifar", "read_cifar_archive", "read_idx_pair"]

GZIP = b"\x1f\x8b"
UBYTE = 8  # the IDX code of unsigned bytes
SLACK = 1 << 20  # bytes allowed for headers, text files and padding
MAX_MEMBERS = 1000  # an official archive has 8
BLOCK = 512  # bytes of a tar header; contents are padded to a multiple of it
NO_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes


# IDX: two zero bytes, the type, the number of dimensions, each dimension (32 bits, big-endian), then the data.


def read_idx_pair(images: Path, labels: Path, size: int, limit: int, classes: int) -> Split:
    """Read images (N, 1, size, size) and labels (N,) from two IDX files, gzip or plain, with at most `limit` images.

    Raises DataError for an invalid header, length or label. Reads at most one byte beyond the declared length.
    """
    pixels = _read_idx(images, (size, size), limit)
    numbers = _read_idx(labels, (), limit)
    if len(pixels) != len(numbers):
        raise DataError(
            f"{str(images)!r} has {len(pixels):,} images but {str(labels)!r} has {len(numbers):,} labels: "
            "use two files of the same split."
        )
    return Split(pixels[:, None], _labels(numbers, classes, labels))


def _read_idx(path: Path, item: tuple[int, ...], limit: int) -> np.ndarray:
    """Read the array (N, *item) uint8 of one IDX file."""
    max_length = limit * math.prod(item) + SLACK
    try:
        with open_data_file(path) as file:
            length = os.fstat(file.fileno()).st_size
            if length > max_length:
                raise DataError(f"{str(path)!r} has {length:,} bytes; accepted: up to {max_length:,}. Fetch it again.")
            if not file.peek(2).startswith(GZIP):
                return _idx_body(file, path, item, limit)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _idx_body(unpacked, path, item, limit)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{str(path)!r} is damaged ({error}): fetch it again.") from error


def _idx_body(stream: BinaryIO | gzip.GzipFile, path: Path, item: tuple[int, ...], limit: int) -> np.ndarray:
    """Check the header, then read the declared data."""
    header = stream.read(8 + 4 * len(item))
    start = bytes((0, 0, UBYTE, 1 + len(item)))
    dimensions = tuple(int(n) for n in np.frombuffer(header[4:], ">u4")) if len(header) % 4 == 0 else ()
    if not header.startswith(start) or dimensions[1:] != item or len(dimensions) != 1 + len(item):
        expected = "labels" if not item else f"images of {item[0]} x {item[1]}"
        raise DataError(f"{str(path)!r} is not an IDX file of {expected}: its header is {header[:20].hex()!r}.")
    if not 1 <= dimensions[0] <= limit:
        raise DataError(f"{str(path)!r} declares {dimensions[0]:,} items; accepted: 1 to {limit:,}.")
    length = math.prod(dimensions)
    body = stream.read(length)
    if len(body) != length or stream.read(1):
        actual = f"only {len(body):,}" if len(body) < length else "more"
        raise DataError(f"{str(path)!r} declares {length:,} bytes of data but contains {actual}: fetch it again.")
    return np.frombuffer(body, np.uint8).reshape(dimensions)


# CIFAR binary: records of one or two label bytes, then 3,072 pixel bytes (red, green and blue planes of 32 x 32).


@dataclass(frozen=True)
class CifarRecord:
    """The layout of a CIFAR record: label bytes (the last one counts), classes, and the most images in a file."""

    label_bytes: int
    classes: int
    images: int

    @property
    def bytes(self) -> int:
        """The length of a record."""
        return self.label_bytes + 3072


CIFAR10_RECORD = CifarRecord(label_bytes=1, classes=10, images=10_000)
CIFAR100_RECORD = CifarRecord(label_bytes=2, classes=100, images=50_000)


def read_cifar(paths: Sequence[Path], record: CifarRecord) -> Split:
    """Read CIFAR binary files in order as images (N, 3, 32, 32); raise DataError for a file of invalid length."""
    return _to_split([(path, _read_records(path, record)) for path in paths], record)


def _read_records(path: Path, record: CifarRecord) -> np.ndarray:
    with open_data_file(path) as file:
        length = os.fstat(file.fileno()).st_size
        _check_length(path, length, record)
        return _records(file.read(length), path, length, record)


def read_cifar_archive(
    path: Path, folder: str, splits: Mapping[str, Sequence[str]], record: CifarRecord
) -> dict[str, Split]:
    """Read the members of each split from an official .tar.gz as a stream, without extracting files.

    Raises DataError for a damaged archive, one that unpacks to more than the official one, or a member that is not a
    regular file of valid length.
    """
    members = {f"{folder}/{name}": name for names in splits.values() for name in names}
    max_length = (len(members) * record.images + 1) * record.bytes + 16 * SLACK
    try:
        with open_data_file(path) as file, gzip.GzipFile(fileobj=file) as unpacked:
            records = dict(_read_members(_LimitedStream(unpacked, max_length), members, path, record))
    except (gzip.BadGzipFile, zlib.error, EOFError, DamagedFileError) as error:
        raise DataError(f"the archive {str(path)!r} cannot be read ({error}): fetch it again.") from error
    complete = {split: names for split, names in splits.items() if all(name in records for name in names)}
    return {
        split: _to_split([(path / name, records.pop(name)) for name in names], record)
        for split, names in complete.items()
    }


class _LimitedStream:
    """An unpacked stream that refuses to return more bytes than the official archive contains."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._remaining = stream, limit

    def read(self, size: int) -> bytes:
        if size > self._remaining:
            raise DataError("the archive unpacks to far more than the published one: fetch it again.")
        content = self._stream.read(size)
        self._remaining -= len(content)
        return content

    def skip(self, size: int) -> None:
        while size > 0:
            length = len(self.read(min(size, SLACK)))
            if not length:
                raise DamagedFileError("it ends within a member")
            size -= length


def _read_members(
    stream: _LimitedStream, members: dict[str, str], path: Path, record: CifarRecord
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the records of each requested member of a tar stream, and skip the others."""
    missing = dict(members)
    for _ in range(MAX_MEMBERS):
        block = stream.read(BLOCK)
        if len(block) == BLOCK and not block.strip(b"\0"):  # the end of the archive
            return
        full_name, kind, size = _tar_header(block)
        name = missing.pop(full_name, None)
        if name is not None:
            if kind not in (b"0", b"\0"):
                raise DataError(f"in the archive {str(path)!r}, {full_name!r} is not a regular file.")
            _check_length(path / name, size, record)
            yield name, _records(stream.read(size), path / name, size, record)
            if not missing:
                return
            stream.skip(-size % BLOCK)
        elif kind not in NO_CONTENT:
            stream.skip(size + -size % BLOCK)
    raise DataError(f"the archive {str(path)!r} has over {MAX_MEMBERS} members: fetch the published one.")


def _tar_header(block: bytes) -> tuple[str, bytes, int]:
    """Return the name, type and length of a member; raise DamagedFileError if the header's checksum differs."""
    try:
        size, checksum = (int(block[a:b].strip(b" \0") or b"0", 8) for a, b in ((124, 136), (148, 156)))
    except ValueError:  # sizes above 8 GB have another encoding, which official archives do not need
        size, checksum = -1, -1
    if len(block) < BLOCK or size < 0 or checksum != sum(block[:148]) + sum(block[156:]) + 8 * ord(" "):
        raise DamagedFileError("a header of the tar archive is damaged")
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


def _to_split(files: list[tuple[Path, np.ndarray]], record: CifarRecord) -> Split:
    """Separate records into images and labels, and free each file's records once copied."""
    images = allocate((sum(len(records) for _, records in files), 3, 32, 32))
    labels: list[np.ndarray] = []
    start = 0
    files.reverse()
    while files:
        path, records = files.pop()
        images[start : start + len(records)] = records[:, record.label_bytes :].reshape(-1, 3, 32, 32)
        labels.append(_labels(records[:, record.label_bytes - 1], record.classes, path))
        start += len(records)
    return Split(images, np.concatenate(labels))


def _labels(numbers: np.ndarray, classes: int, path: Path) -> np.ndarray:
    """Return labels (N,) as int64; raise DataError naming the first that is out of range."""
    invalid = np.flatnonzero(numbers >= classes)
    if len(invalid):
        raise DataError(
            f"{str(path)!r}: label {int(numbers[invalid[0]])} of image {int(invalid[0])} is out of range; "
            f"accepted: 0 to {classes - 1}. The file is damaged or belongs to another data set."
        )
    return numbers.astype(np.int64)
