"""Which way up an image is, by the EXIF data or the XMP packet of its file, wherever the format keeps them."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

from PIL import Image

__all__ = ["upright"]

ORIENTATION, SHORT = 0x0112, 3  # the tag of EXIF, and its type
EXIF_START = b"Exif\0\0"
LONGEST_XMP = 1 << 20
XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\b""")
XMP_KEYS = ("xmp", "XML:com.adobe.xmp")
PROFILE_KEYS = ("Raw profile type exif", "Raw profile type APP1", "Raw profile type xmp")  # ImageMagick's, in PNG files
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(pixels: Image.Image, info: Mapping[Any, Any]) -> Image.Image:
    """Turn pixels as the `info` of their loaded image says (a PNG file may have it after its pixels)."""
    turn = _TURNS.get(_orientation(info))
    return pixels if turn is None else pixels.transpose(turn)


def _orientation(info: Mapping[Any, Any]) -> int:
    """The orientation, 1 to 8: EXIF data go before an XMP packet; 1 where there is none, or where it is damaged."""
    blocks = [block for block in map(_bytes, (info.get(key) for key in ("exif", *XMP_KEYS))) if block]
    blocks += [block for block in map(_unpacked, (info.get(key) for key in PROFILE_KEYS)) if block]
    for read in (_in_exif, _in_xmp):
        for block in blocks:
            if value := read(block):
                return value
    return 1


def _bytes(value: object) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else value if isinstance(value, bytes) else b""


def _unpacked(value: object) -> bytes:
    """A profile that a PNG file keeps as text: its name, its length, then hexadecimal digits."""
    words = _bytes(value).split(maxsplit=2)
    if len(words) < 3 or len(words[2]) > 2 * LONGEST_XMP:
        return b""
    try:
        return bytes.fromhex(words[2].decode("ascii"))
    except ValueError:
        return b""


def _in_exif(block: bytes) -> int:
    """The orientation in raw EXIF bytes; 0 where there is none, or where they are damaged."""
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
    """The orientation in an XMP packet; 0 where there is none."""
    found = XMP.search(block[:LONGEST_XMP])
    return int(found[1]) if found else 0
