"""One run, from images to a model file and its report: what `mlpconv.fit` and `mlpconv train` call."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlpconv import inference
from mlpconv.data import Dataset, open_data
from mlpconv.data.catalog import CATALOG
from mlpconv.data.duplicates import with_copies_noted
from mlpconv.data.validation import with_validation
from mlpconv.errors import RunFolderError, UsageError
from mlpconv.inference import Classifier
from mlpconv.models import create_model
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.report.summary import summarise
from mlpconv.text import option
from mlpconv.training import Progress, Recipe, find_recipe
from mlpconv.training.display import default_progress
from mlpconv.training.memory import flushing_denormals
from mlpconv.training.plan import plan_notes, resolve_plan, apply_settings
from mlpconv.training.progress import EpochMetrics
from mlpconv.training.run_folder import RunFolder
from mlpconv.training.seeding import keeping_random_states, seed_torch
from mlpconv.training.session import run_training

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
# What a resumed run may do otherwise without changing a bit; all that min_steps does is in the number of epochs.
FREE_TO_CHANGE = ("workers", "checkpoint_minutes", "min_steps")


@dataclass(frozen=True, repr=False)
class Run:
    """What a run gives back: the best classifier, a row an epoch, and the folder that holds everything."""

    classifier: Classifier
    history: list[EpochMetrics]
    folder: Path

    def __repr__(self) -> str:
        best = self.classifier.info["metrics"]
        split = "train" if best["val_accuracy"] is None else "val"
        kept = f"epoch {best['epoch']} of {len(self.history)} kept, {split}_accuracy {best[f'{split}_accuracy']:.4f}"
        return f"<Run in {str(self.folder)!r}: {kept}>"


# Before all else: threads that torch had started by then would not know, and the bits depend on who computes them.
@flushing_denormals()
def fit(
    data: str | Path | Dataset,
    recipe: str | Path | Recipe | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    data_root: str | Path | None = None,
    progress: Progress | bool | None = True,
    **settings: Any,
) -> Run:
    """Train on a named data set, a folder of class folders or a Dataset, and return the best classifier.

    `recipe` is a name, a JSON file or a Recipe; `settings` change single values of it, and `epochs` alone means that
    many, whatever the recipe's `min_steps`. Everything is written to `out` (default runs/NAME-001, counted up). With
    `resume` the run in `out` (default the newest of this data) goes on; where nothing has begun, it starts. `progress`
    shows a bar in a notebook or a terminal; False shows none, and notes reach the logger "mlpconv" either way; a
    Progress of your own receives everything. The caller's random states stay as they are. Raises an error of
    `mlpconv.errors` for all that can go wrong.
    """
    watcher = default_progress(bar=bool(progress)) if progress is None or isinstance(progress, bool) else progress
    name = data_name(data)
    target = Path(out) if out is not None else None
    begun = RunFolder.find(target, name) if resume else None
    stored = None if begun is None else Recipe().with_settings(**begun.read_json("recipe.json"))
    base = stored if stored is not None and recipe is None else resolve_recipe(recipe, name)
    asked = apply_settings(base, settings)
    dataset = load_dataset(data, stored or asked, data_root)
    for sentence in dataset.notes:
        watcher.warn(sentence)
    images = len(dataset.split("train"))
    plan = resolve_plan(asked, images, dataset.channels)
    for sentence in plan_notes(asked, plan, images, base.min_steps):
        watcher.warn(sentence)
    if begun is not None and stored is not None:
        check_unchanged(begun, stored, plan)
    device = choose_device(plan)
    with keeping_random_states(device):
        model, preprocessing = make_model(dataset, plan, device), make_preprocessing(dataset, plan)
        folder = begun or RunFolder.create(target, name, reuse=resume)
        if resume and begun is None:
            watcher.warn(f"There is nothing to resume in {folder.path} yet: the run starts from its first step.")
        with folder.lock():
            history = run_training(folder, plan, dataset, model, preprocessing, device, begun is not None, watcher)
            classifier = inference.load(folder.model)
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


def resolve_recipe(recipe: str | Path | Recipe | None, name: str) -> Recipe:
    """The recipe itself, or the one of that name for the data; `fast` where none is named."""
    return recipe if isinstance(recipe, Recipe) else find_recipe(recipe or "fast", name)


def check_unchanged(folder: RunFolder, stored: Recipe, asked: Recipe) -> None:
    """Raise RunFolderError where a setting that would change the result is not the one that the run started with."""
    now = asked.to_dict()
    for key, value in stored.to_dict().items():
        if now[key] != value and key not in FREE_TO_CHANGE:
            raise RunFolderError(
                f"{folder.path} was started with {key}={value}, now {key}={now[key]} is asked for: "
                "a resumed run keeps its recipe. Name no recipe and no settings to resume it, or start a new run."
            )


def load_dataset(data: str | Path | Dataset, recipe: Recipe, root: str | Path | None) -> Dataset:
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


def make_model(dataset: Dataset, recipe: Recipe, device: torch.device) -> Network:
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
    seed_torch(recipe.seed, device)
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


def choose_device(recipe: Recipe) -> torch.device:
    """The recipe's device; raises UsageError where it asks for a GPU that is not there."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        cpu, auto = option("device", "cpu"), option("device", "auto")
        raise UsageError(f"device=cuda was asked for, and torch finds no GPU here: use {cpu} or {auto}.")
    return torch.device("cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu")
