"""Freezing: early layers late in a run, and what stays fixed when pretrained weights are trained further.

Late in a run, early layers have converged, and a step without their gradients is cheaper (Brock et al. 2017,
FreezeOut): they still run forward, their batch norm still updates its running statistics, and their weights are fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mlpconv.models.base import Network
from mlpconv.training.combinations import SCRATCH
from mlpconv.training.recipe import Recipe

__all__ = ["freeze", "freeze_all_but_last", "train_mode"]

LAST = 1 / 3
"""The fraction of the layers that tune=last trains."""


def freeze(model: Network, fractions: Sequence[float], progress: float) -> None:
    """Freeze the first convolution from `fractions[0]` of the run on, and its mlpconv layer from `fractions[1]` on.

    `progress` is the completed fraction of the steps, in 0..1. The result depends on the arguments alone, so a resumed
    run does the same.
    """
    for fraction, modules in zip(fractions, model.first_stages, strict=False):
        for module in modules:
            if progress >= fraction:
                module.requires_grad_(False)


def train_mode(model: nn.Module, recipe: Recipe) -> None:
    """Put a network into training mode; the norms of pretrained weights keep their running statistics."""
    model.train()
    if recipe.source != SCRATCH:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def freeze_all_but_last(model: nn.Module) -> None:
    """Freeze the weights of all layers but the last third, in their order in the network."""
    layers = [module for module in model.modules() if module._parameters]
    for layer in layers[: len(layers) - max(1, round(LAST * len(layers)))]:
        layer.requires_grad_(False)
