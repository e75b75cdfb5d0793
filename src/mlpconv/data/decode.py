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
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mlpconv.data.bit_depth import eight_bits, has_sixteen_bits, largest, lifted
from mlpconv.data.color import channels_of
from mlpconv.data.jpeg import MAX_JPEG_PIXELS, reduce, reopened
from mlpconv.data.orientation import upright
from mlpconv.data.resize import fitted
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
MAX_PIXELS = MAX_DECODED // 4  # Pillow's colours take four bytes
DIGEST_BYTES, BLOCK = 16, 1 << 18
HEADER = 4096  # bytes in which the header of a PNM file must end
SLOW_BYTES = 1 << 20  # a PNM file in text or of unusual depth is read number by number
FORMATS = "PNG, JPEG, WebP, BMP, PNM"

# The first bytes decide, not the name; the plugins are called directly, so that no other format is ever tried.
_SIGNATURES: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"RIFF", WebPImageFile),
    (b"BM", BmpImageFile),
    *((b"P%d" % kind, PpmImageFile) for kind in range(1, 7)),
)


class Header(NamedTuple):
    """What the header of an image file says: pixels before any turning upright, 1 or 3 channels, bits a sample."""

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
    """Read an image file, or its bytes, as uint8 (C, H, W): turned upright, on white where it is transparent.

    `channels` is 1, 3 or None (what the file has); `size` is (H, W), to which `decode_options` brings the image, antialiased,
    and sixteen bits to eight. The first frame of an animation counts.
    Raises ImageError for what is not an image, is damaged, or is larger than MAX_BYTES or MAX_PIXELS (a JPEG, of which
    a fraction is decoded: MAX_JPEG_PIXELS).
    """
    with _opened(source) as (file, name), _reading(name):
        return _pixels(_open(file, name), channels, size, decode_options, name)


def header(source: Path | bytes) -> Header:
    """What an image file is, from its header alone; raises ImageError as `decode`, but for damage in the pixels."""
    with _opened(source) as (file, name), _reading(name):
        image = _open(file, name)
        return Header(image.height, image.width, channels_of(image), has_sixteen_bits(image))


def largest_value(source: Path) -> int:
    """The largest value (0 to 65535) in an image file of 16 bits a sample; raises ImageError as `decode` does."""
    with _opened(source) as (file, name), _reading(name):
        return largest(_open(file, name))


def decode_hashed(
    source: Path | bytes, *, channels: int, size: tuple[int, int], decode_options: DecodeOptions
) -> tuple[np.ndarray, bytes]:
    """The pixels as `decode` gives them, and a digest of the file's bytes, whatever its name."""
    with _opened(source) as (file, name), _reading(name):
        pixels = _pixels(_open(file, name), channels, size, decode_options, name)
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        file.seek(0)
        while block := file.read(BLOCK):
            digest.update(block)
        return pixels, digest.digest()


def from_pil(
    image: Image.Image,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    decode_options: DecodeOptions = DEFAULT_DECODING,
) -> np.ndarray:
    """A PIL image as uint8 (C, H, W), by the same rules as `decode`; the image itself is not changed.

    An image that Pillow has opened and not yet loaded gives the same pixels as its file.
    """
    _check_pixels(image.width, image.height, "the image", _most(image))
    with _reading("the image"):
        return _pixels(reopened(image), channels, size, decode_options, "the image")


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[BinaryIO, str]]:
    """A file, or bytes, as a stream and a name for messages; only regular files of a bounded length."""
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


def _most(image: Image.Image) -> int:
    """The pixels that an image may have: more in a JPEG file, of which a fraction can be decoded."""
    return MAX_JPEG_PIXELS if isinstance(image, JpegImageFile) and image.tile else MAX_PIXELS


def _check_pixels(width: int, height: int, name: str, most: int = MAX_PIXELS) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height}; it has no pixels.")
    if width * height > most:
        raise ImageError(
            f"{name} is {width:,} x {height:,} pixels; accepted: up to {most:,} pixels in all. Make it smaller."
        )


def _open(file: BinaryIO, name: str) -> ImageFile:
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
    _check_pixels(image.width, image.height, name, _most(image))
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


def _pixels(
    image: Image.Image,
    channels: int | None,
    size: tuple[int, int] | None,
    decode_options: DecodeOptions,
    name: str,
) -> np.ndarray:
    """Load an image and bring it to uint8 (C, H, W)."""
    if channels not in (None, 1, 3):
        raise UsageError(f"channels must be 1 or 3, not {channels}.")
    channels = channels or channels_of(image)
    if isinstance(image, JpegImageFile):
        if image.tile:
            reduce(image, size, MAX_PIXELS, name)
        _check_pixels(image.width, image.height, name)
    image = lifted(image, decode_options.bits)
    pixels = _eight_bits(image, channels, decode_options.bits)
    pixels = upright(pixels, image.info)
    array = np.asarray(pixels if size is None else fitted(pixels, size, decode_options.fit))
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _eight_bits(image: Image.Image, channels: int, bits: int) -> Image.Image:
    """A PIL image as grey or RGB with 8 bits, laid on white where it is transparent."""
    if image.mode.startswith("I"):
        image = eight_bits(image, bits)
    elif image.mode == "F":
        raise ImageError("the image has floating-point pixels of unknown range; save it with 8 or 16 bits.")
    elif image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("L" if channels == 1 else "RGB")
