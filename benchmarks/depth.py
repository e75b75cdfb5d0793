"""Measure how many layers of a pretrained network to train: the classifier alone, the last layers, or all.

    python benchmarks/depth.py [--data FOLDER] [--folders colour grey] [--per-class 10 30] [--tune last all]
                              [--size 224] [--seeds 3]

The folders are those of benchmarks/folders.py, and the splits those of benchmarks/compare_transfer.py. In each split, a
classifier is fitted on features (tune=head), and training at each depth of --tune goes on from it, on images of the
same size, as the automatic choice does. All are evaluated on the 20 validation images of each class, which select the
epoch, and on 40 images of each class that no run has seen: CIFAR-100 training images from the 101st of a class on.
`gain` is the difference to the fitted classifier on the unseen images, in points; `cpu_seconds` of a depth come on top
of those of the classifier. Writes benchmarks/results/depth.json; rows that are not measured again stay.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, spread, write_result
from small_folders import CLASSES, picture, positions, split_folder, write_images

import mlpconv
from mlpconv.data import Split, make_dataset
from mlpconv.data.decode import from_pil
from mlpconv.evaluation import align_labels
from mlpconv.training import Progress
from mlpconv.training.plan import resolve_plan
from mlpconv.transfer.depth import VALIDATIONS, finetune_recipe

UNSEEN = 40  # images of each class
SOURCE = "efficientnet_lite0"


def unseen_images(cifar: mlpconv.Dataset, kind: str, size: int) -> Split:
    """Return images of the classes of a folder that are not in it, as the network takes them."""
    train, images, labels = cifar.split("train"), [], []
    for label, class_index in enumerate(sorted(CLASSES[kind], key=lambda index: cifar.classes[index])):
        for number in positions(train, class_index, "test")[:UNSEEN]:
            images.append(from_pil(picture(train, number, kind), channels=3, size=(size, size)))
            labels.append(label)
    return Split(np.stack(images), np.array(labels, np.int64))


def accuracy(classifier: mlpconv.Classifier, unseen: Split, classes: tuple[str, ...]) -> float:
    """Return the accuracy on the unseen images."""
    aligned = align_labels(unseen, make_dataset("unseen", classes, {"test": unseen}), classifier)
    return mlpconv.evaluate(classifier, aligned, batch_size=40).accuracy


def measure(data: Path, unseen: Split, classes: tuple[str, ...], tune: str, seed: int) -> dict[str, float]:
    """Return accuracies and CPU seconds of one run; features come from the cache if they are in it."""
    size = unseen.images.shape[2]
    settings: dict[str, Any] = {"source": SOURCE, "tune": tune, "size": size, "seed": seed}
    if tune != "head":
        train = mlpconv.open_data(data, size=size, channels=3).split("train")
        epochs = resolve_plan(finetune_recipe(SOURCE), len(train), 3).epochs
        settings["eval_every"] = max(1, epochs // VALIDATIONS)  # as the automatic choice does
    with tempfile.TemporaryDirectory() as out:
        cpu = time.process_time()
        run = mlpconv.fit(data, out=Path(out) / "run", progress=Progress(), report=False, **settings)
        seconds = time.process_time() - cpu
        validation = run.classifier.info["metrics"]["val_accuracy"]
        figures = {"validation": validation, "unseen": accuracy(run.classifier, unseen, classes)}
    return figures | {"cpu_seconds": round(seconds, 1)}


def stored() -> dict[str, Any]:
    """Return the rows measured before."""
    path = RESULTS / "depth.json"
    return json.loads(path.read_text())["result"] if path.is_file() else {}


def add_split(
    rows: dict[str, list[dict[str, float]]], data: Path, key: str, unseen: Split, args: Any, seed: int
) -> None:
    """Measure all depths on one split, and add each to its row."""
    classes = tuple(sorted(path.name for path in (data / "train").iterdir()))
    fitted = 0.0
    for tune in ("head", *args.tune):
        figures = measure(data, unseen, classes, tune, seed)
        fitted = figures["unseen"] if tune == "head" else fitted
        rows.setdefault(f"{key}, {tune}", []).append(figures | {"gain": 100 * (figures["unseen"] - fitted)})
        print(key, seed, tune, figures, flush=True)


def main() -> None:
    """Measure the requested combinations, split after split, and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the files of CIFAR-100; default: the cache")
    parser.add_argument("--folders", nargs="+", default=list(CLASSES))
    parser.add_argument("--per-class", nargs="+", type=int, default=[10, 30], help="80: all that are not held out")
    parser.add_argument("--tune", nargs="+", default=["last", "all"])
    parser.add_argument("--size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as top:
        cifar = mlpconv.open_data("cifar100", root=args.data, val_fraction=0)
        folders = {kind: write_images(cifar, kind, "folder", Path(top)) for kind in args.folders}
        unseen = {kind: unseen_images(cifar, kind, args.size) for kind in args.folders}
        os.environ["MLPCONV_DATA"] = str(Path(top) / "cache")  # features of the first run of a split, for the others
        for seed in range(args.seeds):
            for kind, per_class in product(args.folders, args.per_class):
                with tempfile.TemporaryDirectory() as out:
                    data = split_folder(folders[kind], Path(out) / "data", per_class, seed)
                    add_split(rows, data, f"{kind}, {per_class} a class, {args.size} pixels", unseen[kind], args, seed)
                spreads = {
                    key: {name: spread([run[name] for run in runs]) for name in runs[0]} for key, runs in rows.items()
                }
                write_result("depth", stored() | spreads)


if __name__ == "__main__":
    main()
