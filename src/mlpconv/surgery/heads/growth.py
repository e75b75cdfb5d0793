"""Find the stride of a map in pixels by running image sizes on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from mlpconv.analysis.meta import OnMeta, meta_images
from mlpconv.analysis.trace import without_storage

__all__ = ["step_by_sizes"]

MAX_STRIDE = 64
"""Largest stride to try, in pixels, or the image size if that is larger."""


def step_by_sizes(maps: nn.Module, input_shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """Return the stride in pixels, along rows and columns, of a network (N, C, H, W) -> (N, K, h, w).

    Returns None if the map does not grow with the image. Re-raises the network's own error if it rejects larger images.
    """
    shadow = without_storage(maps)
    failures: list[Exception] = []

    def cells(axis: int, extra: int) -> int:
        shape = list(input_shape)
        shape[1 + axis] += extra
        try:
            with torch.no_grad(), OnMeta():  # type: ignore[no-untyped-call]
                return int(shadow(meta_images(shadow, 1, shape)).shape[2 + axis])
        except Exception as error:  # noqa: BLE001  (the forward pass is not ours: it may raise anything)
            failures.append(error)
            return 0

    steps = []
    for axis in (0, 1):
        limit = max(MAX_STRIDE, input_shape[1 + axis])
        count = partial(cells, axis)
        first = _first(count, 1, limit)
        second = None if first is None else _first(count, 2, first + limit)
        if first is None or second is None:
            if failures:
                raise failures[0]
            return None
        steps.append(second - first)
    return steps[0], steps[1]


def _first(count: Callable[[int], int], cells: int, limit: int) -> int | None:
    """Return the smallest number of extra pixels up to `limit` that gives more than `cells` cells, or None."""
    high = 1
    while count(high) <= cells:
        if high >= limit:
            return None
        high = min(2 * high, limit)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) > cells else (middle, high)
    return high
