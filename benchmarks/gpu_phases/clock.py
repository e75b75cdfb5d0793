"""How often a second something runs: on a GPU by its own clock, else by the processor's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["rate"]

ROUNDS = 5


def rate(action: Callable[[], object], device: torch.device, seconds: float = 0.2) -> float:
    """Return calls per second: the median of five rounds of about `seconds` each, after two calls to warm up."""
    for _ in range(2):
        action()
    once = _timed(action, 1, device)
    count = max(1, int(seconds / max(once, 1e-7)))
    return count / statistics.median(_timed(action, count, device) for _ in range(ROUNDS))


def _timed(action: Callable[[], object], count: int, device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(count):
            action()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        action()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1000
