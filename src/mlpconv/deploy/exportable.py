"""The network to export, with its preprocessing and class names: from a model file, or any PyTorch network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mlpconv.errors import SurgeryError, UsageError, first_line
from mlpconv.inference import Classifier, load
from mlpconv.models.external import create_external, is_external
from mlpconv.preprocessing import Preprocessing

__all__ = ["Exportable", "exportable_from_network", "open_exportable"]


@dataclass(frozen=True)
class Exportable:
    """A network in eval mode with all that an exported file stores about it."""

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    min_size: int = 1
    fixed_size: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    classifier: Classifier | None = None


def open_exportable(model: str | os.PathLike[str] | Classifier) -> Exportable:
    """Return the network of a classifier, a model file, a run folder, or the name of shipped weights.

    A network of another library, such as timm:resnet18, has random weights. Raises ModelFileError for a file that
    cannot be read, UsageError for an unknown name or a library that is not installed.
    """
    if isinstance(model, Classifier):
        return _from_classifier(model)
    name = os.fspath(model)
    if not is_external(name):
        return _from_classifier(load(name))
    network, input_size = create_external(name)
    classes = [str(index) for index in range(_count_classes(network, input_size))]
    source = exportable_from_network(
        network, Preprocessing(["scale"], input_size[0], input_size[1:]), classes, input_size
    )
    return Exportable(**{**vars(source), "name": name, "notes": (f"{name} has random weights.", *source.notes)})


def exportable_from_network(
    model: nn.Module, preprocessing: Preprocessing, classes: Sequence[str], input_size: tuple[int, int, int]
) -> Exportable:
    """Return any network (N, C, H, W) -> logits (N, K) for export, with category maps if `pool_head` can expose them.

    Raises UsageError for an unfitted preprocessing.
    """
    from mlpconv.surgery import pool_head

    if not preprocessing.ready:
        raise UsageError("The preprocessing is not fitted: call fit(training images) before exporting.")
    notes: tuple[str, ...] = ()
    model = model.eval()
    if not hasattr(model, "category_maps"):
        try:
            model = pool_head(model, input_size, latency=False).model
        except SurgeryError as error:
            notes = (f"The file has no category maps: {first_line(error)}.",)
    least = _least_side(model, preprocessing.eval(), input_size)
    return Exportable(type(model).__name__, model, preprocessing, tuple(classes), input_size, least, notes=notes)


def _from_classifier(classifier: Classifier) -> Exportable:
    network = classifier.model
    return Exportable(
        name=network.config.name,
        model=network,
        preprocessing=classifier.preprocessing,
        classes=classifier.classes,
        input_size=classifier.input_size,
        min_size=network.min_size,
        fixed_size=network.fixed_size or "zca" in classifier.preprocessing.names,
        info=classifier.info,
        classifier=classifier,
    )


@torch.no_grad()
def _least_side(model: nn.Module, preprocessing: Preprocessing, input_size: tuple[int, int, int]) -> int:
    """Return the side of the smallest square image that a network accepts, by bisection."""

    def accepts(side: int) -> bool:
        try:
            logits = model(preprocessing(torch.zeros(1, input_size[0], side, side, dtype=torch.uint8)))
        except Exception:  # noqa: BLE001  (whatever a network raises for a wrong size)
            return False
        return bool(torch.isfinite(logits).all())

    low, high = 1, min(input_size[1:])
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if accepts(middle) else (middle + 1, high)
    return low


def _count_classes(network: nn.Module, input_size: tuple[int, int, int]) -> int:
    with torch.no_grad():
        logits = network.eval()(torch.zeros(2, *input_size))
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise UsageError("The network does not return logits (N, K): export it from Python, with its head replaced.")
    return int(logits.shape[1])
