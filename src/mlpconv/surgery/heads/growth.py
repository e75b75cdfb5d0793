"""How many pixels larger an image must be for a map to have one cell more, tried on sizes without numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from mlpconv.analysis.meta import OnMeta, meta_images
from mlpconv.analysis.trace import without_storage

__all__ = ["step_by_sizes"]

FARTHEST = 64
"""Pixels that a cell may be from the next, where the image is not larger."""


def step_by_sizes(maps: nn.Module, input_shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """Pixels from one cell to the next, along rows and columns, of a network (N, C, H, W) -> (N, K, h, w).

    None where the map does not grow with the image. Raises the network's own error where it takes no larger image.
    """
    shadow = without_storage(maps)
    failures: list[Exception] = []

    def cells(axis: int, more: int) -> int:
        shape = list(input_shape)
        shape[1 + axis] += more
        try:
            with torch.no_grad(), OnMeta():  # type: ignore[no-untyped-call]
                return int(shadow(meta_images(shadow, 1, shape)).shape[2 + axis])
        except Exception as error:  # noqa: BLE001  (the forward pass is not ours: it may raise anything)
            failures.append(error)
            return 0

    steps = []
    for axis in (0, 1):
        most = max(FARTHEST, input_shape[1 + axis])
        count = partial(cells, axis)
        first = _first(count, 1, most)
        second = None if first is None else _first(count, 2, first + most)
        if first is None or second is None:
            if failures:
                raise failures[0]
            return None
        steps.append(second - first)
    return steps[0], steps[1]


def _first(count: Callable[[int], int], cells: int, most: int) -> int | None:
    """The smallest number of pixels, up to `most`, that gives more cells than this; None where none does."""
    high = 1
    while count(high) <= cells:
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) > cells else (middle, high)
    return high
