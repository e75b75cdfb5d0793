"""The first step of a run from pretrained weights: fit a new classifier on their features."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
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
from mlpconv.transfer.features import FastForward, extract, feature_precision
from mlpconv.transfer.head import Head, fit_head
from mlpconv.transfer.lineage import pretrained_on
from mlpconv.transfer.source import Source

__all__ = ["FeatureReader", "Started", "TransferParts", "balanced_weights", "set_classifier", "start_from"]

FeatureProgress = Callable[[int, int], None]
"""Called with the number of images done and their total."""


@dataclass(frozen=True)
class TransferParts:
    """A network with the weights of a source, and what its classifier is fitted on."""

    source: Source
    network: Network
    preprocessing: Preprocessing
    dataset: Dataset
    recipe: Recipe
    cache: FeatureCache

    @property
    def keeps_classifier(self) -> bool:
        """Whether the classifier of the source is used as it is."""
        return self.source.keeps_classifier(self.dataset, self.recipe)


class Started(NamedTuple):
    """The result of `start_from`."""

    row: EpochMetrics
    """The metrics of epoch 0."""
    facts: dict[str, Any]
    """What the model file records of it."""
    head: Head | None
    """The fitted classifier; None if that of the source is kept."""


def start_from(parts: TransferParts, progress: FeatureProgress | None = None) -> Started:
    """Fit the classifier of a network that has the weights of a source, and evaluate it.

    The classifier of a source with the same classes is evaluated as it is, unless the recipe has tune=head. No other
    weight changes. The features of `recipe.flip` other than none are those of each image and its horizontal flip.
    """
    keep_freed_memory()
    clock, cpu_clock = time.perf_counter(), time.process_time()
    network, dataset = parts.network, parts.dataset
    precision = feature_precision(parts.recipe.precision, next(network.parameters()).device)
    facts: dict[str, Any] = {"precision": precision}
    if (seen := pretrained_on(parts.source.classifier.info)) is not None:
        facts["pretrained_on"] = seen
    head = None
    if parts.keeps_classifier:
        splits = [dataset.splits[name] for name in ("train", "val") if name in dataset.splits]
        forward = FastForward(network, precision, logits=True)
        logits = [extract(forward, parts.preprocessing, split.images) for split in splits]
        images = sum(map(len, splits))
    else:
        reader = FeatureReader(parts, precision, progress)
        head = fitted_head(parts, reader.train())
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


def fitted_head(parts: TransferParts, views: list[Tensor]) -> Head:
    """Return the classifier of a recipe, fitted on the training features (N, D) of each view."""
    dataset, recipe = parts.dataset, parts.recipe
    labels = torch.from_numpy(dataset.split("train").labels).long()
    weights = balanced_weights(labels, dataset.num_classes) if recipe.balance else None
    fixed = None
    if recipe.add_classes:
        layer = parts.source.classifier.model.last_layer
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
        self, parts: TransferParts, precision: str, progress: FeatureProgress | None, *, logits: bool = False
    ) -> None:
        self.parts, self.progress = parts, progress
        self.forward = FastForward(parts.network, precision, logits=logits)
        self.flips = (False,) if parts.recipe.flip == "none" else (False, True)
        self.known: dict[tuple[str, bool], Tensor] = {}
        self.done = 0
        splits = parts.dataset.splits
        self.total = len(self.flips) * len(splits["train"]) + len(splits.get("val", ()))

    def train(self) -> list[Tensor]:
        """Return the features (N, D) of the training images, one tensor per view."""
        return [self.view("train", flip) for flip in self.flips]

    def val(self) -> list[Tensor]:
        """Return the features (N, D) of the validation images as they are; empty without a validation split."""
        return [self.view("val", False)] if "val" in self.parts.dataset.splits else []

    def view(self, name: str, flip: bool) -> Tensor:
        """Return the features of one view of a split."""
        if (name, flip) not in self.known:
            parts, before = self.parts, self.done
            split = parts.dataset.split(name)

            def report(done: int) -> None:
                if self.progress is not None:
                    self.progress(before + done, self.total)

            self.known[name, flip] = extract(
                self.forward, parts.preprocessing, split.images, flip=flip, cache=parts.cache, progress=report
            )
            self.done += len(split)
        return self.known[name, flip]
