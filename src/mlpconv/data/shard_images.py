"""The images of tar shards as an array (N, C, H, W) uint8 that is decoded on access, or once into memory."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlpconv.data.decode import decode
from mlpconv.data.shard_index import digest
from mlpconv.data.storage import allocate, open_data_file
from mlpconv.data.tar_members import BLOCK
from mlpconv.decode_options import DecodeOptions
from mlpconv.errors import DataError

__all__ = ["CHECKED", "Places", "ShardImages", "fitting_sample", "is_streamed"]

CHECKED = 8  # bytes of a digest that are kept to check an image
MAX_OPEN = 32  # files of a thread
SAMPLE = 20_000  # images that preprocessing is fitted to
CHUNK, PART = 256, 32  # images decoded at a time, by all threads and by one


class Places(NamedTuple):
    """Where images are, one row per image: number of the tar, first block, length in bytes, and digest."""

    shards: np.ndarray
    blocks: np.ndarray
    lengths: np.ndarray
    digests: np.ndarray

    def take(self, rows: np.ndarray) -> Places:
        """Return some of the rows, by numbers or a mask."""
        return Places(*(column[rows] for column in self))


class ShardImages:
    """A read-only sequence of images in tars; indexing by number, slice or array returns decoded pixels."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, paths: tuple[Path, ...], places: Places, shape: tuple[int, int, int], decode_options: DecodeOptions
    ) -> None:
        self.paths, self.places = paths, places
        self.shape = (len(places.blocks), *shape)
        self.decode_options = decode_options
        self.pixels: np.ndarray | None = None
        self.local = threading.local()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        if self.pixels is not None:
            found: np.ndarray = self.pixels[key]
            return found
        if isinstance(key, int | np.integer):
            return self.image(range(len(self))[int(key)])
        rows = np.arange(len(self))[key]
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        parts = [slice(start, start + PART) for start in range(0, len(rows), PART)]
        for _ in self.pool.map(lambda part: self.fill(out[part], rows[part]), parts):
            pass  # raises the errors of the threads
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:]

    @property
    def nbytes(self) -> int:
        """The bytes of all decoded images."""
        return int(np.prod(self.shape, dtype=np.int64))

    def take(self, rows: np.ndarray) -> ShardImages:
        """Return some of the images, by numbers or a mask."""
        shape = (self.shape[1], self.shape[2], self.shape[3])
        return ShardImages(self.paths, self.places.take(rows), shape, self.decode_options)

    def load(self) -> None:
        """Decode all images into memory."""
        pixels = allocate(self.shape)
        for start in range(0, len(self), CHUNK):
            pixels[start : start + CHUNK] = self[start : start + CHUNK]
        self.pixels = pixels

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """The threads that decode."""
        return ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1)), thread_name_prefix="decode")

    def fill(self, out: np.ndarray, rows: np.ndarray) -> None:
        """Decode images into an array."""
        for place, row in enumerate(rows.tolist()):
            out[place] = self.image(row)

    def image(self, row: int) -> np.ndarray:
        """Read and decode one image; raises DataError that names the tar if its bytes have changed."""
        content = self.content(row)
        return decode(
            content, channels=self.shape[1], size=(self.shape[2], self.shape[3]), decode_options=self.decode_options
        )

    def content(self, row: int) -> bytes:
        """Return the bytes of an image file; raises DataError that names the tar if they have changed."""
        shard, offset = int(self.places.shards[row]), int(self.places.blocks[row]) * BLOCK
        path = self.paths[shard]
        try:
            content = os.pread(self.descriptor(shard), int(self.places.lengths[row]), offset)
        except OSError as error:
            raise DataError(f"{str(path)!r} cannot be read: {(error.strerror or '').lower()}.") from error
        if digest(content)[:CHECKED] != self.places.digests[row].tobytes():
            raise DataError(
                f"{str(path)!r} has changed since it was indexed (the image at byte {offset:,}): a run keeps its "
                "images. Restore the file, or start a new run."
            )
        return content

    def descriptor(self, shard: int) -> int:
        """Return an open file of a tar; each thread has its own."""
        files: dict[int, OpenFile] = self.local.__dict__.setdefault("files", {})
        if shard not in files:
            if len(files) >= MAX_OPEN:  # dictionaries keep their order: close the oldest one
                del files[next(iter(files))]
            files[shard] = OpenFile(self.paths[shard])
        return files[shard].descriptor


class OpenFile:
    """A file descriptor that is closed with the object."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        with open_data_file(path) as file:
            self.descriptor = os.dup(file.fileno())

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def is_streamed(images: object) -> bool:
    """Return whether images are decoded on every access."""
    return isinstance(images, ShardImages) and images.pixels is None


def fitting_sample(images: Any) -> Any:
    """Return the images that preprocessing is fitted to: all of an array, at most 20,000 evenly spaced ones of tars.

    In memory or streamed, the sample is the same.
    """
    if isinstance(images, ShardImages) and len(images) > SAMPLE:
        return images[np.linspace(0, len(images) - 1, SAMPLE).astype(np.int64)]
    return images
