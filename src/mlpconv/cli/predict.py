"""`mlpconv predict`: classify image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mlpconv.cli.options import AnyModel, Switch, check_from_one, is_exported

if TYPE_CHECKING:
    from mlpconv.deploy.predictor import Predictor
    from mlpconv.deploy.runtime import EngineName
    from mlpconv.inference import Classifier

__all__ = ["predict"]

FAILED = 1

MANY = 32
"""Images for which it pays to compile the network."""


def predict(
    model: AnyModel,
    /,
    *images: str,
    top: int = 3,
    recursive: bool = True,
    batch_size: int = 128,
    tta_flip: Switch = False,
    engine: Literal["auto", "onnxruntime", "openvino"] | None = None,
    csv: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    json: Switch = False,
) -> int:
    """Classify image files: print the most probable classes of each image with their probabilities.

    Rows are in the order of the arguments. A file or folder that cannot be read is reported on stderr and skipped;
    the exit code is then 1.

    Parameters
    ----------
    images
        Image files, folders of images, or quoted patterns such as 'photos/*.jpg'.
    top
        Classes listed for each image.
    recursive
        Search subfolders.
    batch_size
        Images per batch.
    tta_flip
        Average the logits of each image and its horizontal flip.
    engine
        For an exported file: what runs it. auto (default) takes the faster one of those installed.
    csv
        Write a CSV file; - writes to standard output.
    json
        Print a JSON list with one object per image.
    """
    from mlpconv.cli.bar import Bar
    from mlpconv.cli.paths import find_images
    from mlpconv.cli.reading import say_left_out

    check_from_one(top=top, batch_size=batch_size)
    _check_csv(csv, json)
    classifier = _open(model, engine)
    listing = find_images(images, recursive)
    files = listing.files
    _compile_for(classifier, len(files))
    say_left_out(listing)
    rows: list[dict[str, Any]] = []
    with Bar("predicting", len(files)) as bar:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            rows += _predict_batch(classifier, batch, top, tta_flip)
            bar(start + len(batch))
    if csv is not None:
        _write_csv(rows, csv, min(top, len(classifier.classes)))
    if json:
        _print_json(rows)
    elif csv is None:
        _print_table(rows)
    return FAILED if len(rows) < len(files) or listing.unreadable else 0


def _open(model: str, engine: EngineName | None) -> Classifier | Predictor:
    """Open an exported file without importing torch, or a model file."""
    from mlpconv.errors import UsageError

    if is_exported(model):
        from mlpconv.deploy.predictor import Predictor

        return Predictor(model, engine=engine or "auto")
    if engine is not None:
        raise UsageError(f"--engine is for exported files (.onnx, .xml); {model!r} is run by torch.")
    from mlpconv import inference

    return inference.load(model)


def _compile_for(classifier: Classifier | Predictor, count: int) -> None:
    """Let a classifier compile its network only for many images."""
    if hasattr(classifier, "compiled"):
        classifier.compiled = count >= MANY


def _check_csv(target: str | None, json: bool) -> None:
    """Raise UsageError for a --csv target that cannot be written, before anything is computed."""
    from mlpconv.cli.paths import check_target
    from mlpconv.errors import UsageError

    if target is None:
        return
    if target.startswith("--"):
        raise UsageError(f"--csv is followed by {target}: give it a file, or - for standard output.")
    if json and target == "-":
        raise UsageError("--json and --csv - both print to standard output: give --csv a file.")
    if target != "-":
        check_target(Path(target), "--csv")


def _predict_batch(
    classifier: Classifier | Predictor, files: Sequence[Path], top: int, tta_flip: bool
) -> list[dict[str, Any]]:
    """Return one row per readable file; report the others on stderr."""
    from mlpconv.cli.reading import say_skipped

    predictions = classifier.predict(files, len(files), tta_flip=tta_flip, on_error="skip")
    for error in predictions.skipped:
        say_skipped(str(error))
    return [
        {
            "file": prediction.source,
            "label": prediction.label,
            "confidence": prediction.confidence,
            "top": [{"label": label, "confidence": confidence} for label, confidence in prediction.top(top)],
        }
        for prediction in predictions
    ]


def _print_json(rows: list[dict[str, Any]]) -> None:
    import json

    print(json.dumps(rows, indent=2))


def _write_csv(rows: list[dict[str, Any]], target: str, top: int) -> None:
    """Write one line per image: file, label, confidence, then label_2, confidence_2 and so on."""
    import csv
    import io

    from mlpconv.files import write_atomic

    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    others = [f"{column}_{rank}" for rank in range(2, top + 1) for column in ("label", "confidence")]
    table.writerow(["file", "label", "confidence", *others])
    for row in rows:
        pairs = [f"{entry[column]}" for entry in row["top"] for column in ("label", "confidence")]
        table.writerow([row["file"], *pairs])
    if target == "-":
        print(text.getvalue(), end="")
    else:
        write_atomic(Path(target), text.getvalue().encode("utf-8", "surrogateescape"))


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Print a table with one row per image."""
    from rich.table import Table
    from rich.text import Text

    from mlpconv.cli.show import open_console
    from mlpconv.text import printable

    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("confidence", justify="right")
    table.add_column("next", overflow="fold")
    for row in rows:
        others = ", ".join(f"{printable(entry['label'])} {entry['confidence']:.1%}" for entry in row["top"][1:])
        cells = (printable(row["file"]), printable(row["label"]), f"{row['confidence']:.1%}", others)
        table.add_row(*(Text(cell) for cell in cells))
    if rows:
        open_console().print(table)
