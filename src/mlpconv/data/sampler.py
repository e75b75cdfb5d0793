"""From a step's number to its batch, as a pure function: order, images and labels depend on (seed, step) alone."""

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
    """The images (N, C, H, W) and class numbers (N,) of one step."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Sampler:
    """Which images each step sees: every image once an epoch, in batches of almost equal length."""

    length: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.length // self.batch_size)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def indices(self, step: int) -> Tensor:
        """The numbers (N,) of the images of a step."""
        position = step % self.steps_per_epoch
        order = permutation(self.length, self.seed, self.epoch(step))
        return torch.tensor_split(order, self.steps_per_epoch)[position]


@lru_cache(maxsize=2)
def permutation(length: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=generator(seed, "order", epoch))


def prefetch(make: Callable[[int], Batch], start: int, stop: int, workers: int) -> Iterator[Batch]:
    """The batches of steps start to stop, prepared by `workers` threads (0: in this one); never changes a batch."""
    if workers == 0:
        yield from map(make, range(start, stop))
        return
    # Flushing denormals is a state of a thread: without it, a worker could round otherwise than the caller.
    with ThreadPoolExecutor(workers, "batch", torch.set_flush_denormal, (True,)) as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in range(start, stop):
                waiting.append(pool.submit(make, step))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
