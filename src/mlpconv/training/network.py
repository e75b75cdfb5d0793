"""The network of a recipe, with random weights."""

from __future__ import annotations

from typing import Any

import torch

from mlpconv.data import Dataset
from mlpconv.errors import UsageError
from mlpconv.models import create_model
from mlpconv.models.base import Network
from mlpconv.training.recipe import Recipe
from mlpconv.training.seeding import seed_torch

__all__ = ["make_model"]

DEFAULT_MODEL = {
    "mnist": "nin_mnist",
    "fashion_mnist": "nin_mnist",
    "cifar10": "nin_cifar10",
    "cifar100": "nin_cifar100",
    "svhn": "nin_svhn",
}
NIN_TINY_MAX_SIDE = 40  # pixels; larger images get nin_photo by default
MODEL_OPTIONS = ("depth", "kernel", "activation", "pool_first", "pool2", "dropout", "last_relu", "init")


def make_model(dataset: Dataset, recipe: Recipe, device: torch.device) -> Network:
    """Create the recipe's network for the data, initialised from its seed; raises UsageError on a mismatch."""
    side = min(dataset.size)
    default = "nin_tiny" if side <= NIN_TINY_MAX_SIDE else "nin_photo"
    if dataset.published:
        default = DEFAULT_MODEL.get(dataset.name, default)
    options: dict[str, Any] = {key: getattr(recipe, key) for key in MODEL_OPTIONS if getattr(recipe, key) is not None}
    options["size"] = dataset.size
    if recipe.norm != "network":
        options["norm"] = None if recipe.norm == "none" else recipe.norm
    if recipe.width != 1.0:
        options["width"] = recipe.width
    if recipe.head != "gap":
        options["head"] = recipe.head
    seed_torch(recipe.seed, device)
    model = create_model(
        default if recipe.model == "auto" else recipe.model,
        num_classes=dataset.num_classes,
        in_channels=dataset.channels,
        **options,
    )
    if recipe.sizes and dataset.size[0] != dataset.size[1]:
        raise UsageError(
            f"sizes needs square images, and these have {dataset.size[0]}x{dataset.size[1]}: leave sizes out."
        )
    for height, width in (dataset.size, *((side, side) for side in recipe.sizes)):
        model.check_input(torch.empty(1, dataset.channels, height, width, device="meta"))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
