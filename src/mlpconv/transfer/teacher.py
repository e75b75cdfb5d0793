"""The teacher of a run in distillation: what it says about the images of the run, and how well it scores on them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mlpconv.data import Dataset, Split
from mlpconv.data.as_trained import open_as_read
from mlpconv.data.catalog import is_published
from mlpconv.data.converted import ConvertedImages
from mlpconv.errors import DataError, NonFiniteError, RunFolderError, UsageError
from mlpconv.text import composed, option
from mlpconv.training.loss import SoftTargets
from mlpconv.training.progress import Progress
from mlpconv.training.recipe import Recipe
from mlpconv.training.run_data import load_dataset
from mlpconv.training.session import Teach
from mlpconv.transfer.cache import FeatureCache
from mlpconv.transfer.features import feature_precision, frozen_hash
from mlpconv.transfer.lineage import pretrained_on
from mlpconv.transfer.source import BACKBONES, Source, open_source
from mlpconv.transfer.start import FeatureReader, TransferParts, scores

__all__ = ["make_teach"]

SHOWN = 5
"""Classes that a message names."""


def make_teach(
    data: str | Path | Dataset,
    dataset: Dataset,
    recipe: Recipe,
    root: str | Path | None,
    device: torch.device,
    cache: FeatureCache,
    progress: Progress,
) -> Teach | None:
    """Return what computes the soft targets of the recipe's teacher for a data set; None without a teacher.

    `data` is what `dataset` was opened from. Raises UsageError if there is no such teacher or it lacks a class.
    """
    if recipe.teacher is None:
        return None
    teacher = open_source(recipe.teacher, role="teacher")
    columns = columns_of(teacher, dataset)
    check_channels(teacher, dataset)
    if may_have_seen(teacher, data, dataset, recipe):
        progress.warn(
            f"The teacher may have been trained on validation images of this run, which makes the validation accuracy "
            f"of both too high: train it with the same {option('val_fraction', recipe.val_fraction)} and "
            f"{option('seed', recipe.seed)}."
        )

    def teach(recorded: dict[str, Any]) -> SoftTargets:
        clock = time.perf_counter()
        checksum = frozen_hash(teacher.classifier.model, teacher.classifier.preprocessing, whole=True)
        if recorded.get("sha256", checksum) != checksum:
            raise RunFolderError(
                f"{recipe.teacher} has other weights than the teacher that this run started with: a resumed run keeps "
                "its teacher. Restore it, or start a new run."
            )
        precision = str(recorded.get("precision") or feature_precision(recipe.precision, device))
        view = as_read_by(teacher, data, dataset, recipe, root)
        train, val = logits_of(teacher, view, recipe, precision, device, cache, progress)
        train, val = ([logits[:, columns] for logits in part] for part in (train, val))
        if not all(bool(torch.isfinite(logits).all()) for logits in (*train, *val)):
            raise NonFiniteError(
                f"{recipe.teacher} gives NaN or infinite outputs for these images: give another teacher."
            )
        facts = {"name": recipe.teacher, "sha256": checksum, "precision": precision, "views": len(train)}
        facts |= described(teacher) | accuracies(train[0], val, dataset)
        progress.note(f"{summary(facts)}; computed in {time.perf_counter() - clock:.1f} s, in {precision}")
        return SoftTargets(torch.stack([torch.softmax(part / recipe.teacher_temperature, 1) for part in train]), facts)

    return teach


def logits_of(
    teacher: Source,
    view: Dataset,
    recipe: Recipe,
    precision: str,
    device: torch.device,
    cache: FeatureCache,
    progress: Progress,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the logits (N, K) of a teacher for the training images, one tensor per view, and the validation images."""
    classifier = teacher.classifier.to(device)
    parts = TransferParts(teacher, classifier.model, classifier.preprocessing, view, recipe, cache)
    reader = FeatureReader(parts, precision, progress.features, logits=True)
    try:
        return reader.train(), reader.val()
    except BaseException:
        progress.end()  # remove the bar
        raise
    finally:
        classifier.to("cpu")  # its memory on the device is free for training


def columns_of(teacher: Source, dataset: Dataset) -> list[int]:
    """Return the number of a teacher's output for each class of a data set; raise UsageError if one is missing."""
    position = {composed(name): number for number, name in enumerate(teacher.classifier.classes)}
    missing = [name for name in dataset.classes if composed(name) not in position]
    if missing:
        advice = "give a teacher that was trained on these classes"
        if teacher.name in BACKBONES:
            advice = (
                f"it knows the classes of ImageNet. First train it on yours, with {option('source', teacher.name)}, "
                f"{option('out', 'runs/teacher')}, then pass {option('teacher', 'runs/teacher')}"
            )
        raise UsageError(
            f"{option('teacher', teacher.name)} does not know {len(missing)} of the {dataset.num_classes} classes of "
            f"{dataset.name} ({listed(missing)}); it knows {listed(teacher.classifier.classes)}: {advice}."
        )
    return [position[composed(name)] for name in dataset.classes]


def check_channels(teacher: Source, dataset: Dataset) -> None:
    """Raise UsageError for images that a teacher of another size cannot read, as their channels are not colours."""
    size, shape = teacher.classifier.input_size, (dataset.channels, *dataset.size)
    if size != shape and dataset.channels not in (1, 3):
        raise UsageError(
            f"{option('teacher', teacher.name)} reads images of {'x'.join(map(str, size))}, and {dataset.name} has "
            f"{'x'.join(map(str, shape))}; images of {shape[0]} channels are not resized: give a teacher of this size."
        )


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def may_have_seen(teacher: Source, data: str | Path | Dataset, dataset: Dataset, recipe: Recipe) -> bool:
    """Return whether validation images of a run may be among those that its teacher was trained on.

    It is known for data of the same name alone. A validation split that the data bring is the same for both.
    """
    info = teacher.classifier.info
    if info.get("data") != dataset.name or "val" not in dataset.splits:
        return False
    if dataset.membership is not None:
        return info.get("validation") != dataset.membership.to_dict()
    if "val" in data.splits if isinstance(data, Dataset) else not is_published(data):
        return False
    own = info.get("recipe")
    by_position = dataset.published and dataset.name != "digits"  # whatever the seed
    keys = ("val_fraction",) if by_position else ("val_fraction", "seed")
    return not isinstance(own, dict) or any(own.get(key) != getattr(recipe, key) for key in keys)


def as_read_by(
    teacher: Source, data: str | Path | Dataset, dataset: Dataset, recipe: Recipe, root: str | Path | None
) -> Dataset:
    """Return the images of a run as its teacher reads them, in its size and channels; splits and order are the same.

    The files of folders and shards are read again, those of published sets in their own size; the pixels of a Dataset
    are resized. Raises DataError if the files have changed meanwhile.
    """
    classifier, shape = teacher.classifier, (dataset.channels, *dataset.size)
    options = classifier.preprocessing.decode_options
    published = is_published(data)
    if not isinstance(data, Dataset) and not published:
        if shape == classifier.input_size and dataset.decode_options == options:
            return dataset
        read = open_as_read(data, None, classifier, dataset.membership)
        check_same(read, dataset)
    elif published:
        read = load_dataset(data, recipe.with_settings(size=None), root)
    else:
        read = dataset
    if (read.channels, *read.size) == classifier.input_size:
        return read
    splits = {
        key: Split(cast("np.ndarray", ConvertedImages(part.images, classifier.input_size, options)), part.labels)
        for key, part in read.splits.items()
        if key != "test"
    }
    return replace(read, splits=splits)


def check_same(read: Dataset, dataset: Dataset) -> None:
    """Raise DataError unless two readings of the same files have the same images in the same order."""
    for key in ("train", "val"):
        if names_of(read, key) != names_of(dataset, key):
            raise DataError(
                f"The teacher reads other {key} images of {dataset.name} than this run: the files have changed "
                "meanwhile, or some cannot be read in its size. Run it again, or remove unreadable files."
            )


def names_of(dataset: Dataset, key: str) -> tuple[tuple[str, ...] | None, list[str]]:
    """Return the files, where they have names, and the classes of the images of a split, in order."""
    split = dataset.splits.get(key)
    return (None, []) if split is None else (split.names, [dataset.classes[label] for label in split.labels])


def described(teacher: Source) -> dict[str, Any]:
    """Return what the model file of a run records about its teacher's network and training."""
    model, info = teacher.classifier.model, teacher.classifier.info
    own = info.get("recipe")
    source = own.get("source") if isinstance(own, dict) else None
    return {
        "network": model.config.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "input_size": list(teacher.classifier.input_size),
        "source": source if isinstance(source, str) else None,
        "pretrained_on": pretrained_on(info),
        "data": info.get("data") if isinstance(info.get("data"), str) else None,
    }


def accuracies(train: Tensor, val: Sequence[Tensor], dataset: Dataset) -> dict[str, Any]:
    """Return the teacher's accuracy on the training and validation images, from its logits (N, K) of both."""
    found: dict[str, Any] = {"train_accuracy": scores(train, dataset.split("train"))[1], "val_accuracy": None}
    if val:
        found |= {"val_accuracy": scores(val[0], dataset.split("val"))[1], "val_images": len(val[0])}
    return found


def summary(facts: dict[str, Any]) -> str:
    """Return a sentence about a teacher: its network, where its weights come from, and its accuracy."""
    origin = "" if facts["source"] in (None, "scratch") else f", trained from {facts['source']}"
    origin += f", which saw {facts['pretrained_on']}" if facts["pretrained_on"] else ""
    accuracy = f"accuracy {facts['train_accuracy']:.2%} on the training images"
    if facts["val_accuracy"] is not None:
        accuracy += f", {facts['val_accuracy']:.2%} on the validation images"
    return f"teacher {facts['name']} ({facts['network']}, {facts['parameters']:,} parameters{origin}): {accuracy}"
