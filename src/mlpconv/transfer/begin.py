"""What a run does before its first step: record why its source was chosen, and fit the classifier."""

from __future__ import annotations

from typing import Any

from mlpconv.data import Dataset
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.text import option
from mlpconv.training.progress import EpochMetrics, Progress
from mlpconv.training.recipe import Recipe
from mlpconv.training.run_folder import RunFolder
from mlpconv.training.session import Start
from mlpconv.transfer.cache import FeatureCache
from mlpconv.transfer.choose import SourceChoice
from mlpconv.transfer.source import Source
from mlpconv.transfer.start import Started, set_classifier, start_from

__all__ = ["make_start"]


def make_start(
    folder: RunFolder,
    origin: Source | None,
    model: Network,
    preprocessing: Preprocessing,
    dataset: Dataset,
    recipe: Recipe,
    features: FeatureCache,
    progress: Progress,
    choice: SourceChoice | None,
) -> Start | None:
    """Return what a run does before its first step: record why its source was chosen, and fit the classifier."""
    if origin is None and choice is None:
        return None

    def start() -> tuple[EpochMetrics | None, dict[str, Any]]:
        if choice is not None:
            folder.write_json("choice.json", choice.to_dict())
        if origin is None:
            return None, {}
        started = choice.started if choice is not None else None
        return start_run(origin, model, preprocessing, dataset, recipe, features, progress, started)

    return start


def start_run(
    source: Source,
    network: Network,
    preprocessing: Preprocessing,
    dataset: Dataset,
    recipe: Recipe,
    cache: FeatureCache,
    progress: Progress,
    started: Started | None = None,
) -> tuple[EpochMetrics, dict[str, Any]]:
    """Do `start_from`, show its progress and note its result; or use what was `started` to choose this source."""
    hint = f"only the classifier is fitted; {option('tune', 'all')} trains all layers, slower and often better"
    if started is not None and started.head is not None:
        set_classifier(network, started.head)
        progress.note(hint)
        return started.row, started.facts
    try:
        row, facts, _ = start_from(source, network, preprocessing, dataset, recipe, cache, progress.features)
    except BaseException:
        progress.end()  # remove the bar
        raise
    what = "evaluated" if source.keeps_classifier(dataset, recipe) else "fitted"
    progress.note(f"classifier of {source.name} {what} in {row['seconds']:.1f} s, in {facts['precision']}")
    if recipe.add_classes and dataset.split("train").labels.min() >= len(source.classifier.classes):
        progress.warn(
            "There are no training images of the known classes, so nothing tells the new ones from them: images of "
            "known classes may get the new labels. Add some of their images."
        )
    if recipe.tune == "head" and not recipe.add_classes:
        progress.note(hint)
    elif recipe.tune != "head":
        progress.epoch(row, recipe.epochs)
    return row, facts
