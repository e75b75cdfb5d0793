"""One run in its locked folder: from the first step, or from the newest whole checkpoint, to the last."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mlpconv import modelfile
from mlpconv.data import Dataset
from mlpconv.data.augment import generator
from mlpconv.data.sampler import Sampler
from mlpconv.errors import CheckpointError, RunFolderError
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.text import resume_hint
from mlpconv.training import checkpoint
from mlpconv.training.environment import describe, differences
from mlpconv.training.loop import Trainer
from mlpconv.training.memory import keep_freed_memory
from mlpconv.training.optim import make_optimizers
from mlpconv.training.precision import choose_precision
from mlpconv.training.progress import EpochMetrics, Progress
from mlpconv.training.recipe import Recipe
from mlpconv.training.run_folder import RunFolder, require_empty
from mlpconv.training.state import State, make_ema
from mlpconv.training.step import BatchLoader
from mlpconv.training.whitening import whiten

__all__ = ["initial_state", "run_training"]

WHITENING_IMAGES, WHITENING_VALUES = 2000, 1 << 23  # of the training images; values in all of them
ENVIRONMENT = "environment.json"


def run_training(
    folder: RunFolder,
    recipe: Recipe,
    dataset: Dataset,
    model: Network,
    preprocessing: Preprocessing,
    device: torch.device,
    resume: bool,
    progress: Progress,
) -> list[EpochMetrics]:
    """Run the loop in a locked run folder, from the start or, to resume, from where it ended; returns the history."""
    keep_freed_memory()
    preprocessing, model = preprocessing.to(device), model.to(device)
    found = load_checkpoint(folder, dataset, progress) if resume else None
    if not resume:
        require_empty(folder.path)  # another trainer may have come and gone before the lock was taken
        folder.write_json("data.json", data_summary(dataset))
        folder.write_json("recipe.json", recipe.to_dict())  # last: with it there is a run to go on with
    split = dataset.split("train")
    order = Sampler(len(split), recipe.batch_size, recipe.seed)
    loader = BatchLoader(split, preprocessing, recipe, order, recipe.epochs * order.steps_per_epoch, device)
    precision = recorded_precision(folder, progress) if resume else None
    state = initial_state(model, loader, recipe, found, progress, precision)
    if found is None and precision is None:
        folder.write_json(ENVIRONMENT, describe() | {"precision": state.precision})
    info = model_info(dataset, recipe)

    def keep(best: Network, row: EpochMetrics) -> None:
        size = (dataset.channels, *dataset.size)
        facts_of_it = info | {"metrics": row}
        try:
            modelfile.save(
                folder.model, best, preprocessing, classes=dataset.classes, input_size=size, info=facts_of_it
            )
        except OSError as error:
            raise RunFolderError(
                f"{folder.model} cannot be written ({error.strerror}): make room. {resume_hint(folder.path)}"
            ) from error

    validation = dataset.splits.get("val")
    Trainer(state, loader, validation, recipe, folder.checkpoints, keep, folder.write_history, progress).run()
    return state.history


def load_checkpoint(folder: RunFolder, dataset: Dataset, progress: Progress) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from, None where the run had none yet; raises CheckpointError where all are damaged."""
    stored = folder.read_json("data.json").get("fingerprint")
    if stored != dataset.fingerprint:
        raise RunFolderError(
            f"{folder.path} was trained on other images than these (fingerprints differ): give it the same data."
        )
    found, damaged = checkpoint.latest(folder.checkpoints)
    for sentence in damaged:
        progress.warn(sentence)
    if found is None and damaged:
        raise CheckpointError(f"no whole checkpoint is left in {folder.checkpoints}: start a new run. {damaged[0]}")
    return found


def recorded_precision(folder: RunFolder, progress: Progress) -> str | None:
    """The number format that the run recorded before its first step; None where it was killed before that."""
    try:
        then = folder.read_json(ENVIRONMENT)
    except RunFolderError:
        return None
    for difference in differences(then, describe()):
        progress.warn(f"This run began with {difference}: the last bits of its result may differ.")
    precision = then.get("precision")
    return precision if precision in ("fp32", "bf16") else None


def initial_state(
    model: Network,
    loader: BatchLoader,
    recipe: Recipe,
    found: checkpoint.Checkpoint | None,
    progress: Progress,
    precision: str | None = None,
) -> State:
    """The state of the first step, or that of a checkpoint; `precision` is what an earlier process has chosen."""
    if found is None and recipe.whiten:
        some = torch.randperm(loader.sampler.length, generator=generator(recipe.seed, "whiten", 0))
        most = max(1, min(WHITENING_IMAGES, WHITENING_VALUES // int(np.prod(loader.images.shape[1:]))))
        images = loader.preprocessing(loader.gather(some[:most]))
        whiten(model.first_conv, images)
    sentence = f"precision {precision}, as this run began"
    if found is None and precision is None:
        precision, sentence = choose_precision(model.train(), loader(0), recipe)
    totals = torch.zeros(3, dtype=torch.float64, device=loader.device)
    averaged, optimizers = make_ema(model, recipe), make_optimizers(model, recipe)
    state = State(model, averaged, optimizers, precision or "fp32", totals)
    if found is not None:
        state.restore(found)
        sentence = f"precision {state.precision}, as this run began"
    progress.note(sentence)
    return state


def data_summary(dataset: Dataset) -> dict[str, Any]:
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


def model_info(dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
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
