"""The machine and its peaks: matrix products in each format, and the memory's bandwidth."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any

import torch

from gpu_phases.clock import rate

__all__ = ["run"]


def run(device: torch.device, *, small: bool, deadline: float, say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:  # noqa: ARG001
    """Return the names, the TFLOP/s of a square product in fp32, tf32 and bf16, and the GB/s of a copy."""
    result: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "device": device.type}
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        result |= {"card": facts.name, "memory_gb": round(facts.total_memory / 1e9, 1), "cuda": torch.version.cuda}
    side = 512 if small else 8192
    seconds = 0.02 if small else 0.2
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        per_second = rate(functools.partial(torch.mm, left, right), device, seconds)
        result[f"matmul_{name}_tflops"] = round(2 * side**3 * per_second / 1e12, 3)
    torch.backends.cuda.matmul.allow_tf32 = False
    block = torch.zeros((1 << 22) if small else (1 << 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    result["copy_gb_per_s"] = round(
        2 * len(block) * rate(functools.partial(target.copy_, block), device, seconds) / 1e9, 1
    )
    return result
