"""Write small data sets in the published formats, following their specifications."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an IDX file: 0, 0, type 8 (unsigned byte), number of dimensions, dimensions, data."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist_files(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Return a root with 13 training images in MNIST's format (gzip) and no test files, the pixels and the labels."""
    rng = np.random.RandomState(5)
    images = rng.randint(0, 256, (13, 28, 28)).astype(np.uint8)
    labels = rng.randint(0, 10, 13).astype(np.uint8)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return tmp_path, images, labels


def cifar_records(count: int, head: int, classes: int, seed: int) -> np.ndarray:
    rng = np.random.RandomState(seed)
    records = rng.randint(0, 256, (count, head + 3072)).astype(np.uint8)
    records[:, head - 1] = rng.randint(0, classes, count)
    return records


@pytest.fixture
def cifar10_files(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Return a root with five CIFAR-10 batches of 7 records and no test batch, and all records in order."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    records = cifar_records(35, 1, 10, 3)
    for i in range(5):
        (folder / f"data_batch_{i + 1}.bin").write_bytes(records[7 * i : 7 * i + 7].tobytes())
    return tmp_path, records


def tar_bytes(members: list[tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return out.getvalue()


@pytest.fixture
def write() -> SimpleNamespace:
    """Return the writers of the formats."""
    return SimpleNamespace(idx=idx_bytes, cifar=cifar_records, tar=tar_bytes)


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that fills a folder of class folders: pictures(cat=11, dog=7) -> its path."""

    def make(size: tuple[int, int] = (19, 23), mode: str = "RGB", below: str = "", **counts: int) -> Path:
        rng = np.random.RandomState(1)
        top = tmp_path / "animals"
        for name, count in counts.items():
            folder = top / below / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                shape = size if mode == "L" else (*size, len(mode))
                Image.fromarray(rng.randint(0, 256, shape).astype(np.uint8)).save(folder / f"{i:02}.png")
        return top

    return make
