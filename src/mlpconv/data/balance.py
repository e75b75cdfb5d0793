"""Balanced sampling: all classes are drawn equally often, and all images of a class too, to within one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mlpconv.data.augment import generator
from mlpconv.data.sampler import Sampler
from mlpconv.text import counted, printable

__all__ = ["BalancedSampler", "balance_text", "balanced", "drawn_labels"]


@dataclass(frozen=True, eq=False)
class BalancedSampler(Sampler):
    """Draw as many images from each class in an epoch, in all as many as there are.

    The images of a class are visited in one shuffled order after another, across epochs. As for `Sampler`, the images
    of a step depend on nothing but the seed and the step number.
    """

    members: tuple[Tensor, ...] = ()
    """The indices of the images of each class that has some."""

    __eq__, __hash__ = object.__eq__, object.__hash__  # tensors cannot be compared, and `draws` remembers by identity

    def indices(self, step: int) -> Tensor:
        """Return the indices (N,) of the images of a step; an image can occur more than once."""
        return draws(self, self.epoch(step))[super().indices(step)]


def balanced(labels: np.ndarray, batch_size: int, seed: int) -> BalancedSampler:
    """Return a balanced sampler for images with these labels (N,)."""
    members = tuple(torch.from_numpy(np.flatnonzero(labels == label)) for label in np.unique(labels))
    return BalancedSampler(len(labels), batch_size, seed, members=members)


def drawn_labels(sampler: Sampler, labels: Tensor) -> Tensor:
    """Return the labels (N,) of the images that the sampler draws in an epoch, those of the images being `labels`."""
    return labels[draws(sampler, 0).to(labels.device)] if isinstance(sampler, BalancedSampler) else labels


def balance_text(labels: np.ndarray, classes: Sequence[str]) -> str:
    """Return how unequal the classes of the images are, for the log of a balanced run."""
    counts = np.bincount(labels, minlength=len(classes))
    present = np.flatnonzero(counts)
    small, large = present[counts[present].argmin()], present[counts[present].argmax()]
    if counts[small] == counts[large]:
        return f"classes are balanced: all have {counted(counts[small], 'training image')}"
    described = " and ".join(f"{printable(classes[label])} {counts[label]:,}" for label in (small, large))
    return f"classes are balanced: the smallest and the largest have {described} training images, and count the same"


@lru_cache(maxsize=2)
def draws(sampler: BalancedSampler, epoch: int) -> Tensor:
    """Return the images (N,) of an epoch, class by class."""
    share, rest = divmod(sampler.length, len(sampler.members))
    parts = []
    for position, members in enumerate(sampler.members):
        # The images that remain after equal shares go to the classes in turn, from where the last epoch ended.
        start, stop = (share * n + extras(n * rest, position, len(sampler.members)) for n in (epoch, epoch + 1))
        parts.append(members[visited(sampler.seed, position, len(members), start, stop)])
    return torch.cat(parts)


def extras(count: int, position: int, classes: int) -> int:
    """Return how many of the first `count` images, dealt to the classes in turn, the class at `position` gets."""
    return (count - position + classes - 1) // classes if count > position else 0


def visited(seed: int, position: int, length: int, start: int, stop: int) -> Tensor:
    """Return the elements start to stop of the endless sequence of shuffled orders of the images of a class."""
    first, last = start // length, -(-stop // length)
    orders = [
        torch.randperm(length, generator=generator(seed, f"class {position}", cycle)) for cycle in range(first, last)
    ]
    empty = torch.empty(0, dtype=torch.int64)
    return torch.cat([empty, *orders])[start - first * length : stop - first * length]
