"""Convert calibration and held-out data to batches: sample, rebatch and split them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpconv.errors import UsageError

__all__ = ["LabelledBatch", "as_batches", "labels_of", "sample_split", "split"]

BATCH = 64
"""Largest number of images in a batch."""
CHUNK = 128
"""Number of images preprocessed at a time."""
HELD_OUT = 4
"""Every fourth image is held out."""
MIN_IMAGES = 8
ACCEPTED = "a tensor (N, C, H, W), a pair of it and labels (N,), or an iterable of these is accepted."


@dataclass(frozen=True)
class LabelledBatch:
    """Preprocessed images, with labels if they are known."""

    images: Tensor
    """(N, C, H, W), float."""
    labels: Tensor | None
    """(N,), integers."""


def as_batches(data: Any) -> list[LabelledBatch]:
    """Return batches of a tensor (N, C, H, W), a pair of images and labels (N,), or an iterable of either.

    Raises UsageError for anything else, for images of several sizes, and for fewer than 8 images.
    """
    if isinstance(data, Tensor) or _is_pair(data):
        batches = [_batch(data)]
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
        batches = [_batch(item) for item in data]
    else:
        raise UsageError(f"data is a {type(data).__name__}; {ACCEPTED}")
    count = sum(len(batch.images) for batch in batches)
    if count < MIN_IMAGES:
        raise UsageError(f"data has {count} images; {MIN_IMAGES} or more are accepted.")
    for first, second in pairwise(batches):
        same_size = first.images.shape[1:] == second.images.shape[1:]
        if not same_size or (first.labels is None) is not (second.labels is None):
            raise UsageError(
                "data has batches of several image sizes, or some without labels; equal ones are accepted."
            )
    return _rebatch(torch.cat([batch.images for batch in batches]), labels_of(batches))


def _is_pair(data: Any) -> bool:
    """Return whether the data is a pair of images and labels, as data loaders yield them."""
    if not isinstance(data, Sequence) or len(data) != len(("images", "labels")):
        return False
    return all(isinstance(item, Tensor) for item in data) and data[1].dim() == 1


def _batch(data: Any) -> LabelledBatch:
    images, labels = data if _is_pair(data) else (data, None)
    if not isinstance(images, Tensor) or images.dim() != 4:
        description = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"data contains {description}; {ACCEPTED}")
    if not images.is_floating_point():
        raise UsageError(f"data contains {images.dtype} images; floats are accepted: apply the preprocessing first.")
    if labels is not None and (len(labels) != len(images) or labels.is_floating_point()):
        raise UsageError(
            f"data contains {len(labels)} labels ({labels.dtype}) for {len(images)} images; an integer class for each "
            "image is accepted."
        )
    if not bool(images.isfinite().all()):
        raise UsageError(
            "data contains images with NaN or infinite pixels; finite ones are accepted: fix or drop them."
        )
    return LabelledBatch(images, labels)


def _rebatch(images: Tensor, labels: Tensor | None) -> list[LabelledBatch]:
    slices = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
    return [LabelledBatch(images[batch], None if labels is None else labels[batch]) for batch in slices]


def labels_of(batches: Sequence[LabelledBatch]) -> Tensor | None:
    """Return the labels (N,) of all images; None without labels."""
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return torch.cat(labels).cpu() if labels else None


def split(batches: Sequence[LabelledBatch]) -> tuple[list[LabelledBatch], list[LabelledBatch]]:
    """Split into calibration and held-out batches: every fourth image is held out, also of data sorted by class."""
    images = torch.cat([batch.images for batch in batches])
    labels = labels_of(batches)
    mask = torch.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    calibration, held_out = (_rebatch(images[m], None if labels is None else labels[m]) for m in (~mask, mask))
    return calibration, held_out


def sample_split(data: Any, count: int, preprocess: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield up to `count` preprocessed images and labels of a `mlpconv.data.Split`, drawn with a fixed seed."""
    order = np.sort(np.random.default_rng(0).permutation(len(data))[:count])
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        pixels = torch.from_numpy(np.ascontiguousarray(data.images[chunk]))
        yield preprocess(pixels), torch.from_numpy(np.asarray(data.labels[chunk], dtype=np.int64))
