"""Data opened for a trained classifier: as its training opened them, so that no trained-on image is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from mlpconv.data.catalog import CATALOG
from mlpconv.data.dataset import Dataset
from mlpconv.data.held_out import HoldOutRule
from mlpconv.data.openers import open_data
from mlpconv.data.validation import with_validation
from mlpconv.decode_options import DecodeOptions

__all__ = ["Trained", "open_as_trained"]


class _Prepared(Protocol):
    """A fitted preprocessing, as far as it concerns files."""

    decode_options: DecodeOptions


class Trained(Protocol):
    """What a classifier states about its training."""

    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    info: dict[str, Any]

    @property
    def preprocessing(self) -> _Prepared:
        """The fitted preprocessing."""


def open_as_trained(data: str | Path, root: Path | None, classifier: Trained) -> Dataset:
    """Open data as a classifier's training opened them: the same size, channels, decoding and held-out images.

    `data` and `root` are those of `open_data`. Of a folder, only the images that the model file names are held out:
    without its record, no image counts as validation. Raises what `open_data` raises.
    """
    recipe = classifier.info.get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    fraction, seed = recipe.get("val_fraction", 0.2), recipe.get("seed", 0)
    fraction = float(fraction) if isinstance(fraction, int | float) and 0 <= fraction < 1 else 0.2
    seed = seed if isinstance(seed, int) else 0
    channels, height, width = classifier.input_size
    membership = HoldOutRule.from_dict(classifier.info.get("validation"))
    dataset = open_data(
        data,
        root=root,
        size=height if height == width else None,
        channels=channels,
        val_fraction=0 if membership is None else membership.fraction,
        membership=membership,
        fit=classifier.preprocessing.decode_options.fit,
        bits=classifier.preprocessing.decode_options.bits,
        classes=None
        if str(data) in CATALOG
        else classifier.classes,  # a folder may lack some of them, all but one even
    )
    return with_validation(dataset, fraction, seed) if str(data) in CATALOG and "train" in dataset.splits else dataset
