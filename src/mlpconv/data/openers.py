"""One door to all data: a name of the catalogue, or a folder of class folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mlpconv.data.catalog import CATALOG
from mlpconv.data.color import to_channels
from mlpconv.data.dataset import Dataset, Split, make_dataset
from mlpconv.data.decode import from_pil
from mlpconv.data.folder import open_folder
from mlpconv.data.held_out import HoldOutRule
from mlpconv.data.published import open_named, refuse_pickles
from mlpconv.data.storage import allocate
from mlpconv.errors import DataError, UsageError, did_you_mean

__all__ = ["open_data"]

LARGEST = 4096


def open_data(
    spec: str | Path,
    *,
    root: str | Path | None = None,
    size: int | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    val_fraction: float = 0.2,
    max_bad: float = 0.1,
    fit: str | None = None,
    bits: int | None = None,
    membership: HoldOutRule | None = None,
) -> Dataset:
    """Open a named data set (digits, mnist, ...) or a folder of class folders.

    Named sets are read from `root`, or from the cache ($MLPCONV_DATA or ~/.cache/mlpconv). Of a folder, the size (one
    number: images become squares) and the channels (1 or 3) are found out where they are not given, and a `val` split
    of `val_fraction` of each class is drawn by the seed where there is none (0: not at all). `classes` gives the names
    that are accepted, in order, as a model has them; `membership` holds out the images that a training run did. Up to
    `max_bad` of the files of a folder may be unreadable: they are skipped, and the notes of the data set name them.
    `fit` (crop, pad or stretch) brings images to the size; `bits` of files with 16 bits a sample are used.
    Raises UsageError for what cannot be meant, DataError for what is missing or cannot be read.
    """
    _check(size, channels, val_fraction, max_bad)
    if isinstance(spec, str) and spec in CATALOG:
        return _adapted(open_named(spec, None if root is None else Path(root)), size, channels, classes)
    folder = Path(spec)
    try:
        if folder.is_dir():
            refuse_pickles(folder)
            return open_folder(
                folder,
                size=size,
                channels=channels,
                classes=classes,
                seed=seed,
                val_fraction=val_fraction,
                max_bad=max_bad,
                fit=fit,
                bits=bits,
                membership=membership,
            )
        exists = folder.exists()
    except (OSError, ValueError) as error:
        raise DataError(f"{str(spec)!r} cannot be read: {str(error).lower()}.") from error
    if exists:
        raise DataError(f"{str(spec)!r} is a file: give a folder with one folder of images for each class.")
    raise UsageError(f"no folder and no data set is called {str(spec)!r}. {did_you_mean(str(spec), CATALOG)}")


def _check(size: int | None, channels: int | None, val_fraction: float, max_bad: float) -> None:
    if size is not None and not 1 <= size <= LARGEST:
        raise UsageError(f"the size of images must lie between 1 and {LARGEST} pixels, not {size}.")
    if channels not in (None, 1, 3):
        raise UsageError(f"channels must be 1 (grey) or 3 (colour), not {channels}.")
    if not 0 <= val_fraction < 1:
        raise UsageError(f"the fraction held out for validation must be at least 0 and below 1, not {val_fraction}.")
    if not 0 <= max_bad <= 1:
        raise UsageError(f"the fraction of files that may be unreadable must lie between 0 and 1, not {max_bad}.")


def _adapted(dataset: Dataset, size: int | None, channels: int | None, classes: Sequence[str] | None) -> Dataset:
    """A named set with the size, channels and order of classes asked for."""
    wanted = (channels or dataset.channels, *((size, size) if size else dataset.size))
    order = dataset.classes if classes is None else tuple(classes)
    if wanted == (dataset.channels, *dataset.size) and order == dataset.classes:
        return dataset
    unknown = [name for name in dataset.classes if name not in order]
    if unknown:
        raise DataError(
            f"{dataset.name} has classes that are not among the model's: {', '.join(unknown[:10])}. "
            f"Accepted: {', '.join(order[:10])}{', ...' if len(order) > 10 else ''}."
        )
    number = np.array([order.index(name) for name in dataset.classes], np.int64)
    splits = {
        key: Split(_resized(split.images, wanted), number[split.labels], split.names)
        for key, split in dataset.splits.items()
    }
    return make_dataset(dataset.name, order, splits, dataset.notes)


def _resized(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Images (N, C, H, W) brought to another (C, H, W), by the rules of `decode`."""
    channels, height, width = shape
    if images.shape[2:] == (height, width):
        return to_channels(images, channels)
    out = allocate((len(images), *shape))
    for i, image in enumerate(images):
        pixels = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        out[i] = from_pil(pixels, channels, (height, width))
    return out
