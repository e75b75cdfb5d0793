"""Ablation of the recipe `fast` on CIFAR-10: techniques added one after the other, and each one removed alone.

    python benchmarks/ladder.py --seeds 3

A reduced setting, so that many runs fit: 20 pixels a side, three epochs of the first 20,000 training images, validated
on the last 10,000 (the test images are never used). Run it again to resume, or with more seeds. Writes
results/ladder.json after each run; `python benchmarks/tables.py` copies it into docs/training.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, spread, write_result

import mlpconv
from mlpconv.data import Dataset, open_data
from mlpconv.data.dataset import make_dataset, select
from mlpconv.data.validation import holdout
from mlpconv.training import find_recipe
from mlpconv.training.display import Lines

FLOOR: dict[str, Any] = {
    "model": "nin_cifar10", "last_relu": False, "init": "he", "norm": "none", "dropout": 0.0, "pool_first": False,
    "optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 192, "schedule": "linear",
    "warmup": 0.05, "crop": 2, "flip": "random", "pool2": "max", "last_lr": 1.0,
}  # fmt: skip
"""A plain modern training of the paper's network, with He initialisation: the paper's needs more epochs to learn."""

RUNGS: dict[str, dict[str, Any]] = {
    "batch norm": {"norm": "batch"},
    "pool before norm": {"pool_first": True},
    "identity initialisation": {"init": "identity"},
    "whitened first layer": {"whiten": True},
    "average second pooling": {"pool2": "avg"},
    "Muon": {"optimizer": "muon", "lr": 0.03, "weight_decay": 0.0, "last_lr": 4.0},
    "label smoothing": {"label_smoothing": 0.1},
    "EMA": {"ema": 0.95, "ema_every": 5},
    "alternating flips": {"flip": "alternate"},
    "progressive resizing": {"sizes": (0.75, 0.875, 1.0)},
    "freezing early layers": {"freeze": (0.2, 0.75)},
}
"""The techniques, in the order in which they are added. `sizes` are fractions of the image side."""

CHOICES: dict[str, dict[str, Any]] = {
    "half the learning rate": {"lr": 0.015},
    "twice the learning rate": {"lr": 0.06},
    "the common learning rate for the last layer": {"last_lr": 1.0},
}
"""Variations of the full recipe."""

TOP = f"with {list(RUNGS)[-1]}"
"""The full recipe."""
VALIDATION_IMAGES = 10_000
RESET: dict[str, Any] = {"whiten": False, "label_smoothing": 0.0, "ema": 0.0, "ema_every": 1, "freeze": (), "sizes": ()}
"""Disables the techniques of the recipe `fast`."""


def plans() -> dict[str, dict[str, Any]]:
    """Return the settings of each run by name: the baseline, cumulative, without one technique, variations."""
    runs: dict[str, dict[str, Any]] = {"floor": {}}
    settings: dict[str, Any] = {}
    for name, rung in RUNGS.items():
        settings = settings | rung
        runs[f"with {name}"] = settings
    for removed in list(RUNGS)[:-1]:  # without the last one: the cumulative run before it
        remaining = [rung for name, rung in RUNGS.items() if name != removed]
        runs[f"without {removed}"] = {key: value for rung in remaining for key, value in rung.items()}
    return runs | {f"but {name}": settings | change for name, change in CHOICES.items()}


def train(name: str, settings: dict[str, Any], seed: int, data: Dataset, args: argparse.Namespace) -> dict[str, Any]:
    """Train, resume or load a run; the full recipe is also evaluated with test-time augmentation."""
    folder = args.runs / f"{name.replace(' ', '-')}-{seed}"
    settings = FLOOR | {"epochs": args.epochs} | settings
    if "sizes" in settings:
        settings["sizes"] = [round(args.size * fraction) for fraction in settings["sizes"]]
    run = mlpconv.fit(
        data, find_recipe("fast", "cifar10"), out=folder, resume=(folder / "recipe.json").is_file(),
        progress=Lines(print), report=False, **(RESET | settings | {"seed": seed, "eval_every": args.epochs}),
    )  # fmt: skip
    last = run.history[-1]
    result = {"seed": seed, "error": 1 - last["val_accuracy"]}
    result |= {key: last[key] for key in ("train_accuracy", "seconds", "cpu_seconds")}
    if name == TOP:
        result["error_with_tta_flip"] = mlpconv.evaluate(run.classifier, data.split("val"), tta_flip=True).error
    return result


def load_images(size: int, count: int, root: Path | None) -> Dataset:
    """Return CIFAR-10 at this image side: the first `count` images for training, the last for validation."""
    full = open_data("cifar10", root=root, size=size)
    train, held_out = holdout(full.split("train"), VALIDATION_IMAGES / len(full.split("train")))
    return make_dataset(
        "cifar10", full.classes, {"train": select(train, np.arange(min(count, len(train)))), "val": held_out}
    )


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return mean, standard deviation and n of every plan."""
    return {
        name: {key: spread([row[key] for row in rows]) for key in rows[0] if key != "seed"} | {"runs": rows}
        for name, rows in runs.items()
    }


def main() -> None:
    """Run every plan that has no result yet, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=20, help="image side, pixels")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_000, help="number of training images")
    parser.add_argument("--root", type=Path, help="folder of the data, if not the cache or $MLPCONV_DATA")
    parser.add_argument("--runs", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--only", nargs="*", help="names of plans, such as 'without Muon'")
    args = parser.parse_args()
    protocol = {"size": args.size, "epochs": args.epochs, "images": args.images, "validation_images": VALIDATION_IMAGES}
    results = previous_runs(protocol)
    data = load_images(args.size, args.images, args.root)
    for seed in range(args.seeds):
        for name, settings in plans().items():
            rows = results.setdefault(name, [])
            if (args.only and name not in args.only) or any(row["seed"] == seed for row in rows):
                continue
            rows.append(train(name, settings, seed, data, args))
            done = {key: rows for key, rows in results.items() if rows}
            write_result("ladder", {"protocol": protocol, "plans": summary(done)})
            print(f"{name}, seed {seed}: error {rows[-1]['error']:.2%}", flush=True)


def previous_runs(protocol: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the runs in the result file; raises SystemExit if it has another protocol."""
    path = RESULTS / "ladder.json"
    if not path.is_file():
        return {}
    result = json.loads(path.read_text("utf-8"))["result"]
    if result["protocol"] != protocol:
        raise SystemExit(f"{path} has the protocol {result['protocol']}: move it away to measure {protocol}")
    return {name: plan["runs"] for name, plan in result["plans"].items()}


if __name__ == "__main__":
    main()
