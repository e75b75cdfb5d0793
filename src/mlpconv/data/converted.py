"""Images of a data set in another size and number of channels: at once, or converted whenever they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from mlpconv.data.color import to_channels
from mlpconv.data.decode import from_pil
from mlpconv.data.storage import allocate
from mlpconv.decode_options import DEFAULT_DECODING, DecodeOptions

__all__ = ["ConvertedImages", "convert_images"]


class ConvertedImages:
    """A read-only sequence of images (N, C, H, W) uint8; indexing by slice or array converts those of `source`.

    Nothing is kept: a data set in the size of a large network would fill the memory.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, source: np.ndarray, shape: tuple[int, int, int], decode_options: DecodeOptions = DEFAULT_DECODING
    ) -> None:
        self.source, self.size, self.decode_options = source, shape, decode_options
        self.shape = (len(source), *shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        return convert_images(np.asarray(self.source[key]), self.size, self.decode_options)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:]


def convert_images(
    images: np.ndarray, shape: tuple[int, int, int], decode_options: DecodeOptions = DEFAULT_DECODING
) -> np.ndarray:
    """Convert images (N, C, H, W) to another (C, H, W), by the rules of `decode`."""
    channels, height, width = shape
    if images.shape[2:] == (height, width):
        return to_channels(images, channels)
    out = allocate((len(images), *shape))
    for i, image in enumerate(images):
        pixels = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        out[i] = from_pil(pixels, channels, (height, width), decode_options)
    return out
