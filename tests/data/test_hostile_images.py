"""Hostile image files are refused from their header, at little cost, with one sentence."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zlib
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.work import within

from mlpconv.data import decode as room
from mlpconv.data.decode import decode, from_pil, header
from mlpconv.errors import ImageError


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *extra: bytes, interlaced: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    chunks = (chunk(b"IHDR", head), *extra, chunk(b"IDAT", b"x\x9c"), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def riff(kind: bytes, content: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG")
    content = out.getvalue()
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def quick_and_small(content: bytes | Path, sentence: str, megabytes: float = 8) -> None:
    """Expect both readers to refuse a file after few calls, within a memory limit and without a warning."""
    for read in (decode, header):
        with warnings.catch_warnings(), pytest.raises(ImageError, match=sentence):
            warnings.simplefilter("error")
            within(partial(read, content), calls=20_000, megabytes=megabytes)


VP8X = bytes(4) + (29_999).to_bytes(3, "little") * 2
VP8L = b"\x2f" + struct.pack("<I", 16_383 | 16_383 << 14) + bytes(16)
VP8 = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383) + bytes(16)


@pytest.mark.parametrize(
    "content",
    [
        png(30_000, 30_000),
        png(65_535, 65_535, interlaced=1),
        png(2**31 - 1, 2**31 - 1),
        png(2**26 + 1, 1),
        bmp(30_000, -30_000),
        bmp(2**31 - 1, 2**31 - 1),
        riff(b"VP8X", VP8X),
        riff(b"VP8L", VP8L),
        riff(b"VP8 ", VP8),
        b"P6 30000 30000 255\n",
        b"P5 999999999 999999999 255\n",
    ],
    ids=[
        "png",
        "png interlaced",
        "png limit",
        "png one row",
        "bmp",
        "bmp limit",
        "webp extended",
        "webp lossless",
        "webp lossy",
        "ppm",
        "pgm",
    ],
)
def test_huge_images_are_refused_by_their_header(content: bytes) -> None:
    quick_and_small(content, r"pixels; accepted: up to 67,108,864 pixels in total")


def test_a_huge_jpeg_is_refused_by_its_header() -> None:
    quick_and_small(jpeg(65_500, 65_500), r"pixels; accepted: up to 500,000,000 pixels in total")


def test_an_encoded_image_of_30000_squared_is_refused(tmp_path: Path) -> None:
    """A valid file of some kilobytes has 900 million pixels of one colour."""
    packer = zlib.compressobj(9)
    row = bytes(30_000 // 8 + 1)
    body = b"".join(packer.compress(row * 100) for _ in range(300)) + packer.flush()
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    assert path.stat().st_size < 200_000
    quick_and_small(path, "30,000 x 30,000 pixels")


def test_a_huge_pil_image_is_refused() -> None:
    with pytest.raises(ImageError, match="67,108,864"):
        from_pil(Image.new("1", (2**16, 2**10 + 1)))


BOMB = zlib.compress(bytes(100 << 20), 9)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + BOMB),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
        chunk(b"iCCP", b"profile\0\0" + BOMB),
    ],
    ids=["zTXt", "iTXt", "iCCP"],
)
def test_bombs_in_metadata_stay_small(extra: bytes) -> None:
    """A text or profile of 100 MB packed into 100 kB is refused or skipped, never unpacked."""
    content = png(1, 1, extra)
    with pytest.raises(ImageError):
        within(lambda: decode(content), calls=20_000)


class Canary:
    """Unpickled, this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    for protocol in range(6):
        path = tmp_path / "cat.png"
        path.write_bytes(pickle.dumps(Canary(tmp_path / "canary"), protocol))
        quick_and_small(path, "not a supported image; accepted: PNG, JPEG, WebP, BMP, PNM")
    assert not (tmp_path / "canary").exists()


def saved(kind: str) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((31, 17), 90).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "ICO", "PDF", "PCX", "TGA", "SGI", "EPS", "DDS"])
def test_no_other_format_is_tried(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(saved(kind))
    with pytest.raises(ImageError, match="not a supported image"):
        decode(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "PPM"])
def test_every_truncation_is_an_image_error(kind: str) -> None:
    content = saved(kind)
    for cut in (*range(min(len(content), 64)), len(content) // 2, len(content) * 9 // 10):
        with pytest.raises(ImageError):
            decode(content[:cut])


def test_slow_pnm_files_are_refused() -> None:
    quick_and_small(b"P5 #" + b"a" * 2_000_000, "no PNM header in its first 4,096 bytes")
    quick_and_small(b"P3\n1000 1000\n255\n" + b"1 " * 3_000_000, "in text or of odd depth", 40)
    quick_and_small(b"P6\n1000 1000\n65535\n" + bytes(6_000_000), "in text or of odd depth", 40)
    quick_and_small(b"P5\n\n\n", "no PNM header")
    quick_and_small(b"P5\n-3 4 255\n", "no PNM header")


def test_empty_images_and_files_are_refused() -> None:
    quick_and_small(b"", r"is empty \(0 bytes\)")
    quick_and_small(png(0, 5), "damaged|no pixels")
    quick_and_small(b"P5 0 5 255\n", "damaged|no pixels")


def test_a_file_above_the_byte_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    path.write_bytes(saved("PNG"))
    os.truncate(path, (64 << 20) + 1)
    quick_and_small(path, "67,108,865 bytes; accepted: up to 67,108,864")


def test_paths_that_are_not_files_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for path, sentence in (
        (pipe, "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "absent.png", "no such file"),
        (tmp_path / "loop.png", "cannot be read"),
        (Path("a\0.png"), "not a file name"),
    ):
        quick_and_small(path, sentence)


def test_a_name_with_a_newline_stays_one_line(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines \udcff.png"
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError) as caught:
        decode(path)
    assert "\n" not in str(caught.value)


def test_pillows_own_limit_is_unchanged() -> None:
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3
    assert room.MAX_PIXELS < Image.MAX_IMAGE_PIXELS


STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"BM", b"P5", b"P6", b"P1", b"")


@given(st.sampled_from(STARTS), st.binary(max_size=300))
def test_random_bytes_raise_only_image_errors(start: bytes, rest: bytes) -> None:
    try:
        assert decode(start + rest, channels=3, size=(3, 3)).shape == (3, 3, 3)
    except ImageError as error:
        assert "\n" not in str(error)


WHOLE = {kind: saved(kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "PPM")}


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=8))
def test_damaged_files_raise_only_image_errors(kind: str, damage: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE[kind])
    for position, value in damage:
        content[position % len(content)] = value
    try:
        assert decode(bytes(content), channels=1, size=(5, 7)).shape == (1, 5, 7)
    except ImageError as error:
        assert "\n" not in str(error)
