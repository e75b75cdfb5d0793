"""`mlpconv.fit`: train a network on a data set, and write a run folder with model file and report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mlpconv import inference
from mlpconv.data import Dataset
from mlpconv.data.balance import balance_text
from mlpconv.errors import UsageError
from mlpconv.evaluation import Evaluation
from mlpconv.inference import Classifier
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.report.choice import choice_lines
from mlpconv.report.summary import summarise
from mlpconv.temperature_scaling import calibrate_file, check_scalable
from mlpconv.text import option
from mlpconv.training import Progress, Recipe, find_recipe
from mlpconv.training.combinations import SCRATCH
from mlpconv.training.display import default_progress
from mlpconv.training.memory import flushing_denormals
from mlpconv.training.network import make_model
from mlpconv.training.plan import apply_settings, check_unchanged, plan_notes, resolve_plan
from mlpconv.training.process_group import current, in_process_group
from mlpconv.training.progress import EpochMetrics
from mlpconv.training.run_data import data_name, load_dataset, make_preprocessing, published_name
from mlpconv.training.run_folder import RunFolder, require_usable
from mlpconv.training.seeding import keeping_random_states, seed_torch
from mlpconv.training.session import run_training
from mlpconv.training.shared_folder import folder_type
from mlpconv.transfer.begin import make_start
from mlpconv.transfer.cache import GIGABYTES, FeatureCache
from mlpconv.transfer.choose import (
    AUTO,
    HEAD_SETTINGS,
    SourceCandidate,
    SourceChoice,
    choose,
    is_automatic,
    leave_unchosen,
)
from mlpconv.transfer.classes import check_classes, with_classes
from mlpconv.transfer.depth import finetune_recipe, time_limit
from mlpconv.transfer.source import BACKBONES, Source, open_source
from mlpconv.transfer.start import TransferParts
from mlpconv.transfer.teacher import make_teach

__all__ = ["Run", "fit"]

PILOT_STEPS = 250  # of training from random weights, to compare it with pretrained features


@dataclass(frozen=True, repr=False)
class Run:
    """The result of a run: the classifier, the metrics of every epoch, the run folder and what its report says."""

    classifier: Classifier
    history: list[EpochMetrics]
    folder: Path
    evaluation: Evaluation | None = None
    """Of the classifier on the validation images, in float32; None if no report was written."""

    def __repr__(self) -> str:
        kept = self.classifier.info["metrics"]
        split = "train" if kept["val_accuracy"] is None else "val"
        last = self.history[-1]["epoch"]
        epochs = f"epoch {kept['epoch']} of {last}" if last else "fitted classifier"
        return f"<Run in {str(self.folder)!r}: {epochs}, {split}_accuracy {kept[f'{split}_accuracy']:.4f}>"


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
    source: str | Path | None = None,
    cache_gb: float = GIGABYTES,
    minutes: float | None = None,
    **settings: Any,
) -> Run:
    """Train a network on a data set and return the classifier, the history and the run folder.

    `data` is the name of a data set, a folder with one folder per class, or a Dataset. `recipe` is a name (default
    "fast"), a JSON file or a Recipe; `settings` override single settings, and `epochs` also overrides `min_steps`.
    All files are written to `out` (default runs/NAME-001, numbered). `resume` continues the run in `out` (default: the
    newest run of this data set), or starts it if there is none. `data_root` is the folder with the files of a named
    data set. `progress=True` shows a progress bar in a notebook or terminal; messages go to the logger "mlpconv"; a
    Progress object receives all events instead. `report=False` skips the evaluation, the figures and the report.
    `source` gives the initial weights: "scratch" (random), a shipped network, a model file, a run folder, or "auto",
    which compares them and is the default for a folder without recipe and settings of training. With a source, `tune`
    is "head" (default: only a classifier is fitted on its features, without epochs), "last" or "all"; with "auto" and
    without `tune`, the deepest of them that is estimated to take at most `minutes` (default 0.25). The setting
    `teacher` names a trained network of the same classes, whose probabilities the network learns too. Features and
    outputs of the teacher are cached in at most `cache_gb` gigabytes of disk. The caller's random states do not change.
    Raises a subclass of MlpconvError (`mlpconv.errors`).
    """
    progress, run_folder, name, published = progress_of(progress), folder_type(), data_name(data), published_name(data)
    target = Path(out) if out is not None else None
    existing = run_folder.find(target, name) if resume else None
    stored = None if existing is None else Recipe().with_settings(**existing.read_json("recipe.json"))
    features, choice = FeatureCache(cache_gb).remembering(), None
    if current() is None and existing is None:
        require_usable(target)  # before minutes of reading and computing
    if current() is None and stored is None and is_automatic(data, recipe, source, settings):
        choice = choose_source(data, data_root, settings, features, progress, minutes)
        source, (settings, choice) = choice.source, choice.settle(settings)
    elif stored is None:
        leave_unchosen(data, recipe, source, settings, minutes, progress.note)
    base = stored if stored is not None and recipe is None else resolve_recipe(recipe, published, source, settings)
    requested = apply_settings(base, settings if source in (None, AUTO) else {"source": str(source)} | settings)
    check_processes(requested)
    origin = None if requested.source == SCRATCH else open_source(requested.source, requested.weights)
    dataset, requested = open_for_run(data, data_root, requested, stored, origin, choice)
    plan = noted_plan(requested, dataset, base.min_steps, progress)
    if existing is not None and stored is not None:
        check_unchanged(existing.path, stored, plan)
    device, resumed = choose_device(plan), existing is not None
    with keeping_random_states(device):
        model, preprocessing = make_parts(origin, dataset, plan, device)
        teach = make_teach(data, dataset, plan, data_root, device, features, progress)
        folder = existing or new_folder(run_folder, target, name, resume, progress)
        parts = None if origin is None else TransferParts(origin, model, preprocessing, dataset, plan, features)
        start = make_start(folder, parts, choice, progress)
        with folder.lock():
            history = run_training(folder, plan, dataset, model, preprocessing, device, resumed, progress, start, teach)
            return finished(folder, dataset, plan, history, report, progress)


def progress_of(progress: Progress | bool | None) -> Progress:
    """Return the display of a run; of several processes, rank 0 shows the progress of all."""
    if (group := current()) is not None and group.rank:
        return Progress()
    return progress if isinstance(progress, Progress) else default_progress(bar=bool(progress))


def new_folder(kind: type[RunFolder], target: Path | None, name: str, resume: bool, progress: Progress) -> RunFolder:
    """Create the folder of a run; say if it was to be resumed."""
    folder = kind.create(target, name, reuse=resume)
    if resume:
        progress.warn(f"There is nothing to resume in {folder.path} yet: starting a new run.")
    return folder


def check_processes(recipe: Recipe) -> None:
    """Raise UsageError if several processes are to start from a pretrained network."""
    if current() is not None and recipe.source != SCRATCH:
        raise UsageError(
            f"{option('source', recipe.source)} trains in one process, several start from random weights: start it "
            f"without torchrun, or with {option('source', SCRATCH)}."
        )


def finished(
    folder: RunFolder, dataset: Dataset, recipe: Recipe, history: list[EpochMetrics], report: bool, progress: Progress
) -> Run:
    """Return the result of a run, after it was calibrated if the recipe says so and its report was written."""
    if recipe.calibrate and folder.writes:
        progress.note(str(calibrate_file(folder.model, dataset.split("val"))))
    with folder.local(folder.model) as path:
        classifier = inference.load(path)
    evaluation = summarise(folder.path, classifier, dataset, history) if report and folder.writes else None
    return Run(classifier, history, folder.path, evaluation)


def choose_source(
    data: str | Path | Dataset,
    root: str | Path | None,
    settings: Mapping[str, Any],
    features: FeatureCache,
    progress: Progress,
    minutes: float | None,
) -> SourceChoice:
    """Compare the pretrained networks, and training from random weights if it may be better; note the results."""
    limit = time_limit(minutes, settings)
    Recipe().with_settings(source=BACKBONES[0], **settings)  # refuses what the run would refuse later
    settings = {key: value for key, value in settings.items() if key not in ("tune", "calibrate")}  # alike for all
    recipe = Recipe().with_settings(**settings)

    @cache
    def open_at(size: int | None, channels: int | None) -> Dataset:
        return load_dataset(data, recipe.with_settings(size=size), root, channels)

    def pilot() -> SourceCandidate:
        clock = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            plan = {"epochs": 1, "min_steps": PILOT_STEPS, **settings}
            run = fit(data, source=SCRATCH, data_root=root, out=out, progress=Progress(), report=False, **plan)
        best, split = run.classifier.info["metrics"]["val_accuracy"], open_at(None, None).split("val")
        correct, seconds = round(best * len(split)), round(time.perf_counter() - clock, 1)
        return SourceCandidate(SCRATCH, run.classifier.input_size[1], correct, len(split), seconds, pilot=True)

    try:
        choice = choose(open_at, pilot, recipe, choose_device(recipe), features, progress.features, limit)
    except BaseException:
        progress.end()
        raise
    for line in choice_lines(choice.to_dict()):
        progress.note(line)
    return choice


def noted_plan(requested: Recipe, dataset: Dataset, min_steps: int, progress: Progress) -> Recipe:
    """Return the recipe resolved for the data; report the notes on both."""
    images = len(dataset.split("train"))
    plan = resolve_plan(requested, images, dataset.channels)
    for message in (*dataset.notes, *plan_notes(requested, plan, images, min_steps)):
        progress.warn(message)
    if plan.balance:
        progress.note(balance_text(dataset.split("train").labels, dataset.classes))
    if plan.calibrate and "val" not in dataset.splits:
        raise UsageError(f"{option('calibrate', True)} needs a validation split: pass {option('val_fraction', 0.2)}.")
    return plan


def open_for_run(
    data: str | Path | Dataset,
    root: str | Path | None,
    requested: Recipe,
    stored: Recipe | None,
    origin: Source | None,
    choice: SourceChoice | None,
) -> tuple[Dataset, Recipe]:
    """Open the data as the network takes it; return it with the requested recipe, whose `size` is then resolved."""
    if choice is not None and choice.dataset is not None:
        return choice.dataset, requested
    if origin is None:
        return load_dataset(data, stored or requested, root), requested
    if not isinstance(data, Dataset):
        requested = requested.with_settings(size=requested.size or origin.side(requested.tune))
    dataset = load_dataset(data, stored or requested, root, origin.channels)
    check_classes(dataset)
    return with_classes(dataset, origin.classifier.classes) if requested.add_classes else dataset, requested


def make_parts(
    origin: Source | None, dataset: Dataset, recipe: Recipe, device: torch.device
) -> tuple[Network, Preprocessing]:
    """Return network and preprocessing: new ones, or those of the network that training starts from."""
    if origin is None:
        model, preprocessing = make_model(dataset, recipe, device), make_preprocessing(dataset, recipe)
    else:
        seed_torch(recipe.seed, device)  # a new classifier starts from random weights
        model, preprocessing = origin.network(dataset, recipe), origin.preprocessing(dataset)
    if recipe.calibrate:
        check_scalable(model)
    return model, preprocessing


def resolve_recipe(
    recipe: str | Path | Recipe | None, name: str | None, source: str | Path | None, settings: Mapping[str, Any]
) -> Recipe:
    """Return a Recipe as it is, or find it; `name` is that of a published data set, None for other data.

    The default is `fast` for random weights, `finetune` for a source, and no recipe for its classifier alone. Raises
    UsageError for settings that do not affect the classifier.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is None and "tune" in settings and source in (None, SCRATCH):
        raise UsageError(
            f"{option('tune', settings['tune'])} needs pretrained weights: name them, {option('source', 'NETWORK')}."
        )
    if recipe is not None or source is None or source == SCRATCH:
        return find_recipe(recipe or "fast", name)
    if settings.get("tune", "head") != "head":
        return finetune_recipe(str(source))
    for key, value in settings.items():
        if key not in HEAD_SETTINGS:
            raise UsageError(
                f"{option(key, value)} has no effect with {option('source', str(source))}, which fits a classifier: "
                f"accepted are {', '.join(HEAD_SETTINGS)}. {option('tune', 'all')} trains all layers."
            )
    return Recipe(source=str(source), tune="head", flip="random")


def choose_device(recipe: Recipe) -> torch.device:
    """Return the recipe's device; raises UsageError if it needs a GPU and PyTorch finds none."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        cpu, auto = option("device", "cpu"), option("device", "auto")
        raise UsageError(f"device=cuda needs a GPU, and PyTorch finds no GPU here: use {cpu} or {auto}.")
    return torch.device("cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu")
