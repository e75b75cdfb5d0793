"""Decode image files of every supported kind."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

from mlpconv.data import decode as room
from mlpconv.data.color import to_channels
from mlpconv.data.decode import decode, from_pil, header
from mlpconv.errors import ImageError, UsageError

RNG = np.random.RandomState(11)
COLOUR = RNG.randint(0, 256, (7, 11, 3)).astype(np.uint8)
GREY = RNG.randint(0, 256, (7, 11)).astype(np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def planes(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 0, 1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "WEBP"])
def test_lossless_files_decode_exactly(tmp_path: Path, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(Image.fromarray(COLOUR), kind, **options)
    path = tmp_path / "name without a known ending"
    path.write_bytes(content)
    for source in (content, path):
        assert np.array_equal(decode(source), planes(COLOUR))
        assert header(source)[:3] == (7, 11, 3)
        assert decode(source).flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM"])
def test_grey_files_have_one_channel(kind: str) -> None:
    content = saved(Image.fromarray(GREY), kind)
    assert np.array_equal(decode(content), GREY[None])
    assert header(content)[:3] == (7, 11, 1)
    assert np.array_equal(decode(content, channels=3), np.stack([GREY] * 3))


def test_jpeg_is_close_to_its_source() -> None:
    smooth = np.asarray(Image.fromarray(COLOUR).resize((64, 48), Image.Resampling.BICUBIC))
    content = saved(Image.fromarray(smooth), "JPEG", quality=98, subsampling=0)
    assert np.abs(decode(content).astype(int) - planes(smooth)).mean() < 2


def test_grey_is_luma() -> None:
    expected = 0.299 * COLOUR[..., 0] + 0.587 * COLOUR[..., 1] + 0.114 * COLOUR[..., 2]
    assert np.abs(decode(saved(Image.fromarray(COLOUR)), channels=1)[0] - expected).max() <= 0.51


def test_transparency_is_composited_on_white() -> None:
    opacity = RNG.randint(0, 256, (7, 11)).astype(np.uint8)
    share = opacity[..., None] / 255
    expected = COLOUR * share + 255 * (1 - share)
    content = saved(Image.fromarray(np.dstack([COLOUR, opacity])))
    assert np.abs(decode(content) - planes(expected)).max() <= 1
    grey = decode(saved(Image.fromarray(np.dstack([GREY, opacity]))))
    assert grey.shape == (1, 7, 11)
    assert np.abs(grey[0] - (GREY * share[..., 0] + 255 * (1 - share[..., 0]))).max() <= 1


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (2, 2))
    image.putpalette([250, 0, 0, 0, 240, 0, 0, 0, 230])
    image.putdata([0, 1, 2, 0])
    assert decode(saved(image))[:, 0, 1].tolist() == [0, 240, 0]
    assert decode(saved(image, transparency=1))[:, 0, 1].tolist() == [255, 255, 255]
    assert header(saved(image)).channels == 3


def test_a_grey_palette_is_grey() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 10, 10, 200, 200, 200])
    image.putdata([1, 0])
    assert decode(saved(image)).tolist() == [[[200, 10]]]
    assert header(saved(image))[:3] == (1, 2, 1)
    assert from_pil(image).tolist() == [[[200, 10]]]


def test_sixteen_bits_become_eight() -> None:
    values = np.array([[0, 1, 128, 129, 257, 32767, 65406, 65407, 65535]], np.uint16)
    content = saved(Image.fromarray(values))
    assert decode(content).tolist() == [[[round(float(v) / 257) for v in values[0]]]]
    assert header(content).channels == 1
    assert decode(b"P5\n2 1\n65535\n\xff\xff\x01\x01").tolist() == [[[255, 1]]]


def test_one_bit_becomes_black_and_white() -> None:
    assert decode(b"P4\n3 1\n\xa0").tolist() == [[[0, 255, 0]]]
    assert decode(b"P1\n3 1\n1 0 1\n").tolist() == [[[0, 255, 0]]]
    assert decode(b"P2 # a remark\n2 1\n4\n0 4\n").tolist() == [[[0, 255]]]


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decode(saved(red, "JPEG"))[:, 8, 8].astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("turn", range(1, 10))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_photographs_are_rotated_upright(turn: int, kind: str) -> None:
    steps = np.zeros((16, 24, 3), np.uint8)
    steps[:8, :8] = (250, 0, 0)
    steps[8:, 16:] = (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(Image.fromarray(steps), kind, exif=exif, **options)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode(content), planes(expected))
    assert expected.shape[:2] == ((24, 16) if 5 <= turn <= 8 else (16, 24))


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(9), b"junk"]
)
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    image = Image.fromarray(COLOUR)
    image.info["exif"] = exif
    assert np.array_equal(from_pil(image), planes(COLOUR))


def test_the_first_frame_is_decoded() -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue", "green")]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(content)[:, 2, 2].tolist() == [255, 0, 0]


def test_a_pil_image_is_not_changed() -> None:
    image = Image.fromarray(np.dstack([COLOUR, GREY]))
    before = image.tobytes()
    from_pil(image, 1, (5, 5))
    assert (image.mode, image.size, image.tobytes()) == ("RGBA", (11, 7), before)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 23), st.integers(1, 23))
def test_any_shape_is_resized_to_the_requested_size(height: int, width: int, to_height: int, to_width: int) -> None:
    content = saved(Image.new("RGB", (width, height), (9, 99, 199)))
    pixels = decode(content, size=(to_height, to_width))
    assert pixels.shape == (3, to_height, to_width)
    assert (pixels == np.array([9, 99, 199])[:, None, None]).all()


def test_crop_keeps_the_centre_without_stretching() -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    assert (decode(saved(Image.fromarray(wide)), size=(5, 5)) > 200).all()
    tall = np.ascontiguousarray(wide.T)
    assert (decode(saved(Image.fromarray(tall)), size=(5, 5)) > 200).all()


def test_downscaling_is_antialiased() -> None:
    """A checkerboard of single pixels becomes grey, not a moiré of black and white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = decode(saved(Image.fromarray(board)), size=(9, 9)).astype(int)
    assert np.abs(small - 127.5).max() < 12


def test_an_image_of_the_requested_size_is_unchanged() -> None:
    assert np.array_equal(decode(saved(Image.fromarray(COLOUR)), size=(7, 11)), planes(COLOUR))


def test_a_large_jpeg_decoded_at_a_fraction_is_almost_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = Image.fromarray(RNG.randint(0, 256, (40, 60, 3)).astype(np.uint8)).resize((2600, 1800))
    content = saved(smooth, "JPEG", quality=95)
    drafts: list[object] = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda *args: drafts.append(args[2]) or draft(*args))
    fast = decode(content, size=(32, 32)).astype(int)
    assert drafts == [(325, 225)]
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        whole = from_pil(image, 3, (32, 32)).astype(int)
    assert np.abs(fast - whole).max() <= 4
    assert decode(content).shape == (3, 1800, 2600)
    assert len(drafts) == 1


def test_a_large_jpeg_decodes_the_same_from_a_path_bytes_and_an_opened_image(tmp_path: Path) -> None:
    smooth = Image.fromarray(RNG.randint(0, 256, (40, 60, 3)).astype(np.uint8)).resize((2600, 1800))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(saved(smooth, "JPEG", quality=95, exif=exif))
    expected = decode(tmp_path / "a.jpg", size=(61, 61))
    assert np.array_equal(decode((tmp_path / "a.jpg").read_bytes(), size=(61, 61)), expected)
    with Image.open(tmp_path / "a.jpg") as image:
        for _ in range(2):
            assert np.array_equal(from_pil(image, size=(61, 61)), expected)
        assert image.size == (2600, 1800)
        assert image.load()[0, 0] == Image.open(tmp_path / "a.jpg").load()[0, 0]


def test_a_photograph_of_200_megapixels_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use limits of a thousandth, and a JPEG of 0.2 megapixels."""
    monkeypatch.setattr(room, "MAX_PIXELS", 67_108)
    content = saved(Image.fromarray(RNG.randint(0, 256, (400, 500, 3)).astype(np.uint8)), "JPEG")
    for size in (None, (9, 9), (300, 300)):
        with Image.open(io.BytesIO(content)) as image:
            assert np.array_equal(from_pil(image, size=size), decode(content, size=size))
    assert decode(content).shape == (3, 200, 250)
    with pytest.raises(ImageError, match="500 x 400 pixels; accepted: up to 67,108 pixels"):
        decode(saved(Image.open(io.BytesIO(content))), size=(9, 9))
    with pytest.raises(ImageError, match=r"progressive JPEG of .*, which is decoded at full size.*67,108"):
        decode(saved(Image.open(io.BytesIO(content)), "JPEG", progressive=True), size=(9, 9))
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        with pytest.raises(ImageError, match="67,108"):
            from_pil(image)


def test_a_jpeg_with_separate_component_scans_is_fully_buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return a JPEG whose first scan header lists one of three components."""
    content = bytearray(saved(Image.fromarray(COLOUR), "JPEG"))
    monkeypatch.setattr(room, "MAX_PIXELS", 76)
    assert decode(bytes(content), size=(2, 2)).shape == (3, 2, 2)
    start = content.index(b"\xff\xda")
    assert content[start + 4] == 3
    content[start + 2 : start + 14] = bytes((0, 8, 1, 1, 0, 0, 63, 0))
    with pytest.raises(ImageError, match="decoded at full size"):
        decode(bytes(content), size=(2, 2))


def test_arrays_are_converted_between_grey_and_colour() -> None:
    image = planes(COLOUR)
    assert np.array_equal(to_channels(image, 1), decode(saved(Image.fromarray(COLOUR)), channels=1))
    assert np.array_equal(to_channels(GREY[None], 3), np.stack([GREY] * 3))
    assert to_channels(np.stack([image] * 5), 1).shape == (5, 1, 7, 11)
    assert to_channels(image, 3) is image
    see_through = np.concatenate([image, GREY[None]])
    expected = decode(saved(Image.fromarray(np.dstack([COLOUR, GREY]))))
    assert np.abs(to_channels(see_through, 3).astype(int) - expected).max() <= 1
    for array, channels in ((image, 2), (image[:2], 3), (image.astype(float), 1), (GREY, 1)):
        with pytest.raises(UsageError, match="cannot convert"):
            to_channels(array, channels)


def test_invalid_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="1 or 3"):
        decode(saved(Image.fromarray(COLOUR)), channels=2)


def test_floating_point_images_are_refused() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        from_pil(Image.new("F", (3, 3)))


def test_exif_after_the_pixels_of_a_png_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    content = saved(Image.fromarray(COLOUR))
    out = io.BytesIO()
    PngImagePlugin.putchunk(out, b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    late = content[:-12] + out.getvalue() + content[-12:]
    assert np.array_equal(decode(late), planes(COLOUR[::-1, ::-1]))
