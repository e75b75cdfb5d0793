"""Held-out images to measure an edited network on, and images to look at where the user names none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlpconv.data import Split
from mlpconv.data.as_trained import open_as_trained, recorded_data
from mlpconv.data.dataset import select
from mlpconv.errors import DataError, UsageError
from mlpconv.evaluation import align_labels
from mlpconv.inference import Classifier

__all__ = ["find_held_out", "some_images"]

MOST = 1000
"""Images that the accuracy is measured on."""
SHOWN = 6
SEED = 20131216


def find_held_out(classifier: Classifier, data: str | None, root: Path | None) -> tuple[Split | None, str]:
    """Return up to 1,000 images that the network was not trained on, or None and the reason.

    They are of the test split, or else of the validation split that training held out. Without `data`, the data set in
    the model file's record is tried; only with `data` its absence raises what `open_as_trained` raises.
    """
    if data is not None:
        return _held_out(classifier, data, root)
    name = recorded_data(classifier.info)
    advice = "To measure the accuracy, pass --evaluate DATA."
    if name is None:
        return None, f"The data set of this network is not on this machine. {advice}"
    try:
        return _held_out(classifier, name, root)
    except (DataError, UsageError):
        return None, f"The images of {name} are not on this machine, or do not fit. {advice}"


def _held_out(classifier: Classifier, data: str | Path, root: Path | None) -> tuple[Split | None, str]:
    dataset = open_as_trained(data, root, classifier)
    split = next((dataset.splits[name] for name in ("test", "val") if name in dataset.splits), None)
    if split is None or not len(split):
        return None, f"{dataset.name} has no test split, and none of its images were held out in training."
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(split))[:MOST])
    return align_labels(select(split, chosen), dataset, classifier), ""


def some_images(classifier: Classifier, held_out: Split | None) -> Iterator[tuple[str, Any]]:
    """Yield a few images with names: held-out ones of different classes, or else a drawn pattern."""
    if held_out is None:
        yield "test pattern", pattern(classifier.input_size[1:])
        return
    _, first = np.unique(held_out.labels, return_index=True)
    for index in first[:SHOWN]:
        label = classifier.classes[int(held_out.labels[index])]
        yield label, held_out.images[index : index + 1]


def pattern(size: tuple[int, ...]) -> Image.Image:
    """Return a drawn colour image: two discs and a square on a gradient."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(float)
    y, x = rows / size[0], columns / size[1]
    image = np.stack([60 + 120 * y, 110 + 60 * x, 190 - 90 * y], axis=2)
    image[(y - 0.35) ** 2 + (x - 0.3) ** 2 < 0.035] = (230, 150, 40)
    image[(y - 0.68) ** 2 + (x - 0.62) ** 2 < 0.05] = (40, 120, 60)
    image[(abs(y - 0.28) < 0.13) & (abs(x - 0.75) < 0.13)] = (240, 240, 235)
    return Image.fromarray(image.round().astype(np.uint8))
