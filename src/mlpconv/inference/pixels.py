"""Whatever people call an image, as pixels: uint8 (N, C, H, W) of the size a network takes.

An array is one image (H, W) or (H, W, C) as Pillow gives it, with C in {1, 3, 4}; four axes are always a batch
(N, C, H, W), also for tensors. Where an array could be read two ways it is refused: nothing is guessed.
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
    """One image (C, H, W) out of a batch, where the order of the axes is known."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels


def items(images: object) -> Iterator[Item | BatchRow]:
    """One image, a sequence of them or a batch, as single images; raises UsageError for anything else and for none."""
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
        found: Iterator[Item | BatchRow] = (BatchRow(row) for row in _checked_batch(array))
    elif isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray | Tensor):
        found = iter([_item(images)])
    elif isinstance(images, Iterable):
        found = (_item(image) for image in images)
    else:
        raise UsageError(f"A {type(images).__name__} is no image; accepted: {ACCEPTED}.")
    first = next(found, None)
    if first is None:
        raise UsageError(f"No image was given; accepted: {ACCEPTED}.")
    return chain([first], found)


def source_of(item: Item | BatchRow) -> str | None:
    """The file an image comes from, where that is known."""
    if isinstance(item, str | os.PathLike):
        return os.fspath(item)
    return str(getattr(item, "filename", "")) or None


def as_pixels(found: Iterable[Item | BatchRow], size: Size, decode_options: DecodeOptions) -> Tensor:
    """Images as one uint8 tensor (N, C, H, W) of `size` (C, H, W), read as in training.

    Raises ImageError for a file that cannot be read.
    """
    return torch.from_numpy(np.stack([_pixels(item, size, decode_options) for item in found]))


def batches(
    images: object, size: Size, count: int, decode_options: DecodeOptions, failed: list[ImageError] | None = None
) -> Iterator[tuple[Tensor, list[str | None]]]:
    """The same, `count` images at a time, and the file of each where known; a batch that fits is not copied.

    Images that cannot be read are left out, and why is added to `failed`, where that is given.
    """
    found, whole = items(images), _as_it_is(images, size)
    if whole is not None:
        for part in torch.split(whole, count):
            yield part, [None] * len(part)
        return
    while batch := list(islice(found, count)):
        read = list(_readable(batch, size, decode_options, failed))
        if read:
            yield torch.from_numpy(np.stack([pixels for pixels, _ in read])), [source for _, source in read]


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


def _as_it_is(images: object, size: Size) -> Tensor | None:
    """A batch that needs nothing done to it, as a tensor that shares its memory."""
    if isinstance(images, np.ndarray) and images.flags.writeable and images.flags.c_contiguous:
        images = torch.from_numpy(images)
    if isinstance(images, Tensor) and images.device.type == "cpu" and images.shape[1:] == size:
        return images
    return None


def _item(image: object) -> Item:
    """One image, its kind and shape checked."""
    if isinstance(image, Tensor):
        raise UsageError(
            f"A tensor of shape {tuple(image.shape)} was given; tensors are batches (N, C, H, W): "
            "write tensor[None] for one image (C, H, W)."
        )
    if isinstance(image, np.ndarray):
        _check_array(image)
        return image
    if not isinstance(image, str | os.PathLike | bytes | Image.Image):
        raise UsageError(f"A {type(image).__name__} is no image; accepted: {ACCEPTED}.")
    return image


def _check_array(array: NDArray[Any]) -> None:
    """An array is (H, W) or (H, W, C) and nothing else it could be."""
    _check_uint8(array)
    shape = array.shape
    if array.ndim not in (2, 3) or 0 in shape:
        raise UsageError(f"An array of shape {shape} is no image; accepted: {ACCEPTED}.")
    if array.ndim == 2:
        return
    if shape[0] in CHANNELS and shape[2] in CHANNELS:
        raise UsageError(
            f"An array of shape {shape} could be (H, W, C) or (C, H, W): give Image.fromarray(array) for the "
            "first, array[None] (a batch of one) for the second."
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
        raise UsageError(f"A batch of shape {shape} holds no pixels; accepted: {ACCEPTED}.")
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
        advice = "give Image.fromarray(array), which is read as a file of 16 bits is"
    raise UsageError(f"Pixels of type {array.dtype} were given; uint8 is accepted: {advice}.")


def _pixels(item: Item | BatchRow, size: Size, decode_options: DecodeOptions) -> NDArray[np.uint8]:
    """One image as uint8 (C, H, W)."""
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
