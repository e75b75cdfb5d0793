"""Decode image files to pixels, within limits that are checked before any pixel is read."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mlpconv.data.bit_depth import color_to_8_bits, grey_to_8_bits, has_sixteen_bits, max_sample
from mlpconv.data.color import channels_of
from mlpconv.data.decode_threads import without_warnings
from mlpconv.data.jpeg import MAX_JPEG_PIXELS, reopen, set_draft
from mlpconv.data.orientation import upright
from mlpconv.data.resize import fit_image
from mlpconv.data.storage import open_data_file
from mlpconv.decode_options import DEFAULT_DECODING, DecodeOptions
from mlpconv.errors import DataError, ImageError, MlpconvError, UsageError

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "Header",
    "decode",
    "decode_hashed",
    "from_pil",
    "header",
    "largest_value",
]

MAX_BYTES = 64 << 20
MAX_DECODED = 256 << 20
MAX_PIXELS = MAX_DECODED // 4  # Pillow uses four bytes per colour pixel
DIGEST_BYTES = 16
HEADER = 4096  # the header of a PNM file must end within these bytes
SLOW_BYTES = 1 << 20  # Pillow reads PNM files in text or of unusual depth one number at a time
FORMATS = "PNG, JPEG, WebP, BMP, PNM"

# The first bytes decide the format, not the name. Plugins are called directly, so no other format is ever tried.
_SIGNATURES: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"RIFF", WebPImageFile),
    (b"BM", BmpImageFile),
    *((b"P%d" % kind, PpmImageFile) for kind in range(1, 7)),
)


class Header(NamedTuple):
    """The header of an image file: size before EXIF rotation, 1 or 3 channels, whether samples have 16 bits."""

    height: int
    width: int
    channels: int
    sixteen_bits: bool


def decode(
    source: Path | bytes,
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    decode_options: DecodeOptions = DEFAULT_DECODING,
) -> np.ndarray:
    """Decode an image file, or its bytes, to uint8 (C, H, W): upright, with transparent pixels composited on white.

    `channels` is 1, 3 or None (as in the file). `size` is (H, W); `decode_options` say how the image is resized to it
    (antialiased) and how 16 bits become 8. Only the first frame of an animation is decoded.
    Raises ImageError if the file is not an image, is damaged, or exceeds MAX_BYTES or MAX_PIXELS (MAX_JPEG_PIXELS for a
    JPEG, which can be decoded at a fraction of its size).
    """
    with _open_source(source) as (file, name), _damage_as_image_error(name):
        return _pixels(_open_image(file, name), channels, size, decode_options, name)


def header(source: Path | bytes) -> Header:
    """Read the header of an image file; raise ImageError as `decode` does, except for damaged pixels."""
    with _open_source(source) as (file, name), _damage_as_image_error(name):
        image = _open_image(file, name)
        return Header(image.height, image.width, channels_of(image), has_sixteen_bits(image))


def largest_value(source: Path) -> int:
    """Return the largest sample (0 to 65535) of a 16-bit image file; raise ImageError as `decode` does."""
    with _open_source(source) as (file, name), _damage_as_image_error(name):
        return max_sample(_open_image(file, name))


def decode_hashed(
    source: Path | bytes, *, channels: int, size: tuple[int, int], decode_options: DecodeOptions
) -> tuple[np.ndarray, bytes]:
    """Return the pixels as `decode` does, and a digest of the file's bytes."""
    with _open_source(source) as (file, name), _damage_as_image_error(name):
        pixels = _pixels(_open_image(file, name), channels, size, decode_options, name)
        file.seek(0)
        return pixels, hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=DIGEST_BYTES)).digest()


def from_pil(
    image: Image.Image,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    decode_options: DecodeOptions = DEFAULT_DECODING,
) -> np.ndarray:
    """Convert a PIL image to uint8 (C, H, W) by the same rules as `decode`, without changing the image.

    An image that Pillow has opened but not yet loaded gives the same pixels as its file.
    """
    _check_pixels(image.width, image.height, "the image", _pixel_limit(image))
    with _damage_as_image_error("the image"):
        return _pixels(reopen(image), channels, size, decode_options, "the image")


@contextmanager
def _open_source(source: Path | bytes) -> Iterator[tuple[io.BytesIO | io.BufferedReader, str]]:
    """Open a regular file of limited size, or bytes; yield the stream and a name for messages."""
    if isinstance(source, bytes):
        _check_bytes(len(source), "the image")
        yield io.BytesIO(source), "the image"
        return
    name = repr(str(source))
    try:
        file = open_data_file(source)
    except DataError as error:
        raise ImageError(str(error)) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ImageError(f"{name} cannot be read ({reason}); check its name and permissions.") from error
    with file:
        _check_bytes(os.fstat(file.fileno()).st_size, name)
        yield file, name


@contextmanager
def _damage_as_image_error(name: str) -> Iterator[None]:
    """Raise ImageError for any exception that Pillow raises on damaged or hostile bytes; its list is open-ended."""
    try:
        with without_warnings():
            yield
    except (MlpconvError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ImageError(f"{name} is a damaged image file ({reason}); export it again, or leave it out.") from error


def _check_bytes(length: int, name: str) -> None:
    if length == 0:
        raise ImageError(f"{name} is empty (0 bytes); give an image file ({FORMATS}).")
    if length > MAX_BYTES:
        raise ImageError(f"{name} has {length:,} bytes; accepted: up to {MAX_BYTES:,}. Save it smaller.")


def _pixel_limit(image: Image.Image) -> int:
    """Return how many pixels an image may have: more for a JPEG file, which can be decoded at a fraction."""
    return MAX_JPEG_PIXELS if isinstance(image, JpegImageFile) and image.tile else MAX_PIXELS


def _check_pixels(width: int, height: int, name: str, limit: int = MAX_PIXELS) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height}; it has no pixels.")
    if width * height > limit:
        raise ImageError(
            f"{name} is {width:,} x {height:,} pixels; accepted: up to {limit:,} pixels in total. Resize it."
        )


def _open_image(file: BinaryIO, name: str) -> ImageFile:
    """Open an image and check its header against the limits, without reading pixels."""
    start = file.read(HEADER)
    file.seek(0)
    plugin = next((plugin for signature, plugin in _SIGNATURES if start.startswith(signature)), None)
    if plugin is None or (plugin is WebPImageFile and start[8:12] != b"WEBP"):
        raise ImageError(f"{name} is not a supported image; accepted: {FORMATS}. Convert it to one of these.")
    if plugin is WebPImageFile:
        _check_pixels(*_webp_size(start), name)  # the plugin allocates the canvas when it opens the file
    if plugin is PpmImageFile:
        _check_pnm(start, file, name)
    image = plugin(file)
    _check_pixels(image.width, image.height, name, _pixel_limit(image))
    return image


def _webp_size(start: bytes) -> tuple[int, int]:
    """Return width and height from the first chunk of a WebP file: lossy, lossless or extended."""
    kind = start[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", start, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", start, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(start[24:27], "little") + 1, int.from_bytes(start[27:30], "little") + 1


def _check_pnm(start: bytes, file: BinaryIO, name: str) -> None:
    """Refuse PNM files that Pillow would read byte by byte for minutes."""
    kind, *numbers = re.sub(rb"#[^\r\n]*[\r\n]", b" ", start).split(maxsplit=4)[:4]
    max_value = b"1" if kind in (b"P1", b"P4") else numbers[2] if len(numbers) == 3 else b"?"
    if len(numbers) < 2 or not all(number.isdigit() for number in (*numbers[:2], max_value)):
        raise ImageError(f"{name} has no PNM header in its first {HEADER:,} bytes; export it again.")
    fast = ((b"P4", b"1"), (b"P5", b"255"), (b"P5", b"65535"), (b"P6", b"255"))
    if (kind, max_value) not in fast and file.seek(0, os.SEEK_END) > SLOW_BYTES:
        raise ImageError(f"{name} is a PNM file in text or of odd depth above {SLOW_BYTES:,} bytes; save it as PNG.")
    file.seek(0)


def _pixels(
    image: Image.Image,
    channels: int | None,
    size: tuple[int, int] | None,
    decode_options: DecodeOptions,
    name: str,
) -> np.ndarray:
    """Load an image as uint8 (C, H, W)."""
    if channels not in (None, 1, 3):
        raise UsageError(f"channels must be 1 or 3, not {channels}.")
    channels = channels or channels_of(image)
    if isinstance(image, JpegImageFile):
        if image.tile:
            set_draft(image, size, MAX_PIXELS, name)
        _check_pixels(image.width, image.height, name)
    image = color_to_8_bits(image, decode_options.bits)
    pixels = _grey_or_rgb(image, channels, decode_options.bits)
    pixels = upright(pixels, image.info)
    array = np.asarray(pixels if size is None else fit_image(pixels, size, decode_options.fit))
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _grey_or_rgb(image: Image.Image, channels: int, bits: int) -> Image.Image:
    """Convert a PIL image to 8-bit grey or RGB, with transparent pixels composited on white."""
    if image.mode.startswith("I"):
        image = grey_to_8_bits(image, bits)
    elif image.mode == "F":
        raise ImageError("the image has floating-point pixels of unknown range; save it with 8 or 16 bits.")
    elif image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("L" if channels == 1 else "RGB")
