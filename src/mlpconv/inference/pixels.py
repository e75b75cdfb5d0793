"""Convert images of any kind, also tensors, to pixels: uint8 tensors (N, C, H, W) of a network's input size.

`mlpconv.data.inputs` reads the images; four axes are a batch (N, C, H, W), also for tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from mlpconv.data.inputs import BatchRow, Item, array_batches, image_items, read_pixels, source_of
from mlpconv.decode_options import DecodeOptions
from mlpconv.errors import ImageError, UsageError
from mlpconv.modelfile.parts import Size

__all__ = ["Item", "as_pixels", "batches", "items", "source_of"]


def items(images: object) -> Iterator[Item | BatchRow]:
    """Iterate over one image, a sequence of images or a batch; raise UsageError for anything else or no image."""
    if isinstance(images, Tensor):
        return image_items(_array(images))
    if isinstance(images, list | tuple):
        images = [_array(image) if isinstance(image, Tensor) else image for image in images]
    return image_items(images)


def as_pixels(images: Iterable[Item | BatchRow], size: Size, decode_options: DecodeOptions) -> Tensor:
    """Return images as one uint8 tensor (N, C, H, W) of `size` (C, H, W), read as in training.

    Raises ImageError for a file that cannot be read.
    """
    return torch.from_numpy(np.stack([read_pixels(image, size, decode_options) for image in images]))


def batches(
    images: object, size: Size, count: int, decode_options: DecodeOptions, failed: list[ImageError] | None = None
) -> Iterator[tuple[Tensor, list[str | None]]]:
    """Yield pixels (N, C, H, W) of `count` images at a time, and their files; an array that fits is not copied.

    With `failed`, unreadable images are skipped and their errors appended to it. Decoding has as many threads as torch,
    up to a maximum.
    """
    singles, tensor = items(images), _as_tensor(images, size)
    if tensor is not None:
        for batch in [tensor] if tensor.shape[0] <= count else torch.split(tensor, count):
            yield batch, [None] * batch.shape[0]
        return
    for pixels, sources in array_batches(singles, size, count, decode_options, failed, torch.get_num_threads()):
        yield torch.from_numpy(pixels), sources


def _as_tensor(images: object, size: Size) -> Tensor | None:
    """Return a batch that needs no conversion as a tensor with shared memory, else None."""
    if isinstance(images, np.ndarray) and images.flags.writeable and images.flags.c_contiguous:
        images = torch.from_numpy(images)
    if isinstance(images, Tensor) and images.device.type == "cpu" and images.shape[1:] == size:
        return images
    return None


def _array(images: Tensor) -> np.ndarray:
    """Return a batch (N, C, H, W) as an array; raise UsageError for a tensor of other dimensions."""
    if images.dim() != 4:
        raise UsageError(
            f"Expected a batch (N, C, H, W), got a tensor of shape {tuple(images.shape)}: "
            "write tensor[None] for one image (C, H, W)."
        )
    array: np.ndarray = images.detach().cpu().numpy()
    return array
