"""Memory: the bytes of a training step by batch size, the largest batch that fits, and nin_imagenet at 224 pixels."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from gpu_phases.throughput import Case

__all__ = ["run"]

NETWORKS = {"nin_cifar10": 1 << 16, "nin_imagenet": 1 << 13}
"""Each with the largest batch that is tried."""


def run(device: torch.device, *, small: bool, deadline: float, say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return for each network the peak bytes of a bf16 training step at doubling batch sizes, until memory ends."""
    result: dict[str, Any] = {}
    for name, most in {"nin_tiny": 256}.items() if small else NETWORKS.items():
        batch, rows = (64 if small else 256), result.setdefault(name, {})
        while batch <= most and time.perf_counter() < deadline - 10:
            rows[str(batch)] = peak(name, batch, device)
            say(result)
            if isinstance(rows[str(batch)], str):
                break
            batch *= 2
    return result


def peak(name: str, batch: int, device: torch.device) -> float | str:
    """Return the peak megabytes of a training step; the reason where it does not fit."""
    cuda = device.type == "cuda"
    try:
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        Case(name, "bf16", device, batch).train()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        return f"does not fit: {str(error).splitlines()[0][:120]}"
    return round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if cuda else 0.0
