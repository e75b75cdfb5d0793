"""Linear probe: fit the classifier of a pretrained network on its frozen features, without a training loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlpconv import inference
from mlpconv.data import Dataset, Split, open_data
from mlpconv.data.validation import with_validation
from mlpconv.errors import UsageError, did_you_mean
from mlpconv.inference import Classifier
from mlpconv.models import create_model
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.training.seeding import keeping_random_states
from mlpconv.transfer.cache import FeatureCache
from mlpconv.transfer.features import extract
from mlpconv.transfer.head import Head, fit_head

__all__ = ["CHANNELS", "DEFAULT_SIZE", "SOURCES", "check_source", "linear_probe", "load_rgb"]

SOURCES: dict[str, dict[str, Any]] = {"efficientnet_lite0": {}, "squeezenet": {"last_relu": False}}
"""The ImageNet networks, and the options that make their logits linear in the pooled features."""
DEFAULT_SIZE = 224  # pixels, as in the ImageNet training
CHANNELS = 3  # grey images are read as RGB with equal channels, as ImageNet's are
PRECISIONS = ("fp32", "bf16")


def linear_probe(
    data: str | Path | Dataset,
    source: str = "efficientnet_lite0",
    *,
    size: int = DEFAULT_SIZE,
    flip: bool = True,
    val_fraction: float = 0.2,
    seed: int = 0,
    precision: str = "fp32",
    cache: FeatureCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Return a pretrained network with a new 1x1 classifier, fitted on a data set by logistic regression.

    `data` is the name of a data set, a folder with one folder per class, or a Dataset of RGB images; `source` is
    "efficientnet_lite0" or "squeezenet". Images are resized to `size` pixels (of a Dataset: used as they are). All
    weights but the classifier's stay as they are. With `flip`, it is fitted on each image and its horizontal flip. The
    L2 penalty is chosen by cross-validation on the training images; `val_fraction` of each class is held out (0: none)
    and `info["metrics"]` holds both accuracies. `precision` "bf16" is faster on processors with bfloat16 units.
    Features are kept in `cache` (default: 2 GB in the cache folder). `progress` receives the number of images done and
    the total. Training images are not augmented beyond the flip.
    Raises UsageError for invalid arguments, DataError for missing or unreadable data.
    """
    check_source(source, precision)
    dataset = load_rgb(data, size=size, val_fraction=val_fraction, seed=seed)
    with keeping_random_states(torch.device("cpu")):
        network, preprocessing = make_parts(source, dataset)
    views = (False, True) if flip else (False,)
    features = FeatureReader(network, preprocessing, dataset, views, precision, cache or FeatureCache(), progress)
    train = dataset.split("train")
    labels = torch.from_numpy(train.labels).long()
    head = fit_head(features.of(train), labels, dataset.num_classes, seed=seed)
    set_classifier(network, head)
    metrics = {
        f"{name}_accuracy": accuracy(head, features.of(dataset.splits[name])[0], dataset.splits[name])
        if name in dataset.splits
        else None
        for name in ("train", "val")
    }
    recipe = {"source": source, "tune": "head", "flip": flip, "penalty": head.penalty, "precision": precision}
    info = {
        "data": dataset.name,
        "fingerprint": dataset.fingerprint,
        "train_images": len(train),
        **({} if dataset.membership is None else {"validation": dataset.membership.to_dict()}),
        "recipe": recipe | {"val_fraction": val_fraction, "seed": seed},
        "seed": seed,
        "metrics": metrics,
    }
    return Classifier(network, preprocessing, dataset.classes, (CHANNELS, *dataset.size), info)


def check_source(source: str, precision: str) -> None:
    """Raise UsageError unless a probe can be fitted on this network, with this dtype."""
    if source not in SOURCES:
        raise UsageError(f"There is no source {source!r:.60}; {did_you_mean(str(source)[:60], SOURCES)}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r:.40}; {did_you_mean(str(precision)[:40], PRECISIONS)}")


def load_rgb(data: str | Path | Dataset, *, size: int, val_fraction: float, seed: int) -> Dataset:
    """Open the data as RGB images of `size` pixels, with a validation split; raise UsageError for other data."""
    if not isinstance(data, Dataset):
        data = open_data(data, size=size, channels=CHANNELS, seed=seed, val_fraction=val_fraction)
    if data.channels != CHANNELS:
        raise UsageError(
            f"{data.name} has images of {data.channels} channels; open it with open_data(..., channels=3)."
        )
    if data.num_classes < 2:
        raise UsageError(f"{data.name} has one class, {data.classes[0]!r}; at least two are needed.")
    data.split("train")
    return with_validation(data, val_fraction, seed)


def make_parts(source: str, dataset: Dataset) -> tuple[Network, Preprocessing]:
    """Return the pretrained network with a new classifier, and its own preprocessing, for the images of a data set."""
    network = create_model(
        source, pretrained=True, num_classes=dataset.num_classes, size=dataset.size, **SOURCES[source]
    )
    shipped = inference.load(source).preprocessing
    preprocessing = Preprocessing.create(shipped.names, CHANNELS, dataset.size, dataset.decode_options)
    preprocessing.load_state_dict(shipped.state_dict())
    return network.eval(), preprocessing.eval()


class FeatureReader:
    """Compute the features of the splits of a data set, and report the progress over all of them."""

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        dataset: Dataset,
        views: tuple[bool, ...],
        precision: str,
        cache: FeatureCache,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.network, self.preprocessing, self.views = network, preprocessing, views
        self.precision, self.cache, self.progress = precision, cache, progress
        self.known: dict[int, list[Tensor]] = {}
        self.done = 0
        self.total = len(views) * sum(len(dataset.splits[name]) for name in ("train", "val") if name in dataset.splits)

    def of(self, split: Split) -> list[Tensor]:
        """Return the features (N, D) of a split, one tensor per view."""
        if id(split) not in self.known:
            self.known[id(split)] = [self._view(split, flip) for flip in self.views]
        return self.known[id(split)]

    def _view(self, split: Split, flip: bool) -> Tensor:
        def report(done: int) -> None:
            if self.progress is not None:
                self.progress(self.done + done, self.total)

        features = extract(
            self.network, self.preprocessing, split.images,
            flip=flip, precision=self.precision, cache=self.cache, progress=report,
        )  # fmt: skip
        self.done += len(split)
        return features


def set_classifier(network: Network, head: Head) -> None:
    """Copy a fitted head into the classifier layer of a network."""
    layer = network.last_layer
    with torch.no_grad():
        layer.weight.copy_(head.weight.reshape(layer.weight.shape))
        if layer.bias is None:
            raise UsageError(f"the classifier of {network.config.name} has no bias.")
        layer.bias.copy_(head.bias)


def accuracy(head: Head, features: Tensor, split: Split) -> float:
    """Return the fraction of images that a head classifies correctly from their features (N, D)."""
    labels = torch.from_numpy(split.labels).long()
    return float((head.logits(features).argmax(1) == labels).double().mean())
