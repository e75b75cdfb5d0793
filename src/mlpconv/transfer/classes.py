"""The classes of a data set beside those of a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mlpconv.data import Dataset, Split, make_dataset
from mlpconv.errors import UsageError
from mlpconv.text import option

__all__ = ["check_classes", "with_classes"]


def check_classes(dataset: Dataset) -> None:
    """Raise UsageError for a data set without training images, or with one class."""
    dataset.split("train")
    if dataset.num_classes < 2:
        raise UsageError(f"{dataset.name} has one class, {dataset.classes[0]!r}; at least two are needed.")


def with_classes(dataset: Dataset, known: Sequence[str]) -> Dataset:
    """Return the data set with the `known` classes first, then its others; it may lack images of the known ones.

    Raises UsageError if all its classes are known.
    """
    new = [name for name in dataset.classes if name not in known]
    if not new:
        raise UsageError(
            f"{dataset.name} has no class that the source lacks: leave out {option('add_classes', True)} to fit all "
            f"{len(known)} anew."
        )
    order = (*known, *new)
    label_of = np.array([order.index(name) for name in dataset.classes], np.int64)
    splits = {key: Split(split.images, label_of[split.labels], split.names) for key, split in dataset.splits.items()}
    arranged = make_dataset(dataset.name, order, splits, dataset.notes)
    return replace(
        arranged,
        membership=dataset.membership,
        decode_options=dataset.decode_options,
        published=dataset.published,
    )
