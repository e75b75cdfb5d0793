"""How often the paper's literal recipe collapses at loss ln(10), with and without repair.

    python benchmarks/collapse.py [--data FOLDER] [--seeds 20] [--images 10000] [--epochs 3] [--rate 0.1]
        [--cures stop repair]

The recipe `paper` of MNIST (ReLU after the last 1x1 convolution, N(0, 0.05) weights, no normalisation) is trained for a
few epochs on the first images of MNIST, with `on_collapse=stop` and `repair` and the same seeds; validation is on the
first of the last 10,000 training images. Writes benchmarks/results/collapse-CURES.json.
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

STUCK = 0.02  # maximum distance of the last loss from ln(10) if nothing was learned


class Notes(Progress):
    """Collect the notes of a run."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def small_mnist(folder: Path | None, images: int, validation: int = 1000) -> mlpconv.Dataset:
    """Return the first images of MNIST for training, and the first of its last 10,000 for validation."""
    mnist = mlpconv.open_data("mnist", root=folder)
    train = mnist.split("train")
    ranges = {"train": slice(0, images), "val": slice(50_000, 50_000 + validation)}
    splits = {name: mlpconv.Split(train.images[index], train.labels[index]) for name, index in ranges.items()}
    return make_dataset("mnist", mnist.classes, splits, published=True)


def one_run(data: mlpconv.Dataset, rate: float, seed: int, cure: str, epochs: int) -> dict[str, Any]:
    """Train once; return how the run ended and its metrics."""
    notes = Notes()
    # The dtype is fixed, so that a seed gives the same network on every machine.
    recipe = dataclasses.replace(find_recipe("paper", "mnist"), precision="bf16", seed=seed, lr=rate, epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = mlpconv.fit(data, recipe, out=folder, progress=notes, on_collapse=cure)
        except (CollapseError, NonFiniteError) as error:
            return {"on_collapse": cure, "seed": seed, "end": type(error).__name__, "why": str(error)}
    last = run.history[-1]
    end = "stuck" if last["train_loss"] > math.log(10) - STUCK else "learning"
    repairs = sum("collapsed" in text for text in notes.texts)
    figures = {"train_loss": last["train_loss"], "val_accuracy": last["val_accuracy"]}
    return {"on_collapse": cure, "seed": seed, "end": end, "repairs": repairs} | figures


def run_in_process(args: argparse.Namespace, cure: str, seed: int) -> dict[str, Any]:
    """Run `one_run` in a separate process with one thread, so that several run in parallel."""
    command = [sys.executable, __file__, "--only", cure, str(seed), "--images", str(args.images)]
    command += ["--epochs", str(args.epochs), "--rate", str(args.rate)]
    command += ["--data", str(args.data)] if args.data else []
    process = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    row: dict[str, Any] = json.loads(process.stdout)
    print({key: value for key, value in row.items() if key != "why"}, flush=True)
    return row


def main() -> None:
    """Train every seed with every setting and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of MNIST, if not the cache or $MLPCONV_DATA")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--cures", nargs="+", choices=("stop", "repair"), default=("stop", "repair"))
    parser.add_argument("--only", nargs=2, metavar=("CURE", "SEED"), help="one run, printed as JSON")
    args = parser.parse_args()
    if args.only:
        data = small_mnist(args.data, args.images)
        print(json.dumps(one_run(data, args.rate, int(args.only[1]), args.only[0], args.epochs)))
        return
    tasks = [(cure, seed) for cure in args.cures for seed in range(args.seeds)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(lambda task: run_in_process(args, *task), tasks))
    ends = Counter(f"{row['on_collapse']}: {row['end']}" for row in rows)
    print(dict(ends))
    settings = {"images": args.images, "epochs": args.epochs, "lr": args.rate}
    write_result("-".join(["collapse", *args.cures]), settings | {"ends": dict(ends), "runs": rows})


if __name__ == "__main__":
    main()
