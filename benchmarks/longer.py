"""Regularisation for longer runs of the recipe `best`, at reduced size: fewer images and channels, the same epochs.

    python benchmarks/longer.py --seeds 2

Half the channels (a quarter of the parameters) and the first 10,000 training images of CIFAR-10 at 20 pixels a side,
validated on the last 10,000 (the test images are never used): as many images per parameter as the full recipe, so that
it overfits at about the same epoch. Five minutes per run on two cores. Run it again to resume, or with more seeds.
Writes results/longer.json after each run; `python benchmarks/tables.py` copies it into docs/training.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import RESULTS, spread, write_result
from ladder import load_images

import mlpconv
from mlpconv.data import Dataset
from mlpconv.training import find_recipe
from mlpconv.training.display import Lines

SIDE, COUNT = 20, 10_000
SMALL: dict[str, Any] = {"width": 0.5, "sizes": (), "crop": 2, "ema": 0.98}
"""Changes to the recipe `best`: the crop is the same fraction of the side, without progressive resizing."""

PLANS: dict[str, dict[str, Any]] = {
    "26 epochs, cutout 5": {"epochs": 26, "cutout": 5},
    "60 epochs, cutout 5": {"epochs": 60, "cutout": 5},
    "60 epochs, cutout 8": {"epochs": 60, "cutout": 8},
    "60 epochs, cutout 8, dropout 0.3": {"epochs": 60, "cutout": 8, "dropout": 0.3},
}


def train(name: str, seed: int, data: Dataset, runs: Path) -> dict[str, Any]:
    """Train, resume or load a run, and evaluate it with test-time augmentation."""
    folder = runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    settings = SMALL | PLANS[name]
    run = mlpconv.fit(
        data, find_recipe("best", "cifar10"), out=folder, resume=(folder / "recipe.json").is_file(),
        progress=Lines(print), report=False, **(settings | {"seed": seed, "eval_every": settings["epochs"]}),
    )  # fmt: skip
    last = run.history[-1]
    flipped = mlpconv.evaluate(run.classifier, data.split("val"), tta_flip=True)
    row = {"seed": seed, "error": 1 - last["val_accuracy"], "error_with_tta_flip": flipped.error}
    return row | {key: last[key] for key in ("train_accuracy", "seconds", "cpu_seconds")}


def previous_runs() -> dict[str, list[dict[str, Any]]]:
    """Return the runs in the result file."""
    path = RESULTS / "longer.json"
    plans = json.loads(path.read_text("utf-8"))["result"]["plans"] if path.is_file() else {}
    return {name: plans[name]["runs"] if name in plans else [] for name in PLANS}


def main() -> None:
    """Run every plan that has no result yet, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--root", type=Path, help="folder of the data, if not the cache or $MLPCONV_DATA")
    parser.add_argument("--runs", type=Path, default=Path("runs/longer"))
    args = parser.parse_args()
    results = previous_runs()
    data = load_images(SIDE, COUNT, args.root)
    for seed in range(args.seeds):
        for name, rows in results.items():
            if any(row["seed"] == seed for row in rows):
                continue
            rows.append(train(name, seed, data, args.runs))
            keys = [key for key in rows[-1] if key != "seed"]
            plans = {
                name: {key: spread([row[key] for row in rows]) for key in keys} | {"runs": rows}
                for name, rows in results.items()
                if rows
            }
            write_result("longer", {"recipe": "best", "plans": plans})
            print(f"{name}, seed {seed}: error {rows[-1]['error']:.2%}", flush=True)


if __name__ == "__main__":
    main()
