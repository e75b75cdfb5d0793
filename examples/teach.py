"""Teach a small network with a larger one, on a few of the embedded digits: `python examples/teach.py`.

The teacher is the shipped network `digits`, which was trained on 1,151 digits. The student has a tenth of its
parameters and sees ten digits of each class, with and without the teacher. Both are validated on the same held-out
digits, on which the teacher was not trained either.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import mlpconv
from mlpconv.data import Dataset, make_dataset
from mlpconv.data.dataset import select
from mlpconv.data.validation import with_validation

PER_CLASS = 10
STUDENT: dict[str, Any] = {"model": "nin_tiny", "width": 0.25, "batch_size": 20, "crop": 1, "report": False}


def few(dataset: Dataset, per_class: int) -> Dataset:
    """Return the first training images of each class, and all held-out images."""
    train = dataset.split("train")
    rows = np.concatenate([np.flatnonzero(train.labels == label)[:per_class] for label in range(dataset.num_classes)])
    return make_dataset(
        dataset.name, dataset.classes, {"train": select(train, np.sort(rows)), "val": dataset.split("val")}
    )


def main(epochs: int = 60) -> dict[str, float]:
    """Train the student alone and with the teacher; print and return the validation accuracies."""
    digits = few(with_validation(mlpconv.open_data("digits"), 0.2, 0), PER_CLASS)
    with tempfile.TemporaryDirectory() as top:
        settings = STUDENT | {"epochs": epochs, "progress": None}
        alone = mlpconv.fit(digits, out=Path(top, "alone"), **settings)
        taught = mlpconv.fit(digits, out=Path(top, "taught"), teacher="digits", **settings)
    accuracies = {
        "teacher": taught.classifier.info["teacher"]["val_accuracy"],
        "alone": alone.history[-1]["val_accuracy"],
        "taught": taught.history[-1]["val_accuracy"],
    }
    for name, accuracy in accuracies.items():
        print(f"{name:8} {accuracy:.1%}")
    return accuracies


if __name__ == "__main__":
    main()
