"""`mlpconv predict`: what is in image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mlpconv.cli.options import Switch, check_from_one

if TYPE_CHECKING:
    from mlpconv.inference import Classifier

__all__ = ["predict"]

FAILED = 1


def predict(
    model: str,
    /,
    *images: str,
    top: int = 3,
    recursive: bool = True,
    batch_size: int = 128,
    tta_flip: Switch = False,
    csv: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    json: Switch = False,
) -> int:
    """Say what is in image files: the most probable classes of each, with their probabilities.

    Each path has its row, in the order given. A file or folder that cannot be read is named on stderr and skipped;
    the exit code is then 1.

    Parameters
    ----------
    model
        A model file, a run folder, or the name of shipped weights: digits, nin_cifar10, nin_mnist.
    images
        Image files, folders of them, or quoted patterns such as 'photos/*.jpg'.
    top
        How many classes are listed for each image.
    recursive
        Whether folders are searched with all that is in them.
    batch_size
        Images read and computed at a time.
    tta_flip
        Average each image with its mirror image.
    csv
        Write a CSV file; - stands for the standard output.
    json
        Print a JSON list with one object an image, for machines.
    """
    from mlpconv import inference
    from mlpconv.cli.bar import Bar
    from mlpconv.cli.paths import find
    from mlpconv.cli.reading import say_left_out

    check_from_one(top=top, batch_size=batch_size)
    if csv is not None:
        _check_csv(csv, json)
    classifier = inference.load(model)
    found = find(images, recursive)
    files = found.files
    say_left_out(found)
    rows: list[dict[str, Any]] = []
    with Bar("looking", len(files)) as bar:
        for batch, done in _batches(files, batch_size):
            rows += _look(classifier, batch, top, tta_flip)
            bar(done)
    if csv is not None:
        _write_csv(rows, csv, min(top, len(classifier.classes)))
    if json:
        _print_json(rows)
    elif csv is None:
        _print_table(rows)
    return FAILED if len(rows) < len(files) or found.unreadable else 0


def _check_csv(where: str, json: bool) -> None:
    """Refuse what --csv cannot write to, before anything is computed."""
    from mlpconv.cli.paths import check_target
    from mlpconv.errors import UsageError

    if where.startswith("--"):
        raise UsageError(f"--csv is followed by {where}: give it a file, or - for the standard output.")
    if json and where == "-":
        raise UsageError("--json and --csv - would both print to the standard output: give --csv a file.")
    if where != "-":
        check_target(Path(where), "--csv")


def _batches(files: Sequence[Path], size: int) -> Iterator[tuple[list[Path], int]]:
    """The files some at a time, and how many have been given with them."""
    rest, done = iter(files), 0
    while batch := list(islice(rest, size)):
        done += len(batch)
        yield batch, done


def _look(classifier: Classifier, files: Sequence[Path], top: int, tta_flip: bool) -> list[dict[str, Any]]:
    """One row a file that can be read; the others are named on stderr."""
    from mlpconv.cli.reading import say_skipped

    predictions = classifier.predict(files, len(files), tta_flip=tta_flip, on_error="skip")
    for error in predictions.skipped:
        say_skipped(str(error))
    return [
        {
            "file": prediction.source,
            "label": prediction.label,
            "confidence": prediction.confidence,
            "top": [{"label": label, "confidence": share} for label, share in prediction.top(top)],
        }
        for prediction in predictions
    ]


def _print_json(rows: list[dict[str, Any]]) -> None:
    import json

    print(json.dumps(rows, indent=2))


def _write_csv(rows: list[dict[str, Any]], where: str, top: int) -> None:
    """A line an image: file, label, confidence, then label_2, confidence_2 and so on."""
    import csv
    import io

    from mlpconv.files import write_atomic

    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    more = [f"{column}_{place}" for place in range(2, top + 1) for column in ("label", "confidence")]
    table.writerow(["file", "label", "confidence", *more])
    for row in rows:
        pairs = [f"{entry[column]}" for entry in row["top"] for column in ("label", "confidence")]
        table.writerow([row["file"], *pairs])
    if where == "-":
        print(text.getvalue(), end="")
    else:
        write_atomic(Path(where), text.getvalue().encode("utf-8", "surrogateescape"))


def _print_table(rows: list[dict[str, Any]]) -> None:
    """A table for a person."""
    from rich.table import Table
    from rich.text import Text

    from mlpconv.cli.show import open_console
    from mlpconv.text import printable

    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("confidence", justify="right")
    table.add_column("then", overflow="fold")
    for row in rows:
        others = ", ".join(f"{printable(entry['label'])} {entry['confidence']:.1%}" for entry in row["top"][1:])
        cells = (printable(row["file"]), printable(row["label"]), f"{row['confidence']:.1%}", others)
        table.add_row(*(Text(cell) for cell in cells))
    if rows:
        open_console().print(table)
