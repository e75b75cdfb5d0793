"""Choose the images that int8 is calibrated on, and others to measure its accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlpconv.data import Split
from mlpconv.data.as_trained import open_as_trained, recorded_data
from mlpconv.data.inputs import read_pixels
from mlpconv.deploy.exportable import Exportable
from mlpconv.deploy.quantize import Calibration
from mlpconv.errors import DataError, UsageError
from mlpconv.evaluation import align_labels
from mlpconv.text import counted

__all__ = ["calibration_from_data", "calibration_from_files"]

CALIBRATE, HELD_OUT = 512, 2000
FEWEST = 8
SEED = 0


def calibration_from_data(source: Exportable, data: str | None = None, root: Path | None = None) -> Calibration:
    """Return training images of a data set to calibrate on, and images of its val, test or train split to measure on.

    `data` and `root` are those of `open_data`; the default is the data that the model file names. Raises UsageError if
    there is none or it has too few images, DataError if it cannot be read.
    """
    if source.classifier is None:
        raise UsageError("A network without a model file has no data set: calibrate it on image files.")
    spec = _named_data(source) if data is None else data
    dataset = open_as_trained(spec, root, source.classifier)
    splits = {name: align_labels(split, dataset, source.classifier) for name, split in dataset.splits.items()}
    if "train" not in splits:
        raise UsageError(f"{spec} has no training images to calibrate on: give a folder with train/.")
    train = _shuffled(splits["train"])
    images = train.images[:CALIBRATE]
    name = next((name for name in ("val", "test") if name in splits), None)
    held_out = _shuffled(splits[name]) if name else Split(train.images[CALIBRATE:], train.labels[CALIBRATE:])
    if len(images) < FEWEST or len(held_out) < FEWEST:
        raise UsageError(f"{spec} has too few images: at least {FEWEST} to calibrate on and {FEWEST} others.")
    described = f"{spec}, {name} split" if name else f"{spec}, training images"
    return Calibration(images, held_out.images[:HELD_OUT], held_out.labels[:HELD_OUT], described)


def calibration_from_files(source: Exportable, files: Sequence[Path]) -> Calibration:
    """Return every second image file to calibrate on, and the others, without labels, to measure on.

    Raises UsageError for too few files, ImageError for a file that cannot be read.
    """
    files = files[:: -(-len(files) // (2 * CALIBRATE))] if files else files
    if len(files) < 2 * FEWEST:
        raise UsageError(f"Got {counted(len(files), 'image')} to calibrate on; give at least {2 * FEWEST}.")
    options = source.preprocessing.decode_options
    pixels = np.stack([read_pixels(file, source.input_size, options) for file in files])
    return Calibration(pixels[::2], pixels[1::2], None, f"{len(files)} image files")


def _named_data(source: Exportable) -> str | Path:
    """Return the data that the model file names, if it can be opened by name."""
    if (found := recorded_data(source.info)) is not None:
        return found
    named = source.info.get("data")
    known = f"the model file names {named!r:.60}, which is not here" if named else "the model file names no data"
    raise DataError(f"int8 needs images to calibrate on, and {known}: give --calibrate DATA or --images FILES.")


def _shuffled(split: Split) -> Split:
    order: NDArray[np.intp] = np.random.default_rng(SEED).permutation(len(split))[: CALIBRATE + HELD_OUT]
    return Split(split.images[order], split.labels[order])
