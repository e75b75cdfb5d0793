"""Small folders of CIFAR-100 images and their random splits, the same for every benchmark of transfer learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from folders import CLASSES
from PIL import Image

import mlpconv

HELD_OUT = 20  # images of each class
PARTS = {"folder": range(100), "test": range(100, 200), "tuning": range(200, 300), "tuning-test": range(300, 400)}
"""The images of each class, by their order in CIFAR-100."""


def write_images(cifar: mlpconv.Dataset, kind: str, part: str, out: Path) -> Path:
    """Write a part of the images of each class as PNG files, one folder per class; return the folder."""
    train = cifar.split("train")
    for label in CLASSES[kind]:
        folder = out / f"{kind}-{part}" / cifar.classes[label]
        folder.mkdir(parents=True)
        for number in np.flatnonzero(train.labels == label)[list(PARTS[part])]:
            image = Image.fromarray(train.images[number].transpose(1, 2, 0))
            (image.convert("L") if kind == "grey" else image).save(folder / f"{number:05d}.png")
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
