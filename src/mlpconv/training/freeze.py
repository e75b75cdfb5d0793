"""Freezing early layers late in a run: they have converged by then, and a step without their gradients is cheaper.

A frozen layer still runs forward, and its batch norm still updates its running statistics; its weights are fixed, and
backpropagation stops there (Brock et al. 2017, FreezeOut).
"""

from __future__ import annotations

from collections.abc import Sequence

from mlpconv.models.base import Network

__all__ = ["freeze"]


def freeze(model: Network, fractions: Sequence[float], progress: float) -> None:
    """Freeze the first convolution from `fractions[0]` of the run on, and its mlpconv layer from `fractions[1]` on.

    `progress` is the completed fraction of the steps, in 0..1. The result depends on the arguments alone, so a resumed
    run does the same.
    """
    for fraction, modules in zip(fractions, model.first_stages, strict=False):
        for module in modules:
            if progress >= fraction:
                module.requires_grad_(False)
