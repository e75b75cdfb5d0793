"""What each lever of the fast recipe brings on CIFAR-10: rungs switched on one after the other, and each one left out.

    python benchmarks/ladder.py --seeds 3

A reduced setting, so that many runs fit: 20 pixels a side, three epochs of the first 20,000 training images, judged on
the last 10,000 (the test images are never seen). Run it again to go on where it was stopped, or with more seeds. Writes
results/ladder.json after each run; `python benchmarks/tables.py` puts it between the markers named ladder in
docs/training.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, spread, write_result

import mlpconv
import mlpconv.fitting
from mlpconv.cli.training_output import Lines
from mlpconv.data import Dataset, open_data
from mlpconv.data.dataset import make_dataset, select
from mlpconv.data.validation import holdout
from mlpconv.training.recipe import find_recipe

FLOOR: dict[str, Any] = {
    "model": "nin_cifar10", "last_relu": False, "init": "he", "norm": "none", "dropout": 0.0, "pool_first": False,
    "optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 192, "schedule": "linear",
    "warmup": 0.05, "crop": 2, "flip": "random", "pool2": "max", "last_lr": 1.0,
}  # fmt: skip
"""A plain modern training of the paper's network: He's initialisation (from the paper's it learns nothing so soon)."""

RUNGS: dict[str, dict[str, Any]] = {
    "batch norm": {"norm": "batch"},
    "pool before norm": {"pool_first": True},
    "identity 1x1s": {"init": "identity"},
    "whitened first layer": {"whiten": True},
    "average second pool": {"pool2": "avg"},
    "Muon": {"optimizer": "muon", "lr": 0.03, "weight_decay": 0.0, "last_lr": 4.0},
    "label smoothing": {"label_smoothing": 0.1},
    "averaged weights": {"ema": 0.95, "ema_every": 5},
    "alternating flips": {"flip": "alternate"},
    "small to large": {"sizes": (0.75, 0.875, 1.0)},
    "early layers rest": {"freeze": (0.2, 0.75)},
}
"""In the order in which they are switched on. `sizes` are shares of the side."""

CHOICES: dict[str, dict[str, Any]] = {
    "half the rate": {"lr": 0.015},
    "twice the rate": {"lr": 0.06},
    "the last layer at the rate of the others": {"last_lr": 1.0},
}
"""Numbers of the full recipe, chosen otherwise."""

TOP = f"with {list(RUNGS)[-1]}"
"""Everything on."""
JUDGED = 10_000
RESET: dict[str, Any] = {"whiten": False, "label_smoothing": 0.0, "ema": 0.0, "ema_every": 1, "freeze": (), "sizes": ()}
"""The fast recipe without its levers."""


def plans() -> dict[str, dict[str, Any]]:
    """The settings of each run by name: the floor, each rung on top of those before, all but one, other choices."""
    made: dict[str, dict[str, Any]] = {"floor": {}}
    settings: dict[str, Any] = {}
    for name, rung in RUNGS.items():
        settings = settings | rung
        made[f"with {name}"] = settings
    for left_out in list(RUNGS)[:-1]:  # without the last is the rung before it
        others = [rung for name, rung in RUNGS.items() if name != left_out]
        made[f"without {left_out}"] = {key: value for rung in others for key, value in rung.items()}
    return made | {f"but {name}": settings | other for name, other in CHOICES.items()}


def one(name: str, settings: dict[str, Any], seed: int, data: Dataset, asked: argparse.Namespace) -> dict[str, Any]:
    """Train, or go on, or take the finished run; the full recipe is judged with the mirror image as well."""
    folder = asked.runs / f"{name.replace(' ', '-')}-{seed}"
    settings = FLOOR | {"epochs": asked.epochs} | settings
    if "sizes" in settings:
        settings["sizes"] = [round(asked.size * share) for share in settings["sizes"]]
    run = mlpconv.fit(
        data, find_recipe("fast", "cifar10"), out=folder, resume=(folder / "recipe.json").is_file(),
        progress=Lines(), **(RESET | settings | {"seed": seed, "eval_every": asked.epochs}),
    )  # fmt: skip
    last = run.history[-1]
    found = {"seed": seed, "error": 1 - last["val_accuracy"]}
    found |= {key: last[key] for key in ("train_accuracy", "seconds", "cpu_seconds")}
    if name == TOP:
        found["error_with_tta_flip"] = mlpconv.evaluate(run.classifier, data.split("val"), tta_flip=True).error
    return found


def images(size: int, count: int, root: Path | None) -> Dataset:
    """CIFAR-10 at that many pixels a side: the first images to train on, the last to judge on."""
    whole = open_data("cifar10", root=root, size=size)
    train, held_out = holdout(whole.split("train"), JUDGED / len(whole.split("train")))
    return make_dataset(
        "cifar10", whole.classes, {"train": select(train, np.arange(min(count, len(train)))), "val": held_out}
    )


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Mean, deviation and n of every plan that has a run."""
    return {
        name: {key: spread([row[key] for row in rows]) for key in rows[0] if key != "seed"} | {"runs": rows}
        for name, rows in runs.items()
    }


def main() -> None:
    """Seed by seed, every plan that has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=20, help="side of the images")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_000, help="to train on")
    parser.add_argument("--root", type=Path, help="where the data lie, if not in the cache or $MLPCONV_DATA")
    parser.add_argument("--runs", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--only", nargs="*", help="names of plans, such as 'without Muon'")
    asked = parser.parse_args()
    protocol = {"size": asked.size, "epochs": asked.epochs, "images": asked.images, "judged": JUDGED}
    found = earlier(protocol)
    data = images(asked.size, asked.images, asked.root)
    mlpconv.fitting.summarise = lambda *_: None  # type: ignore[assignment]  # a report takes half as long as a run
    for seed in range(asked.seeds):
        for name, settings in plans().items():
            rows = found.setdefault(name, [])
            if (asked.only and name not in asked.only) or any(row["seed"] == seed for row in rows):
                continue
            rows.append(one(name, settings, seed, data, asked))
            done = {key: rows for key, rows in found.items() if rows}
            write_result("ladder", {"protocol": protocol, "plans": summary(done)})
            print(f"{name}, seed {seed}: error {rows[-1]['error']:.2%}", flush=True)


def earlier(protocol: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs that the result file holds; raises SystemExit where it is of another setting."""
    path = RESULTS / "ladder.json"
    if not path.is_file():
        return {}
    result = json.loads(path.read_text("utf-8"))["result"]
    if result["protocol"] != protocol:
        raise SystemExit(f"{path} holds {result['protocol']}: move it away to measure at {protocol}")
    return {name: each["runs"] for name, each in result["plans"].items()}


if __name__ == "__main__":
    main()
