"""The validation part of a data set that comes without one; training and evaluation must agree on it."""

from __future__ import annotations

import dataclasses

from mlpconv.data.catalog import CATALOG
from mlpconv.data.dataset import Dataset, holdout
from mlpconv.errors import DataError

__all__ = ["with_validation"]


def with_validation(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """The data set with a `val` split: its own, or `fraction` of its training images (none at 0).

    Published sets give their last training images, as the paper does (section 4.1); others the same share of every
    class, drawn by the seed. The fingerprint stays that of the whole. Raises DataError where no image can be held out.
    """
    if "val" in dataset.splits or fraction == 0:
        return dataset
    if dataset.membership is not None:  # a folder, whose images have been parted already
        raise DataError(
            f"no image of {dataset.name} can be held out, as every class has a single image (copies count once): give "
            "at least two of some class, or set val_fraction=0."
        )
    published = dataset.name in CATALOG and dataset.name != "digits"
    train, val = holdout(dataset.split("train"), fraction, seed, "last" if published else "stratified")
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": train, "val": val})
