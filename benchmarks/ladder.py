"""What each lever of the fast recipe brings on CIFAR-10: rungs switched on one after the other, and each one left out.

    python benchmarks/ladder.py --seeds 3

A reduced setting, so that many runs fit: 20 pixels a side, three epochs of 30,000 training images, judged on the other
20,000 (of the published training images; the test images are never seen). Run it again to go on where it was stopped,
or with more seeds. Writes results/ladder.json after each run; `python benchmarks/tables.py` puts it between the markers
named ladder in docs/training.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import RESULTS, spread, write_result

import mlpconv
from mlpconv.cli.evaluate import open_as_trained
from mlpconv.cli.progress import Lines

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


def plans() -> dict[str, dict[str, Any]]:
    """The settings of each run by name: the floor, each rung on top of those before, and all but one."""
    made: dict[str, dict[str, Any]] = {"floor": {}}
    settings: dict[str, Any] = {}
    for name, rung in RUNGS.items():
        settings = settings | rung
        made[f"with {name}"] = settings
    for left_out in list(RUNGS)[:-1]:  # without the last is the rung before it
        others = [rung for name, rung in RUNGS.items() if name != left_out]
        made[f"without {left_out}"] = {key: value for rung in others for key, value in rung.items()}
    return made


def one(name: str, settings: dict[str, Any], seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Train, or go on, or take the finished run; then judge it with and without the mirror image."""
    folder = asked.runs / f"{name.replace(' ', '-')}-{seed}"
    settings = FLOOR | {"size": asked.size, "epochs": asked.epochs, "val_fraction": asked.val_fraction} | settings
    if "sizes" in settings:
        settings["sizes"] = [round(asked.size * share) for share in settings["sizes"]]
    run = mlpconv.fit(
        "cifar10", "fast", out=folder, resume=(folder / "recipe.json").is_file(), data_root=asked.root,
        progress=Lines(), **(RESET | settings | {"seed": seed, "eval_every": asked.epochs}),
    )  # fmt: skip
    held_out = open_as_trained("cifar10", asked.root, run.classifier).split("val")
    last = run.history[-1]
    return {
        "seed": seed,
        "error": 1 - last["val_accuracy"],
        "error_with_tta_flip": mlpconv.evaluate(run.classifier, held_out, tta_flip=True).error,
        "train_accuracy": last["train_accuracy"],
        "seconds": last["seconds"],
        "cpu_seconds": last["cpu_seconds"],
    }


RESET: dict[str, Any] = {"whiten": False, "label_smoothing": 0.0, "ema": 0.0, "ema_every": 1, "freeze": (), "sizes": ()}
"""The fast recipe without its levers."""


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
    parser.add_argument("--val-fraction", type=float, default=0.4)
    parser.add_argument("--root", type=Path, help="where the data lie, if not in the cache or $MLPCONV_DATA")
    parser.add_argument("--runs", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--only", nargs="*", help="names of plans, such as 'without Muon'")
    asked = parser.parse_args()
    protocol = {key: getattr(asked, key) for key in ("size", "epochs", "val_fraction")}
    found = earlier(protocol)
    for seed in range(asked.seeds):
        for name, settings in plans().items():
            rows = found.setdefault(name, [])
            if (asked.only and name not in asked.only) or any(row["seed"] == seed for row in rows):
                continue
            rows.append(one(name, settings, seed, asked))
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
