"""Resize images by centre crop, padding or stretching."""

from __future__ import annotations

from PIL import Image, ImageStat

__all__ = ["fit_image", "window"]

Pair = tuple[float, float]


def fit_image(pixels: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """Resize an image to (H, W), antialiased, in one resampling; `fit` is "crop", "pad" or "stretch"."""
    height, width = size
    if pixels.size == (width, height):
        return pixels
    if fit == "pad":
        return _padded(pixels, size)
    (top, left), (row_scale, column_scale) = window((pixels.height, pixels.width), size, fit)
    right, bottom = min(left + width / column_scale, pixels.width), min(top + height / row_scale, pixels.height)
    return pixels.resize((width, height), Image.Resampling.BICUBIC, (left, top, right, bottom))


def window(original: tuple[int, int], size: tuple[int, int], fit: str) -> tuple[Pair, Pair]:
    """Locate the resized image (H, W) in its original (H0, W0): the (row, column) of its origin, and both scales.

    The origin of a padded image lies outside the original.
    """
    scales = [target / source for target, source in zip(size, original, strict=True)]
    if fit == "pad":
        inner = _size_inside_bars(original, size)
        starts = [-((t - i) // 2) * source / i for t, i, source in zip(size, inner, original, strict=True)]
        return (starts[0], starts[1]), (inner[0] / original[0], inner[1] / original[1])
    if fit == "crop":
        scales = [max(scales)] * 2
    starts = [max(0.0, (source - t / scale) / 2) for t, source, scale in zip(size, original, scales, strict=True)]
    return (starts[0], starts[1]), (scales[0], scales[1])


def _size_inside_bars(original: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of a padded image without its bars."""
    scale = min(target / source for target, source in zip(size, original, strict=True))
    return max(1, round(original[0] * scale)), max(1, round(original[1] * scale))


def _padded(pixels: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize the full image and centre it on its mean colour."""
    (height, width), (rows, columns) = size, _size_inside_bars((pixels.height, pixels.width), size)
    small = pixels.resize((columns, rows), Image.Resampling.BICUBIC)
    canvas = Image.new(small.mode, (width, height), tuple(round(value) for value in ImageStat.Stat(small).mean))
    canvas.paste(small, ((width - columns) // 2, (height - rows) // 2))
    return canvas
