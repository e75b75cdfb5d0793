"""What a run leaves for people to look at: the judgement of its best network, the pictures, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from mlpconv import plots
from mlpconv.data import Dataset, Split
from mlpconv.errors import RunFolderError, UsageError
from mlpconv.evaluation import Evaluation, evaluate, worst_mistakes
from mlpconv.files import json_bytes, write_atomic
from mlpconv.inference import Classifier
from mlpconv.maps import category_maps
from mlpconv.report import write_report
from mlpconv.training.progress import EpochMetrics

__all__ = ["summarise"]

MISTAKES = 15
SHOWN = 6  # images on the sheet of category maps


def summarise(folder: Path, classifier: Classifier, dataset: Dataset, history: Sequence[EpochMetrics]) -> Evaluation:
    """Judge the classifier on validation images (else test, else training ones) and write figures and report.html.

    Raises RunFolderError where the folder cannot be written.
    """
    name = next(name for name in ("val", "test", "train") if name in dataset.splits)
    split = dataset.split(name)
    evaluation = evaluate(classifier, split)
    figures = folder / "figures"
    try:
        figures.mkdir(exist_ok=True)
        write_atomic(folder / "evaluation.json", json_bytes({"split": name} | evaluation.to_dict()))
        draw(figures, classifier, split, evaluation, history)
        write_report(folder, classifier)
    except OSError as error:
        raise RunFolderError(
            f"the report in {folder} cannot be written ({error.strerror}); the model file is whole."
        ) from error
    return evaluation


def draw(
    figures: Path, classifier: Classifier, split: Split, evaluation: Evaluation, history: Sequence[EpochMetrics]
) -> None:
    """The pictures of a run."""
    plots.save_figure(plots.curves(history), figures / "curves.png")
    plots.save_figure(plots.confusion(evaluation.confusion, classifier.classes), figures / "confusion.png")
    plots.save_figure(plots.filters(classifier.model.first_conv.weight.detach().cpu().numpy()), figures / "filters.png")
    errors = worst_mistakes(evaluation, split, MISTAKES)
    mistakes = plots.mistakes(
        images=[split.images[error.index] for error in errors],
        true=[error.true for error in errors],
        predicted=[error.predicted for error in errors],
        confidence=[error.confidence for error in errors],
        names=[error.source for error in errors],
    )
    plots.save_figure(mistakes, figures / "mistakes.png")
    with suppress(UsageError):  # a fully connected head has no category maps
        seen = category_maps(classifier, np.ascontiguousarray(split.images[samples(split)]))
        plots.save_figure(plots.map_sheet(seen), figures / "maps.png")


def samples(split: Split) -> list[int]:
    """The first image of each of the first classes, in order."""
    firsts = np.unique(split.labels, return_index=True)[1]
    return sorted(int(index) for index in firsts[:SHOWN])
