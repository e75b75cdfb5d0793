"""`mlpconv evaluate`: measure how accurate a model is on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlpconv.cli.options import DataDir, Model, Switch, check_data_dir, check_from_one, check_model_file

if TYPE_CHECKING:
    from rich.table import Table

    from mlpconv.data import Dataset, Split
    from mlpconv.evaluation import Evaluation
    from mlpconv.inference import Classifier
    from mlpconv.temperature_scaling import TemperatureFit

__all__ = ["evaluate"]

MAX_CLASSES = 20  # rows in the table of classes
MAX_PAIRS = 5
TRAINED_ON = "The model was trained on these images: expect worse results on other images."
PERHAPS_TRAINED_ON = (
    "The model file does not record whether these images were trained on: if some were, expect worse results on others."
)
OTHER_IMAGES = (
    "These images differ from those of the training run. Only images that training held out, or would have held out, "
    "are evaluated: the model has seen none of them. --split all adds images that it may have seen."
)
MAX_CELLS = 100 * 100  # the JSON omits a larger confusion matrix


def evaluate(
    model: Model,
    data: str,
    /,
    *,
    split: Literal["test", "val", "train", "all"] | None = None,
    data_dir: DataDir = None,
    batch_size: int = 128,
    tta_flip: Switch = False,
    calibrate: Path | None = None,
    json: Switch = False,
) -> None:
    """Evaluate a model on labelled images: error with its 95 % interval, log loss, calibration, metrics per class.

    Parameters
    ----------
    data
        digits, mnist, fashion_mnist, cifar10, cifar100, svhn; a folder (of class folders, or train/, val/ and test/);
        or tar shards, such as shards/*.tar.
    split
        The images to evaluate: test (the default, if there is one), val (those that training held out; the default
        without a test split, and with --calibrate), train or all.
    batch_size
        Images per batch.
    tta_flip
        Average the logits of each image and its horizontal flip.
    calibrate
        Fit a temperature on these images, write the model with calibrated probabilities to this file, and evaluate it.
    json
        Print one JSON object.
    """
    from mlpconv import evaluation, inference
    from mlpconv.cli.bar import Bar
    from mlpconv.data.as_trained import open_as_trained

    check_from_one(batch_size=batch_size)
    check_data_dir(data_dir, data)
    check_model_file(model, calibrate=calibrate)
    classifier = inference.load(model)
    dataset = open_as_trained(data, data_dir, classifier)
    name, images = _select(dataset, split or (None if calibrate is None else "val"))
    images = evaluation.align_labels(images, dataset, classifier)
    about: dict[str, Any] = {"model": model, "data": data, "split": name, "tta_flip": tta_flip}
    notes = [*dataset.notes, *_notes(dataset, name, classifier)]
    if calibrate is not None:
        classifier, fit = _calibrated(classifier, images, name, calibrate, trained=TRAINED_ON in notes)
        about |= {"calibration": fit.to_dict()}
        notes += [f"{fit}. Written: {calibrate}"]
    with Bar("evaluating", len(images)) as bar:
        result = evaluation.evaluate(classifier, images, batch_size=batch_size, tta_flip=tta_flip, progress=bar)
    if json:
        _print_json(result, about | {"notes": notes})
    else:
        title = f"{model} on {data}, {'all images' if name == 'all' else f'{name} split'}"
        _print_tables(result, title, notes)


def _select(dataset: Dataset, name: str | None) -> tuple[str, Split]:
    """Return the split `name`, by default test, else val, else all images; raise MissingSplit."""
    from mlpconv.data import Split
    from mlpconv.errors import MissingSplit

    if name == "val" and name not in dataset.splits and dataset.membership is None:
        raise MissingSplit(
            f"{dataset.name} has no val split, and the model file does not record which of its images training held "
            f"out: give a folder with val/ or test/, or --split all for images that the model has not seen."
        )
    if name is None:
        name = next((split for split in ("test", "val") if split in dataset.splits), "all")
    if name == "all":
        import numpy as np

        splits = list(dataset.splits.values())
        images = np.concatenate([split.images for split in splits])
        return name, Split(images, np.concatenate([split.labels for split in splits]))
    return name, dataset.split(name)


def _calibrated(
    classifier: Classifier, images: Split, name: str, out: Path, *, trained: bool
) -> tuple[Classifier, TemperatureFit]:
    """Return the calibrated classifier after it was written to `out`; raise UsageError for images of another use."""
    from mlpconv.errors import UsageError
    from mlpconv.temperature_scaling import calibrate_to

    if name == "test" or trained:
        reason = "the test images measure the result" if name == "test" else "the model was trained on these images"
        raise UsageError(f"--calibrate needs held-out images, and {reason}: use --split val.")
    return calibrate_to(classifier, images, out)


def _notes(dataset: Dataset, split: str, classifier: Classifier) -> list[str]:
    """Return warnings about images that the model may have been trained on."""
    same = classifier.info.get("fingerprint") == dataset.fingerprint
    if split in ("train", "all"):
        return [TRAINED_ON if same else PERHAPS_TRAINED_ON]
    if split == "val" and not same:
        return [PERHAPS_TRAINED_ON if dataset.membership is None else OTHER_IMAGES]
    return []


def _print_json(result: Evaluation, about: dict[str, Any]) -> None:
    import json

    figures = result.to_dict()
    if result.confusion.size <= MAX_CELLS:
        figures["confusion"] = result.confusion.tolist()
    print(json.dumps(about | figures, indent=2))


def _print_tables(result: Evaluation, title: str, notes: list[str]) -> None:
    """Print the metrics, a row per class, the most confused classes and the notes."""
    from mlpconv.cli.show import open_console, say, say_table
    from mlpconv.text import printable

    console = open_console()
    say_table(console, _metrics(result), printable(title))
    say_table(console, *_classes(result))
    pairs = result.confused(MAX_PAIRS)
    if pairs:
        say(console, "Most confused classes", style="bold")
    for pair in pairs:
        names = f"{printable(pair.true)} predicted as {printable(pair.predicted)}"
        say(console, f"  {names}: {pair.count} ({pair.share:.1%} of its images)")
    for note in notes:
        say(console, f"Note: {printable(note)}")


def _metrics(result: Evaluation) -> Table:
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
    for row in rows:
        table.add_row(*row)
    return table


def _classes(result: Evaluation) -> tuple[Table, str]:
    """Return a table with a row per class, or of the classes with the lowest F1, and its title."""
    from rich.table import Table
    from rich.text import Text

    from mlpconv.text import printable

    per_class, count = result.per_class, len(result.classes)
    shown = list(range(count))
    title = "Per class"
    if count > MAX_CLASSES:
        present = [k for k in shown if per_class.support[k]]
        shown = sorted(present, key=lambda k: float(per_class.f1[k]))[:MAX_CLASSES]
        title = f"The {len(shown)} of {count} classes with the lowest F1 (--json lists all)"
    table = Table()
    for name in ("class", "precision", "recall", "F1", "images"):
        table.add_column(name, justify="left" if name == "class" else "right", overflow="fold")
    for k in shown:
        figures = [f"{values[k]:.3f}" for values in per_class[:3]] if per_class.support[k] else ["-"] * 3
        table.add_row(Text(printable(result.classes[k])), *figures, f"{per_class.support[k]:,}")
    return table, title
