"""One run, from images to a model file and its report: what `mlpconv.fit` and `mlpconv train` call."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpconv import bundle
from mlpconv.bundle import Classifier
from mlpconv.data import Dataset, open_data
from mlpconv.data.augment import generator
from mlpconv.data.batches import Order
from mlpconv.data.catalog import CATALOG
from mlpconv.data.marks import with_copies_noted
from mlpconv.data.validation import with_validation
from mlpconv.errors import CheckpointError, RunFolderError, UsageError
from mlpconv.models import create_model
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.summary import summarise
from mlpconv.training import Progress, Recipe, checkpoint, find_recipe
from mlpconv.training.environment import describe
from mlpconv.training.folder import RunFolder, refuse_content
from mlpconv.training.initialise import choose_precision, whiten
from mlpconv.training.loop import Trainer
from mlpconv.training.memory import flushing_denormals, keep_freed_memory
from mlpconv.training.optim import make_optimizers
from mlpconv.training.plan import planned, remarks
from mlpconv.training.progress import Row
from mlpconv.training.state import State, averaged_model
from mlpconv.training.step import Pipeline

__all__ = ["Run", "fit"]

USUAL_MODEL = {
    "mnist": "nin_mnist",
    "fashion_mnist": "nin_mnist",
    "cifar10": "nin_cifar10",
    "cifar100": "nin_cifar100",
    "svhn": "nin_svhn",
}
LARGEST_TINY = 40  # side in pixels up to which nin_tiny is the default
MODEL_OPTIONS = ("activation", "pool_first", "pool2", "dropout", "last_relu", "init")
FREE_TO_CHANGE = ("workers", "checkpoint_minutes")  # what a resumed run may do otherwise without changing a bit
WHITENING_IMAGES, WHITENING_VALUES = 2000, 1 << 23  # of the training images; values in all of them


@dataclass(frozen=True)
class Run:
    """What a run gives back: the best classifier, a row an epoch, and the folder that holds everything."""

    classifier: Classifier
    history: list[Row]
    folder: Path


# Before all else: threads that torch had started by then would not know, and the bits depend on who computes them.
@flushing_denormals()
def fit(
    data: str | Path | Dataset,
    recipe: str | Path | Recipe | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    data_root: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Train on a named data set, a folder of class folders or a Dataset, and return the best classifier.

    `recipe` is a name, a JSON file or a Recipe; `settings` change single values of it. Everything is written to `out`
    (default runs/NAME-001, counted up). Raises an error of `mlpconv.errors` for all that can go wrong.
    """
    progress = progress or Progress()
    name = data_name(data)
    target = Path(out) if out is not None else None
    if resume:
        folder = RunFolder.existing(target, name)
        stored = Recipe().with_settings(**folder.read_json("recipe.json"))
        asked = (stored if recipe is None else chosen(recipe, name)).with_settings(**settings)
    else:
        stored = asked = chosen(recipe, name).with_settings(**settings)
    dataset = load(data, stored, data_root)
    for sentence in dataset.notes:
        progress.note(sentence)
    images = len(dataset.split("train"))
    plan = planned(asked, images, dataset.channels)
    for sentence in remarks(asked, plan, images):
        progress.note(sentence)
    if resume:
        refuse_changes(folder, stored, plan)
    device = choose_device(plan)
    model, preprocessing = make_model(dataset, plan), make_preprocessing(dataset, plan)
    if not resume:
        folder = RunFolder.new(target, name)
    with folder.lock():
        history = train(folder, plan, dataset, model, preprocessing, device, resume, progress)
        classifier = bundle.load(folder.model)
        summarise(folder.path, classifier, dataset, history)
    return Run(classifier, history, folder.path)


def data_name(data: str | Path | Dataset) -> str:
    """The name under which recipes and runs know the data: a data set's own, or that of the folder."""
    if isinstance(data, Dataset):
        return re.sub(r"[^\w.-]+", "_", data.name).strip(".") or "data"
    if str(data) in CATALOG:
        return str(data)
    try:
        return Path(data).resolve().name or "folder"
    except (OSError, RuntimeError, ValueError):  # a loop of links, say: opening it will say what is wrong
        return "folder"


def chosen(recipe: str | Path | Recipe | None, name: str) -> Recipe:
    """The recipe itself, or the one of that name for the data; `fast` where none is named."""
    return recipe if isinstance(recipe, Recipe) else find_recipe(recipe or "fast", name)


def refuse_changes(folder: RunFolder, stored: Recipe, asked: Recipe) -> None:
    """Raise RunFolderError where a setting that would change the result is not the one that the run started with."""
    now = asked.to_dict()
    for key, value in stored.to_dict().items():
        if now[key] != value and key not in FREE_TO_CHANGE:
            raise RunFolderError(
                f"{folder.path} was started with {key}={value}, now {key}={now[key]} is asked for: "
                "a resumed run keeps its recipe. Name no recipe and no settings to go on, or start a new run."
            )


def load(data: str | Path | Dataset, recipe: Recipe, root: str | Path | None) -> Dataset:
    """Open the data and hold out a validation part where it has none."""
    if isinstance(data, Dataset):
        dataset = data
        if recipe.size is not None and dataset.size != (recipe.size, recipe.size):
            rows, columns = dataset.size
            raise UsageError(
                f"size={recipe.size} was given with a Dataset of {rows}x{columns}: resize it, or leave size out."
            )
        if recipe.fit not in ("auto", dataset.reading.fit):
            raise UsageError(f"fit={recipe.fit} was given with a Dataset: open it so with open_data, or leave fit out.")
    else:
        where = Path(root) if root is not None else None
        fit = None if recipe.fit == "auto" else recipe.fit
        dataset = open_data(
            data, root=where, size=recipe.size, fit=fit, seed=recipe.seed, val_fraction=recipe.val_fraction
        )
    dataset.split("train")
    dataset = with_validation(dataset, recipe.val_fraction, recipe.seed)
    return with_copies_noted(dataset) if isinstance(data, Dataset) else dataset


def make_model(dataset: Dataset, recipe: Recipe) -> Network:
    """The recipe's network for the data, with weights drawn from the recipe's seed; UsageError if they do not fit."""
    side = min(dataset.size)
    usual = USUAL_MODEL.get(dataset.name, "nin_tiny" if side <= LARGEST_TINY else "nin_photo")
    options: dict[str, Any] = {key: getattr(recipe, key) for key in MODEL_OPTIONS if getattr(recipe, key) is not None}
    options["size"] = dataset.size
    if recipe.norm != "network":
        options["norm"] = None if recipe.norm == "none" else recipe.norm
    if recipe.width != 1.0:
        options["width"] = recipe.width
    if recipe.head != "gap":
        options["head"] = recipe.head
    torch.manual_seed(recipe.seed)
    model = create_model(
        usual if recipe.model == "auto" else recipe.model,
        num_classes=dataset.num_classes,
        in_channels=dataset.channels,
        **options,
    )
    if recipe.sizes and dataset.size[0] != dataset.size[1]:
        raise UsageError(
            f"sizes makes square images, and these have {dataset.size[0]}x{dataset.size[1]}: leave it out."
        )
    for height, width in (dataset.size, *((side, side) for side in recipe.sizes)):
        model.check_input(torch.empty(1, dataset.channels, height, width, device="meta"))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def make_preprocessing(dataset: Dataset, recipe: Recipe) -> Preprocessing:
    """The recipe's preprocessing, fitted on the training images alone."""
    chain = Preprocessing.create(recipe.preprocessing, dataset.channels, dataset.size, dataset.reading)
    return chain.fit(dataset.split("train").images)


def train(
    folder: RunFolder,
    recipe: Recipe,
    dataset: Dataset,
    model: Network,
    preprocessing: Preprocessing,
    device: torch.device,
    resume: bool,
    progress: Progress,
) -> list[Row]:
    """Run the loop in a locked run folder, from the start or from the newest whole checkpoint; returns the history."""
    keep_freed_memory()
    preprocessing, model = preprocessing.to(device), model.to(device)
    found = newest(folder, dataset, progress) if resume else None
    if not resume:
        refuse_content(folder.path)  # another trainer may have come and gone before the lock was ours
        folder.write_json("data.json", facts(dataset))
        folder.write_json("recipe.json", recipe.to_dict())  # last: with it there is a run to go on with
    split = dataset.split("train")
    order = Order(len(split), recipe.batch_size, recipe.seed)
    pipeline = Pipeline(split, preprocessing, recipe, order, recipe.epochs * order.steps_per_epoch, device)
    state = begin(model, pipeline, recipe, found, progress)
    if found is None:
        folder.write_json("environment.json", describe() | {"precision": state.precision})
    info = about(dataset, recipe)

    def keep(best: Network, row: Row) -> None:
        size = (dataset.channels, *dataset.size)
        facts_of_it = info | {"metrics": row}
        try:
            bundle.save(folder.model, best, preprocessing, classes=dataset.classes, input_size=size, info=facts_of_it)
        except OSError as error:
            raise RunFolderError(
                f"{folder.model} cannot be written ({error.strerror}): make room, then go on with --resume."
            ) from error

    validation = dataset.splits.get("val")
    Trainer(state, pipeline, validation, recipe, folder.checkpoints, keep, folder.write_history, progress).run()
    return state.history


def choose_device(recipe: Recipe) -> torch.device:
    """The recipe's device; raises UsageError where it asks for a GPU that is not there."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda was asked for, and torch finds no GPU here: use --device cpu or auto.")
    return torch.device("cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu")


def newest(folder: RunFolder, dataset: Dataset, progress: Progress) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from, None where the run had none yet; raises CheckpointError where all are damaged."""
    stored = folder.read_json("data.json").get("fingerprint")
    if stored != dataset.fingerprint:
        raise RunFolderError(
            f"{folder.path} was trained on other images than these (fingerprints differ): give it the same data."
        )
    found, damaged = checkpoint.latest(folder.checkpoints)
    for sentence in damaged:
        progress.note(sentence)
    if found is None and damaged:
        raise CheckpointError(f"no whole checkpoint is left in {folder.checkpoints}: start a new run. {damaged[0]}")
    return found


def begin(
    model: Network, pipeline: Pipeline, recipe: Recipe, found: checkpoint.Checkpoint | None, progress: Progress
) -> State:
    """The state of the first step, or that of a checkpoint."""
    precision = "fp32"
    if found is None:
        if recipe.whiten:
            some = torch.randperm(pipeline.order.length, generator=generator(recipe.seed, "whiten", 0))
            most = max(1, min(WHITENING_IMAGES, WHITENING_VALUES // int(np.prod(pipeline.images.shape[1:]))))
            images = pipeline.preprocessing(pipeline.gather(some[:most]))
            whiten(model.first_conv, images)
        precision, sentence = choose_precision(model.train(), pipeline(0), recipe)
        progress.note(sentence)
    totals = torch.zeros(3, dtype=torch.float64, device=pipeline.device)
    state = State(model, averaged_model(model, recipe), make_optimizers(model, recipe), precision, totals)
    if found is not None:
        state.restore(found)
    return state


def facts(dataset: Dataset) -> dict[str, Any]:
    """What data.json says of the images."""
    return {
        "name": dataset.name,
        "classes": list(dataset.classes),
        "notes": list(dataset.notes),
        "fingerprint": dataset.fingerprint,
        "channels": dataset.channels,
        "size": list(dataset.size),
        "counts": {name: len(split) for name, split in dataset.splits.items()},
    }


def about(dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    """What the model file says of its making."""
    membership = dataset.membership
    return {
        "data": dataset.name,
        "fingerprint": dataset.fingerprint,
        "train_images": len(dataset.split("train")),
        **({} if membership is None else {"validation": membership.to_dict()}),
        "recipe": recipe.to_dict(),
        "seed": recipe.seed,
    }
