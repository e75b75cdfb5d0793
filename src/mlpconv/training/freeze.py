"""Early layers that rest late in a run: they have learned by then, and a step without their gradients is cheaper.

A resting layer still computes, its norm still follows its statistics; its weights stay as they are, and backpropagation
ends behind it (Brock et al. 2017, FreezeOut).
"""

from __future__ import annotations

from collections.abc import Sequence

from mlpconv.models.base import Network

__all__ = ["freeze"]


def freeze(model: Network, shares: Sequence[float], done: float) -> None:
    """Let the first convolution rest from `shares[0]` of the run on, and its whole mlpconv layer from `shares[1]` on.

    `done` is the share of the steps that lie behind, in 0..1. The outcome depends on these three alone, so a resumed
    run does the same.
    """
    for share, modules in zip(shares, model.first_stages, strict=False):
        for module in modules:
            if done >= share:
                module.requires_grad_(False)
