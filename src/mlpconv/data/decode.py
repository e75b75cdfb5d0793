"""From the bytes of an image file to pixels, under limits that are checked before any pixel is read."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mlpconv.data.storage import open_regular
from mlpconv.errors import DataError, ImageError, MlpconvError, UsageError

__all__ = ["FORMATS", "MAX_BYTES", "MAX_PIXELS", "content_digest", "decode", "from_pil", "inspect", "to_channels"]

MAX_BYTES = 64 << 20
MAX_PIXELS = 50_000_000
DIGEST_BYTES = 16
HEADER = 4096  # bytes in which the header of a PNM file must end
SLOW_BYTES = 1 << 20  # a PNM file in text or of unusual depth is read number by number
FORMATS = "PNG, JPEG, WebP, BMP, PNM"
DRAFT_PIXELS = 4_000_000  # above this a JPEG is decoded at a half, a quarter or an eighth of its size ...
DRAFT_FACTOR = 4  # ... that is still so many times the size asked for

# The first bytes decide, not the name; the plugins are called directly, so that no other format is ever tried.
_SIGNATURES: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"RIFF", WebPImageFile),
    (b"BM", BmpImageFile),
    *((b"P%d" % kind, PpmImageFile) for kind in range(1, 7)),
)
_GREY = ("1", "L", "I", "LA")
SIXTEEN_BITS = 257  # 65535 / 255
ORIENTATION, SHORT = 0x0112, 3  # the tag of EXIF, and its type
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(source: Path | bytes, *, channels: int | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image file, or its bytes, as uint8 (C, H, W): turned upright, on white where it is transparent.

    `channels` is 1, 3 or None (what the file has); `size` is (H, W): the shorter side is resized to it, antialiased,
    and the centre is kept. Sixteen bits become eight. The first frame of an animation counts.
    Raises ImageError for what is not an image, is damaged, or is larger than MAX_BYTES or MAX_PIXELS.
    """
    with _opened(source) as (file, name), _reading(name):
        image = _header(file, name)
        if size is not None:
            _draft(image, size)
        return _pixels(image, channels, size)


def inspect(source: Path | bytes) -> tuple[int, int, int]:
    """The height, width (before any turning upright) and channels (1 or 3) of an image file, from its header alone.

    Raises ImageError as `decode` does, except for damage that lies in the pixels.
    """
    with _opened(source) as (file, name), _reading(name):
        image = _header(file, name)
        return image.height, image.width, _channels(image)


def content_digest(source: Path) -> bytes:
    """A digest of the bytes of an image file, whatever its name; raises ImageError as `decode` does for its length."""
    with _opened(source) as (file, _):
        return hashlib.blake2b(file.read(MAX_BYTES), digest_size=DIGEST_BYTES).digest()


def from_pil(image: Image.Image, channels: int | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """A PIL image as uint8 (C, H, W), by the same rules as `decode`; the image itself is not changed."""
    _check_pixels(image.width, image.height, "the image")
    with _reading("the image"):
        return _pixels(image, channels, size)


def to_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Turn uint8 (..., C, H, W) of 1, 3 or 4 (with opacity: laid on white) channels into 1 or 3.

    Grey is ITU-R 601 luma, as in Pillow. Raises UsageError for any other number of channels.
    """
    given = array.shape[-3] if array.ndim >= 3 else 0
    if given not in (1, 3, 4) or channels not in (1, 3) or array.dtype != np.uint8:
        raise UsageError(
            f"cannot turn {array.dtype} of shape {array.shape} into {channels} channels: give uint8 (..., C, H, W) "
            "with 1, 3 or 4 channels, and ask for 1 or 3."
        )
    if given == 4:
        colour, opacity = array[..., :3, :, :].astype(np.uint32), array[..., 3:, :, :].astype(np.uint32)
        array = ((colour * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
        given = 3
    if given == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=-3)
    red, green, blue = (array[..., i : i + 1, :, :].astype(np.uint32) for i in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[BinaryIO, str]]:
    """A file, or bytes, as a stream and a name for messages; only regular files of a bounded length."""
    if isinstance(source, bytes):
        _check_bytes(len(source), "the image")
        yield io.BytesIO(source), "the image"
        return
    name = repr(str(source))
    try:
        file = open_regular(source)
    except DataError as error:
        raise ImageError(str(error)) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ImageError(f"{name} cannot be read ({reason}); check its name and its permissions.") from error
    with file:
        _check_bytes(os.fstat(file.fileno()).st_size, name)
        yield file, name


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises on damaged or hostile bytes, which is no closed list, into ImageError."""
    try:
        with _quietly():
            yield
    except (MlpconvError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ImageError(f"{name} is a damaged image file ({reason}); export it again, or leave it out.") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep Pillow's remarks on odd metadata from the user; the filters are changed by the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_bytes(length: int, name: str) -> None:
    if length == 0:
        raise ImageError(f"{name} is empty (0 bytes); give an image file ({FORMATS}).")
    if length > MAX_BYTES:
        raise ImageError(f"{name} has {length:,} bytes; accepted: up to {MAX_BYTES:,}. Save it smaller.")


def _check_pixels(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height}; it has no pixels.")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {width:,} x {height:,} pixels; accepted: up to {MAX_PIXELS:,} pixels in all. Make it smaller."
        )


def _header(file: BinaryIO, name: str) -> ImageFile:
    """Open an image as far as its header, which is within the limits; no pixel has been read."""
    start = file.read(HEADER)
    file.seek(0)
    plugin = next((plugin for signature, plugin in _SIGNATURES if start.startswith(signature)), None)
    if plugin is None or (plugin is WebPImageFile and start[8:12] != b"WEBP"):
        raise ImageError(f"{name} is not an image that can be read here; accepted: {FORMATS}. Nothing else is opened.")
    if plugin is WebPImageFile:
        _check_pixels(*_webp_size(start), name)  # its plugin makes room for the canvas as soon as it opens
    if plugin is PpmImageFile:
        _check_pnm(start, file, name)
    image = plugin(file)
    _check_pixels(image.width, image.height, name)
    return image


def _webp_size(start: bytes) -> tuple[int, int]:
    """Width and height from the first chunk of a WebP file: lossy, lossless or extended."""
    kind = start[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", start, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", start, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(start[24:27], "little") + 1, int.from_bytes(start[27:30], "little") + 1


def _check_pnm(start: bytes, file: BinaryIO, name: str) -> None:
    """Refuse the PNM files that Pillow would read byte by byte for minutes."""
    kind, *numbers = re.sub(rb"#[^\r\n]*[\r\n]", b" ", start).split(maxsplit=4)[:4]
    deepest = b"1" if kind in (b"P1", b"P4") else numbers[2] if len(numbers) == 3 else b"?"
    if len(numbers) < 2 or not all(number.isdigit() for number in (*numbers[:2], deepest)):
        raise ImageError(f"{name} has no PNM header in its first {HEADER:,} bytes; export it again.")
    fast = ((b"P4", b"1"), (b"P5", b"255"), (b"P5", b"65535"), (b"P6", b"255"))
    if (kind, deepest) not in fast and file.seek(0, os.SEEK_END) > SLOW_BYTES:
        raise ImageError(f"{name} is a PNM file in text or of odd depth beyond {SLOW_BYTES:,} bytes; save it as PNG.")
    file.seek(0)


def _channels(image: Image.Image) -> int:
    """1 where an image is grey by its header, else 3."""
    if image.mode in _GREY or image.mode.startswith("I;16"):
        return 1
    if image.mode == "P" and image.palette is not None:
        stride = len(image.palette.rawmode or image.palette.mode)
        colours = bytes(image.palette.palette)
        planes = [colours[i::stride] for i in range(3)]
        return 1 if planes[0] == planes[1] == planes[2] else 3
    return 3


def _pixels(image: Image.Image, channels: int | None, size: tuple[int, int] | None) -> np.ndarray:
    """Load an image and bring it to uint8 (C, H, W)."""
    if channels not in (None, 1, 3):
        raise UsageError(f"channels must be 1 or 3, not {channels}.")
    pixels = _upright(_eight_bits(image, _channels(image) if channels is None else channels), image)
    array = np.asarray(pixels if size is None else _fit(pixels, size))
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _draft(image: ImageFile, size: tuple[int, int]) -> None:
    """Let a big JPEG be decoded at a fraction of its size that is still far above the size asked for."""
    if isinstance(image, JpegImageFile) and image.width * image.height > DRAFT_PIXELS:
        side = DRAFT_FACTOR * max(size)
        image.draft(None, (side, side))


def _eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """A PIL image as grey or RGB with 8 bits, laid on white where it is transparent."""
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((values + SIXTEEN_BITS // 2) // SIXTEEN_BITS).astype(np.uint8))
    elif image.mode == "F":
        raise ImageError("the image has floating-point pixels of unknown range; save it with 8 or 16 bits.")
    elif image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("L" if channels == 1 else "RGB")


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Turn pixels as the EXIF data of their image say (by now loaded: a PNG may have them after its pixels)."""
    turn = _TURNS.get(_orientation(image.info.get("exif")))
    return pixels if turn is None else pixels.transpose(turn)


def _orientation(exif: object) -> int:
    """The orientation (1 to 8) in raw EXIF bytes; 1 where there is none, or where they are damaged."""
    block = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", block, entry)
            if (tag, kind) == (ORIENTATION, SHORT):
                return int(value)
    except struct.error:
        return 1
    return 1


def _fit(pixels: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize the shorter side to the size (H, W), antialiased, and keep the centre, in one go."""
    height, width = size
    if pixels.size == (width, height):
        return pixels
    scale = max(width / pixels.width, height / pixels.height)
    across, down = min(width / scale, pixels.width), min(height / scale, pixels.height)
    left, top = (pixels.width - across) / 2, (pixels.height - down) / 2
    return pixels.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + across, top + down))
