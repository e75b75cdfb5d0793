"""Measure runs from pretrained weights: each network, how many layers are trained, and how many images there are.

    python benchmarks/transfer.py [--data FOLDER] [--sources efficientnet_lite0] [--tune head all] [--per-class 100]
                                  [--folders colour grey] [--seeds 3]

The folders are those of benchmarks/folders.py: ten classes of CIFAR-100 images, in colour and in grey. For each seed,
20 images of each class are held out (val/), and `--per-class` of the 80 others are trained on (train/). Each row is one
`mlpconv.fit(folder, source=...)` without cached features: its validation accuracy and CPU seconds, on one thread.
Rows of benchmarks/results/transfer.json that are not measured again stay.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, spread, write_result
from folders import CLASSES, make_folder

import mlpconv
from mlpconv.training import Progress

HELD_OUT = 20  # images of each class


def split_folder(folder: Path, out: Path, per_class: int, seed: int) -> Path:
    """Link a folder of classes as train/ and val/; return it."""
    rng = np.random.default_rng(seed)
    for name in sorted(path.name for path in folder.iterdir()):
        files = sorted((folder / name).iterdir())
        order = rng.permutation(len(files))
        parts = {"val": order[:HELD_OUT], "train": order[HELD_OUT : HELD_OUT + min(per_class, len(files) - HELD_OUT)]}
        for part, chosen in parts.items():
            (out / part / name).mkdir(parents=True)
            for index in sorted(chosen):
                (out / part / name / files[index].name).symlink_to(files[index])
    return out


def measure(folder: Path, per_class: int, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the accuracy and the seconds of one run."""
    with tempfile.TemporaryDirectory() as out:
        data = split_folder(folder, Path(out) / "data", per_class, seed)
        clock, cpu = time.perf_counter(), time.process_time()
        run = mlpconv.fit(
            data, out=Path(out) / "run", progress=Progress(), report=False, seed=seed, cache_gb=0, **settings
        )
        seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    accuracy, first = run.classifier.info["metrics"]["val_accuracy"], run.history[0]["val_accuracy"]
    return {"accuracy": accuracy, "first": first, "cpu_seconds": round(cpu_seconds, 1), "seconds": round(seconds, 1)}


def stored() -> dict[str, Any]:
    """Return the rows measured before."""
    path = RESULTS / "transfer.json"
    return json.loads(path.read_text())["result"] if path.is_file() else {}


def main() -> None:
    """Measure the requested combinations and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the files of CIFAR-100; default: the cache")
    parser.add_argument("--folders", nargs="+", default=list(CLASSES))
    parser.add_argument("--sources", nargs="+", default=["efficientnet_lite0"])
    parser.add_argument("--tune", nargs="+", default=["head", "all"])
    parser.add_argument("--per-class", nargs="+", type=int, default=[100], help="100: all that are not held out")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as top:
        cifar = mlpconv.open_data("cifar100", root=args.data, val_fraction=0)
        folders = {kind: make_folder(cifar, kind, Path(top)) for kind in args.folders}
        del cifar
        for kind, folder in folders.items():
            for per_class in args.per_class:
                for source in args.sources:
                    for tune in args.tune:
                        settings = {"source": source} | ({} if source in ("scratch", "auto") else {"tune": tune})
                        runs = [measure(folder, per_class, seed, settings) for seed in range(args.seeds)]
                        key = f"{kind}, {per_class} a class, {source}, {tune}"
                        row = {name: spread([run[name] for run in runs]) for name in runs[0]}
                        print(key, {name: round(value["mean"], 4) for name, value in row.items()}, flush=True)
                        write_result("transfer", stored() | {key: row})


if __name__ == "__main__":
    main()
