"""Measure what is saved where frozen layers run once for each image instead of in every step (--tune last).

    python benchmarks/frozen_outputs.py [--data FOLDER] [--precision bf16 fp32] [--size 160] [--rounds 2]

EfficientNet-Lite0 on the colour folder of benchmarks/folders.py: 80 training images of each of ten classes, 20 for
validation, with the recipe `finetune`, on one thread. Each round trains with and without, in turn, from the same
classifier. CPU seconds are those of the epochs, and include the outputs of the frozen layers. Writes
benchmarks/results/frozen_outputs.json; precisions that are not measured again stay.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, spread, write_result
from small_folders import split_folder, write_images

import mlpconv
from mlpconv.training import Progress, frozen_outputs

ROOM = {"once": frozen_outputs.MAX_BYTES, "every step": 0}


def seconds(data: Path, way: str, settings: dict[str, Any]) -> dict[str, float]:
    """Return CPU seconds of the epochs of a run and its last validation loss."""
    frozen_outputs.MAX_BYTES = ROOM[way]
    with tempfile.TemporaryDirectory() as out:
        run = mlpconv.fit(data, out=Path(out) / "run", progress=Progress(), report=False, **settings)
    first, last = run.history[0], run.history[-1]
    return {"cpu_seconds": last["cpu_seconds"] - first["cpu_seconds"], "val_loss": last["val_loss"]}


def main() -> None:
    """Measure the requested precisions in turn, and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the files of CIFAR-100; default: the cache")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp32"], choices=["bf16", "fp32"])
    parser.add_argument("--size", type=int, default=160, help="side of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "frozen_outputs.json"
    result: dict[str, Any] = json.loads(path.read_text("utf-8"))["result"] if path.is_file() else {}
    with tempfile.TemporaryDirectory() as top:
        cifar = mlpconv.open_data("cifar100", root=args.data, val_fraction=0)
        data = split_folder(write_images(cifar, "colour", "folder", Path(top)), Path(top) / "data", 80, 0)
        for precision in args.precision:
            settings = {"source": "efficientnet_lite0", "tune": "last", "size": args.size, "precision": precision}
            rounds = [{way: seconds(data, way, settings) for way in ROOM} for _ in range(args.rounds)]
            ratios = [found["every step"]["cpu_seconds"] / found["once"]["cpu_seconds"] for found in rounds]
            result[f"{precision}, {args.size} pixels"] = {
                way: {name: spread([found[way][name] for found in rounds]) for name in rounds[0][way]} for way in ROOM
            } | {"times as fast": spread(ratios)}
            print(precision, rounds, ratios, flush=True)
            write_result("frozen_outputs", result)


if __name__ == "__main__":
    main()
