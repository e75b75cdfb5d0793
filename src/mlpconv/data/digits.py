"""Read the digits inside the package: 1,797 images of 8 x 8 pixels (UCI, CC BY 4.0)."""

from __future__ import annotations

import gzip
from importlib import resources

import numpy as np

from mlpconv.data.dataset import Split
from mlpconv.data.validation import stratified

__all__ = ["read_digits"]

FILE = "digits.bin.gz"  # 1,797 images of 64 bytes (0..16), then their 1,797 labels
IMAGES = 1797
MAX_VALUE = 16  # each value counts the black pixels in a 4 x 4 block of the scan
TEST_FRACTION = 0.2
TEST_SEED = 20131216  # fixed, so that everyone has the same test split


def read_digits() -> dict[str, Split]:
    """Return the train (1,438) and test (359) splits, (N, 1, 8, 8); values 0..16 are scaled to 0..255 and floored."""
    packed = resources.files("mlpconv.data").joinpath(FILE).read_bytes()
    values = np.frombuffer(gzip.decompress(packed), np.uint8)
    pixels = values[: IMAGES * 64].reshape(IMAGES, 1, 8, 8).astype(np.uint16) * 255 // MAX_VALUE
    images, labels = pixels.astype(np.uint8), values[IMAGES * 64 :].astype(np.int64)
    test = stratified(labels, TEST_FRACTION, TEST_SEED)
    return {"train": Split(images[~test], labels[~test]), "test": Split(images[test], labels[test])}
