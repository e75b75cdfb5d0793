"""Compare mlpconv's transfer learning with scikit-learn, a plain PyTorch loop, and models of pixels, on paired splits.

    python benchmarks/compare_transfer.py --methods head scikit-learn pixels neighbours --seeds 10 --per-class 10 30 100
    python benchmarks/compare_transfer.py --methods all plain scratch --seeds 5 --weights FILE

The folders are those of benchmarks/folders.py. For each seed, 20 images of each class are held out, and `--per-class`
of the 80 others are trained on. All networks start from the weights of EfficientNet-Lite0:

    head          mlpconv, --tune head: a classifier fitted on frozen features
    scikit-learn  logistic regression with the same penalty on the same features
    all           mlpconv, --tune all
    plain         timm's network, all layers trained by the loop of benchmarks/plain_finetuning.py; `--weights` is a
                  safetensors file with timm's parameter names (default: timm downloads them)
    scratch       mlpconv from random weights
    pixels        logistic regression on standardised pixels, its penalty cross-validated
    neighbours    k-nearest neighbours on standardised pixels, k cross-validated

`accuracy` is that on the held-out images; `all` and `scratch` keep the last epoch that was not clearly less accurate
than the best, `plain` the last. `test` is the accuracy on 1,000 other images of the same classes, which nothing was
chosen on. Seconds are CPU seconds on one thread; those of `head` are measured in a whole run, once per folder and
number of images. With `--tuning`, training and evaluation use images that are in neither: learning rates are chosen
there. Each run is added to benchmarks/results/compare_transfer.json (compare_transfer-tuning.json), and replaces the
one with the same key.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import RESULTS, write_result
from numpy.typing import NDArray
from probe import reference
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_folders import CLASSES, split_folder, write_images
from threadpoolctl import threadpool_limits

import mlpconv
from mlpconv.fitting import Run
from mlpconv.training import Progress, Recipe
from mlpconv.training.progress import EpochMetrics
from mlpconv.transfer.features import FastForward, extract, feature_precision
from mlpconv.transfer.head import fit_head
from mlpconv.transfer.source import SIZE, open_source

SOURCE = "efficientnet_lite0"
Row = dict[str, float]


class Case(NamedTuple):
    """One split of a folder: data/train and data/val, and the test images."""

    folder: Path
    test: Path
    data: Path
    per_class: int
    seed: int
    settings: dict[str, Any]
    """Settings of the trained networks, for other learning rates."""
    weights: Path | None


class Rows(NamedTuple):
    """Rows of the images of a split: features or pixels (N, D) of each view, and labels."""

    train: list[NDArray[np.float32]]
    train_labels: NDArray[np.int64]
    val: NDArray[np.float32]
    val_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def places_in_folder(case: Case, part: str) -> NDArray[np.int64]:
    """Return the positions in the whole folder of the images of a part of the split."""
    places = {path.relative_to(case.folder): place for place, path in enumerate(sorted(case.folder.glob("*/*.png")))}
    chosen = sorted((case.data / part).glob("*/*.png"))
    return np.array([places[path.relative_to(case.data / part)] for path in chosen])


@functools.cache
def whole(folder: Path, kind: str) -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
    """Return the features or standardised pixels (N, D) of each view of all images of a folder, and their labels."""
    size = SIZE if kind == "features" else None
    dataset = mlpconv.open_data(folder, size=size, channels=3, val_fraction=0)
    split = dataset.split("train")
    if kind == "pixels":
        return [np.asarray(split.images.reshape(len(split), -1) / 255, np.float32)], split.labels
    origin = open_source(SOURCE)
    network = origin.network(dataset, Recipe(source=SOURCE, tune="head"))
    precision = feature_precision("auto", torch.device("cpu"))
    preprocessing = origin.preprocessing(dataset)
    forward = FastForward(network, precision)
    views = [extract(forward, preprocessing, split.images, flip=flip) for flip in (False, True)]
    return [view.numpy() for view in views], split.labels


def rows_of(case: Case, kind: str) -> Rows:
    """Return the features or pixels of a split and of the test images."""
    views, labels = whole(case.folder, kind)
    test, test_labels = whole(case.test, kind)
    train, val = places_in_folder(case, "train"), places_in_folder(case, "val")
    return Rows([view[train] for view in views], labels[train], views[0][val], labels[val], test[0], test_labels)


def head(case: Case) -> Row:
    """Fit our classifier on frozen features; the first seed is a whole run as well, for its seconds."""
    rows = rows_of(case, "features")
    fitted = fitted_head(case)
    scores = {"accuracy": (rows.val, rows.val_labels), "test": (rows.test, rows.test_labels)}
    row = {
        name: float((fitted.logits(torch.from_numpy(x)).argmax(1).numpy() == labels).mean())
        for name, (x, labels) in scores.items()
    }
    if case.seed == 0:
        with tempfile.TemporaryDirectory() as out:
            run, seconds = fitted(case, Path(out), Progress(), source=SOURCE, tune="head")
        row |= {"cpu_seconds": seconds, "accuracy_of_the_run": run.history[0]["val_accuracy"]}
    return row


def fitted_head(case: Case) -> Any:
    """Return our classifier for a split."""
    rows = rows_of(case, "features")
    views, labels = [torch.from_numpy(view) for view in rows.train], torch.from_numpy(rows.train_labels).long()
    return fit_head(views, labels, int(labels.max()) + 1, seed=case.seed)


def scikit_learn(case: Case) -> Row:
    """Fit scikit-learn's logistic regression with our penalty on the same features."""
    rows, penalty = rows_of(case, "features"), fitted_head(case).penalty
    views, labels = [torch.from_numpy(view) for view in rows.train], torch.from_numpy(rows.train_labels)
    scores = {"accuracy": (rows.val, rows.val_labels), "test": (rows.test, rows.test_labels)}
    return {
        name: reference(views, labels, penalty, torch.from_numpy(x), torch.from_numpy(y))
        for name, (x, y) in scores.items()
    }


def on_pixels(model: Any, case: Case) -> Row:
    """Fit a model of scikit-learn on standardised pixels."""
    rows, cpu = rows_of(case, "pixels"), time.process_time()
    fitted = make_pipeline(StandardScaler(), model).fit(rows.train[0], rows.train_labels)
    seconds = time.process_time() - cpu
    accuracy = float(fitted.score(rows.val, rows.val_labels))
    return {"accuracy": accuracy, "test": float(fitted.score(rows.test, rows.test_labels)), "cpu_seconds": seconds}


def pixels(case: Case) -> Row:
    """Fit logistic regression on pixels."""
    grid = {"C": [1e-5, 1e-4, 1e-3, 1e-2]}
    return on_pixels(GridSearchCV(LogisticRegression(max_iter=300), grid, cv=3), case)


def neighbours(case: Case) -> Row:
    """Fit k-nearest neighbours on pixels."""
    return on_pixels(GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [1, 3, 5, 9, 15]}, cv=3), case)


class Luckiest(Progress):
    """Copies the model file of the epoch with the best validation accuracy, which a run may replace by a newer one."""

    def __init__(self, model: Path, copy: Path) -> None:
        self.model, self.copy, self.best = model, copy, (-1.0, 0.0)

    def begin(self, *_: int) -> None:
        if self.model.is_file():  # the fitted classifier, whose file is written after its row
            self.epoch(mlpconv.load(self.model).info["metrics"])

    def epoch(self, row: EpochMetrics, *_: int) -> None:
        score = row["val_accuracy"], -row["val_loss"]
        if score > self.best and self.model.is_file():
            self.best = score
            shutil.copyfile(self.model, self.copy)


def fitted(case: Case, out: Path, progress: Progress, **settings: Any) -> tuple[Run, float]:
    """Return a run of `mlpconv.fit` and its CPU seconds."""
    cpu = time.process_time()
    run = mlpconv.fit(
        case.data, out=out, progress=progress, report=False, seed=case.seed, cache_gb=0, **settings | case.settings
    )
    return run, round(time.process_time() - cpu, 1)


def run_of(case: Case, **settings: Any) -> Row:
    """Train with `mlpconv.fit` and evaluate the model file, and the epoch with the best validation accuracy."""
    with tempfile.TemporaryDirectory() as top:
        out, copy = Path(top) / "run", Path(top) / "luckiest.safetensors"
        run, seconds = fitted(case, out, Luckiest(out / "model.safetensors", copy), **settings)
        luckiest = mlpconv.load(copy)
    channels, side, _ = run.classifier.input_size
    test = mlpconv.open_data(case.test, size=side, channels=channels, val_fraction=0).split("train")
    return {
        "accuracy": run.classifier.info["metrics"]["val_accuracy"],
        "last": run.history[-1]["val_accuracy"],
        "first": run.history[0]["val_accuracy"],
        "test": mlpconv.evaluate(run.classifier, test).accuracy,
        "test_of_the_luckiest": mlpconv.evaluate(luckiest, test).accuracy,
        "cpu_seconds": seconds,
    }


def tune_all(case: Case) -> Row:
    """Train all layers with mlpconv."""
    return run_of(case, source=SOURCE, tune="all")


def scratch(case: Case) -> Row:
    """Train from random weights with mlpconv."""
    return run_of(case, source="scratch")


def plain(case: Case) -> Row:
    """Train timm's network by the plain loop."""
    from plain_finetuning import Finetuning, accuracy, finetune, loader

    settings = Finetuning(weights=case.weights, **case.settings)
    model, row = finetune(case.data, settings, case.seed)
    return row | {"test": accuracy(model, loader(case.test, settings, train=False))}


METHODS: dict[str, Callable[[Case], Row]] = {
    "head": head, "scikit-learn": scikit_learn, "all": tune_all, "plain": plain, "scratch": scratch, "pixels": pixels,
    "neighbours": neighbours,
}  # fmt: skip


def add(name: str, key: str, seed: int, row: Row) -> None:
    """Add a run to the results, or replace the one of the same key and seed."""
    path = RESULTS / f"{name}.json"
    stored = json.loads(path.read_text("utf-8"))["result"] if path.is_file() else {}
    stored[key] = dict(sorted((stored.get(key, {}) | {str(seed): row}).items(), key=lambda item: int(item[0])))
    write_result(name, stored)


def cases(args: argparse.Namespace, top: Path) -> Iterator[tuple[str, Case]]:
    """Yield each split of each folder, with its key in the results."""
    cifar = mlpconv.open_data("cifar100", root=args.data, val_fraction=0)
    names = ("tuning", "tuning-test") if args.tuning else ("folder", "test")
    settings = {key: json.loads(value) for key, _, value in (text.partition("=") for text in args.set)}
    for kind in args.folders:
        folder, test = (write_images(cifar, kind, name, top) for name in names)
        for per_class in args.per_class:
            for seed in range(args.first_seed, args.first_seed + args.seeds):
                data = split_folder(folder, top / f"{kind}-{per_class}-{seed}", per_class, seed)
                key = f"{kind}, {per_class} a class"
                yield key, Case(folder, test, data, per_class, seed, settings, args.weights)


def main() -> None:
    """Measure the requested methods on the requested splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the files of CIFAR-100; default: the cache")
    parser.add_argument("--folders", nargs="+", default=list(CLASSES), choices=list(CLASSES))
    parser.add_argument("--per-class", nargs="+", type=int, default=[100], help="100: all that are not held out")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="weights of timm's network; default: downloaded")
    parser.add_argument("--tuning", action="store_true", help="use the images for choosing settings")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="settings of `all` or `plain`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = "compare_transfer-tuning" if args.tuning else "compare_transfer"
    with tempfile.TemporaryDirectory() as top, threadpool_limits(1):
        for key, case in cases(args, Path(top)):
            for method in args.methods:
                row = METHODS[method](case)
                full = ", ".join([key, method, *args.set])
                print(full, case.seed, {key: round(value, 4) for key, value in row.items()}, flush=True)
                add(name, full, case.seed, row)


if __name__ == "__main__":
    main()
