"""The data of a run: its name, its images with a validation split, and the preprocessing fitted on them."""

from __future__ import annotations

import re
from pathlib import Path

from mlpconv.data import Dataset, open_data
from mlpconv.data.catalog import is_published
from mlpconv.data.duplicates import with_duplicate_notes
from mlpconv.data.shard_images import fitting_sample
from mlpconv.data.validation import with_validation
from mlpconv.errors import UsageError
from mlpconv.preprocessing import Preprocessing
from mlpconv.training.recipe import Recipe

__all__ = ["data_name", "load_dataset", "make_preprocessing", "published_name"]


def data_name(data: str | Path | Dataset) -> str:
    """Return the name of the data for run folders: that of the data set, the folder, or the folder of the shards."""
    if isinstance(data, Dataset):
        return re.sub(r"[^\w.-]+", "_", data.name).strip(".") or "data"
    if is_published(data):
        return str(data)
    try:
        path = Path(data).resolve()
    except (OSError, RuntimeError, ValueError):  # such as a loop of links: opening the folder reports it
        return "folder"
    return (path.parent if path.suffix == ".tar" else path).name or "folder"


def published_name(data: str | Path | Dataset) -> str | None:
    """Return the name of a published data set, which may have recipes of its own; None for all other data."""
    if isinstance(data, Dataset):
        return data.name if data.published else None
    return str(data) if is_published(data) else None


def load_dataset(
    data: str | Path | Dataset, recipe: Recipe, root: str | Path | None, channels: int | None = None
) -> Dataset:
    """Open the data, with `channels` if given, and hold out a validation split if it has none."""
    if isinstance(data, Dataset):
        dataset = data
        if recipe.size is not None and dataset.size != (recipe.size, recipe.size):
            rows, columns = dataset.size
            raise UsageError(
                f"size={recipe.size} differs from the Dataset's {rows}x{columns}: resize it, or leave size out."
            )
        if recipe.fit not in ("auto", dataset.decode_options.fit):
            raise UsageError(
                f"fit={recipe.fit} has no effect on a Dataset: pass it to open_data, or leave fit out of the settings."
            )
    else:
        where = Path(root) if root is not None else None
        fit = None if recipe.fit == "auto" else recipe.fit
        dataset = open_data(
            data,
            root=where,
            size=recipe.size,
            channels=channels,
            fit=fit,
            seed=recipe.seed,
            val_fraction=recipe.val_fraction,
        )
    dataset.split("train")
    dataset = with_validation(dataset, recipe.val_fraction, recipe.seed)
    return with_duplicate_notes(dataset) if isinstance(data, Dataset) else dataset


def make_preprocessing(dataset: Dataset, recipe: Recipe) -> Preprocessing:
    """Create the recipe's preprocessing and fit it on the training images."""
    preprocessing = Preprocessing.create(recipe.preprocessing, dataset.channels, dataset.size, dataset.decode_options)
    return preprocessing.fit(fitting_sample(dataset.split("train").images))
