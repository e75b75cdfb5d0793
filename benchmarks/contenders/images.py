"""The images of all contenders: CIFAR-10 if it is available, otherwise noise around one colour per class."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

__all__ = ["CLASSES", "images"]

CLASSES = 10


def images(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 images (N, 3, side, side) and class numbers (N,), from CIFAR-10 if $MLPCONV_DATA is set.

    The noise can be learned: a network that learns nothing could look collapsed, and the trainer would reinitialise it.
    """
    if os.environ.get("MLPCONV_DATA"):
        import mlpconv

        train = mlpconv.open_data("cifar10").split("train")
        return np.stack([_sized(image, side) for image in train.images[:count]]), train.labels[:count].copy()
    draw = np.random.default_rng(0)
    labels = draw.integers(0, CLASSES, count)
    colours = draw.integers(60, 196, (CLASSES, 3))
    pixels = colours[labels][:, :, None, None] + draw.integers(-60, 60, (count, 3, side, side))
    return pixels.astype(np.uint8), labels


def _sized(image: np.ndarray, side: int) -> np.ndarray:
    if image.shape[1:] == (side, side):
        return image
    resized = Image.fromarray(image.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)
