"""Measure linear probes of the shipped ImageNet networks on small folders of photographs.

    python benchmarks/probe.py [--data FOLDER] [--sizes 96 128 160 224] [--splits 10] [--precision bf16]

The two folders are those of benchmarks/folders.py: ten classes of 100 images of CIFAR-100, in colour and in grey, read
at several sizes. The seconds are those of one `linear_probe` call without cached features, on one thread. The accuracy
is the mean over random splits, four fifths of each class for training; scikit-learn's logistic regression with the same
penalty on the same features is fitted beside it. Writes benchmarks/results/probe.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import spread, write_result
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small_folders import CLASSES, write_images
from threadpoolctl import threadpool_limits

import mlpconv
from mlpconv.data.dataset import select
from mlpconv.training import Recipe
from mlpconv.transfer import FeatureCache, linear_probe
from mlpconv.transfer.features import FastForward, extract
from mlpconv.transfer.head import fit_head
from mlpconv.transfer.source import BACKBONES, open_source
from mlpconv.transfer.start import scores

HELD_OUT = 0.2


def measure(folder: Path, source: str, size: int, splits: int, precision: str) -> dict[str, Any]:
    """Return the seconds of one probe, and the accuracies of both implementations over random splits."""
    start = time.process_time()
    linear_probe(folder, source, size=size, precision=precision, cache=FeatureCache(0))
    seconds = time.process_time() - start
    dataset = mlpconv.open_data(folder, size=size, channels=3, val_fraction=0)
    split = dataset.split("train")
    origin = open_source(source)
    network = origin.network(dataset, Recipe(source=source, tune="head"))
    preprocessing = origin.preprocessing(dataset)
    forward = FastForward(network, precision)
    views = [extract(forward, preprocessing, split.images, flip=flip) for flip in (False, True)]
    labels = torch.from_numpy(split.labels).long()
    ours, theirs = [], []
    for seed in range(splits):
        held_out = stratified(split.labels, seed)
        train = [view[~held_out] for view in views]
        head = fit_head(train, labels[~held_out], dataset.num_classes, seed=seed)
        ours.append(scores(head.logits(views[0][held_out]), select(split, np.flatnonzero(held_out)))[1])
        theirs.append(reference(train, labels[~held_out], head.penalty, views[0][held_out], labels[held_out]))
    return {"cpu_seconds": round(seconds, 1), "accuracy": spread(ours), "scikit_learn": spread(theirs)}


def stratified(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a mask (N,) with the held-out fraction of each class."""
    rng, mask = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        mask[rng.permutation(members)[: round(len(members) * HELD_OUT)]] = True
    return mask


def reference(
    views: list[torch.Tensor], labels: torch.Tensor, penalty: float, test: torch.Tensor, test_labels: torch.Tensor
) -> float:
    """Return the accuracy of scikit-learn's logistic regression with an equal penalty."""
    features, repeated = torch.cat(views).numpy(), labels.repeat(len(views)).numpy()
    scaler = StandardScaler().fit(features)
    regression = LogisticRegression(C=1 / (len(features) * penalty), max_iter=1000)
    regression.fit(scaler.transform(features), repeated)
    return float(regression.score(scaler.transform(test.numpy()), test_labels.numpy()))


def main() -> None:
    """Measure both networks on both folders, at each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the files of CIFAR-100; default: the cache")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128, 160, 224], help="sides of the images, pixels")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cifar = mlpconv.open_data("cifar100", root=args.data, val_fraction=0)
    rows = []
    with tempfile.TemporaryDirectory() as top, threadpool_limits(1):
        folders = {kind: write_images(cifar, kind, "folder", Path(top)) for kind in CLASSES}
        for kind, source, size in product(CLASSES, BACKBONES, args.sizes):
            row = {"folder": kind, "source": source, "size": size}
            rows.append(row | measure(folders[kind], source, size, args.splits, args.precision))
            print(rows[-1], flush=True)
    write_result("probe", {"splits": args.splits, "precision": args.precision, "rows": rows})


if __name__ == "__main__":
    main()
