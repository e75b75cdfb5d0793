"""Measure distillation: small networks from random weights, with and without a teacher, on the same images.

    python benchmarks/distill.py [choose cifar10 folder] [--data FOLDER] [--per-class 200] [--epochs 10] [--seeds 0 1 2]

The teacher is EfficientNet-Lite0 with the weights of ImageNet, whose classifier is fitted on the training images
(--tune head): what the student gains also comes from ImageNet. `cifar10`: `--per-class` training images of each class
of CIFAR-10 and 2,000 other training images for validation; the student is the paper's network (966,986 parameters,
969,802 with batch norm). `choose` compares weights and temperatures on 1,000 further images, with half the channels and
one seed. `folder`: the folder of colour images of benchmarks/folders.py, with 20 images of each class for validation;
the student is nin_tiny, trained for four times as many epochs. The seeds of runs with and without a teacher are paired.
No test image is used. One thread; CPU seconds are those of training, for the teacher of everything but its outputs for
the student. Parts and seeds of benchmarks/results/distill.json that are not measured again stay.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, spread, write_result
from small_folders import split_folder, write_images

import mlpconv
from mlpconv.data import Dataset, Split, make_dataset
from mlpconv.data.converted import convert_images
from mlpconv.data.dataset import select
from mlpconv.data.storage import cache_folder
from mlpconv.training import Progress

PARTS = ("choose", "cifar10", "folder")
TEACHER, SIDE = "efficientnet_lite0", 128
VALIDATION, CHOICE = 2000, 1000  # images
CANDIDATES = ((0.5, 4.0), (0.9, 1.0), (0.9, 4.0), (0.9, 8.0), (1.0, 4.0))
"""Weights and temperatures that are compared."""
BATCH = 96
KINDS = ("plain", "taught")


def cifar_parts(root: Path | None, per_class: int) -> dict[str, Dataset]:
    """Return two data sets with the same training images of CIFAR-10, validated on different ones."""
    cifar = mlpconv.open_data("cifar10", root=root)
    split = cifar.split("train")
    order = np.random.default_rng(0).permutation(len(split))
    train = np.concatenate([order[split.labels[order] == label][:per_class] for label in range(cifar.num_classes)])
    others = order[~np.isin(order, train)]
    held_out = {"cifar10": others[:VALIDATION], "choose": others[VALIDATION : VALIDATION + CHOICE]}
    return {
        part: make_dataset("cifar10", cifar.classes, {"train": select(split, train), "val": select(split, rows)})
        for part, rows in held_out.items()
    }


def enlarged(dataset: Dataset) -> Dataset:
    """Return a data set in the size in which the teacher is fitted."""
    splits = {
        key: Split(convert_images(split.images, (3, SIDE, SIDE)), split.labels) for key, split in dataset.splits.items()
    }
    return make_dataset(dataset.name, dataset.classes, splits)


def train(data: Any, out: Path, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return accuracy, CPU seconds of the training, and of everything, of one run."""
    clock = time.process_time()
    run = mlpconv.fit(data, out=out, seed=seed, progress=Progress(), report=False, **settings)
    last, facts = run.history[-1], run.classifier.info.get("teacher", {})
    return {
        "seed": seed,
        "accuracy": last["val_accuracy"],
        "cpu_seconds": last["cpu_seconds"],
        "all_cpu_seconds": round(time.process_time() - clock, 1),
        "parameters": sum(parameter.numel() for parameter in run.classifier.model.parameters()),
        "teacher_accuracy": facts.get("val_accuracy"),
    }


def paired(data: Any, top: Path, seeds: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """Return runs with and without the teacher in `top`."""
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for seed in seeds:
        for kind, more in zip(KINDS, ({}, {"teacher": top / "teacher"}), strict=True):
            rows[kind].append(train(data, top / f"{kind}-{seed}", seed, settings | more))
            print(kind, rows[kind][-1], flush=True)
    return {kind: {"runs": runs} for kind, runs in rows.items()}


def merged(result: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """Return a result with the seeds of an earlier one that it lacks, the means, and the differences of the pairs."""
    for kind in KINDS:
        rows = {row["seed"]: row for part in (earlier, result) for row in part.get(kind, {}).get("runs", [])}
        runs = [rows[seed] for seed in sorted(rows)]
        result[kind] = {"runs": runs} | {key: spread([row[key] for row in runs]) for key in ("accuracy", "cpu_seconds")}
    plain, taught = ([row["accuracy"] for row in result[kind]["runs"]] for kind in KINDS)
    return result | {"gain": spread([after - before for before, after in zip(plain, taught, strict=True)])}


def main() -> None:
    """Measure the parts and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 or CIFAR-100; default: the cache, $MLPCONV_DATA")
    parser.add_argument("--per-class", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.data = options.data or cache_folder()  # before MLPCONV_DATA is set below
    path = RESULTS / "distill.json"
    with tempfile.TemporaryDirectory() as scratch:
        for part in options.parts or PARTS:
            top = Path(scratch, part)
            result = measure(part, top, options)
            stored = json.loads(path.read_text())["result"] if path.is_file() else {}
            if part != "choose":
                earlier = stored.get(part, {})
                alike = all(earlier.get(key) == result.get(key) for key in ("per_class", "epochs"))
                result = merged(result, earlier if alike else {})
            write_result("distill", stored | {part: result})


def measure(part: str, top: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the result of a part."""
    if part == "folder":
        return measure_folder(top, options)
    data = cifar_parts(options.data, options.per_class)[part]
    os.environ["MLPCONV_DATA"] = str(top / "cache")  # an empty one, so that the seconds are those of all outputs
    teacher = train(enlarged(data), top / "teacher", 0, {"source": TEACHER, "tune": "head"})
    settings = {"recipe": "fast", "epochs": options.epochs, "batch_size": BATCH}
    result: dict[str, Any] = {"per_class": options.per_class, "epochs": options.epochs, "teacher": teacher}
    print("teacher", teacher, flush=True)
    if part == "cifar10":
        return result | {"validation_images": VALIDATION} | paired(data, top, options.seeds, settings)
    settings["width"] = 0.5
    rows = [{"weight": 0.0, "temperature": None} | train(data, top / "plain", 0, settings)]
    for number, (weight, temperature) in enumerate(CANDIDATES):
        how = {"teacher": top / "teacher", "teacher_weight": weight, "teacher_temperature": temperature}
        row = train(data, top / f"run-{number}", 0, settings | how)
        rows.append({"weight": weight, "temperature": temperature} | row)
        print(rows[-1], flush=True)
    return result | {"width": settings["width"], "validation_images": CHOICE, "runs": rows}


def measure_folder(top: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the result of the folder of colour images; the held-out images are those of the first split."""
    cifar = mlpconv.open_data("cifar100", root=options.data)
    data = split_folder(write_images(cifar, "colour", "folder", top), top / "colour", 100, 0)
    os.environ["MLPCONV_DATA"] = str(top / "cache")
    teacher = train(data, top / "teacher", 0, {"source": TEACHER, "tune": "head"})
    print("teacher", teacher, flush=True)
    result = {"teacher": teacher, "validation_images": 200}
    settings = {"source": "scratch", "recipe": "fast", "epochs": 4 * options.epochs}
    return result | {"epochs": settings["epochs"]} | paired(data, top, options.seeds, settings)


if __name__ == "__main__":
    main()
