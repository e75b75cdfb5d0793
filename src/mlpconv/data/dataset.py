"""Data sets in memory: images and labels in splits, with notes for the user."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mlpconv.data.storage import allocate
from mlpconv.decode_options import DEFAULT_DECODING, DecodeOptions
from mlpconv.errors import MissingSplit, UsageError
from mlpconv.text import printable

if TYPE_CHECKING:
    from mlpconv.data.validation import HoldOutRule

__all__ = ["SPLITS", "Dataset", "Split", "make_dataset", "select"]

SPLITS = ("train", "val", "test")
CHUNK = 1024  # images copied or hashed at a time


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8, labels (N,) int64 and, for folders, the file name of each image.

    Raises UsageError if an array has another dtype or shape, or the lengths differ.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise UsageError(
                f"images must be uint8 of shape (N, C, H, W), not {self.images.dtype} of shape {self.images.shape}."
            )
        if self.labels.shape != (len(self.images),) or self.labels.dtype != np.int64:
            raise UsageError(
                f"labels must be int64 of shape ({len(self.images)},), one per image, "
                f"not {self.labels.dtype} of shape {self.labels.shape}."
            )
        if self.names is not None and len(self.names) != len(self.images):
            raise UsageError(f"got {len(self.names)} names for {len(self.images)} images: give one per image.")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<Split: {len(self):,} images {'x'.join(map(str, self.images.shape[1:]))}>"


@dataclass(frozen=True)
class Dataset:
    """The splits of a data set, its class names, notes for the user, and the SHA-256 of its pixels and labels.

    `membership` is the rule that held out validation images of a folder without a `val` split; `decode_options` say how
    its files were decoded. `published` is true for the data set of this name in the catalogue, and false for a folder
    that is only named like one.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...]
    fingerprint: str
    membership: HoldOutRule | None = field(default=None, repr=False)
    decode_options: DecodeOptions = DEFAULT_DECODING
    published: bool = False

    def split(self, name: str) -> Split:
        """Return a split; raise MissingSplit if this data set lacks it, UsageError if there is no such split name."""
        if name in self.splits:
            return self.splits[name]
        if name not in SPLITS:
            raise UsageError(f"there is no split {name!r}; accepted: {', '.join(SPLITS)}.")
        available = ", ".join(f"{key} ({len(split):,} images)" for key, split in self.splits.items())
        raise MissingSplit(f"{self.name} has no {name} split; available: {available}. Choose one of those, or add it.")

    def __repr__(self) -> str:
        counts = ", ".join(f"{key} {len(split):,}" for key, split in self.splits.items())
        shape = "x".join(map(str, self._first_split.images.shape[1:]))
        named = ", ".join(printable(name) for name in self.classes[:3]) + (", ..." if len(self.classes) > 3 else "")
        return f"<Dataset {self.name!r}: images {shape}, {counts}, {len(self.classes)} classes ({named})>"

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return int(self._first_split.images.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of an image in pixels."""
        height, width = self._first_split.images.shape[2:]
        return int(height), int(width)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def _first_split(self) -> Split:
        return next(iter(self.splits.values()))


def make_dataset(
    name: str,
    classes: Sequence[str],
    splits: Mapping[str, Split],
    notes: Iterable[str] = (),
    *,
    published: bool = False,
) -> Dataset:
    """Build a data set from splits and compute its fingerprint; raise UsageError if the splits are inconsistent."""
    ordered = {key: splits[key] for key in SPLITS if key in splits}
    if not ordered or len(ordered) != len(splits):
        raise UsageError(f"splits must be some of {', '.join(SPLITS)}, not {', '.join(splits) or 'none'}.")
    shapes = {split.images.shape[1:] for split in ordered.values()}
    if len(shapes) > 1:
        raise UsageError(f"all splits must have images of one shape, not {sorted(shapes)}.")
    for key, split in ordered.items():
        if len(split) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(classes):
            raise UsageError(f"{name}, {key}: labels must lie in 0..{len(classes) - 1}, one number per class.")
    return Dataset(name, tuple(classes), ordered, tuple(notes), _fingerprint(ordered), published=published)


def select(split: Split, indices: np.ndarray) -> Split:
    """Copy the images at `indices` (M,), in that order; large results are stored on disk (see `storage.allocate`)."""
    images = allocate((len(indices), *split.images.shape[1:]))
    for start in range(0, len(indices), CHUNK):
        images[start : start + CHUNK] = split.images[indices[start : start + CHUNK]]
    names = None if split.names is None else tuple(split.names[i] for i in indices)
    return Split(images, split.labels[indices], names)


def _fingerprint(splits: Mapping[str, Split]) -> str:
    """Return the SHA-256 over the shape, pixels and labels of every split, in a fixed order."""
    digest = hashlib.sha256()
    for key, split in splits.items():
        digest.update(f"{key} {split.images.shape}\n".encode())
        for start in range(0, len(split), CHUNK):
            digest.update(split.images[start : start + CHUNK].tobytes())
        digest.update(split.labels.astype("<i8").tobytes())
    return digest.hexdigest()
