"""Rotate images upright by the EXIF data or XMP packet of their file, wherever the format stores them."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

from PIL import Image

__all__ = ["upright"]

ORIENTATION, SHORT = 0x0112, 3  # the EXIF tag and its type
EXIF_START = b"Exif\0\0"
MAX_XMP_BYTES = 1 << 20
XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\b""")
XMP_KEYS = ("xmp", "XML:com.adobe.xmp")
PROFILE_KEYS = ("Raw profile type exif", "Raw profile type APP1", "Raw profile type xmp")  # ImageMagick, in PNG files
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(pixels: Image.Image, info: Mapping[Any, Any]) -> Image.Image:
    """Rotate or flip pixels as the `info` of their loaded image says (a PNG file may store it after the pixels)."""
    transpose = _TRANSPOSES.get(_orientation(info))
    return pixels if transpose is None else pixels.transpose(transpose)


def _orientation(info: Mapping[Any, Any]) -> int:
    """Return the orientation, 1 to 8, from EXIF data or else an XMP packet; 1 if it is missing or damaged."""
    blocks = [block for block in map(_bytes, (info.get(key) for key in ("exif", *XMP_KEYS))) if block]
    blocks += [block for block in map(_unhex, (info.get(key) for key in PROFILE_KEYS)) if block]
    for read in (_in_exif, _in_xmp):
        for block in blocks:
            if value := read(block):
                return value
    return 1


def _bytes(value: object) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else value if isinstance(value, bytes) else b""


def _unhex(value: object) -> bytes:
    """Return a profile that a PNG file stores as text: its name, its length, then hexadecimal digits."""
    words = _bytes(value).split(maxsplit=2)
    if len(words) < 3 or len(words[2]) > 2 * MAX_XMP_BYTES:
        return b""
    try:
        return bytes.fromhex(words[2].decode("ascii"))
    except ValueError:
        return b""


def _in_exif(block: bytes) -> int:
    """Return the orientation in raw EXIF bytes; 0 if it is missing or damaged."""
    block = block.removeprefix(EXIF_START)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 0
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", block, entry)
            if (tag, kind) == (ORIENTATION, SHORT):
                return int(value)
    except struct.error:
        return 0
    return 0


def _in_xmp(block: bytes) -> int:
    """Return the orientation in an XMP packet; 0 if it is missing."""
    match = XMP.search(block[:MAX_XMP_BYTES])
    return int(match[1]) if match else 0
