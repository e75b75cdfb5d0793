"""The digits that come with the package: 1,797 images of 8 x 8 pixels, no download (UCI, CC BY 4.0)."""

from __future__ import annotations

import gzip
from importlib import resources

import numpy as np

from mlpconv.data.dataset import Split, stratified

__all__ = ["read_digits"]

FILE = "digits.bin.gz"  # 1,797 images of 64 bytes (0..16), then their 1,797 labels
IMAGES = 1797
INK = 16  # each value counts the inked pixels among 4 x 4 of the scan
TEST_FRACTION = 0.2
TEST_SEED = 20131216  # fixed: the test part is the same for everybody


def read_digits() -> dict[str, Split]:
    """The train (1,438) and test (359) parts, (N, 1, 8, 8); values 0..16 are scaled to 0..255, rounded down."""
    packed = resources.files("mlpconv.data").joinpath(FILE).read_bytes()
    values = np.frombuffer(gzip.decompress(packed), np.uint8)
    pixels = values[: IMAGES * 64].reshape(IMAGES, 1, 8, 8).astype(np.uint16) * 255 // INK
    images, labels = pixels.astype(np.uint8), values[IMAGES * 64 :].astype(np.int64)
    test = stratified(labels, TEST_FRACTION, TEST_SEED)
    return {"train": Split(images[~test], labels[~test]), "test": Split(images[test], labels[test])}
