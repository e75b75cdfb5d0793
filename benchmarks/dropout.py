"""Measure dropout in a training step, forward and backward: mlpconv's against PyTorch's, alternating.

    python benchmarks/dropout.py

The shapes are those after the two pools of the paper's CIFAR-10 network, for a batch of 192. Writes
results/dropout.json.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from common import spread, write_result
from torch import nn

from mlpconv.models.dropout import Dropout
from mlpconv.training.memory import keep_freed_memory

SHAPES = ((192, 96, 16, 16), (192, 192, 8, 8))
DTYPES = (torch.bfloat16, torch.float32)
ROUNDS = 30


def milliseconds(layer: nn.Module, images: torch.Tensor, gradient: torch.Tensor) -> float:
    """Return the time of a forward and backward pass."""
    start = time.perf_counter()
    layer(images).backward(gradient)
    return (time.perf_counter() - start) * 1e3


def compare(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """Measure both layers alternately on a channels-last tensor (N, C, H, W), and compute the speed-up."""
    images = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    layers = {"torch": nn.Dropout(0.5), "mlpconv": Dropout(0.5)}
    times: dict[str, list[float]] = {name: [] for name in layers}
    for number in range(ROUNDS + 3):
        for name, layer in layers.items():
            elapsed = milliseconds(layer, images, gradient)
            if number >= 3:  # the first rounds allocate memory
                times[name].append(elapsed)
    ratios = [theirs / ours for theirs, ours in zip(times["torch"], times["mlpconv"], strict=True)]
    print(
        f"{'x'.join(map(str, shape))} {dtype}: torch {median(times['torch']):.2f} ms, "
        f"mlpconv {median(times['mlpconv']):.2f} ms, {median(ratios):.1f} times as fast"
    )
    return {
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "milliseconds": {name: spread(values) | {"median": median(values)} for name, values in times.items()},
        "times_as_fast": spread(ratios) | {"median": median(ratios)},
    }


def main() -> None:
    """Measure every shape and dtype, with one thread and with all threads."""
    keep_freed_memory()
    result = {}
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        result[f"{threads} threads"] = [compare(shape, dtype) for shape in SHAPES for dtype in DTYPES]
    write_result("dropout", result)


if __name__ == "__main__":
    main()
