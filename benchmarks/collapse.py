"""How often the paper's literal recipe collapses at loss ln(10), and whether repair cures it.

    python benchmarks/collapse.py [--data FOLDER] [--seeds 20] [--images 10000] [--epochs 3] [--rate 0.1]
        [--cures stop repair]

The `paper` recipe of MNIST (ReLU after the last 1x1, N(0, 0.05) weights, no normalisation) is trained for some
epochs on the first images of MNIST, once with `on_collapse=stop` and once with `repair`, from the same seeds; the
error is that of the last 10,000 training images. Writes benchmarks/results/collapse-CURES.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import write_result

import mlpconv
from mlpconv.data import make_dataset
from mlpconv.errors import CollapseError, NonFiniteError
from mlpconv.training import Progress, find_recipe

STUCK = 0.02  # how near ln(10) the last epoch's loss is where nothing was learned
PRECISION = "bf16"  # fixed, so that the same seed trains the same network wherever it runs


class Notes(Progress):
    """Keeps the sentences of a run."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def note(self, text: str) -> None:
        self.sentences.append(text)


def small_mnist(folder: Path | None, images: int, judged: int = 1000) -> mlpconv.Dataset:
    """The first images of MNIST to train on, and the first of its last 10,000 training images to judge by."""
    whole = mlpconv.open_data("mnist", root=folder)
    train = whole.split("train")
    parts = {"train": slice(0, images), "val": slice(50_000, 50_000 + judged)}
    splits = {name: mlpconv.Split(train.images[part], train.labels[part]) for name, part in parts.items()}
    return make_dataset("mnist", whole.classes, splits)


def one_run(data: mlpconv.Dataset, rate: float, seed: int, cure: str, epochs: int) -> dict[str, Any]:
    """Train once; how it ended, and how good it was."""
    notes = Notes()
    recipe = dataclasses.replace(find_recipe("paper", "mnist"), precision=PRECISION, seed=seed, lr=rate, epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = mlpconv.fit(data, recipe, out=folder, progress=notes, on_collapse=cure)
        except (CollapseError, NonFiniteError) as error:
            return {"on_collapse": cure, "seed": seed, "end": type(error).__name__, "why": str(error)}
    last = run.history[-1]
    end = "stuck" if last["train_loss"] > math.log(10) - STUCK else "learning"
    repairs = sum("collapsed" in sentence for sentence in notes.sentences)
    figures = {"train_loss": last["train_loss"], "val_accuracy": last["val_accuracy"]}
    return {"on_collapse": cure, "seed": seed, "end": end, "repairs": repairs} | figures


def in_a_process(asked: argparse.Namespace, cure: str, seed: int) -> dict[str, Any]:
    """The same run in a process of its own with one thread, so that several go side by side."""
    words = [sys.executable, __file__, "--only", cure, str(seed), "--images", str(asked.images)]
    words += ["--epochs", str(asked.epochs), "--rate", str(asked.rate)]
    words += ["--data", str(asked.data)] if asked.data else []
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    print({key: value for key, value in row.items() if key != "why"}, flush=True)
    return row


def main() -> None:
    """Train every seed both ways and write what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="where MNIST lies, if not in the cache or $MLPCONV_DATA")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--cures", nargs="+", choices=("stop", "repair"), default=("stop", "repair"))
    parser.add_argument("--only", nargs=2, metavar=("CURE", "SEED"), help="one run, printed as JSON")
    asked = parser.parse_args()
    if asked.only:
        data = small_mnist(asked.data, asked.images)
        print(json.dumps(one_run(data, asked.rate, int(asked.only[1]), asked.only[0], asked.epochs)))
        return
    tasks = [(cure, seed) for cure in asked.cures for seed in range(asked.seeds)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(lambda task: in_a_process(asked, *task), tasks))
    ends = Counter(f"{row['on_collapse']}: {row['end']}" for row in rows)
    print(dict(ends))
    settings = {"images": asked.images, "epochs": asked.epochs, "lr": asked.rate}
    write_result("-".join(["collapse", *asked.cures]), settings | {"ends": dict(ends), "runs": rows})


if __name__ == "__main__":
    main()
