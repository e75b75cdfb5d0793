"""Distillation on CIFAR-10: EfficientNet-Lite0, fine-tuned from the weights of ImageNet, teaches the paper's network.

What the student gains over the recipe `best` alone also comes from the images of ImageNet.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpu_data
import numpy as np
import torch

import mlpconv
from gpu_phases.accuracy import Plan, add_runs, begun
from mlpconv.data import Dataset, Split, make_dataset
from mlpconv.data.converted import convert_images

__all__ = ["run"]

SIDE = 128
"""Pixels of the teacher's images, enlarged from 32."""
TEACHER: dict[str, Any] = {"source": "efficientnet_lite0", "tune": "all", "batch_size": 128, "lr": 0.02, "epochs": 4}
TEACHER_SECONDS = 150
STUDENTS = ("nin_cifar10", "nin_tiny")
STUDENT: dict[str, Any] = {"recipe": "best", "batch_size": 128, "eval_every": 20}
SMALL: dict[str, Any] = {"recipe": "fast", "epochs": 1, "width": 0.25, "batch_size": 512}
SEEDS = 3
THREADS, CHUNK = 8, 500


def run(
    device: torch.device,
    *,
    small: bool,
    deadline: float,
    say: Callable[[dict[str, Any]], None],
    earlier: dict[str, Any],
    sources: str,
) -> dict[str, Any]:
    """Return the teacher's validation accuracy, and those of networks with and without it; paired seeds.

    The runs of an `earlier` result are kept, and only the seeds that are missing are trained.
    """
    found = None if small else gpu_data.load("cifar10")
    data: Any = "digits" if found is None else found
    result = begun(earlier, "digits" if found is None else "cifar10")
    student, expected, seeds = (SMALL, 10, 1) if found is None else (STUDENT, 60, SEEDS)
    if time.perf_counter() > deadline - expected - (0 if found is None else TEACHER_SECONDS):
        return result | {"left_out": ["everything: the teacher alone takes longer"]}
    with tempfile.TemporaryDirectory() as top:
        teacher = Path(top, "teacher")
        began = time.perf_counter()
        settings = TEACHER if found is not None else SMALL
        taught_on = data if found is None else enlarged(found)
        trained = mlpconv.fit(taught_on, out=teacher, device=device.type, progress=None, report=False, **settings)
        accuracy = trained.classifier.info["metrics"]["val_accuracy"]
        result["teacher"] = {
            "network": trained.classifier.model.config.name,
            "weights": str(settings.get("source", "scratch")),
            "accuracy": accuracy,
            "all_seconds": round(time.perf_counter() - began, 1),
        }
        say(result)
        for network in ("nin_tiny",) if found is None else STUDENTS:
            alone = student | {"model": network}
            plans = {f"{network}, taught": alone | {"teacher": teacher}, f"{network}, alone": alone}
            for count in range(1, seeds + 1):  # in pairs, so that what time leaves can be compared
                for name, given in plans.items():
                    add_runs(result, name, Plan(count, expected, given), data, device, deadline, say, sources)
    return result


def enlarged(dataset: Dataset) -> Dataset:
    """Return a data set with larger images, converted by several threads."""
    splits = {}
    for key, split in dataset.splits.items():
        images = np.empty((len(split), 3, SIDE, SIDE), np.uint8)

        def fill(start: int, split: Split = split, images: np.ndarray = images) -> None:
            rows = slice(start, start + CHUNK)
            images[rows] = convert_images(split.images[rows], (3, SIDE, SIDE))

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fill, range(0, len(split), CHUNK)))
        splits[key] = Split(images, split.labels)
    return make_dataset(dataset.name, dataset.classes, splits)
