"""Convert images with 16 bits per sample to 8 bits, including PNG files that Pillow truncates."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from mlpconv.data.reopen import file_of, is_open
from mlpconv.decode_options import DEPTHS

__all__ = ["bits_needed", "color_to_8_bits", "grey_to_8_bits", "has_sixteen_bits", "is_grey_alpha", "max_sample"]

WHITE = 255


def has_sixteen_bits(image: Image.Image) -> bool:
    """Return whether an image that is not yet loaded has 16 bits per sample, from its header."""
    return image.mode.startswith("I") or _png_layout(image) is not None


def is_grey_alpha(image: Image.Image) -> bool:
    """Return whether an image that is not yet loaded is 16-bit grey with alpha, which Pillow opens as colour."""
    return _png_layout(image) == "LA;16B"


def bits_needed(largest: int) -> int:
    """Return the smallest supported bit depth that holds the value `largest`."""
    return next(bits for bits in DEPTHS if largest < 1 << bits)


def max_sample(image: Image.Image) -> int:
    """Return the largest sample (0 to 65535) of an image with 16 bits per sample, without its alpha channel."""
    layout = _png_layout(image)
    if layout is None or not isinstance(image, PngImageFile):
        return int(_grey_samples(image).max())
    samples, _ = _png_samples(image, layout)
    return int(samples[..., : 3 if samples.shape[2] > 2 else 1].max())


def grey_to_8_bits(image: Image.Image, bits: int) -> Image.Image:
    """Convert a 16-bit grey image to 8 bits, with 2 ** bits - 1 and the transparent value as white."""
    samples = _grey_samples(image)
    table = _lookup_table(bits)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and 0 <= transparent < len(table):
        table[transparent] = WHITE
    return Image.fromarray(table[samples])


def color_to_8_bits(image: Image.Image, bits: int) -> Image.Image:
    """Convert a 16-bit colour image that is not yet loaded to 8 bits, with 2 ** bits - 1 as white.

    Other images, and those that Pillow itself converts in the same way, are returned unchanged.
    """
    layout = _png_layout(image)
    key = image.info.get("transparency")
    if layout is None or not isinstance(image, PngImageFile) or (bits == 16 and key is None):
        return image
    samples, info = _png_samples(image, layout)
    pixels = _lookup_table(bits)[samples]
    if samples.shape[2] in (2, 4):
        pixels[..., -1] = samples[..., -1] >> 8  # alpha always uses all 16 bits
    elif isinstance(key, tuple) and len(key) == 3:
        pixels[(samples == np.array(key, np.uint16)).all(axis=2)] = WHITE
    converted = Image.fromarray(pixels)
    converted.info = {name: value for name, value in (info | image.info).items() if name != "transparency"}
    return converted


def _lookup_table(bits: int) -> np.ndarray:
    """Return the 8-bit value (65536,) of every 16-bit sample, rounded; values beyond `bits` become white."""
    top = (1 << bits) - 1
    samples = np.arange(1 << 16, dtype=np.uint32)
    return np.minimum((samples * WHITE + top // 2) // top, WHITE).astype(np.uint8)


def _png_layout(image: Image.Image) -> str | None:
    """Return Pillow's raw mode of a 16-bit PNG file with several channels that is not yet loaded, or None."""
    layout = image.tile[0].args if isinstance(image, PngImageFile) and is_open(image) else None
    return layout if isinstance(layout, str) and layout.endswith(";16B") and not image.mode.startswith("I") else None


def _grey_samples(image: Image.Image) -> np.ndarray:
    samples = np.asarray(image)
    return samples if samples.dtype == np.uint16 else np.clip(samples, 0, 65535).astype(np.uint16)


def _png_samples(image: PngImageFile, layout: str) -> tuple[np.ndarray, dict[Any, Any]]:
    """Return all 16 bits (H, W, C) uint16 of an image of which Pillow keeps the high byte, and the file's info.

    Pillow returns the low byte if told that the file is little-endian. Grey with alpha is read as four bytes.
    """
    if layout == "LA;16B":
        pair, info = _read_with_layout(image, "RGBA")
        return pair[..., 0::2] << 8 | pair[..., 1::2], info
    (high, info), (low, _) = _read_with_layout(image, layout), _read_with_layout(image, layout.replace("16B", "16L"))
    return high << 8 | low, info


def _read_with_layout(image: PngImageFile, layout: str) -> tuple[np.ndarray, dict[Any, Any]]:
    """Read the pixels (uint16) of an image's file again with another raw mode."""
    with file_of(image) as file:
        file.seek(0)
        copy = PngImageFile(file)
        copy.tile = [copy.tile[0]._replace(args=layout)]
        copy.load()
    return np.asarray(copy).astype(np.uint16), copy.info
