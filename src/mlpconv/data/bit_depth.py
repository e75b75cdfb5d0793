"""Image files of 16 bits a sample: their values, and how they become eight bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from mlpconv.data.reopen import file_of, is_open
from mlpconv.decode_options import DEPTHS

__all__ = ["depth_for", "eight_bits", "grey_by_layout", "has_sixteen_bits", "largest", "lifted"]

WHITE = 255


def has_sixteen_bits(image: Image.Image) -> bool:
    """Whether an image that is not yet loaded has 16 bits a sample, by its header."""
    return image.mode.startswith("I") or _layout(image) is not None


def grey_by_layout(image: Image.Image) -> bool:
    """Whether an image that is not yet loaded is grey with opacity in 16 bits, which Pillow takes for colour."""
    return _layout(image) == "LA;16B"


def depth_for(most: int) -> int:
    """The bits that are used where `most` is the largest value of all."""
    return next(bits for bits in DEPTHS if most < 1 << bits)


def largest(image: Image.Image) -> int:
    """The largest value (0 to 65535) of an image with 16 bits a sample, opacity apart."""
    layout = _layout(image)
    if layout is None or not isinstance(image, PngImageFile):
        return int(_grey(image).max())
    values, _ = _values(image, layout)
    return int(values[..., : 3 if values.shape[2] > 2 else 1].max())


def eight_bits(image: Image.Image, bits: int) -> Image.Image:
    """A grey image of 16 bits as one of eight, 2 ** bits - 1 being white; its transparent value is white as well."""
    values = _grey(image)
    table = _table(bits)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and 0 <= transparent < len(table):
        table[transparent] = WHITE
    return Image.fromarray(table[values])


def lifted(image: Image.Image, bits: int) -> Image.Image:
    """A colour image of 16 bits, not yet loaded, as one of eight of which 2 ** bits - 1 is white.

    Other images, and those that Pillow brings to eight bits in the same way, are returned as they are.
    """
    layout = _layout(image)
    key = image.info.get("transparency")
    if layout is None or not isinstance(image, PngImageFile) or (bits == 16 and key is None):
        return image
    values, info = _values(image, layout)
    pixels = _table(bits)[values]
    if values.shape[2] in (2, 4):
        pixels[..., -1] = values[..., -1] >> 8  # opacity has a range of its own
    elif isinstance(key, tuple) and len(key) == 3:
        pixels[(values == np.array(key, np.uint16)).all(axis=2)] = WHITE
    lighter = Image.fromarray(pixels)
    lighter.info = {name: value for name, value in (info | image.info).items() if name != "transparency"}
    return lighter


def _table(bits: int) -> np.ndarray:
    """Eight bits (65536,) for each value of 16 bits, rounded; what is beyond the bits used is white."""
    top = (1 << bits) - 1
    values = np.arange(1 << 16, dtype=np.uint32)
    return np.minimum((values * WHITE + top // 2) // top, WHITE).astype(np.uint8)


def _layout(image: Image.Image) -> str | None:
    """How a PNG file of 16 bits a sample and several channels keeps its pixels, before they are loaded."""
    layout = image.tile[0].args if isinstance(image, PngImageFile) and is_open(image) else None
    return layout if isinstance(layout, str) and layout.endswith(";16B") and not image.mode.startswith("I") else None


def _grey(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    return values if values.dtype == np.uint16 else np.clip(values, 0, 65535).astype(np.uint16)


def _values(image: PngImageFile, layout: str) -> tuple[np.ndarray, dict[Any, Any]]:
    """All 16 bits (H, W, C) uint16 of an image of which Pillow keeps the higher eight, and its file's information.

    Read as if the lower byte came first, it keeps the lower eight; two channels of two bytes are four of one.
    """
    if layout == "LA;16B":
        whole, info = _read_as(image, "RGBA")
        return whole[..., 0::2] << 8 | whole[..., 1::2], info
    (high, info), (low, _) = _read_as(image, layout), _read_as(image, layout.replace("16B", "16L"))
    return high << 8 | low, info


def _read_as(image: PngImageFile, layout: str) -> tuple[np.ndarray, dict[Any, Any]]:
    """The pixels uint16 of an image's file, opened once more, its samples taken in another layout."""
    with file_of(image) as file:
        file.seek(0)
        again = PngImageFile(file)
        again.tile = [again.tile[0]._replace(args=layout)]
        again.load()
    return np.asarray(again).astype(np.uint16), again.info
