"""Compare training from random weights with a linear model and nearest neighbours on small folders of photographs.

    python benchmarks/folders.py [--data FOLDER] [--seeds 3]

Two folders of PNG files are created from CIFAR-100: ten classes of 100 images in colour, and ten other classes in grey.
For each seed (which determines the split, four fifths for training, and everything else), training from random weights
(`mlpconv.fit(folder, source="scratch")`) is compared with scikit-learn's logistic regression and k-nearest neighbours
on standardised pixels, whose hyperparameters are tuned on the same validation images. Writes
benchmarks/results/folders.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from common import spread, write_result
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_folders import CLASSES, write_images

import mlpconv


def baselines(data: mlpconv.Dataset) -> dict[str, float]:
    """Return the validation accuracy of the two baselines with their best hyperparameters."""
    train, val = data.split("train"), data.split("val")
    train_pixels, val_pixels = (split.images.reshape(len(split), -1) / 255 for split in (train, val))
    linear = [LogisticRegression(C=c, max_iter=300) for c in (1e-4, 1e-3, 1e-2, 1e-1)]
    nearest = [KNeighborsClassifier(k) for k in (1, 3, 5, 9, 15)]
    best = {}
    for name, models in (("linear", linear), ("nearest_neighbours", nearest)):
        fitted = [make_pipeline(StandardScaler(), model).fit(train_pixels, train.labels) for model in models]
        best[name] = max(float(model.score(val_pixels, val.labels)) for model in fitted)
    return best


def run_seed(folder: Path, seed: int) -> dict[str, Any]:
    """Train from random weights and evaluate the baselines on the same split."""
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        run = mlpconv.fit(folder, source="scratch", out=out, seed=seed)
        seconds = time.perf_counter() - start
    row = {"seed": seed, "mlpconv": run.history[-1]["val_accuracy"], "seconds": round(seconds, 1)}
    row |= {"cpu_seconds": run.history[-1]["cpu_seconds"]}
    return row | baselines(mlpconv.open_data(folder, seed=seed))


def main() -> None:
    """Create the folders, compare the models and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-100 (default: the cache, $MLPCONV_DATA)")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    cifar = mlpconv.open_data("cifar100", root=options.data)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in CLASSES:
            folder = write_images(cifar, kind, "folder", Path(scratch))
            rows = [run_seed(folder, seed) for seed in range(options.seeds)]
            names = ("mlpconv", "linear", "nearest_neighbours", "seconds")
            result[kind] = {"runs": rows} | {name: spread([row[name] for row in rows]) for name in names}
            print(kind, {name: round(result[kind][name]["mean"], 4) for name in names}, flush=True)
    write_result("folders", result)


if __name__ == "__main__":
    main()
