"""Run training in a locked run folder, from the first step or from the newest intact checkpoint."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpconv import modelfile
from mlpconv.data import Dataset
from mlpconv.data.augment import generator
from mlpconv.data.balance import balanced
from mlpconv.data.sampler import Sampler
from mlpconv.errors import CheckpointError, MlpconvError, RunFolderError
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.text import resume_hint
from mlpconv.training import checkpoint
from mlpconv.training.environment import describe, differences
from mlpconv.training.frozen_outputs import FrozenOutputs
from mlpconv.training.loop import Trainer
from mlpconv.training.loss import SoftTargets
from mlpconv.training.memory import keep_freed_memory
from mlpconv.training.optim import make_optimizers
from mlpconv.training.precision import choose_precision
from mlpconv.training.process_group import Group, current
from mlpconv.training.progress import EpochMetrics, Progress
from mlpconv.training.recipe import Recipe
from mlpconv.training.run_folder import RunFolder, require_empty
from mlpconv.training.sharded_loop import ShardedTrainer
from mlpconv.training.state import State, make_ema
from mlpconv.training.step import BatchLoader
from mlpconv.training.step_engine import Mode, check_engine, choose_engine
from mlpconv.training.whitening import whiten

__all__ = ["Start", "Teach", "initial_state", "run_training"]

Start = Callable[[], tuple[EpochMetrics | None, dict[str, Any]]]
"""Prepare a run; return the metrics of the network before the first step, and what the model file records of it."""

Teach = Callable[[dict[str, Any]], SoftTargets]
"""Return the soft targets of a teacher, given what an earlier process of the run recorded of it, or nothing."""

WHITENING_IMAGES, WHITENING_VALUES = 2000, 1 << 23  # maximum training images for whitening, and maximum values in them
ENVIRONMENT, START, TEACHER = "environment.json", "start.json", "teacher.json"


def run_training(
    folder: RunFolder,
    recipe: Recipe,
    dataset: Dataset,
    model: Network,
    preprocessing: Preprocessing,
    device: torch.device,
    resume: bool,
    progress: Progress,
    start: Start | None = None,
    teach: Teach | None = None,
) -> list[EpochMetrics]:
    """Train `model` in a locked run folder, from the start or, with `resume`, a checkpoint; return the history.

    `teach` and `start` are called before the first step. With tune=head, the result of `start` is that of the run.
    """
    check_engine(recipe, device)
    group = current()
    keep_freed_memory()
    preprocessing, model = preprocessing.to(device), model.to(device)
    stored = load_checkpoint(folder, dataset, progress) if resume else None
    if not resume:
        begin(folder, dataset, recipe)
    info = model_info(dataset, recipe)
    soft: Tensor | None = None
    if teach is not None:
        soft, info["teacher"] = teach(recorded(folder, TEACHER) if resume else {})
        folder.write_json(TEACHER, info["teacher"])
    first: EpochMetrics | None = None
    if start is not None and stored is None:
        first, facts = start()
        folder.write_json(START, facts)
    info |= folder.read_json(START) if start is not None else {}
    keep = partial(keep_network, folder, dataset, preprocessing, info)
    if first is not None:
        folder.write_history([first])
        keep(model, first)
        if recipe.tune == "head":
            folder.write_json(ENVIRONMENT, describe() | {"precision": info["precision"]})
            return [first]
    split = dataset.split("train")
    sampler = make_sampler(split.labels, recipe)
    loader = BatchLoader(split, preprocessing, recipe, sampler, recipe.epochs * sampler.steps_per_epoch, device, soft)
    precision = recorded_precision(folder, progress) if resume else None
    state = initial_state(model, loader, recipe, stored, progress, precision)
    if group is not None:
        agree(group, state, preprocessing, dataset, loader.soft)
    if stored is None and precision is None:
        folder.write_json(ENVIRONMENT, describe() | {"precision": state.precision})
    engine = noted_engine(state, loader, progress)
    if recipe.tune == "last" and group is None:
        keep_frozen_outputs(state, loader, dataset, progress)
    if first is not None:
        state.history = [first]
        state.seconds, state.cpu_seconds = state.seconds + first["seconds"], state.cpu_seconds + first["cpu_seconds"]
    validation = dataset.splits.get("val")
    parts = (state, loader, validation, recipe, folder.checkpoints, keep, folder.write_history, progress, engine)
    trainer = Trainer(*parts) if group is None and recipe.virtual_shards == 1 else ShardedTrainer(group, *parts)
    trainer.run()
    return state.history


def noted_engine(state: State, loader: BatchLoader, progress: Progress) -> Mode:
    """Return the engine of a run, and note why."""
    batch = partial(loader, state.step)
    engine, message = choose_engine(state.model, batch, loader.recipe, state.precision, loader.device)
    if message:
        progress.note(message)
    return engine


def keep_frozen_outputs(state: State, loader: BatchLoader, dataset: Dataset, progress: Progress) -> None:
    """Compute what the frozen layers give for the images of a run, if these look the same in every epoch."""
    clock, cpu_clock, recipe = time.perf_counter(), time.process_time(), loader.recipe
    parts = state.model, loader.preprocessing, dataset.split("train"), dataset.splits.get("val"), recipe
    try:
        loader.frozen = FrozenOutputs.compute(*parts, state.precision, progress.features)
    except BaseException:
        progress.end()  # remove the bar
        raise
    seconds = time.perf_counter() - clock
    state.seconds, state.cpu_seconds = state.seconds + seconds, state.cpu_seconds + time.process_time() - cpu_clock
    if loader.frozen is not None:
        views, size = " and its flip" if len(loader.frozen.train) > 1 else "", f"{loader.frozen.nbytes / 1e6:.0f} MB"
        progress.note(f"the frozen layers ran once for each image{views}: {seconds:.1f} s, {size} of memory")


def make_sampler(labels: np.ndarray, recipe: Recipe) -> Sampler:
    """Return the sampler of a recipe for training images with these labels (N,)."""
    if recipe.balance:
        return balanced(labels, recipe.batch_size, recipe.seed)
    return Sampler(len(labels), recipe.batch_size, recipe.seed, recipe.shuffle_window)


def begin(folder: RunFolder, dataset: Dataset, recipe: Recipe) -> None:
    """Write what a run can be resumed from; raises RunFolderError if another process has written to the folder."""
    if folder.writes:
        require_empty(folder.path)  # another process may have run here before the lock was taken
        folder.write_json("data.json", data_summary(dataset))
        folder.write_json("recipe.json", recipe.to_dict())  # last: the run can be resumed from here on


def agree(group: Group, state: State, preprocessing: Preprocessing, dataset: Dataset, soft: Tensor | None) -> None:
    """Give all processes the precision, weights and preprocessing of rank 0.

    Raises TrainingError for other images, or other soft targets of the teacher, which every process computes.
    """
    group.check_same("images", bytes.fromhex(dataset.fingerprint[:32]))
    if soft is not None:
        digest = hashlib.blake2b(soft.cpu().numpy().tobytes(), digest_size=16).digest()
        group.check_same("outputs of the teacher", digest)
    state.precision = group.broadcast(state.precision.encode() if group.rank == 0 else None).decode()
    group.copy_from_first([*state.model.state_dict().values(), *preprocessing.state_dict().values()])


def keep_network(
    folder: RunFolder,
    dataset: Dataset,
    preprocessing: Preprocessing,
    info: dict[str, Any],
    network: Network,
    row: EpochMetrics,
) -> None:
    """Write the model file of a run: the network of an epoch, with its metrics."""
    if not folder.writes:
        return
    size, facts = (dataset.channels, *dataset.size), info | {"metrics": row}
    try:
        modelfile.save(folder.model, network, preprocessing, classes=dataset.classes, input_size=size, info=facts)
    except OSError as error:
        raise RunFolderError(
            f"{folder.model} cannot be written ({error.strerror}): free disk space, or make the folder writable. "
            f"{resume_hint(folder.path)}"
        ) from error


def load_checkpoint(folder: RunFolder, dataset: Dataset, progress: Progress) -> checkpoint.Checkpoint | None:
    """Return the checkpoint to resume from, None if the run has none; raises CheckpointError if all are damaged."""
    fingerprint = folder.read_json("data.json").get("fingerprint")
    if fingerprint != dataset.fingerprint:
        raise RunFolderError(
            f"{folder.path} was trained on other images (fingerprints differ): resume it with the same data."
        )
    newest, damaged = folder.latest()
    for message in damaged:
        progress.warn(message)
    if newest is None and damaged:
        raise CheckpointError(f"no intact checkpoint is left in {folder.checkpoints}: start a new run. {damaged[0]}")
    return newest


def recorded(folder: RunFolder, name: str) -> dict[str, Any]:
    """Return a JSON file that an earlier process of the run wrote; nothing if it was killed before that."""
    try:
        return folder.read_json(name)
    except MlpconvError:  # a RunFolderError, in processes other than the first too
        return {}


def recorded_precision(folder: RunFolder, progress: Progress) -> str | None:
    """Return the dtype that the run recorded before its first step; None if it was killed before that."""
    environment = recorded(folder, ENVIRONMENT)
    if not environment:
        return None
    for difference in differences(environment, describe()):
        progress.warn(f"This run started with {difference}: the result may differ in the last bits.")
    precision = environment.get("precision")
    return precision if precision in ("fp32", "bf16") else None


def initial_state(
    model: Network,
    loader: BatchLoader,
    recipe: Recipe,
    stored: checkpoint.Checkpoint | None,
    progress: Progress,
    precision: str | None = None,
) -> State:
    """Return the state of the first step or of a checkpoint; `precision` is the dtype that an earlier process chose."""
    if stored is None and recipe.whiten:
        index = torch.randperm(loader.sampler.length, generator=generator(recipe.seed, "whiten", 0))
        count = max(1, min(WHITENING_IMAGES, WHITENING_VALUES // int(np.prod(loader.images.shape[1:]))))
        images = loader.preprocessing(loader.gather(index[:count]))
        whiten(model.first_conv, images)
    message = f"precision {precision}, as at the start of this run"
    if stored is None and precision is None:
        precision, message = choose_precision(model.train(), loader(0), recipe)
    totals = torch.zeros(3, dtype=torch.float64, device=loader.device)
    ema, optimizers = make_ema(model, recipe), make_optimizers(model, recipe)
    state = State(model, ema, optimizers, precision or "fp32", totals)
    if stored is not None:
        state.restore(stored)
        message = f"precision {state.precision}, as at the start of this run"
    progress.note(message)
    return state


def data_summary(dataset: Dataset) -> dict[str, Any]:
    """Return the content of data.json."""
    return {
        "name": dataset.name,
        "published": dataset.published,
        "classes": list(dataset.classes),
        "notes": list(dataset.notes),
        "fingerprint": dataset.fingerprint,
        "channels": dataset.channels,
        "size": list(dataset.size),
        "counts": {name: len(split) for name, split in dataset.splits.items()},
    }


def model_info(dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    """Return what the model file records about its training."""
    membership = dataset.membership
    return {
        "data": dataset.name,
        "published": dataset.published,
        "fingerprint": dataset.fingerprint,
        "train_images": len(dataset.split("train")),
        **({} if membership is None else {"validation": membership.to_dict()}),
        "recipe": recipe.to_dict(),
        "seed": recipe.seed,
    }
