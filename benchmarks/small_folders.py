"""Small folders of CIFAR-100 images and their random splits, the same for every benchmark of transfer learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import mlpconv

__all__ = ["CLASSES", "picture", "positions", "split_folder", "write_images"]

CLASSES = {"colour": range(0, 100, 10), "grey": range(5, 100, 10)}
"""The classes of each folder, by their number in CIFAR-100."""
HELD_OUT = 20  # images of each class
PARTS = {"folder": range(100), "test": range(100, 200), "tuning": range(200, 300), "tuning-test": range(300, 400)}
"""The images of each class, by their order in CIFAR-100."""


def positions(split: mlpconv.data.Split, label: int, part: str) -> NDArray[np.intp]:
    """Return the positions in a split of the images of a class that a part has."""
    return np.flatnonzero(split.labels == label)[list(PARTS[part])]


def picture(split: mlpconv.data.Split, number: int, kind: str) -> Image.Image:
    """Return an image of a split, in grey for the folder of grey images."""
    image = Image.fromarray(split.images[number].transpose(1, 2, 0))
    return image.convert("L") if kind == "grey" else image


def write_images(cifar: mlpconv.Dataset, kind: str, part: str, out: Path) -> Path:
    """Write a part of the images of each class as PNG files, one folder per class; return the folder."""
    train = cifar.split("train")
    for label in CLASSES[kind]:
        folder = out / f"{kind}-{part}" / cifar.classes[label]
        folder.mkdir(parents=True)
        for number in positions(train, label, part):
            picture(train, number, kind).save(folder / f"{number:05d}.png")
    return out / f"{kind}-{part}"


def split_folder(folder: Path, out: Path, per_class: int, seed: int) -> Path:
    """Link `per_class` images of each class as train/, and 20 others as val/; return the folder `out`."""
    rng = np.random.default_rng(seed)
    for name in sorted(path.name for path in folder.iterdir()):
        files = sorted((folder / name).iterdir())
        order = rng.permutation(len(files))
        parts = {"val": order[:HELD_OUT], "train": order[HELD_OUT : HELD_OUT + min(per_class, len(files) - HELD_OUT)]}
        for part, chosen in parts.items():
            (out / part / name).mkdir(parents=True)
            for index in sorted(chosen):
                (out / part / name / files[index].name).symlink_to(files[index])
    return out
