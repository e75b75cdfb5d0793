"""Read images of any kind as pixels: uint8 (N, C, H, W) of a network's input size. Needs only NumPy and Pillow.

An array of two or three axes is one image (H, W) or (H, W, C) as from Pillow, with 1, 3 or 4 channels; four axes are a
batch (N, C, H, W). An ambiguous array raises UsageError.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlpconv.cores import CORES
from mlpconv.data.decode import decode, from_pil
from mlpconv.data.decode_threads import in_threads
from mlpconv.decode_options import DecodeOptions
from mlpconv.errors import ImageError, UsageError

__all__ = [
    "ACCEPTED",
    "BatchRow",
    "Item",
    "Size",
    "array_batches",
    "checked_item",
    "image_items",
    "read_pixels",
    "source_of",
]

Size: TypeAlias = tuple[int, int, int]
"""(C, H, W) of a network's input images."""
Item: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
"""One image: a path, an encoded file's bytes, a Pillow image, or an array."""

CHANNELS = (1, 3, 4)
ACCEPTED = "paths, Pillow images, uint8 arrays (H, W) or (H, W, C), or a uint8 batch (N, C, H, W)"


class BatchRow:
    """One image (C, H, W) of a batch, whose axes are known."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels


def image_items(images: object) -> Iterator[Item | BatchRow]:
    """Iterate over one image, a sequence of images or a batch; raise UsageError for anything else or no image."""
    if isinstance(images, np.ndarray) and images.ndim == 4:
        singles: Iterator[Item | BatchRow] = (BatchRow(row) for row in _checked_batch(images))
    elif isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray):
        singles = iter([checked_item(images)])
    elif isinstance(images, Iterable):
        singles = (checked_item(image) for image in images)
    else:
        raise UsageError(f"A {type(images).__name__} is not an image; accepted: {ACCEPTED}.")
    first = next(singles, None)
    if first is None:
        raise UsageError(f"Got no images; accepted: {ACCEPTED}.")
    return chain([first], singles)


def array_batches(
    singles: Iterator[Item | BatchRow],
    size: Size,
    count: int,
    decode_options: DecodeOptions,
    failed: list[ImageError] | None = None,
    threads: int = CORES,
) -> Iterator[tuple[NDArray[np.uint8], list[str | None]]]:
    """Yield pixels (N, C, H, W) of `count` images at a time, and their files, which up to `threads` threads decode.

    With `failed`, unreadable images are skipped and their errors appended to it.
    """
    while group := list(islice(singles, count)):
        loaded = list(_readable(group, size, decode_options, failed, threads))
        if loaded:
            yield np.stack([pixels for pixels, _ in loaded]), [source for _, source in loaded]


def source_of(item: Item | BatchRow) -> str | None:
    """Return the file of an image, or None."""
    if isinstance(item, str | os.PathLike):
        return os.fspath(item)
    return str(getattr(item, "filename", "")) or None


def _readable(
    batch: Sequence[Item | BatchRow],
    size: Size,
    decode_options: DecodeOptions,
    failed: list[ImageError] | None,
    threads: int,
) -> Iterator[tuple[NDArray[np.uint8], str | None]]:
    def read(item: Item | BatchRow) -> NDArray[np.uint8] | ImageError:
        try:
            return read_pixels(item, size, decode_options)
        except ImageError as error:
            return error

    files = [item for item in batch if isinstance(item, str | os.PathLike | bytes)]
    decoded = in_threads(read, files, threads) if len(files) == len(batch) else map(read, batch)
    for item, pixels in zip(batch, decoded, strict=True):
        if not isinstance(pixels, ImageError):
            yield pixels, source_of(item)
        elif failed is None:
            raise pixels
        else:
            failed.append(pixels)


def checked_item(image: object) -> Item:
    """Return one image; raise UsageError for any other type, or an array of another shape."""
    if isinstance(image, np.ndarray):
        _check_array(image)
        return image
    if not isinstance(image, str | os.PathLike | bytes | Image.Image):
        raise UsageError(f"A {type(image).__name__} is not an image; accepted: {ACCEPTED}.")
    return image


def _check_array(array: NDArray[Any]) -> None:
    """Raise UsageError unless an array is unambiguously (H, W) or (H, W, C)."""
    _check_uint8(array)
    shape = array.shape
    if array.ndim not in (2, 3) or 0 in shape:
        raise UsageError(f"An array of shape {shape} is not an image; accepted: {ACCEPTED}.")
    if array.ndim == 2:
        return
    if shape[0] in CHANNELS and shape[2] in CHANNELS:
        raise UsageError(
            f"An array of shape {shape} is ambiguous: write Image.fromarray(array) for (H, W, C), array[None] "
            "(a batch of one) for (C, H, W)."
        )
    if shape[2] not in CHANNELS:
        hint = "write array[:, None] if it is a batch (N, H, W) of grey images"
        if shape[0] in CHANNELS:
            hint = "write array[None] if it is (C, H, W)"
        raise UsageError(f"An array of shape {shape} is not (H, W, C) with 1, 3 or 4 channels: {hint}.")


def _checked_batch(array: NDArray[Any]) -> NDArray[np.uint8]:
    _check_uint8(array)
    shape = array.shape
    if 0 in shape:
        raise UsageError(f"A batch of shape {shape} has no pixels; accepted: {ACCEPTED}.")
    if shape[1] not in CHANNELS:
        hint = " Write array.transpose(0, 3, 1, 2) if it is (N, H, W, C)." if shape[3] in CHANNELS else ""
        raise UsageError(f"A batch of shape {shape} is not (N, C, H, W) with 1, 3 or 4 channels.{hint}")
    return array


def _check_uint8(array: NDArray[Any]) -> None:
    if array.dtype == np.uint8:
        return
    advice = "convert them with array.astype('uint8') if they are 0 to 255"
    if array.dtype.kind == "f":
        advice = "for values 0 to 1 write (array * 255).round().astype('uint8'); preprocessed images go to .model"
    elif array.dtype == np.uint16:
        advice = "write Image.fromarray(array), which is read like a 16-bit file"
    raise UsageError(f"Expected uint8 pixels, got {array.dtype}: {advice}.")


def read_pixels(item: Item | BatchRow, size: Size, decode_options: DecodeOptions) -> NDArray[np.uint8]:
    """Return one image as uint8 (C, H, W) of `size`, read as in training; raise ImageError if it cannot be read."""
    channels, sides = size[0], (size[1], size[2])
    if isinstance(item, BatchRow):
        if item.pixels.shape == size:
            return item.pixels
        item = item.pixels.transpose(1, 2, 0)
    if isinstance(item, np.ndarray) and channels == 3 and item.shape == (*sides, 3):
        return item.transpose(2, 0, 1)
    if isinstance(item, np.ndarray):
        item = Image.fromarray(np.ascontiguousarray(item[:, :, 0] if item.ndim == 3 and item.shape[2] == 1 else item))
    if isinstance(item, Image.Image):
        return from_pil(item, channels=channels, size=sides, decode_options=decode_options)
    return decode(
        item if isinstance(item, bytes) else Path(item), channels=channels, size=sides, decode_options=decode_options
    )
