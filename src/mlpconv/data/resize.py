"""Images brought to another size: cropped to their centre, padded or stretched."""

from __future__ import annotations

from PIL import Image, ImageStat

__all__ = ["fitted", "window"]

Pair = tuple[float, float]


def fitted(pixels: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """Bring an image to the size (H, W), antialiased, in one go: cropped to its centre, padded or stretched."""
    height, width = size
    if pixels.size == (width, height):
        return pixels
    if fit == "pad":
        return _padded(pixels, size)
    (top, left), (down, across) = window((pixels.height, pixels.width), size, fit)
    right, bottom = min(left + width / across, pixels.width), min(top + height / down, pixels.height)
    return pixels.resize((width, height), Image.Resampling.BICUBIC, (left, top, right, bottom))


def window(original: tuple[int, int], size: tuple[int, int], fit: str) -> tuple[Pair, Pair]:
    """Where the image (H, W) lies in its original (H0, W0): its origin's (row, column) there, and the two scales.

    Of a padded image the origin lies outside.
    """
    scales = [part / whole for part, whole in zip(size, original, strict=True)]
    if fit == "pad":
        small = _shown(original, size)
        starts = [
            -((part - inner) // 2) * whole / inner for part, inner, whole in zip(size, small, original, strict=True)
        ]
        return (starts[0], starts[1]), (small[0] / original[0], small[1] / original[1])
    if fit == "crop":
        scales = [max(scales)] * 2
    starts = [max(0.0, (whole - part / by) / 2) for part, whole, by in zip(size, original, scales, strict=True)]
    return (starts[0], starts[1]), (scales[0], scales[1])


def _shown(original: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The size of a padded image without its bars."""
    scale = min(part / whole for part, whole in zip(size, original, strict=True))
    return max(1, round(original[0] * scale)), max(1, round(original[1] * scale))


def _padded(pixels: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The whole image in the middle of its mean colour."""
    (height, width), (down, across) = size, _shown((pixels.height, pixels.width), size)
    small = pixels.resize((across, down), Image.Resampling.BICUBIC)
    whole = Image.new(small.mode, (width, height), tuple(round(value) for value in ImageStat.Stat(small).mean))
    whole.paste(small, ((width - across) // 2, (height - down) // 2))
    return whole
