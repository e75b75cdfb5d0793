"""Open a network by path or name: a model file, a run folder, or an architecture of mlpconv, torchvision or timm."""

from __future__ import annotations

import os

from torch import nn

from mlpconv.errors import ModelFileError, UsageError, did_you_mean
from mlpconv.inference.classifier import Classifier, load
from mlpconv.modelfile import is_model_path
from mlpconv.models.external import create_external, is_external, weightless
from mlpconv.models.registry import create_model, list_models

__all__ = ["open_network", "open_with_classifier"]


def open_network(source: str, *, weights: bool = True) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return the network of a path or name, and (C, H, W) of its input images.

    With `weights=False`, the parameters of a network that is not from a file may have no storage. Raises as
    `open_with_classifier` does.
    """
    if weights or is_model_path(source) or not (is_external(source) or source in list_models()):
        return open_with_classifier(source)[:2]
    try:
        with weightless():
            return open_with_classifier(source)[:2]
    except RuntimeError:  # a network that reads its weights in its constructor
        return open_with_classifier(source)[:2]


def open_with_classifier(source: str) -> tuple[nn.Module, tuple[int, int, int], Classifier | None]:
    """Return the network of a path or name, (C, H, W) of its images, and the classifier of a model file or None.

    A path to a model takes precedence over a name. Model files and run folders have trained weights; an architecture
    such as nin_cifar10, torchvision:resnet50 or timm:convnext_tiny has random weights. Raises UsageError for an unknown
    name or a library that is not installed, ModelFileError for a file that cannot be read.
    """
    if is_external(source):
        return *create_external(source), None
    if not is_model_path(source) and source in list_models():
        network = create_model(source)
        return network, network.input_size, None
    try:
        classifier = load(source)
    except ModelFileError:
        if os.path.lexists(source):
            raise
        raise UsageError(
            f"There is no file, run folder or architecture {source[:300]!r}; {did_you_mean(source, list_models())} "
            "For other libraries: torchvision:NAME or timm:NAME."
        ) from None
    return classifier.model, classifier.input_size, classifier
