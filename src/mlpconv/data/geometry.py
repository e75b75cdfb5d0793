"""Images brought to another size: cropped to their centre, padded or stretched."""

from __future__ import annotations

from PIL import Image, ImageStat

__all__ = ["fitted"]


def fitted(pixels: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """Bring an image to the size (H, W), antialiased, in one go: cropped to its centre, padded or stretched."""
    height, width = size
    if pixels.size == (width, height):
        return pixels
    box = (0.0, 0.0, float(pixels.width), float(pixels.height))
    if fit == "crop":
        scale = max(width / pixels.width, height / pixels.height)
        across, down = min(width / scale, pixels.width), min(height / scale, pixels.height)
        left, top = (pixels.width - across) / 2, (pixels.height - down) / 2
        box = (left, top, left + across, top + down)
    if fit != "pad":
        return pixels.resize((width, height), Image.Resampling.BICUBIC, box)
    scale = min(width / pixels.width, height / pixels.height)
    across, down = max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale))
    small = pixels.resize((across, down), Image.Resampling.BICUBIC)
    whole = Image.new(small.mode, (width, height), tuple(round(value) for value in ImageStat.Stat(small).mean))
    whole.paste(small, ((width - across) // 2, (height - down) // 2))
    return whole
