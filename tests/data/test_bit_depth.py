"""Files with 16 bits per sample that use fewer are scaled to eight bits, in prediction as in training."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mlpconv
from mlpconv.data import open_data
from mlpconv.data.as_trained import open_as_trained
from mlpconv.data.decode import decode, from_pil, header, largest_value
from mlpconv.decode_options import DecodeOptions
from mlpconv.training import Recipe
from mlpconv.training.network import make_model
from mlpconv.training.run_data import make_preprocessing

RNG = np.random.RandomState(3)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png16(values: np.ndarray, *extra: bytes) -> bytes:
    """Return a PNG file with 16 bits per sample from values (H, W, C), following the specification."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = (chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_the_used_bits_are_scaled_to_eight(channels: int, bits: int) -> None:
    values = RNG.randint(0, 1 << bits, (5, 7, channels))
    expected = np.rint(values * 255 / ((1 << bits) - 1)).transpose(2, 0, 1)
    content = png16(values)
    pixels = decode(content, decode_options=DecodeOptions(bits=bits))
    assert np.array_equal(pixels, expected)
    with Image.open(io.BytesIO(content)) as image:
        for _ in range(2):
            assert np.array_equal(from_pil(image, decode_options=DecodeOptions(bits=bits)), pixels)


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_always_uses_sixteen_bits(channels: int) -> None:
    values = RNG.randint(0, 1 << 12, (5, 7, channels))
    values[..., -1] = 65535
    values[0, 0, -1] = 0
    pixels = decode(png16(values), decode_options=DecodeOptions(bits=12)).transpose(1, 2, 0)
    assert pixels[0, 0].tolist() == [255] * (channels - 1)
    expected = np.rint(values[..., :-1] * 255 / 4095)
    assert np.abs(pixels - expected)[1:].max() <= 1


def test_values_beyond_the_bits_are_white() -> None:
    assert decode(png16(np.array([[[1023], [1024], [65535]]])), decode_options=DecodeOptions(bits=10)).tolist() == [
        [[255] * 3]
    ]


def test_sixteen_bits_and_the_largest_value_are_read_from_a_file(tmp_path: Path) -> None:
    for channels in (1, 2, 3, 4):
        values = RNG.randint(0, 3000, (5, 7, channels))
        values[..., -1] = values[..., -1] if channels in (1, 3) else 65535
        (tmp_path / "a.png").write_bytes(png16(values))
        assert header(tmp_path / "a.png") == (5, 7, 1 if channels < 3 else 3, True)
        colours = values[..., : 1 if channels < 3 else 3]
        assert largest_value(tmp_path / "a.png") == colours.max()
    Image.new("L", (3, 3)).save(tmp_path / "grey.png")
    assert header(tmp_path / "grey.png") == (3, 3, 1, False)


def test_a_transparent_value_of_sixteen_bits_is_white() -> None:
    grey = decode(png16(np.array([[[0], [300], [40_000]]]), chunk(b"tRNS", struct.pack(">H", 300))))
    assert grey.tolist() == [[[0, 255, 156]]]
    values = np.array([[[300, 301, 302], [300, 301, 303]]])
    colour = decode(png16(values, chunk(b"tRNS", struct.pack(">HHH", 300, 301, 302))))
    assert colour[:, 0].tolist() == [[255, 1], [255, 1], [255, 1]]


def test_sixteen_bit_grey_with_alpha_is_grey() -> None:
    content = png16(RNG.randint(0, 65536, (3, 5, 2)))
    assert header(content).channels == 1
    assert decode(content).shape == (1, 3, 5)


def make(folder: Path, most: int, **classes: int) -> Path:
    for name, light in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(8):
            values = RNG.randint(0, 40, (11, 11, 1)) + light
            values[0, 0] = most
            (folder / name / f"{i}.png").write_bytes(png16(values))
    return folder


@pytest.mark.parametrize(("most", "bits"), [(200, 8), (1000, 10), (4095, 12), (4096, 14), (16_384, 16), (65_535, 16)])
def test_the_bits_are_inferred_from_the_training_images(tmp_path: Path, most: int, bits: int) -> None:
    data = open_data(make(tmp_path / "x", most, dark=10, light=100))
    assert data.decode_options == DecodeOptions(bits=bits)
    depth_notes = [note for note in data.notes if "16 bits per sample" in note]
    assert len(depth_notes) == (bits < 16)
    assert all(
        f"use only {bits} (the largest value is {most:,}): {2**bits - 1:,} becomes white" in note
        for note in depth_notes
    )
    assert open_data(tmp_path / "x", bits=16).decode_options == DecodeOptions()


def test_a_model_decodes_sixteen_bits_as_its_training_did(tmp_path: Path) -> None:
    """Four classes differ by 12 of 4095 within 12 bits; read as 16 bits, all are black."""
    folder = make(tmp_path / "x", 4095, a=0, b=60, c=120, d=180)
    data, recipe = open_data(folder, val_fraction=0), Recipe(model="nin_tiny", val_fraction=0)
    model, preprocessing = make_model(data, recipe, torch.device("cpu")), make_preprocessing(data, recipe)
    mlpconv.save(tmp_path / "m", model, preprocessing, classes=data.classes, input_size=(1, 11, 11), info={})
    classifier = mlpconv.load(tmp_path / "m")
    assert classifier.preprocessing.decode_options == DecodeOptions(bits=12)
    files = sorted(folder.glob("*/*.png"))
    assert np.array_equal(classifier.pixels(files).numpy(), data.split("train").images)
    assert np.array_equal(classifier.pixels([Image.open(file) for file in files]).numpy(), data.split("train").images)
    again = open_as_trained(str(folder), None, classifier)
    assert again.fingerprint == data.fingerprint
