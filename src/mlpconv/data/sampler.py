"""Sample the batch of each training step as a pure function of (seed, step), and prefetch batches in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mlpconv.data.augment import generator

__all__ = ["Batch", "Sampler", "prefetch"]


class Batch(NamedTuple):
    """The images (N, C, H, W) and labels (N,) of one step, and with a teacher its soft targets (N, K)."""

    images: Tensor
    labels: Tensor
    soft: Tensor | None = None


@dataclass(frozen=True)
class Sampler:
    """Choose the images of each step: every image once per epoch, in batches whose lengths differ by at most one."""

    length: int
    batch_size: int
    seed: int
    window: int = 0
    """Images that are read together (see `windowed`); 0 for a full shuffle."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.length // self.batch_size)

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, from 0."""
        return step // self.steps_per_epoch

    def indices(self, step: int) -> Tensor:
        """Return the indices (N,) of the images of a step."""
        position = step % self.steps_per_epoch
        count, longer = divmod(self.length, self.steps_per_epoch)  # the first batches have one image more
        start = position * count + min(position, longer)
        order = permutation(self.length, self.seed, self.epoch(step), self.window)
        return order[start : start + count + (position < longer)]


@lru_cache(maxsize=2)
def permutation(length: int, seed: int, epoch: int, window: int = 0) -> Tensor:
    """Return the order (length,) of the images in an epoch."""
    rng = generator(seed, "order", epoch)
    return torch.randperm(length, generator=rng) if window == 0 else windowed(length, window, rng)


def windowed(length: int, window: int, rng: torch.Generator) -> Tensor:
    """Return an order that visits windows of consecutive images one after another, shuffled within and among them."""
    count = -(-length // window)
    position = torch.empty(count, dtype=torch.int64)
    position[torch.randperm(count, generator=rng)] = torch.arange(count)  # of each window
    keys = position[torch.arange(length) // window] + torch.rand(length, generator=rng, dtype=torch.float64)
    return keys.argsort(stable=True)


def prefetch(load: Callable[[int], Batch], start: int, stop: int, workers: int) -> Iterator[Batch]:
    """Yield load(step) for steps start to stop, in order, computed by `workers` threads (0: the calling thread)."""
    if workers == 0:
        yield from map(load, range(start, stop))
        return
    # Flushing denormals is set per thread: without it, a worker could round differently from the caller.
    with ThreadPoolExecutor(workers, "batch", torch.set_flush_denormal, (True,)) as pool:
        pending: deque[Future[Batch]] = deque()
        try:
            for step in range(start, stop):
                pending.append(pool.submit(load, step))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
