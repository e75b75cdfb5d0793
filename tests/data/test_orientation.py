"""Images are rotated upright by EXIF data and XMP packets of every format."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from mlpconv.data.decode import decode, from_pil
from mlpconv.data.orientation import MAX_XMP_BYTES, upright

STEPS = np.zeros((16, 24, 3), np.uint8)
STEPS[:8, :8] = (250, 0, 0)
STEPS[8:, 16:] = (0, 0, 250)
PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {}</rdf:Description></rdf:RDF></x:xmpmeta>'
)


def packets(turn: int) -> tuple[str, str, str]:
    """Return an XMP packet with the orientation as an attribute, in either quotes, or as an element."""
    return (
        PACKET.format(f'tiff:Orientation="{turn}">'),
        PACKET.format(f"tiff:Orientation = '{turn}'>"),
        PACKET.format(f"><tiff:Orientation> {turn} </tiff:Orientation>"),
    )


def expected(turn: int) -> np.ndarray:
    """Return the pixels (C, H, W) that Pillow produces for the same orientation in EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = turn
    out = io.BytesIO()
    Image.fromarray(STEPS).save(out, "PNG", exif=exif)
    return np.asarray(ImageOps.exif_transpose(Image.open(out))).transpose(2, 0, 1)


def png(*chunks: bytes) -> bytes:
    out = io.BytesIO()
    Image.fromarray(STEPS).save(out, "PNG")
    content = out.getvalue()
    return content[:33] + b"".join(chunks) + content[33:]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def profile(name: bytes, content: bytes) -> bytes:
    """Return a profile as ImageMagick stores it in PNG files: compressed hexadecimal text."""
    digits = content.hex()
    lines = "\n".join(digits[start : start + 72] for start in range(0, len(digits), 72))
    text = f"\n{name.decode()}\n{len(content):8}\n{lines}\n".encode()
    return chunk(b"zTXt", b"Raw profile type " + name + b"\0\0" + zlib.compress(text))


@pytest.mark.parametrize("turn", range(1, 9))
def test_an_xmp_packet_rotates_an_image(turn: int) -> None:
    for packet in packets(turn):
        text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet.encode())
        assert np.array_equal(decode(png(text)), expected(turn))
        for kind, options in (("JPEG", {"quality": 100}), ("WEBP", {"lossless": True})):
            out = io.BytesIO()
            Image.fromarray(STEPS).save(out, kind, xmp=packet.encode(), **options)
            assert np.abs(decode(out.getvalue()).astype(int) - expected(turn)).mean() < 20
            assert decode(out.getvalue()).shape == expected(turn).shape


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_raw_profile_rotates_an_image(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    block = exif.tobytes()
    start = b"" if block.startswith(b"Exif\0\0") else b"Exif\0\0"
    for name, content in (
        (b"exif", start + block),
        (b"APP1", start + block),
        (b"APP1", b"http://ns.adobe.com/xap/1.0/\0" + packets(turn)[0].encode()),
        (b"xmp", packets(turn)[0].encode()),
    ):
        assert np.array_equal(decode(png(profile(name, content))), expected(turn))
        assert np.array_equal(from_pil(Image.open(io.BytesIO(png(profile(name, content))))), expected(turn))


def test_exif_takes_precedence_over_xmp() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    out = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", packets(6)[0])
    Image.fromarray(STEPS).save(out, "PNG", exif=exif, pnginfo=text)
    assert np.array_equal(decode(out.getvalue()), expected(3))


@pytest.mark.parametrize(
    "info",
    [
        {"xmp": b'tiff:Orientation="9"'},
        {"xmp": b'tiff:Orientation="66"'},
        {"xmp": 6},
        {"xmp": b" " * MAX_XMP_BYTES + packets(6)[0].encode()},
        {"XML:com.adobe.xmp": "tiff:Orientation"},
        {"Raw profile type exif": "\nexif\n 12\nnot digits\n"},
        {"Raw profile type exif": "\nexif\n"},
        {"Raw profile type APP1": "\nAPP1\n 3\n414\n"},
    ],
)
def test_damaged_metadata_is_ignored(info: dict[str, object]) -> None:
    image = Image.fromarray(STEPS)
    assert upright(image, info) is image


def test_xmp_rotates_the_images_of_a_folder(tmp_path: Path) -> None:
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packets(6)[0].encode())
    (tmp_path / "a.png").write_bytes(png(text))
    assert decode(tmp_path / "a.png").shape == (3, 24, 16)
