"""SVHN's MATLAB files, written by SciPy and read without it."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from mlpconv.data import open_data, svhn
from mlpconv.data.svhn import MAGIC, read_svhn
from mlpconv.errors import DataError


def write_mat(path: Path, count: int, seed: int, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Write a file of `count` images (32, 32, 3, N) and labels 1..10 (N, 1)."""
    rng = np.random.RandomState(seed)
    pixels = rng.randint(0, 256, (32, 32, 3, count)).astype(np.uint8)
    labels = rng.randint(1, 11, (count, 1)).astype(np.uint8)
    content = {"X": pixels, "y": labels, **changes}
    path.parent.mkdir(exist_ok=True)
    savemat(path, {key: value for key, value in content.items() if value is not None}, do_compression=True)
    return pixels, labels


def test_pixels_and_labels_are_read(tmp_path: Path) -> None:
    pixels, labels = write_mat(tmp_path / "svhn" / "train_32x32.mat", 17, 1)
    data = open_data("svhn", root=tmp_path)
    train = data.split("train")
    assert train.images.shape == (17, 3, 32, 32)
    for i in (0, 16):
        assert np.array_equal(train.images[i], pixels[:, :, :, i].transpose(2, 0, 1))
    assert train.labels.tolist() == [0 if label == 10 else label for label in labels[:, 0].tolist()]
    assert 10 in labels
    assert any("no test split" in note for note in data.notes)


def test_the_extra_images_follow_those_of_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svhn, "CHUNK", 4)
    first, _ = write_mat(tmp_path / "train_32x32.mat", 5, 1)
    extra, _ = write_mat(tmp_path / "extra_32x32.mat", 11, 2)
    write_mat(tmp_path / "test_32x32.mat", 3, 3)
    data = open_data("svhn", root=tmp_path)
    assert len(data.split("train")) == 16
    assert len(data.split("test")) == 3
    assert np.array_equal(data.split("train").images[4], first[..., 4].transpose(2, 0, 1))
    assert np.array_equal(data.split("train").images[15], extra[..., 10].transpose(2, 0, 1))
    assert any("train split of svhn includes the extra images" in note for note in data.notes)


def test_labels_may_be_a_row_of_doubles(tmp_path: Path) -> None:
    write_mat(tmp_path / "test_32x32.mat", 3, 1, y=np.array([[1.0, 10.0, 9.0]]))
    assert open_data("svhn", root=tmp_path).split("test").labels.tolist() == [1, 0, 9]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int32, np.uint64, np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_labels_of_every_type_are_read(tmp_path: Path, packed: bool, kind: type, count: int) -> None:
    pixels = np.random.RandomState(3).randint(0, 256, (32, 32, 3, count)).astype(np.uint8)
    labels = (np.arange(count) % 10 + 1).astype(kind)[:, None]
    savemat(tmp_path / "test_32x32.mat", {"other": "text", "y": labels, "X": pixels}, do_compression=packed)
    test = open_data("svhn", root=tmp_path).split("test")
    assert test.labels.tolist() == [label % 10 for label in range(1, count + 1)]
    assert np.array_equal(test.images, pixels.transpose(3, 2, 0, 1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"X": np.zeros((32, 32, 3, 3), np.float64)}, "X must be uint8"),
        ({"X": np.zeros((31, 32, 3, 3), np.uint8)}, "X must be uint8"),
        ({"X": np.zeros((32, 32, 3), np.uint8)}, "X must be uint8"),
        ({"X": None}, "X must be uint8"),
        ({"y": np.zeros((4, 1), np.uint8)}, "one label for each of the 3"),
        ({"y": None}, "one label for each of the 3"),
        ({"y": np.array([[1], [2], [11]], np.uint8)}, "labels must be 1 to 10"),
        ({"y": np.array([[1.0], [2.0], [2.5]])}, "labels must be 1 to 10"),
        ({"y": np.array([["a"], ["b"], ["c"]])}, "one label|unknown kind|labels must"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    write_mat(tmp_path / "test_32x32.mat", 3, 1, **changes)
    with pytest.raises(DataError, match=sentence):
        open_data("svhn", root=tmp_path)


def element(order: str, code: int, content: bytes) -> bytes:
    return struct.pack(order + "II", code, len(content)) + content + bytes(-len(content) % 8)


def variable(order: str, name: bytes, shape: tuple[int, ...], kind: int, numbers: bytes, code: int = 2) -> bytes:
    """Return an array as specified by the format: flags, dimensions, name, numbers."""
    inside = element(order, 6, struct.pack(order + "II", kind, 0))
    inside += element(order, 5, struct.pack(f"{order}{len(shape)}i", *shape)) + element(order, 1, name)
    return element(order, 14, inside + numbers)


def packed(order: str, content: bytes) -> bytes:
    stream = zlib.compress(content, 9)
    return struct.pack(order + "II", 15, len(stream)) + stream


def head(order: str) -> bytes:
    return MAGIC.ljust(124) + (b"\x00\x01IM" if order == "<" else b"\x01\x00MI")


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_are_read(tmp_path: Path, order: str) -> None:
    pixels = np.random.RandomState(4).bytes(2 * 3072)
    labels = np.array([10, 7], order + "u2").tobytes()
    content = variable(order, b"X", (32, 32, 3, 2), 9, element(order, 2, pixels))
    content += packed(order, variable(order, b"y", (2, 1), 11, struct.pack(order + "I", 4 << 16 | 4) + labels))
    (tmp_path / "test_32x32.mat").write_bytes(head(order) + content)
    test = open_data("svhn", root=tmp_path).split("test")
    assert test.labels.tolist() == [0, 7]
    expected = np.frombuffer(pixels, np.uint8).reshape((32, 32, 3, 2), order="F").transpose(3, 2, 0, 1)
    assert np.array_equal(test.images, expected)


Y = variable("<", b"y", (1, 1), 9, element("<", 2, b"\1"))
ONE = element("<", 2, bytes(3072))  # the pixels of one image


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (packed("<", variable("<", b"X", (32, 32, 3, 1), 9, b"")) + Y, "ends 4 bytes early"),
        (
            variable("<", b"X", (32, 32, 3, 1), 9, struct.pack("<II", 2, 2**32 - 1)) + Y,
            "contradicts its declared type",
        ),
        (
            variable("<", b"X", (32, 32, 3, 1), 9, element("<", 9, bytes(3072))) + Y,
            "contradicts its declared type",
        ),
        (packed("<", variable("<", b"X", (32, 32, 3, 1), 9, ONE) + bytes(9)) + Y, "more or less"),
        (variable("<", b"X", (32, 32, 3, 2**31 - 1), 9, b"") + Y, "declares 2,147,483,647 images"),
        (variable("<", b"X", (32, 32, 3, -1), 9, b"") + Y, "declares -1 images"),
        (variable("<", b"X", (1,) * 9, 9, b""), "header of an array is too long"),
        (variable("<", b"X" * 65, (1,), 9, b""), "header of an array is too long"),
        (Y * 17, "more than 16 arrays"),
        (element("<", 9, b"12345678"), "an element is truncated or is not an array"),
        (struct.pack("<II", 14, 2**32 - 1), "an element is truncated or is not an array"),
        (packed("<", element("<", 9, b"12345678")), "not an array"),
        (struct.pack("<II", 15, 8) + b"not zlib", "incorrect header check"),
    ],
)
def test_inconsistent_files_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "test_32x32.mat").write_bytes(head("<") + content)
    with pytest.raises(DataError, match=sentence):
        open_data("svhn", root=tmp_path)


def test_a_zlib_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """64 MiB of zeros follow two images in the same compressed element."""
    array = variable("<", b"X", (32, 32, 3, 1), 9, element("<", 2, bytes(3072)))
    zeros = zlib.compressobj(1)
    stream = zeros.compress(array) + b"".join(zeros.compress(bytes(1 << 20)) for _ in range(64)) + zeros.flush()
    (tmp_path / "test_32x32.mat").write_bytes(head("<") + struct.pack("<II", 15, len(stream)) + stream + Y)
    tracemalloc.start()
    with pytest.raises(DataError, match="more or less"):
        open_data("svhn", root=tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True])
def test_truncations_and_flipped_bits_are_refused(tmp_path: Path, packed: bool) -> None:
    """Compressed numbers have a checksum, which detects every flipped bit; plain numbers have none."""
    path = tmp_path / "test_32x32.mat"
    pixels = np.random.RandomState(1).randint(0, 256, (32, 32, 3, 1)).astype(np.uint8)
    savemat(path, {"X": pixels, "y": np.array([[3]], np.uint8)}, do_compression=packed)
    content = path.read_bytes()
    assert read_svhn([path], [5]).labels.tolist() == [3]
    refused = 0
    ends = {content.index(struct.pack("<I", 15 if packed else 14), 128)}  # between two arrays a cut leaves a whole one
    for cut in (*range(0, 300, 7), *range(300, len(content), 397)):
        path.write_bytes(content[:cut])
        if cut not in ends:
            with pytest.raises(DataError):
                read_svhn([path], [5])
            refused += 1
    assert refused > 30
    for position in (*range(128, 300, 2), *range(300, len(content), 131)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            split = read_svhn([path], [5])
        except DataError:
            refused += 1
            continue
        assert not packed or np.array_equal(split.images[0], pixels[..., 0].transpose(2, 0, 1))
    assert refused > 50
