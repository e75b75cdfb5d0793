"""Find the stride of a map in pixels by running image sizes on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from mlpconv.analysis.meta import on_meta
from mlpconv.analysis.trace import without_storage

__all__ = ["step_by_sizes"]

MAX_STRIDE = 64
"""Largest stride to try, in pixels, or the image size if that is larger."""


class _OnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Move index tables to the meta device on the fly."""

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = on_meta(args, kwargs or {})
        return func(*args, **kwargs)


def step_by_sizes(maps: nn.Module, input_shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """Return the stride in pixels, along rows and columns, of a network (N, C, H, W) -> (N, K, h, w).

    Returns None if the map does not grow with the image. Re-raises the network's own error if it rejects larger images.
    """
    shadow = without_storage(maps)
    dtype = next((p.dtype for p in shadow.parameters() if p.is_floating_point()), torch.float32)
    failures: list[Exception] = []

    def cells(axis: int, extra: int) -> int:
        shape = list(input_shape)
        shape[1 + axis] += extra
        try:
            with torch.no_grad(), _OnMeta():  # type: ignore[no-untyped-call]
                return int(shadow(torch.empty((1, *shape), dtype=dtype, device="meta")).shape[2 + axis])
        except Exception as error:  # noqa: BLE001  (a user's forward may raise anything)
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
