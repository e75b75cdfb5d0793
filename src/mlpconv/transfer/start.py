"""The first step of a run from pretrained weights: fit a new classifier on their features."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mlpconv.data import Dataset, Split
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.training.memory import keep_freed_memory
from mlpconv.training.progress import EpochMetrics
from mlpconv.training.recipe import Recipe
from mlpconv.transfer.cache import FeatureCache
from mlpconv.transfer.features import extract, feature_precision, outputs
from mlpconv.transfer.head import Head, fit_head
from mlpconv.transfer.source import Source

__all__ = ["FeatureReader", "Started", "balanced_weights", "set_classifier", "start_from"]

FeatureProgress = Callable[[int, int], None]
"""Called with the number of images done and their total."""


class Started(NamedTuple):
    """The result of `start_from`."""

    row: EpochMetrics
    """The metrics of epoch 0."""
    facts: dict[str, Any]
    """What the model file records of it."""
    head: Head | None
    """The fitted classifier; None if that of the source is kept."""


def start_from(
    source: Source,
    network: Network,
    preprocessing: Preprocessing,
    dataset: Dataset,
    recipe: Recipe,
    cache: FeatureCache,
    progress: FeatureProgress | None = None,
) -> Started:
    """Fit the classifier of a network that has the weights of a source, and evaluate it.

    The classifier of a source with the same classes is evaluated as it is, unless the recipe has tune=head. No other
    weight changes. The features of `recipe.flip` other than none are those of each image and its horizontal flip.
    """
    keep_freed_memory()
    clock, cpu_clock = time.perf_counter(), time.process_time()
    precision = feature_precision(recipe.precision, next(network.parameters()).device)
    facts: dict[str, Any] = {"precision": precision}
    head = None
    if source.keeps_classifier(dataset, recipe):
        splits = [dataset.splits[name] for name in ("train", "val") if name in dataset.splits]
        logits = [outputs(network, preprocessing, split.images, network, precision=precision) for split in splits]
        images = sum(map(len, splits))
    else:
        reader = FeatureReader(network, preprocessing, dataset, recipe.flip != "none", precision, cache, progress)
        head = fitted_head(source, reader.train(), dataset, recipe)
        set_classifier(network, head)
        logits = [head.logits(features) for features in (reader.train()[0], *reader.val())]
        images = reader.total
        facts |= {"penalty": head.penalty, "views": len(reader.train())}
    row: EpochMetrics = {"epoch": 0, "step": 0}
    for name in ("train", "val"):
        known = name in dataset.splits
        loss, accuracy = scores(logits[0 if name == "train" else 1], dataset.splits[name]) if known else (None, None)
        row |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
    seconds = time.perf_counter() - clock
    row |= {"lr": None, "images_per_second": round(images / seconds, 1)}
    row |= {"seconds": round(seconds, 3), "cpu_seconds": round(time.process_time() - cpu_clock, 3)}
    return Started(row, facts, head)


def fitted_head(source: Source, views: list[Tensor], dataset: Dataset, recipe: Recipe) -> Head:
    """Return the classifier of a recipe, fitted on the training features (N, D) of each view."""
    labels = torch.from_numpy(dataset.split("train").labels).long()
    weights = balanced_weights(labels, dataset.num_classes) if recipe.balance else None
    fixed = None
    if recipe.add_classes:
        layer = source.classifier.model.last_layer
        if layer.bias is not None:
            fixed = layer.weight.detach().flatten(1), layer.bias.detach()
    return fit_head(views, labels, dataset.num_classes, weights=weights, fixed=fixed, seed=recipe.seed)


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Return a weight (N,) per image, so that all classes have the same sum; the mean weight is 1."""
    counts = torch.bincount(labels, minlength=num_classes)
    return len(labels) / ((counts > 0).sum() * counts[labels].float())


def scores(logits: Tensor, split: Split) -> tuple[float, float]:
    """Return the mean log loss and the accuracy of logits (N, K) of a split."""
    labels = torch.from_numpy(split.labels).long()
    return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).double().mean())


def set_classifier(network: Network, head: Head) -> None:
    """Copy a fitted head into the classifier layer of a network, whose outputs and bias fit it."""
    layer = network.last_layer
    with torch.no_grad():
        layer.weight.copy_(head.weight.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(head.bias)


class FeatureReader:
    """Compute the features of the training and validation images once, and report the progress over all of them.

    With `logits`, the logits (N, K) are computed instead.
    """

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        dataset: Dataset,
        flip: bool,
        precision: str,
        cache: FeatureCache,
        progress: FeatureProgress | None,
        *,
        logits: bool = False,
    ) -> None:
        self.logits = logits
        self.network, self.preprocessing, self.dataset = network, preprocessing, dataset
        self.flips = (False, True) if flip else (False,)
        self.precision, self.cache, self.progress = precision, cache, progress
        self.known: dict[tuple[str, bool], Tensor] = {}
        self.done = 0
        self.total = len(self.flips) * len(dataset.split("train")) + len(dataset.splits.get("val", ()))

    def train(self) -> list[Tensor]:
        """Return the features (N, D) of the training images, one tensor per view."""
        return [self.view("train", flip) for flip in self.flips]

    def val(self) -> list[Tensor]:
        """Return the features (N, D) of the validation images as they are; empty without a validation split."""
        return [self.view("val", False)] if "val" in self.dataset.splits else []

    def view(self, name: str, flip: bool) -> Tensor:
        """Return the features of one view of a split."""
        if (name, flip) not in self.known:
            split, before = self.dataset.split(name), self.done

            def report(done: int) -> None:
                if self.progress is not None:
                    self.progress(before + done, self.total)

            self.known[name, flip] = extract(
                self.network, self.preprocessing, split.images,
                flip=flip, precision=self.precision, logits=self.logits, cache=self.cache, progress=report,
            )  # fmt: skip
            self.done += len(split)
        return self.known[name, flip]
