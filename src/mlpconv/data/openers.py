"""Open data by name from the catalogue, or from a folder of class folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlpconv.data.catalog import CATALOG, is_published
from mlpconv.data.converted import convert_images
from mlpconv.data.dataset import Dataset, Split, make_dataset
from mlpconv.data.folder import open_folder
from mlpconv.data.folder_layout import subfolders
from mlpconv.data.open_options import OpenOptions
from mlpconv.data.published import open_named, refuse_pickles
from mlpconv.data.shards import find_shards, open_shards
from mlpconv.data.validation import HoldOutRule
from mlpconv.errors import DataError, UsageError, did_you_mean

__all__ = ["namesakes", "open_data"]


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
    """Open a named data set (digits, mnist, ...), a folder of class folders, or tar shards ("shards/*.tar").

    `root` is the folder of the named sets (default: the cache, $MLPCONV_DATA or ~/.cache/mlpconv). `size` is the side
    of the square images in pixels, `channels` 1 or 3, `fit` how images are resized (crop, pad or stretch) and `bits`
    how many bits of 16-bit files are used; for a folder, each is inferred if None. A folder without a `val` split holds
    out `val_fraction` of each class, drawn by `seed` (0: none), or the images that `membership` names.
    `classes` are the accepted class names in order, as in a model. At most the fraction `max_bad` of a folder's files
    may be unreadable; they are skipped and named in the notes.
    Raises UsageError for invalid arguments, DataError for missing or unreadable data.
    """
    options = OpenOptions(size, channels, classes, seed, val_fraction, max_bad, fit, bits, membership)
    if is_published(spec):
        notes = tuple(namesakes(str(spec))) if root is None else ()
        try:
            dataset = _convert(open_named(str(spec), None if root is None else Path(root)), size, channels, classes)
        except DataError as error:
            raise DataError(" ".join((str(error), *notes))) from error
        return replace(dataset, notes=(*dataset.notes, *notes))
    if spec == "":  # as a path it would be the current folder
        raise UsageError(f"the name of the data is empty: give a folder or data set; {did_you_mean('', CATALOG)}")
    folder = Path(spec)
    try:
        return _open_path(spec, folder, options)
    except DataError as error:
        if folder.name not in CATALOG:
            raise
        raise DataError(f"{error} For the published data set, write {folder.name} alone.") from error


def _open_path(spec: str | Path, folder: Path, options: OpenOptions) -> Dataset:
    """Open a folder or tar shards."""
    try:
        if (shards := find_shards(spec)) is not None:
            return open_shards(shards, options)
        if folder.is_dir():
            refuse_pickles(folder)
            return open_folder(folder, options)
        exists = folder.exists()
    except (OSError, ValueError) as error:
        raise DataError(f"{str(spec)!r} cannot be read: {str(error).lower()}.") from error
    if not exists and os.path.lexists(folder):
        raise DataError(f"{str(spec)!r} is a link that leads nowhere: give the folder itself.")
    if exists:
        raise DataError(f"{str(spec)!r} is a file: give a folder with one folder of images for each class.")
    raise UsageError(f"there is no folder or data set named {str(spec)!r}; {did_you_mean(str(spec), CATALOG)}")


def namesakes(name: str) -> Iterator[str]:
    """Yield a note if there is a folder of folders that has the name of a published data set."""
    with suppress(OSError):
        if Path(name).is_dir() and subfolders(Path(name)):
            yield f"{name} is the published data set, not the folder of this name here: write ./{name} for the folder."


def _convert(dataset: Dataset, size: int | None, channels: int | None, classes: Sequence[str] | None) -> Dataset:
    """Convert a named set to the requested size, channels and class order."""
    shape = (channels or dataset.channels, *((size, size) if size else dataset.size))
    order = dataset.classes if classes is None else tuple(classes)
    if shape == (dataset.channels, *dataset.size) and order == dataset.classes:
        return dataset
    unknown = [name for name in dataset.classes if name not in order]
    if unknown:
        raise DataError(
            f"{dataset.name} has classes that are not among the model's: {', '.join(unknown[:10])}. "
            f"Accepted: {', '.join(order[:10])}{', ...' if len(order) > 10 else ''}."
        )
    new_label = np.array([order.index(name) for name in dataset.classes], np.int64)
    splits = {
        key: Split(convert_images(split.images, shape), new_label[split.labels], split.names)
        for key, split in dataset.splits.items()
    }
    return make_dataset(dataset.name, order, splits, dataset.notes, published=dataset.published)
