"""The data sets of the measured claims, at a size that fits many paired runs, and the length of training on each."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlpconv.claims.networks import Shape
from mlpconv.data import open_data
from mlpconv.data.validation import stratified
from mlpconv.errors import DataError

__all__ = ["BUDGET", "Budget", "Images", "available", "load_images", "on_canvas", "tuning_images"]

TUNE_FRACTION = 0.2
TUNE_SEED = 21
QUARTERS = 4


@dataclass(frozen=True)
class Budget:
    """How many images, at which size, and for how many epochs."""

    data: str
    side: int
    """Rows and columns after averaging blocks of pixels."""
    train: int
    test: int
    epochs: int
    batch: int
    describe: str
    held_out: bool = False
    """Whether the last training images serve as test images, for want of a test split."""


BUDGET = {
    "digits": Budget(
        "digits", 8, 1438, 359, 12, 64, "all 1,438 training and 359 test images of 8 x 8 pixels, 12 epochs"
    ),
    "mnist": Budget(
        "mnist", 14, 10_000, 10_000, 4, 100, "10,000 training and 10,000 test images at 14 x 14 pixels, 4 epochs"
    ),
    "cifar10": Budget(
        "cifar10", 16, 10_000, 10_000, 6, 100,
        "10,000 training images at 16 x 16 pixels, 6 epochs; tested on the last 10,000 of the 50,000 training images",
        held_out=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Images:
    """Standardised images (N, C, H, W) float32 and labels (N,), for training and for testing."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    shape: Shape


def available(name: str) -> bool:
    """Return whether the files of a data set are there."""
    try:
        open_data(BUDGET[name].data)
    except DataError:
        return False
    return True


@functools.lru_cache(maxsize=2)
def load_images(name: str) -> Images:
    """Load the images of a budget; raise DataError if the data set is not available."""
    budget = BUDGET[name]
    data = open_data(budget.data)
    train = data.split("train")
    images, labels = train.images, train.labels
    if budget.held_out:
        test_images, test_labels = images[-budget.test :], labels[-budget.test :]
        images, labels = images[: -budget.test], labels[: -budget.test]
    else:
        test_images, test_labels = data.split("test").images[: budget.test], data.split("test").labels[: budget.test]
    pixels, test_pixels = _shrunk(images[: budget.train], budget.side), _shrunk(test_images, budget.side)
    mean, deviation = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True)
    return Images(
        ((pixels - mean) / deviation).contiguous(memory_format=torch.channels_last),
        torch.from_numpy(labels[: budget.train]),
        ((test_pixels - mean) / deviation).contiguous(memory_format=torch.channels_last),
        torch.from_numpy(test_labels),
        Shape(pixels.shape[1], budget.side, data.num_classes),
    )


def _shrunk(images: np.ndarray, side: int) -> Tensor:
    """Average square blocks of pixels: (N, C, H, W) uint8 -> (N, C, side, side) float32."""
    block = images.shape[2] // side
    grouped = torch.from_numpy(np.array(images)).float().unflatten(3, (side, block)).unflatten(2, (side, block))
    shrunk: Tensor = grouped.mean((3, 5))
    return shrunk


def tuning_images(images: Images) -> Images:
    """Return the training images split into 80 % to train on and 20 % to choose a learning rate on."""
    held = torch.from_numpy(stratified(images.train_labels.numpy(), TUNE_FRACTION, TUNE_SEED))
    return Images(
        images.train[~held], images.train_labels[~held], images.train[held], images.train_labels[held], images.shape
    )


def on_canvas(images: Images, seed: int) -> Images:
    """Place each image in a random quarter of an image of twice the size; the rest has the images' smallest value."""
    generator = torch.Generator().manual_seed(seed)

    def placed(pixels: Tensor) -> Tensor:
        n, channels, side, _ = pixels.shape
        canvas = torch.full((n, channels, 2 * side, 2 * side), float(pixels.min()))
        quarter = torch.randint(QUARTERS, (n,), generator=generator)
        for index in range(QUARTERS):
            top, left = side * (index // 2), side * (index % 2)
            canvas[quarter == index, :, top : top + side, left : left + side] = pixels[quarter == index]
        return canvas.contiguous(memory_format=torch.channels_last)

    return Images(
        placed(images.train), images.train_labels, placed(images.test), images.test_labels,
        images.shape._replace(side=2 * images.shape.side),
    )  # fmt: skip
