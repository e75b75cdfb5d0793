"""The paper's literal recipe for CIFAR-10, as many of its 260 epochs as there is time for.

    python benchmarks/literal.py --epochs 20     # the first 20, or from where the last such run was stopped up to 20

Global contrast normalisation and ZCA, 40,000 images to train on and 10,000 to judge by, no augmentation, the author's
rates (recipes/paper-cifar10.json). The course is that of all 260 epochs: the run is stopped as with Ctrl-C, kept in
`--run`, and gone on with to the bit. Writes benchmarks/results/literal-cifar10.json with a row an epoch (as it does
after a real Ctrl-C), and `python benchmarks/tables.py` draws it for docs/training.md.
"""

from __future__ import annotations

import argparse
import csv
import signal
from pathlib import Path
from typing import Any

from common import write_result

import mlpconv
from mlpconv.cli.training_output import Lines
from mlpconv.errors import Interrupted
from mlpconv.training import find_recipe
from mlpconv.training.progress import EpochMetrics

COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds", "cpu_seconds")


class Until(Lines):
    """A line an epoch, and a request to stop after so many of them."""

    def __init__(self, epochs: int) -> None:
        self.last = epochs
        self.sentences: list[str] = []

    def note(self, text: str) -> None:
        """Print it and keep it."""
        super().note(text)
        self.sentences.append(text)

    def epoch(self, row: EpochMetrics, epochs: int) -> None:
        """Print it; after the last one wanted, ask for the end, which saves."""
        super().epoch(row, epochs)
        if row["epoch"] >= self.last:
            signal.raise_signal(signal.SIGINT)


def history(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.csv, an epoch each."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [{name: float(row[name]) for name in COLUMNS if row[name]} for row in csv.DictReader(file)]
    return [row | {"epoch": int(row["epoch"])} for row in rows]


def main() -> None:
    """Train up to the epoch asked for, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=260)
    parser.add_argument("--on-collapse", choices=("stop", "repair"), default="stop")
    parser.add_argument("--root", type=Path, help="where the data lie, if not in the cache or $MLPCONV_DATA")
    parser.add_argument("--run", type=Path, default=Path("runs/literal-cifar10"))
    asked = parser.parse_args()
    recipe, progress = find_recipe("paper", "cifar10"), Until(asked.epochs)
    try:
        mlpconv.fit(
            "cifar10", recipe, out=asked.run, resume=(asked.run / "recipe.json").is_file(), data_root=asked.root,
            progress=progress, on_collapse=asked.on_collapse,
        )  # fmt: skip
    except Interrupted as stopped:
        print(stopped)
    path = write_result(
        "literal-cifar10",
        {"recipe": recipe.to_dict(), "on_collapse": asked.on_collapse, "notes": progress.sentences}
        | {"history": history(asked.run)},
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
