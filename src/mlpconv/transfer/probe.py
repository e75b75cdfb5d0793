"""Linear probe: fit the classifier of a pretrained network on its frozen features, without a training loop."""

from __future__ import annotations

from pathlib import Path

import torch

from mlpconv.data import Dataset, open_data
from mlpconv.data.validation import with_validation
from mlpconv.inference import Classifier
from mlpconv.training.recipe import Recipe
from mlpconv.training.seeding import keeping_random_states, seed_torch
from mlpconv.training.session import model_info
from mlpconv.transfer.cache import FeatureCache
from mlpconv.transfer.classes import check_classes
from mlpconv.transfer.source import Source, open_source
from mlpconv.transfer.start import FeatureProgress, TransferParts, start_from

__all__ = ["linear_probe", "open_for"]


def linear_probe(
    data: str | Path | Dataset,
    source: str | Path = "efficientnet_lite0",
    *,
    size: int | None = None,
    flip: bool = True,
    val_fraction: float = 0.2,
    seed: int = 0,
    precision: str = "fp32",
    balance: bool = False,
    cache: FeatureCache | None = None,
    progress: FeatureProgress | None = None,
) -> Classifier:
    """Return a pretrained network with a new 1x1 classifier, fitted on a data set by logistic regression.

    `data` is the name of a data set, a folder with one folder per class, or a Dataset; `source` is a shipped network,
    a model file or a run folder. Images are resized to `size` pixels (default: 224, or the size of the model file; a
    Dataset is used as it is). All weights but the classifier's stay as they are. With `flip`, it is fitted on each
    image and its horizontal flip, with `balance` all classes weigh the same. The L2 penalty is chosen by
    cross-validation on the training images; `val_fraction` of each class is held out (0: none) and `info["metrics"]`
    holds both accuracies. `precision` "bf16" is faster on processors with bfloat16 units, "auto" selects it there.
    Features are kept in `cache` (default: 2 GB in the cache folder). `progress` receives the number of images done and
    the total. Training images are not augmented beyond the flip.
    Raises UsageError for invalid arguments, DataError for missing or unreadable data.
    """
    recipe = Recipe().with_settings(
        source=str(source), tune="head", size=size, flip="random" if flip else "none", val_fraction=val_fraction,
        seed=seed, precision=precision, balance=balance,
    )  # fmt: skip
    origin = open_source(source)
    dataset = open_for(origin, data, recipe)
    with keeping_random_states(torch.device("cpu")):
        seed_torch(seed, torch.device("cpu"))
        network = origin.network(dataset, recipe).eval()
    preprocessing = origin.preprocessing(dataset).eval()
    parts = TransferParts(origin, network, preprocessing, dataset, recipe, cache or FeatureCache())
    row, facts, _ = start_from(parts, progress)
    info = model_info(dataset, recipe) | facts | {"metrics": row}
    return Classifier(network, preprocessing, dataset.classes, (dataset.channels, *dataset.size), info)


def open_for(source: Source, data: str | Path | Dataset, recipe: Recipe) -> Dataset:
    """Open the data in the channels and size of a source, with a validation split; raise UsageError for one class."""
    if not isinstance(data, Dataset):
        size = recipe.size or source.side(recipe.tune)
        data = open_data(data, size=size, channels=source.channels, seed=recipe.seed, val_fraction=recipe.val_fraction)
    check_classes(data)
    return with_validation(data, recipe.val_fraction, recipe.seed)
