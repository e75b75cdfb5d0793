"""Measure a training step of EfficientNet-Lite0 in float32 and bfloat16, and with oneDNN's own depthwise gradients.

    python benchmarks/finetuning_step.py [--side 160] [--rounds 7]

The three ways take turns, on one thread; CPU time per image of a batch of 32, forward and backward. Writes
results/finetuning_step.json.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from unittest import mock

import torch
from common import spread, write_result
from torch import Tensor, nn
from torch.nn import functional as F

import mlpconv
from mlpconv.models.depthwise import depthwise
from mlpconv.training.memory import flushing_denormals, keep_freed_memory
from mlpconv.training.step import autocast

BATCH, CLASSES = 32, 10


def plain(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply a depthwise convolution as PyTorch does, in place of `models.depthwise`."""
    result: Tensor = conv(x)
    return result


def milliseconds(model: nn.Module, images: Tensor, way: str) -> float:
    """Return the CPU time of a training step, per image."""
    precision = "fp32" if way == "float32" else "bf16"
    chosen = plain if way == "bfloat16, gradients by oneDNN" else depthwise
    start = time.process_time()
    with mock.patch("mlpconv.models.efficientnet_lite.depthwise", chosen), autocast(precision, images.device):
        logits = model(images)
    F.cross_entropy(logits.float(), torch.arange(BATCH) % CLASSES).backward()
    model.zero_grad(set_to_none=True)
    return (time.process_time() - start) * 1e3 / BATCH


def main() -> None:
    """Measure all ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    model = mlpconv.create_model("efficientnet_lite0", pretrained=True)
    model.reset_classifier(CLASSES)
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(BATCH, 3, arguments.side, arguments.side).contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {"float32": [], "bfloat16": [], "bfloat16, gradients by oneDNN": []}
    with flushing_denormals():
        for number in range(arguments.rounds + 1):
            for way, values in times.items():
                elapsed = milliseconds(model, images, way)
                if number:  # the first round allocates memory
                    values.append(elapsed)
    for way, values in times.items():
        print(f"{way}: {median(values):.1f} ms per image")
    write_result("finetuning_step", {way: spread(values) | {"median": median(values)} for way, values in times.items()})


if __name__ == "__main__":
    main()
