"""What a run does before its first step: record why its source was chosen, and fit the classifier."""

from __future__ import annotations

from typing import Any

from mlpconv.text import option
from mlpconv.training.progress import EpochMetrics, Progress
from mlpconv.training.run_folder import RunFolder
from mlpconv.training.session import Start
from mlpconv.transfer.choose import SourceChoice
from mlpconv.transfer.start import Started, TransferParts, set_classifier, start_from

__all__ = ["make_start"]


def make_start(
    folder: RunFolder, parts: TransferParts | None, choice: SourceChoice | None, progress: Progress
) -> Start | None:
    """Return what a run does before its first step: record why its source was chosen, and fit the classifier.

    `parts` are None for random weights.
    """
    if parts is None and choice is None:
        return None

    def start() -> tuple[EpochMetrics | None, dict[str, Any]]:
        if choice is not None:
            folder.write_json("choice.json", choice.to_dict())
        if parts is None:
            return None, {}
        row, facts, _ = start_run(parts, choice.started if choice is not None else None, progress)
        if parts.recipe.tune != "head":
            progress.epoch(row, parts.recipe.epochs)
        elif not parts.recipe.add_classes and (choice is None or choice.depth is None):
            hint = option("tune", "all")
            progress.note(f"only the classifier is fitted; {hint} trains all layers, slower and often better")
        return row, facts

    return start


def start_run(parts: TransferParts, started: Started | None, progress: Progress) -> Started:
    """Do `start_from`, show its progress and note its result; or use what was `started` to choose this source."""
    if started is not None and started.head is not None:
        set_classifier(parts.network, started.head)
        return started
    try:
        started = start_from(parts, progress.features)
    except BaseException:
        progress.end()  # remove the bar
        raise
    what = "evaluated" if parts.keeps_classifier else "fitted"
    seconds, precision = started.row["seconds"], started.facts["precision"]
    progress.note(f"classifier of {parts.source.name} {what} in {seconds:.1f} s, in {precision}")
    known = len(parts.source.classifier.classes)
    if parts.recipe.add_classes and parts.dataset.split("train").labels.min() >= known:
        progress.warn(
            "There are no training images of the known classes, so nothing tells the new ones from them: images of "
            "known classes may get the new labels. Add some of their images."
        )
    return started
