"""Convert paths, bytes, Pillow images and arrays to pixels: uint8 (N, C, H, W) of a network's input size.

An array of two or three axes is one image (H, W) or (H, W, C) as from Pillow, with 1, 3 or 4 channels; four axes are a
batch (N, C, H, W), also for tensors. An ambiguous array raises UsageError.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mlpconv.data.decode import decode, from_pil
from mlpconv.decode_options import DecodeOptions
from mlpconv.errors import ImageError, UsageError
from mlpconv.modelfile.parts import Size

__all__ = ["Item", "as_pixels", "batches", "items", "source_of"]

Item: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
"""One image: a path, an encoded file's bytes, a Pillow image, or an array."""

CHANNELS = (1, 3, 4)
ACCEPTED = "paths, Pillow images, uint8 arrays (H, W) or (H, W, C), or a uint8 batch (N, C, H, W)"


class BatchRow:
    """One image (C, H, W) of a batch, whose axes are known."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels


def items(images: object) -> Iterator[Item | BatchRow]:
    """Iterate over one image, a sequence of images or a batch; raise UsageError for anything else or no image."""
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
        singles: Iterator[Item | BatchRow] = (BatchRow(row) for row in _checked_batch(array))
    elif isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray | Tensor):
        singles = iter([_item(images)])
    elif isinstance(images, Iterable):
        singles = (_item(image) for image in images)
    else:
        raise UsageError(f"A {type(images).__name__} is not an image; accepted: {ACCEPTED}.")
    first = next(singles, None)
    if first is None:
        raise UsageError(f"Got no images; accepted: {ACCEPTED}.")
    return chain([first], singles)


def source_of(item: Item | BatchRow) -> str | None:
    """Return the file of an image, or None."""
    if isinstance(item, str | os.PathLike):
        return os.fspath(item)
    return str(getattr(item, "filename", "")) or None


def as_pixels(images: Iterable[Item | BatchRow], size: Size, decode_options: DecodeOptions) -> Tensor:
    """Return images as one uint8 tensor (N, C, H, W) of `size` (C, H, W), read as in training.

    Raises ImageError for a file that cannot be read.
    """
    return torch.from_numpy(np.stack([_pixels(image, size, decode_options) for image in images]))


def batches(
    images: object, size: Size, count: int, decode_options: DecodeOptions, failed: list[ImageError] | None = None
) -> Iterator[tuple[Tensor, list[str | None]]]:
    """Yield pixels (N, C, H, W) of `count` images at a time, and their files; an array that fits is not copied.

    With `failed`, unreadable images are skipped and their errors appended to it.
    """
    singles, tensor = items(images), _as_tensor(images, size)
    if tensor is not None:
        for batch in torch.split(tensor, count):
            yield batch, [None] * len(batch)
        return
    while group := list(islice(singles, count)):
        loaded = list(_readable(group, size, decode_options, failed))
        if loaded:
            yield torch.from_numpy(np.stack([pixels for pixels, _ in loaded])), [source for _, source in loaded]


def _readable(
    batch: Iterable[Item | BatchRow], size: Size, decode_options: DecodeOptions, failed: list[ImageError] | None
) -> Iterator[tuple[NDArray[np.uint8], str | None]]:
    for item in batch:
        try:
            pixels = _pixels(item, size, decode_options)
        except ImageError as error:
            if failed is None:
                raise
            failed.append(error)
        else:
            yield pixels, source_of(item)


def _as_tensor(images: object, size: Size) -> Tensor | None:
    """Return a batch that needs no conversion as a tensor with shared memory, else None."""
    if isinstance(images, np.ndarray) and images.flags.writeable and images.flags.c_contiguous:
        images = torch.from_numpy(images)
    if isinstance(images, Tensor) and images.device.type == "cpu" and images.shape[1:] == size:
        return images
    return None


def _item(image: object) -> Item:
    """Check the type and shape of one image."""
    if isinstance(image, Tensor):
        raise UsageError(
            f"Expected a batch (N, C, H, W), got a tensor of shape {tuple(image.shape)}: "
            "write tensor[None] for one image (C, H, W)."
        )
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


def _pixels(item: Item | BatchRow, size: Size, decode_options: DecodeOptions) -> NDArray[np.uint8]:
    """Return one image as uint8 (C, H, W)."""
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
