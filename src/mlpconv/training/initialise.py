"""Beginnings that learn faster: the first layer as a whitening of patches, and the format this CPU is fast in."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpconv.data.batches import Batch
from mlpconv.errors import UsageError
from mlpconv.training.recipe import Recipe
from mlpconv.training.step import autocast

__all__ = ["choose_precision", "whiten"]

TIMED_IMAGES = 64  # enough to tell the formats apart; a whole batch in float32 would decide the run's peak of memory
FLOOR = 0.01  # added to the eigenvalues: directions with less variance are noise that whitening would blow up


@torch.no_grad()
def whiten(layer: nn.Conv2d, images: Tensor) -> int:
    """Set pairs of filters to the whitening directions of the patches of (N, C, H, W) images and their negatives.

    Returns how many filters were set; the rest keep their weights (Page 2018; Jordan 2024, section 3.2). Raises
    UsageError for images smaller than the filters.
    """
    height, width = layer.kernel_size
    if images.shape[2] < height or images.shape[3] < width:
        raise UsageError(
            f"whiten=true needs images of at least {height}x{width} pixels, the first layer's kernel; these have "
            f"{images.shape[2]}x{images.shape[3]}: leave it out."
        )
    patches = F.unfold(images, (height, width), stride=(height, width)).transpose(1, 2).flatten(0, 1).double()
    patches -= patches.mean(0)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    pairs = min(len(values), layer.out_channels // 2)
    best = (vectors / (values + FLOOR).sqrt())[:, -pairs:].T.flip(0)  # (pairs, C x k x k), largest variance first
    best = best.view(pairs, *layer.weight.shape[1:]).to(layer.weight)
    layer.weight[: 2 * pairs] = torch.cat([best, -best])
    return 2 * pairs


def choose_precision(model: nn.Module, batch: Batch, recipe: Recipe) -> tuple[str, str]:
    """The number format of the run and a sentence about it; `auto` times both, in turn, on the first batch."""
    if recipe.precision != "auto":
        return recipe.precision, f"precision {recipe.precision}, as asked"
    batch = Batch(batch.images[:TIMED_IMAGES], batch.labels[:TIMED_IMAGES])
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(3):
        for name, times in seconds.items():
            times.append(time_step(copy.deepcopy(model), batch, name))
    best = {name: min(times[1:]) for name, times in seconds.items()}  # the first of each also pays for set-up
    choice = min(best, key=lambda name: best[name])
    ratio = max(best.values()) / best[choice]
    other = "bf16" if choice == "fp32" else "fp32"
    step = f"a step of {len(batch.labels)} images takes {1000 * best[choice]:.0f} ms"
    return choice, f"precision {choice}: {step}, {ratio:.2f} times that in {other}"


def time_step(model: nn.Module, batch: Batch, precision: str) -> float:
    start = time.perf_counter()
    with autocast(precision, batch.images.device):
        loss = F.cross_entropy(model(batch.images).float(), batch.labels)
    loss.backward()  # type: ignore[no-untyped-call]
    if batch.images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
