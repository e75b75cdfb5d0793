"""`mlpconv evaluate`: how good a model file is on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mlpconv.cli.options import Switch

if TYPE_CHECKING:
    from rich.table import Table

    from mlpconv.data import Dataset, Split
    from mlpconv.evaluation import Evaluation
    from mlpconv.inference import Classifier

__all__ = ["evaluate"]

MOST_CLASSES = 20  # rows of the table of classes
MOST_PAIRS = 5
TRAINED_ON = "The model was trained on these images: figures on images it has not seen will be worse."
PERHAPS_TRAINED_ON = (
    "The model file does not say whether these images were trained on: if some were, figures on others will be worse."
)
OTHER_IMAGES = (
    "Images were added or removed since training, or these are others. Scored are those that training held out, or "
    "would have held out: the model has seen none of them. --split all adds images that it may have seen."
)
MOST_CELLS = 100 * 100  # a larger confusion matrix is left out of the JSON


def evaluate(
    model: str,
    data: str,
    /,
    *,
    split: Literal["test", "val", "train", "all"] | None = None,
    data_dir: Annotated[Path | None, Parameter(name="--data")] = None,
    batch_size: int = 128,
    tta_flip: Switch = False,
    json: Switch = False,
) -> None:
    """Judge a model file on labelled images: error with its 95 % interval, log loss, calibration, each class.

    Parameters
    ----------
    model
        A model file, a run folder, or the name of shipped weights: digits, nin_cifar10, nin_mnist.
    data
        digits, mnist, fashion_mnist, cifar10, cifar100, svhn, or a folder (of class folders, or of
        train/, val/ and test/).
    split
        The images to judge on: test (the default where there is one), val (those that training held out), train
        or all.
    data_dir
        The folder that holds the files of a named data set, where they are not in the cache.
    batch_size
        Images computed at a time.
    tta_flip
        Average each image with its mirror image.
    json
        Print one JSON object, for machines.
    """
    from mlpconv import evaluation, inference
    from mlpconv.cli.bar import Bar
    from mlpconv.data.as_trained import open_as_trained

    classifier = inference.load(model)
    dataset = open_as_trained(data, data_dir, classifier)
    name, part = _choose(dataset, split)
    part = evaluation.align_labels(part, dataset.classes, classifier)
    with Bar("judging", len(part)) as bar:
        result = evaluation.evaluate(classifier, part, batch_size=batch_size, tta_flip=tta_flip, progress=bar)
    notes = [*dataset.notes, *_notes(dataset, name, classifier)]
    if json:
        _say_json(result, {"model": model, "data": data, "split": name, "tta_flip": tta_flip, "notes": notes})
    else:
        _say(result, f"{model} on {data}, {name}", notes)


def _choose(dataset: Dataset, wanted: str | None) -> tuple[str, Split]:
    """The split asked for, else test, else val, else all; raises MissingSplit."""
    from mlpconv.data import Split
    from mlpconv.errors import MissingSplit

    if wanted == "val" and wanted not in dataset.splits and dataset.membership is None:
        raise MissingSplit(
            f"{dataset.name} has no val split here, and the model file does not say which of its images training held "
            f"out: give a folder with val/ or test/, or --split all for images that the model has not seen."
        )
    if wanted is None:
        wanted = next((name for name in ("test", "val") if name in dataset.splits), "all")
    if wanted == "all":
        import numpy as np

        parts = list(dataset.splits.values())
        images = np.concatenate([part.images for part in parts])
        return wanted, Split(images, np.concatenate([part.labels for part in parts]))
    return wanted, dataset.split(wanted)


def _notes(dataset: Dataset, split: str, classifier: Classifier) -> list[str]:
    """What the reader of the figures should know about the images they come from."""
    same = classifier.info.get("fingerprint") == dataset.fingerprint
    if split in ("train", "all"):
        return [TRAINED_ON if same else PERHAPS_TRAINED_ON]
    if split == "val" and not same:
        return [PERHAPS_TRAINED_ON if dataset.membership is None else OTHER_IMAGES]
    return []


def _say_json(result: Evaluation, about: dict[str, Any]) -> None:
    import json

    figures = result.to_dict()
    if result.confusion.size <= MOST_CELLS:
        figures["confusion"] = result.confusion.tolist()
    print(json.dumps(about | figures, indent=2))


def _say(result: Evaluation, title: str, notes: list[str]) -> None:
    """Tables for a person."""
    from mlpconv.cli.show import open_console, say, say_table
    from mlpconv.text import printable

    console = open_console()
    say_table(console, _figures(result), printable(title))
    say_table(console, *_classes(result))
    pairs = result.confused(MOST_PAIRS)
    if pairs:
        say(console, "Most often confused", style="bold")
    for pair in pairs:
        names = f"{printable(pair.true)} taken for {printable(pair.predicted)}"
        say(console, f"  {names}: {pair.count} ({pair.share:.1%} of them)")
    for note in notes:
        say(console, f"Note: {printable(note)}")


def _figures(result: Evaluation) -> Table:
    from rich.table import Table

    low, high = result.error_interval
    rows = [
        ("images", f"{result.n:,}"),
        ("error", f"{result.error:.2%}  (95 % interval {low:.2%} to {high:.2%})"),
        ("accuracy", f"{result.accuracy:.2%}"),
        ("log loss", f"{result.log_loss:.4f}"),
        ("calibration error", f"{result.calibration_error:.4f}"),
    ]
    if result.top5_error is not None:
        rows.insert(3, ("top-5 error", f"{result.top5_error:.2%}"))
    table = Table(show_header=False)
    for name, figure in rows:
        table.add_row(name, figure)
    return table


def _classes(result: Evaluation) -> tuple[Table, str]:
    """A row a class, of many those with the lowest F1; and what to call it."""
    from rich.table import Table
    from rich.text import Text

    from mlpconv.text import printable

    per_class, count = result.per_class, len(result.classes)
    shown = list(range(count))
    title = "Each class"
    if count > MOST_CLASSES:
        present = [k for k in shown if per_class.support[k]]
        shown = sorted(present, key=lambda k: float(per_class.f1[k]))[:MOST_CLASSES]
        title = f"The {len(shown)} classes with the lowest F1, of {count} (--json has all)"
    table = Table()
    for name in ("class", "precision", "recall", "F1", "images"):
        table.add_column(name, justify="left" if name == "class" else "right", overflow="fold")
    for k in shown:
        figures = [f"{values[k]:.3f}" for values in per_class[:3]] if per_class.support[k] else ["-"] * 3
        table.add_row(Text(printable(result.classes[k])), *figures, f"{per_class.support[k]:,}")
    return table, title
