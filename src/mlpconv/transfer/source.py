"""The network that a new one starts from: a shipped one, or a model file of one's own."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from mlpconv import inference
from mlpconv.data import Dataset
from mlpconv.errors import ModelFileError, UsageError, did_you_mean
from mlpconv.inference import Classifier
from mlpconv.models import registry
from mlpconv.models.base import Network
from mlpconv.models.weights import pretrained_names
from mlpconv.preprocessing import Preprocessing
from mlpconv.text import option
from mlpconv.training.combinations import TIMM
from mlpconv.training.freeze import freeze_all_but_last
from mlpconv.training.recipe import Recipe
from mlpconv.transfer.timm_source import open_timm

__all__ = ["BACKBONES", "SIZE", "Source", "open_source"]

BACKBONES = ("squeezenet", "efficientnet_lite0")
"""The ImageNet networks that ship with the package, the fastest first."""
SIZE, TUNED_SIZE = 224, 160
"""Pixels: the side of the images of the ImageNet training, and of those for training more than the classifier."""
TUNED_LR = {"squeezenet": 0.001}
"""Learning rates of the recipe finetune; SqueezeNet has no normalisation, and diverges at that of the others."""


@dataclass(frozen=True)
class Source:
    """A trained network whose weights are the initial weights of a new one."""

    name: str
    classifier: Classifier

    @property
    def channels(self) -> int:
        """The channels of its images; grey images are read as RGB with equal channels where it is 3."""
        return self.classifier.input_size[0]

    def side(self, tune: str) -> int:
        """Return the default side of the square images, in pixels: smaller if many passes over them are made."""
        if self.name not in BACKBONES:
            return min(self.classifier.input_size[1:])
        return SIZE if tune == "head" else TUNED_SIZE

    def network(self, dataset: Dataset, recipe: Recipe) -> Network:
        """Return the network for the images and classes of a data set.

        Its classifier is that of the source if the classes are the same, and new and random otherwise. Raises
        UsageError if the images do not fit the network.
        """
        model = self.classifier.model
        changes: dict[str, Any] = {} if model.fixed_size else {"size": dataset.size}
        if not self.keeps_classifier(dataset, recipe) and not recipe.add_classes:
            changes |= {"last_relu": False}  # the features determine the logits: maps without a ReLU
        names = {item.name for item in dataclasses.fields(cast("Any", model.config))}
        changes = {key: value for key, value in changes.items() if key in names}
        network = registry.build(dataclasses.replace(cast("Any", model.config), **changes).to_dict())
        network.load_state_dict(model.state_dict())
        if dataset.channels != self.channels:
            raise UsageError(
                f"{dataset.name} has images of {dataset.channels} channels, and {self.name} expects {self.channels}: "
                f"open it with open_data(..., channels={self.channels})."
            )
        if not self.keeps_classifier(dataset, recipe):
            if recipe.add_classes:
                check_pooled(network, self.name)  # its classifier stays
            network.reset_classifier(dataset.num_classes)
            check_pooled(network, self.name)
        if recipe.tune == "last":
            freeze_all_but_last(network)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def keeps_classifier(self, dataset: Dataset, recipe: Recipe) -> bool:
        """Return whether training continues with the classifier of the source: the classes are the same, in order."""
        return recipe.tune != "head" and dataset.classes == self.classifier.classes

    def preprocessing(self, dataset: Dataset) -> Preprocessing:
        """Return the preprocessing of the source for the images of a data set; raise UsageError for another size."""
        own = self.classifier.preprocessing
        if "zca" in own.names and own.size != dataset.size:
            raise UsageError(
                f"{self.name} has ZCA whitening for images of {own.size[0]}x{own.size[1]}: pass "
                f"{option('size', own.size[0])}."
            )
        preprocessing = Preprocessing.create(own.names, self.channels, dataset.size, dataset.decode_options)
        preprocessing.load_state_dict(own.state_dict())
        return preprocessing


def open_source(name: str | Path, weights: str | None = None, role: str = "source") -> Source:
    """Open a shipped network by name, a model file, a run folder, or timm:NAME with `weights` or those of the hub.

    `role` is what a message calls it.
    Raises UsageError if there is none, ModelFileError for a damaged file, DownloadError if the hub cannot be reached.
    """
    text = os.fspath(name)
    if text.startswith(TIMM):
        return Source(text, open_timm(text, weights))
    try:
        return Source(text, inference.load(text))
    except ModelFileError:
        if os.path.lexists(text):
            raise
        suggestion = did_you_mean(text[:60], pretrained_names())
        others = "a model file, a run folder or timm:NAME" if role == "source" else "a model file or a run folder"
        raise UsageError(f"There is no {role} {text[:300]!r}; {suggestion} Or give {others}.") from None


def check_pooled(network: Network, name: str) -> None:
    """Raise UsageError unless the logits of a network are linear in the spatial mean of its features."""
    layer, reason = network.last_layer, ""
    if network.fixed_size:
        reason = "has a fully connected head on all positions of its feature maps"
    elif getattr(network.config, "last_relu", False):
        reason = "has a ReLU after its class maps (last_relu=True)"
    elif layer.weight[0].numel() != network.num_features:
        reason = "has a classifier of several layers"
    elif layer.bias is None:
        reason = "has a classifier without bias"
    if reason:
        raise UsageError(
            f"{name} {reason}: its logits are not linear in the mean of its features, so no classes can be fitted. "
            "Give another network."
        )
