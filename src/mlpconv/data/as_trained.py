"""Open data for evaluating a trained classifier, without leaking training images into the validation split."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from mlpconv.data.catalog import CATALOG, is_published
from mlpconv.data.dataset import Dataset
from mlpconv.data.openers import open_data
from mlpconv.data.validation import HoldOutRule, with_validation
from mlpconv.decode_options import DecodeOptions

__all__ = ["Trained", "open_as_read", "open_as_trained", "recorded_data"]


class _Preprocessing(Protocol):
    """The part of a preprocessing that concerns files."""

    decode_options: DecodeOptions


class Trained(Protocol):
    """A classifier that records how it was trained."""

    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    info: dict[str, Any]

    @property
    def preprocessing(self) -> _Preprocessing:
        """Return the fitted preprocessing."""


def recorded_data(info: Mapping[str, Any]) -> str | Path | None:
    """Return the data that a model file's record names: a published data set, or a folder that is here; else None."""
    name = info.get("data")
    if not isinstance(name, str):
        return None
    if name in CATALOG and info.get("published", True) is True:  # older files record the name alone
        return name
    with suppress(OSError, ValueError):  # not even the name of a file
        return Path(name) if Path(name).is_dir() else None
    return None


def open_as_trained(data: str | Path, root: Path | None, classifier: Trained) -> Dataset:
    """Open data with the size, channels, decode options and validation split that a classifier was trained with.

    `data` and `root` are those of `open_data`. In a folder, only the images that the model file names are held out:
    without that record, there is no validation split. Raises what `open_data` raises.
    """
    recipe = classifier.info.get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    fraction, seed = recipe.get("val_fraction", 0.2), recipe.get("seed", 0)
    fraction = float(fraction) if isinstance(fraction, int | float) and 0 <= fraction < 1 else 0.2
    seed = seed if isinstance(seed, int) else 0
    dataset = open_as_read(data, root, classifier, HoldOutRule.from_dict(classifier.info.get("validation")))
    published = is_published(data)
    return with_validation(dataset, fraction, seed) if published and "train" in dataset.splits else dataset


def open_as_read(data: str | Path, root: Path | None, classifier: Trained, membership: HoldOutRule | None) -> Dataset:
    """Open data with the size, channels and decode options of a classifier.

    In a folder, the images that `membership` names are held out, none without it. Raises what `open_data` raises.
    """
    channels, height, width = classifier.input_size
    return open_data(
        data,
        root=root,
        size=height if height == width else None,
        channels=channels,
        val_fraction=0 if membership is None else membership.fraction,
        membership=membership,
        fit=classifier.preprocessing.decode_options.fit,
        bits=classifier.preprocessing.decode_options.bits,
        classes=None if is_published(data) else classifier.classes,  # a folder may lack some of the classes
    )
