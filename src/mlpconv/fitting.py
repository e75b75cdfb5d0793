"""`mlpconv.fit`: train a network on a data set, and write a run folder with model file and report."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlpconv import inference, modelfile
from mlpconv.data import Dataset, open_data
from mlpconv.data.catalog import CATALOG
from mlpconv.data.duplicates import with_duplicate_notes
from mlpconv.data.shard_images import fitting_sample
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
from mlpconv.training.environment import describe
from mlpconv.training.memory import flushing_denormals
from mlpconv.training.plan import apply_settings, plan_notes, resolve_plan
from mlpconv.training.process_group import current, in_process_group
from mlpconv.training.progress import EpochMetrics
from mlpconv.training.run_folder import RunFolder
from mlpconv.training.seeding import keeping_random_states, seed_torch
from mlpconv.training.session import data_summary, run_training
from mlpconv.training.shared_folder import folder_type
from mlpconv.transfer.probe import CHANNELS, DEFAULT_SIZE, check_source, linear_probe, load_rgb

__all__ = ["Run", "fit"]

DEFAULT_MODEL = {
    "mnist": "nin_mnist",
    "fashion_mnist": "nin_mnist",
    "cifar10": "nin_cifar10",
    "cifar100": "nin_cifar100",
    "svhn": "nin_svhn",
}
NIN_TINY_MAX_SIDE = 40  # pixels; larger images get nin_photo by default
MODEL_OPTIONS = ("depth", "kernel", "activation", "pool_first", "pool2", "dropout", "last_relu", "init")
SOURCE_SETTINGS = ("size", "fit", "val_fraction", "seed", "precision")
# A resumed run may change these: they do not affect the result. The effect of min_steps is in the number of epochs.
CHANGEABLE_ON_RESUME = ("workers", "checkpoint_minutes", "min_steps")


@dataclass(frozen=True, repr=False)
class Run:
    """The result of a run: the best classifier, the metrics of every epoch, and the run folder."""

    classifier: Classifier
    history: list[EpochMetrics]
    folder: Path

    def __repr__(self) -> str:
        best = self.classifier.info["metrics"]
        if not self.history:
            return f"<Run in {str(self.folder)!r}: classifier of a pretrained network>"
        split = "train" if best["val_accuracy"] is None else "val"
        epochs = f"best epoch {best['epoch']} of {len(self.history)}"
        return f"<Run in {str(self.folder)!r}: {epochs}, {split}_accuracy {best[f'{split}_accuracy']:.4f}>"


# Set before anything else: threads that torch has already started would not get it, and results would depend on them.
@flushing_denormals()
@in_process_group()
def fit(
    data: str | Path | Dataset,
    recipe: str | Path | Recipe | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    data_root: str | Path | None = None,
    progress: Progress | bool | None = True,
    report: bool = True,
    source: str | None = None,
    **settings: Any,
) -> Run:
    """Train a network on a data set and return the best classifier, the history and the run folder.

    `data` is the name of a data set, a folder with one folder per class, or a Dataset. `recipe` is a name (default
    "fast"), a JSON file or a Recipe; `settings` override single settings, and `epochs` also overrides `min_steps`.
    All files are written to `out` (default runs/NAME-001, numbered). `resume` continues the run in `out` (default: the
    newest run of this data set), or starts it if there is none. `data_root` is the folder with the files of a named
    data set. `progress=True` shows a progress bar in a notebook or terminal; messages go to the logger "mlpconv"; a
    Progress object receives all events instead. `report=False` skips the evaluation, the figures and the report.
    `source`, "efficientnet_lite0" or "squeezenet", is a pretrained network: only a new classifier is fitted on its
    features (`transfer.linear_probe`), without epochs. The caller's random states do not change. Raises a subclass of
    MlpconvError (`mlpconv.errors`).
    """
    if not isinstance(progress, Progress):
        progress = default_progress(bar=bool(progress))
    if (group := current()) is not None and group.rank:
        progress = Progress()  # rank 0 shows the progress of all
    run_folder = folder_type()
    name = data_name(data)
    target = Path(out) if out is not None else None
    if source is not None:
        given = ({"recipe": recipe} if recipe else {}) | ({"resume": True} if resume else {}) | settings
        return fit_source(source, data, target, data_root, progress, report, given)
    existing = run_folder.find(target, name) if resume else None
    stored = None if existing is None else Recipe().with_settings(**existing.read_json("recipe.json"))
    base = stored if stored is not None and recipe is None else resolve_recipe(recipe, name)
    requested = apply_settings(base, settings)
    dataset = load_dataset(data, stored or requested, data_root)
    images = len(dataset.split("train"))
    plan = resolve_plan(requested, images, dataset.channels)
    for message in (*dataset.notes, *plan_notes(requested, plan, images, base.min_steps)):
        progress.warn(message)
    if existing is not None and stored is not None:
        check_unchanged(existing, stored, plan)
    device = choose_device(plan)
    with keeping_random_states(device):
        model, preprocessing = make_model(dataset, plan, device), make_preprocessing(dataset, plan)
        folder = existing or run_folder.create(target, name, reuse=resume)
        if resume and existing is None:
            progress.warn(f"There is nothing to resume in {folder.path} yet: starting a new run.")
        with folder.lock():
            history = run_training(folder, plan, dataset, model, preprocessing, device, existing is not None, progress)
            with folder.local(folder.model) as path:
                classifier = inference.load(path)
            if report and folder.writes:
                summarise(folder.path, classifier, dataset, history)
    return Run(classifier, history, folder.path)


def fit_source(
    source: str,
    data: str | Path | Dataset,
    out: Path | None,
    root: str | Path | None,
    progress: Progress,
    report: bool,
    settings: Mapping[str, Any],
) -> Run:
    """Fit a new classifier on the features of a pretrained network, and write a run folder without epochs."""
    for key, value in settings.items():
        if key not in SOURCE_SETTINGS:
            raise UsageError(
                f"{option(key, value)} has no effect with {option('source', source)}: "
                f"the settings {', '.join(SOURCE_SETTINGS)} are accepted."
            )
    options = dict(settings)
    precision = options.pop("precision", "fp32")
    check_source(source, precision)
    recipe = Recipe().with_settings(**options)  # checks the values
    if recipe.size is None and not isinstance(data, Dataset):
        recipe = recipe.with_settings(size=DEFAULT_SIZE)
    held_out: dict[str, Any] = {"val_fraction": recipe.val_fraction, "seed": recipe.seed}
    dataset = load_rgb(load_dataset(data, recipe, root, channels=CHANNELS), size=DEFAULT_SIZE, **held_out)
    for message in dataset.notes:
        progress.warn(message)
    folder = RunFolder.create(out, data_name(data))
    start = time.perf_counter()
    classifier = linear_probe(dataset, source, precision=precision, **held_out)
    progress.note(f"classifier of {source} fitted in {time.perf_counter() - start:.1f} s")
    with folder.lock():
        folder.write_json("data.json", data_summary(dataset))
        folder.write_json("environment.json", describe() | {"precision": precision})
        save_model(folder, classifier)
        if report:
            summarise(folder.path, classifier, dataset, [])
    return Run(classifier, [], folder.path)


def save_model(folder: RunFolder, classifier: Classifier) -> None:
    """Write the model file of a run; raise RunFolderError if it cannot be written."""
    parts: dict[str, Any] = {"classes": classifier.classes, "input_size": classifier.input_size}
    try:
        modelfile.save(folder.model, classifier.model, classifier.preprocessing, info=classifier.info, **parts)
    except OSError as error:
        raise RunFolderError(f"{folder.model} cannot be written ({error.strerror}): free disk space.") from error


def data_name(data: str | Path | Dataset) -> str:
    """Return the name of the data for recipes and run folders: that of the data set or of the folder."""
    if isinstance(data, Dataset):
        return re.sub(r"[^\w.-]+", "_", data.name).strip(".") or "data"
    if str(data) in CATALOG:
        return str(data)
    try:
        return Path(data).resolve().name or "folder"
    except (OSError, RuntimeError, ValueError):  # such as a loop of links: opening the folder reports it
        return "folder"


def resolve_recipe(recipe: str | Path | Recipe | None, name: str) -> Recipe:
    """Return a Recipe as it is, or find the one with this name for the data set; the default is `fast`."""
    return recipe if isinstance(recipe, Recipe) else find_recipe(recipe or "fast", name)


def check_unchanged(folder: RunFolder, stored: Recipe, requested: Recipe) -> None:
    """Raise RunFolderError if a setting that affects the result differs from the stored one."""
    values = requested.to_dict()
    for key, value in stored.to_dict().items():
        if values[key] != value and key not in CHANGEABLE_ON_RESUME:
            raise RunFolderError(
                f"{folder.path} was started with {key}={value}, got {key}={values[key]}: a resumed run keeps its "
                "recipe. Resume it without recipe and settings, or start a new run."
            )


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


def make_model(dataset: Dataset, recipe: Recipe, device: torch.device) -> Network:
    """Create the recipe's network for the data, initialised from its seed; raises UsageError on a mismatch."""
    side = min(dataset.size)
    default = DEFAULT_MODEL.get(dataset.name, "nin_tiny" if side <= NIN_TINY_MAX_SIDE else "nin_photo")
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
        default if recipe.model == "auto" else recipe.model,
        num_classes=dataset.num_classes,
        in_channels=dataset.channels,
        **options,
    )
    if recipe.sizes and dataset.size[0] != dataset.size[1]:
        raise UsageError(
            f"sizes needs square images, and these have {dataset.size[0]}x{dataset.size[1]}: leave sizes out."
        )
    for height, width in (dataset.size, *((side, side) for side in recipe.sizes)):
        model.check_input(torch.empty(1, dataset.channels, height, width, device="meta"))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def make_preprocessing(dataset: Dataset, recipe: Recipe) -> Preprocessing:
    """Create the recipe's preprocessing and fit it on the training images."""
    preprocessing = Preprocessing.create(recipe.preprocessing, dataset.channels, dataset.size, dataset.decode_options)
    return preprocessing.fit(fitting_sample(dataset.split("train").images))


def choose_device(recipe: Recipe) -> torch.device:
    """Return the recipe's device; raises UsageError if it needs a GPU and PyTorch finds none."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        cpu, auto = option("device", "cpu"), option("device", "auto")
        raise UsageError(f"device=cuda needs a GPU, and PyTorch finds no GPU here: use {cpu} or {auto}.")
    return torch.device("cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu")
