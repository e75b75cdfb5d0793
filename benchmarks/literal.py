"""Train CIFAR-10 with the paper's literal recipe, for a limited number of its 260 epochs.

    python benchmarks/literal.py --epochs 20     # train up to epoch 20, resuming an earlier run

Global contrast normalisation and ZCA, 40,000 training and 10,000 validation images, no augmentation, the author's
learning rates (recipes/paper-cifar10.json). The schedule is that of all 260 epochs: the run is stopped as with Ctrl-C,
kept in `--run`, and resumed bit for bit. Writes benchmarks/results/literal-cifar10.json with a row per epoch (also
after a real Ctrl-C); `python benchmarks/tables.py` draws it for docs/training.md.
"""

from __future__ import annotations

import argparse
import csv
import signal
from pathlib import Path
from typing import Any

from common import write_result

import mlpconv
from mlpconv.errors import Interrupted
from mlpconv.training import find_recipe
from mlpconv.training.display import Lines
from mlpconv.training.progress import EpochMetrics

COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds", "cpu_seconds")


class StopAfter(Lines):
    """Print a line per epoch, and request a stop after the last epoch to train."""

    def __init__(self, epochs: int) -> None:
        super().__init__(print)
        self.last = epochs
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Print and keep a note."""
        super().note(text)
        self.notes.append(text)

    def epoch(self, row: EpochMetrics, epochs: int) -> None:
        """Print an epoch; after the last one, send SIGINT, which saves and stops."""
        super().epoch(row, epochs)
        if row["epoch"] >= self.last:
            signal.raise_signal(signal.SIGINT)


def history(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.csv."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [{name: float(row[name]) for name in COLUMNS if row[name]} for row in csv.DictReader(file)]
    return [row | {"epoch": int(row["epoch"])} for row in rows]


def main() -> None:
    """Train up to the requested epoch, and write the history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=260)
    parser.add_argument("--on-collapse", choices=("stop", "repair"), default="stop")
    parser.add_argument("--root", type=Path, help="folder of the data, if not the cache or $MLPCONV_DATA")
    parser.add_argument("--run", type=Path, default=Path("runs/literal-cifar10"))
    args = parser.parse_args()
    recipe, progress = find_recipe("paper", "cifar10"), StopAfter(args.epochs)
    try:
        mlpconv.fit(
            "cifar10", recipe, out=args.run, resume=(args.run / "recipe.json").is_file(), data_root=args.root,
            progress=progress, on_collapse=args.on_collapse,
        )  # fmt: skip
    except Interrupted as stopped:
        print(stopped)
    path = write_result(
        "literal-cifar10",
        {"recipe": recipe.to_dict(), "on_collapse": args.on_collapse, "notes": progress.notes}
        | {"history": history(args.run)},
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
