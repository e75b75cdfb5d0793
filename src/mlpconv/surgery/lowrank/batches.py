"""Images to fit and to measure a changed network on: whatever people have them in, as batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mlpconv.errors import UsageError

__all__ = ["LabelledBatch", "as_batches", "labels_of", "split"]

SIZE = 64
"""Images of a batch, at most."""
HELD = 4
"""Every fourth image is held out."""
FEWEST = 8


@dataclass(frozen=True)
class LabelledBatch:
    """Some images as the network takes them, and their classes where they are known."""

    images: Tensor
    """(N, C, H, W), float."""
    labels: Tensor | None
    """(N,), whole numbers."""


def as_batches(data: Any) -> list[LabelledBatch]:
    """Batches from a tensor (N, C, H, W), a pair of images and labels (N,), or an iterable of either.

    Raises UsageError for anything else, for images of several sizes, and for fewer than 8 of them.
    """
    if isinstance(data, Tensor) or _is_pair(data):
        found = [_batch(data)]
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
        found = [_batch(each) for each in data]
    else:
        raise UsageError(f"data is a {type(data).__name__}; {ACCEPTED}")
    if sum(len(batch.images) for batch in found) < FEWEST:
        raise UsageError(f"data has {sum(len(b.images) for b in found)} images; {FEWEST} or more are accepted.")
    for one, other in pairwise(found):
        if one.images.shape[1:] != other.images.shape[1:] or (one.labels is None) is not (other.labels is None):
            raise UsageError("data has batches of several sizes, or some without labels; all must be alike.")
    images = torch.cat([batch.images for batch in found])
    return _cut(images, labels_of(found))


ACCEPTED = "a tensor (N, C, H, W), a pair of it and labels (N,), or an iterable of these is accepted."


def _is_pair(data: Any) -> bool:
    """Images and labels, as data loaders give them."""
    if not isinstance(data, Sequence) or len(data) != len(("images", "labels")):
        return False
    return all(isinstance(each, Tensor) for each in data) and data[1].dim() == 1


def _batch(data: Any) -> LabelledBatch:
    images, labels = data if _is_pair(data) else (data, None)
    if not isinstance(images, Tensor) or images.dim() != 4:
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"data holds {what}; {ACCEPTED}")
    if not images.is_floating_point():
        raise UsageError(f"data holds {images.dtype} images; floats are accepted: apply the preprocessing first.")
    if labels is not None and (len(labels) != len(images) or labels.is_floating_point()):
        raise UsageError(f"data holds {len(labels)} labels ({labels.dtype}) for {len(images)} images; a class each.")
    if not bool(images.isfinite().all()):
        raise UsageError("data holds images with NaN or infinite pixels; finite ones are accepted: mend or drop them.")
    return LabelledBatch(images, labels)


def _cut(images: Tensor, labels: Tensor | None) -> list[LabelledBatch]:
    starts = range(0, len(images), SIZE)
    return [LabelledBatch(images[at : at + SIZE], None if labels is None else labels[at : at + SIZE]) for at in starts]


def labels_of(batches: Sequence[LabelledBatch]) -> Tensor | None:
    """(N,): the labels of all images, if there are any."""
    found = [batch.labels for batch in batches if batch.labels is not None]
    return torch.cat(found).cpu() if found else None


def split(batches: Sequence[LabelledBatch]) -> tuple[list[LabelledBatch], list[LabelledBatch]]:
    """Three quarters to fit and one quarter to measure, drawn in turn so that an order by class does no harm."""
    images = torch.cat([batch.images for batch in batches])
    labels = labels_of(batches)
    held = torch.arange(len(images)) % HELD == HELD - 1
    fit, measured = (_cut(images[mask], None if labels is None else labels[mask]) for mask in (~held, held))
    return fit, measured
