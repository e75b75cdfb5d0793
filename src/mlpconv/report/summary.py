"""Evaluate the network of a run, and write its figures and report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from mlpconv.data import Dataset, Split
from mlpconv.errors import RunFolderError, UsageError
from mlpconv.evaluation import Evaluation, batch_for, evaluate, worst_mistakes
from mlpconv.files import json_bytes, write_atomic
from mlpconv.inference import Classifier
from mlpconv.maps import category_maps
from mlpconv.report import write_report
from mlpconv.training.progress import EpochMetrics

__all__ = ["summarise"]

MISTAKES = 15
MAP_IMAGES = 6  # on the sheet of category maps


def summarise(folder: Path, classifier: Classifier, dataset: Dataset, history: Sequence[EpochMetrics]) -> Evaluation:
    """Evaluate a classifier on validation, else test, else training images; write figures and report.html.

    Raises RunFolderError if the folder cannot be written.
    """
    name = next(name for name in ("val", "test", "train") if name in dataset.splits)
    split = dataset.split(name)
    evaluation = evaluate(classifier, split, batch_size=batch_for(split))
    figures = folder / "figures"
    try:
        figures.mkdir(exist_ok=True)
        write_atomic(folder / "evaluation.json", json_bytes({"split": name} | evaluation.to_dict()))
        draw(figures, classifier, split, evaluation, history)
        write_report(folder, classifier)
    except OSError as error:
        raise RunFolderError(
            f"the report in {folder} cannot be written ({error.strerror}); the model file is complete."
        ) from error
    return evaluation


def draw(
    figures: Path, classifier: Classifier, split: Split, evaluation: Evaluation, history: Sequence[EpochMetrics]
) -> None:
    """Draw the figures of a run into a folder."""
    from mlpconv import plots  # matplotlib: not needed where the report is left out

    if history and history[-1]["epoch"] != 0:  # a fitted classifier has no curves
        kept = classifier.info.get("metrics", {}).get("epoch")
        plots.save_figure(plots.curves(history, kept), figures / "curves.png")
    plots.save_figure(plots.confusion(evaluation.confusion, classifier.classes), figures / "confusion.png")
    plots.save_figure(plots.filters(classifier.model.first_conv.weight.detach().cpu().numpy()), figures / "filters.png")
    worst = worst_mistakes(evaluation, split, MISTAKES)
    mistakes = plots.mistakes(
        images=[split.images[mistake.index] for mistake in worst],
        true=[mistake.true for mistake in worst],
        predicted=[mistake.predicted for mistake in worst],
        confidence=[mistake.confidence for mistake in worst],
        names=[mistake.source for mistake in worst],
    )
    plots.save_figure(mistakes, figures / "mistakes.png")
    with suppress(UsageError):  # a fully connected head has no category maps
        maps = category_maps(classifier, np.ascontiguousarray(split.images[samples(split)]))
        plots.save_figure(plots.map_sheet(maps), figures / "maps.png")


def samples(split: Split) -> list[int]:
    """Return the indices of the first image of each of the first classes, in order."""
    firsts = np.unique(split.labels, return_index=True)[1]
    return sorted(int(index) for index in firsts[:MAP_IMAGES])
