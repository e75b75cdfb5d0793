"""What a longer run of the best recipe needs, in a quarter of the size: fewer images, fewer channels, the same epochs.

    python benchmarks/longer.py --seeds 2

Half the channels (a quarter of the parameters) and the first 10,000 training images of CIFAR-10 at 20 pixels a side,
judged on the last 10,000 (the test images are never seen): as many images for each parameter as in the whole recipe, so
that it learns them by heart at about the same epoch. Five minutes a run on two cores. Run it again to go on where it
was stopped, or with more seeds. Writes results/longer.json after each run; `python benchmarks/tables.py` puts it
between the markers named longer in docs/training.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import RESULTS, spread, write_result
from ladder import images

import mlpconv
import mlpconv.fitting
from mlpconv.cli.training_output import Lines
from mlpconv.data import Dataset
from mlpconv.training.recipe import find_recipe

SIDE, COUNT = 20, 10_000
SMALL: dict[str, Any] = {"width": 0.5, "sizes": (), "crop": 2, "ema": 0.98}
"""On top of the best recipe: the crop is the same share of the side, images stay as small as they are."""

PLANS: dict[str, dict[str, Any]] = {
    "26 epochs, squares of 5 pixels cut out": {"epochs": 26, "cutout": 5},
    "60 epochs, squares of 5": {"epochs": 60, "cutout": 5},
    "60 epochs, squares of 8": {"epochs": 60, "cutout": 8},
    "60 epochs, squares of 8, dropout 0.3": {"epochs": 60, "cutout": 8, "dropout": 0.3},
}


def one(name: str, seed: int, data: Dataset, runs: Path) -> dict[str, Any]:
    """Train, or go on, or take the finished run."""
    folder = runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    settings = SMALL | PLANS[name]
    run = mlpconv.fit(
        data, find_recipe("best", "cifar10"), out=folder, resume=(folder / "recipe.json").is_file(), progress=Lines(),
        **(settings | {"seed": seed, "eval_every": settings["epochs"]}),
    )  # fmt: skip
    last = run.history[-1]
    flipped = mlpconv.evaluate(run.classifier, data.split("val"), tta_flip=True)
    row = {"seed": seed, "error": 1 - last["val_accuracy"], "error_with_tta_flip": flipped.error}
    return row | {key: last[key] for key in ("train_accuracy", "seconds", "cpu_seconds")}


def earlier() -> dict[str, list[dict[str, Any]]]:
    """The runs that the result file holds."""
    path = RESULTS / "longer.json"
    plans = json.loads(path.read_text("utf-8"))["result"]["plans"] if path.is_file() else {}
    return {name: plans[name]["runs"] if name in plans else [] for name in PLANS}


def main() -> None:
    """Seed by seed, every plan that has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--root", type=Path, help="where the data lie, if not in the cache or $MLPCONV_DATA")
    parser.add_argument("--runs", type=Path, default=Path("runs/longer"))
    asked = parser.parse_args()
    found = earlier()
    data = images(SIDE, COUNT, asked.root)
    mlpconv.fitting.summarise = lambda *_: None  # type: ignore[assignment]  # a report is not wanted
    for seed in range(asked.seeds):
        for name, rows in found.items():
            if any(row["seed"] == seed for row in rows):
                continue
            rows.append(one(name, seed, data, asked.runs))
            keys = [key for key in rows[-1] if key != "seed"]
            plans = {
                name: {key: spread([row[key] for row in rows]) for key in keys} | {"runs": rows}
                for name, rows in found.items()
                if rows
            }
            write_result("longer", {"recipe": "best", "plans": plans})
            print(f"{name}, seed {seed}: error {rows[-1]['error']:.2%}", flush=True)


if __name__ == "__main__":
    main()
