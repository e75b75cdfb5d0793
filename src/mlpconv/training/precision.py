"""Select the compute dtype of a run, float32 or bfloat16, so that the choice is stable on one machine.

Two runs with the same seed are bit-identical only in the same dtype. Therefore bfloat16 must be clearly faster, small
networks always use float32, and each measurement is stored in the cache folder.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import secrets
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpconv.data.sampler import Batch
from mlpconv.data.storage import cache_folder, open_data_file
from mlpconv.errors import DataError
from mlpconv.files import fsync_folder, json_bytes, write_synced
from mlpconv.training.environment import cpu_name
from mlpconv.training.recipe import Recipe
from mlpconv.training.step import autocast

__all__ = ["choose_precision"]

MIN_MACS = 20_000_000  # multiply-adds per image; a smaller network gains less than the conversions cost
MIN_SPEEDUP = 1.25  # minimum speed of bfloat16 relative to float32
TIMED_STEPS = 5  # per dtype, after one warm-up step
TIMED_IMAGES = 64  # enough to compare; a full batch in float32 would set the peak memory of the run
TIMED_MACS = 8_000_000_000  # maximum multiply-adds of a timed forward pass; a large network gets fewer images
MAX_FILE_BYTES = 1 << 16  # bytes


@dataclass(frozen=True)
class Timing:
    """Hold the median milliseconds of a training step in each dtype."""

    fp32: float
    bf16: float

    @property
    def choice(self) -> str:
        """Return the dtype to use, "fp32" or "bf16"."""
        return "bf16" if self.fp32 > MIN_SPEEDUP * self.bf16 else "fp32"

    def describe(self, images: int) -> str:
        """Return the measurement as text, and the threshold if bf16 is faster and not selected."""
        slightly_faster = self.bf16 < self.fp32 <= MIN_SPEEDUP * self.bf16
        rule = f"; bf16 is selected from {MIN_SPEEDUP} times the speed" if slightly_faster else ""
        return f"a step of {images} images takes {self.fp32:.0f} ms in fp32 and {self.bf16:.0f} ms in bf16{rule}"


def choose_precision(model: nn.Module, batch: Batch, recipe: Recipe) -> tuple[str, str]:
    """Return the compute dtype of a run, "fp32" or "bf16", and a message about it.

    `auto` times both on the first batch, images (N, C, H, W), if the network is large enough. The timing is cached per
    processor, torch version, network and image shape.
    """
    if recipe.precision != "auto":
        return recipe.precision, f"precision {recipe.precision}, as requested"
    macs = count_macs(model, batch.images)
    if macs < MIN_MACS:
        size = f"{macs / 1e6:.1f} million multiply-adds per image"
        return "fp32", f"precision fp32: a small network ({size}; bf16 is considered from {MIN_MACS / 1e6:.0f})"
    if batch.images.device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "fp32", "precision fp32: this processor has no fast bf16"
    images = max(1, min(TIMED_IMAGES, TIMED_MACS // macs))
    batch = Batch(batch.images[:images], batch.labels[:images])
    cache = TimingCache(cache_key(model, batch.images))
    timing, source = cache.load(), " (cached)"
    if timing is None:
        timing, source = cache.store(measure(model, batch))
    return timing.choice, f"precision {timing.choice}: {timing.describe(len(batch.labels))}{source}"


def count_macs(model: nn.Module, images: Tensor) -> int:
    """Return the multiply-adds of convolutions and linear layers per image of (N, C, H, W)."""
    total = 0

    def count(layer: Any, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    # A real image: batch norm on the meta device would import torch._dynamo.
    counted = copy.deepcopy(model).eval()
    for module in counted.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        counted(images[:1])
    return total


def measure(model: nn.Module, batch: Batch) -> Timing:
    """Time training steps in both dtypes, alternating, on copies of the network."""
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(1 + TIMED_STEPS):
        for name, times in seconds.items():
            times.append(time_step(copy.deepcopy(model), batch, name))
    medians = {name: 1000 * statistics.median(times[1:]) for name, times in seconds.items()}
    return Timing(**medians)


def time_step(model: Callable[[Tensor], Tensor], batch: Batch, precision: str) -> float:
    """Return the seconds of one forward and backward pass."""
    start = time.perf_counter()
    with autocast(precision, batch.images.device):
        loss = F.cross_entropy(model(batch.images).float(), batch.labels)
    loss.backward()
    if batch.images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def cache_key(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """Return what a timing is valid for. The number of threads is left out so that the choice does not depend on it."""
    on_gpu = images.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(images.device) if on_gpu else cpu_name(),
        "torch": torch.__version__,
        "network": hashlib.sha256(repr(model).encode()).hexdigest()[:16],
        "images": list(images.shape),
    }


class TimingCache:
    """A timing in the cache folder: one atomically written file per key; the first one written stays."""

    def __init__(self, key: dict[str, Any]) -> None:
        self.key = key
        self.name = f"{hashlib.sha256(json_bytes(key)).hexdigest()[:32]}.json"

    def path(self) -> Path:
        """Return the path of the file; raises OSError or RuntimeError if this user has no cache folder."""
        return cache_folder() / "precision" / self.name

    def load(self) -> Timing | None:
        """Return the cached timing; None if there is none or the file is damaged."""
        try:
            with open_data_file(self.path()) as file:
                content = json.loads(file.read(MAX_FILE_BYTES))
            times = [content[f"{name}_ms"] for name in ("fp32", "bf16")]
            valid = content["key"] == self.key and all(type(ms) is float and 0 < ms < math.inf for ms in times)
        except (OSError, RuntimeError, DataError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return Timing(*times) if valid else None

    def store(self, timing: Timing) -> tuple[Timing, str]:
        """Write a timing; return the valid one, which may come from another process, and a remark."""
        content = {"key": self.key, "fp32_ms": timing.fp32, "bf16_ms": timing.bf16}
        try:
            path = self.path()
            path.parent.mkdir(parents=True, exist_ok=True)
            return self.publish(path, json_bytes(content)) or timing, ""
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            return timing, f" (not cached, so another run may choose differently: {reason})"

    def publish(self, path: Path, content: bytes) -> Timing | None:
        """Create the file atomically; return the timing of another process if it was first."""
        staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            write_synced(staged, content)
            try:
                os.link(staged, path)
            except OSError:  # another process was first, or this file system has no links
                if existing := self.load():
                    return existing
                os.replace(staged, path)  # the existing file is damaged
        finally:
            staged.unlink(missing_ok=True)
        fsync_folder(path.parent)
        return None
