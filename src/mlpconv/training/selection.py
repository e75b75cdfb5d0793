"""Which epoch of a run is kept: the newest one that is about as good as the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["is_kept"]


def is_kept(accuracies: Sequence[float], images: int) -> bool:
    """Return whether the newest network replaces the kept one.

    It does unless its accuracy is more than one standard error below the best so far (Breiman et al., Classification
    and Regression Trees, 1984, section 3.4.3). The highest of several accuracies on few images is mostly luck, and late
    epochs, with a low learning rate, are on average better on other images.

    Args:
        accuracies: validation accuracies so far, 0..1, the newest last.
        images: number of validation images.
    """
    best = max(accuracies)
    return accuracies[-1] >= best - math.sqrt(best * (1 - best) / images)
