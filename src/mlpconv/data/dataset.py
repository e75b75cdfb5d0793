"""What every reader returns: images and class numbers in splits, with what the user should know about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mlpconv.data.held_out import HoldOutRule
from mlpconv.data.storage import allocate
from mlpconv.decode_options import DEFAULT_DECODING, DecodeOptions
from mlpconv.errors import DataError, MissingSplit, UsageError
from mlpconv.text import printable

__all__ = ["SPLITS", "Dataset", "Split", "holdout", "make_dataset", "select", "shuffled", "stratified"]

SPLITS = ("train", "val", "test")
CHUNK = 1024  # images moved at a time


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8, class numbers (N,) int64 and, for folders, the file of each image.

    Raises UsageError where the arrays are of another kind or do not belong together.
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
                f"labels must be int64 of shape ({len(self.images)},), one an image, "
                f"not {self.labels.dtype} of shape {self.labels.shape}."
            )
        if self.names is not None and len(self.names) != len(self.images):
            raise UsageError(f"{len(self.names)} names were given for {len(self.images)} images: give one each.")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<Split: {len(self):,} images {'x'.join(map(str, self.images.shape[1:]))}>"


@dataclass(frozen=True)
class Dataset:
    """The splits of one data set, its class names, sentences for the user, and the SHA-256 of its pixels and labels.

    `membership` says which images of a folder were held out for validation, where it brought no `val` split; `decode_options`
    how its files became pixels.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...]
    fingerprint: str
    membership: HoldOutRule | None = field(default=None, repr=False)
    decode_options: DecodeOptions = DEFAULT_DECODING

    def split(self, name: str) -> Split:
        """The split of that name; raises MissingSplit where it is absent here, UsageError where no such name exists."""
        if name in self.splits:
            return self.splits[name]
        if name not in SPLITS:
            raise UsageError(f"there is no split {name!r}; accepted: {', '.join(SPLITS)}.")
        there = ", ".join(f"{key} ({len(split):,} images)" for key, split in self.splits.items())
        raise MissingSplit(f"{self.name} has no {name} split here; there is: {there}. Choose one of those, or add it.")

    def __repr__(self) -> str:
        counts = ", ".join(f"{key} {len(split):,}" for key, split in self.splits.items())
        shape = "x".join(map(str, self._any.images.shape[1:]))
        named = ", ".join(printable(name) for name in self.classes[:3]) + (", ..." if len(self.classes) > 3 else "")
        return f"<Dataset {self.name!r}: images {shape}, {counts}, {len(self.classes)} classes ({named})>"

    @property
    def channels(self) -> int:
        return int(self._any.images.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self._any.images.shape[2:]
        return int(height), int(width)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def _any(self) -> Split:
        return next(iter(self.splits.values()))


def make_dataset(name: str, classes: Sequence[str], splits: Mapping[str, Split], notes: Iterable[str] = ()) -> Dataset:
    """Put splits together under their fingerprint; raises UsageError where they do not agree with each other."""
    kept = {key: splits[key] for key in SPLITS if key in splits}
    if not kept or len(kept) != len(splits):
        raise UsageError(f"splits must be some of {', '.join(SPLITS)}, not {', '.join(splits) or 'none'}.")
    shapes = {split.images.shape[1:] for split in kept.values()}
    if len(shapes) > 1:
        raise UsageError(f"all splits must have images of one shape, not {sorted(shapes)}.")
    for key, split in kept.items():
        if len(split) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(classes):
            raise UsageError(f"{name}, {key}: labels must lie in 0..{len(classes) - 1}, one number a class.")
    return Dataset(name, tuple(classes), kept, tuple(notes), _fingerprint(kept))


def _fingerprint(splits: Mapping[str, Split]) -> str:
    """SHA-256 over the shape, the pixels and the labels of every split, in a fixed order."""
    digest = hashlib.sha256()
    for key, split in splits.items():
        digest.update(f"{key} {split.images.shape}\n".encode())
        for start in range(0, len(split), CHUNK):
            digest.update(split.images[start : start + CHUNK].tobytes())
        digest.update(split.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def holdout(
    split: Split, fraction: float, seed: int = 0, how: Literal["last", "stratified"] = "last"
) -> tuple[Split, Split]:
    """Part a split in two: what remains, and the fraction held out (at least one image in each).

    "last" takes the last images as they stand (the paper's validation part, Section 4.1); "stratified" takes the
    fraction of every class, drawn by the seed, and leaves a class with a single image where it is.
    Raises UsageError for a fraction outside 0..1, DataError where there are too few images.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"the fraction held out must lie between 0 and 1, not {fraction}.")
    if how not in ("last", "stratified"):
        raise UsageError(f"how must be 'last' or 'stratified', not {how!r}.")
    if len(split) < 2:
        raise DataError(f"{len(split)} image cannot be parted into two: give at least two images.")
    if how == "last":
        cut = len(split) - min(max(round(len(split) * fraction), 1), len(split) - 1)
        return _slice(split, 0, cut), _slice(split, cut, len(split))
    held = stratified(split.labels, fraction, seed)
    if not held.any():
        raise DataError("every class has a single image, so none can be held out: give at least two of some class.")
    return select(split, np.flatnonzero(~held)), select(split, np.flatnonzero(held))


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Mark (N,) bool the fraction of every class, drawn by the seed; never a whole class, never none of two or more."""
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held[members[shuffled(len(members), seed * 1_000_003 + int(label))[:count]]] = True
    return held


def shuffled(length: int, seed: int) -> np.ndarray:
    """The numbers 0..length-1 in an order that depends on the seed alone, the same in every release of NumPy.

    They are sorted by the splitmix64 hash of (seed, number).
    """
    with np.errstate(over="ignore"):
        word = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        word += np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
    return np.argsort(word, kind="stable")


def select(split: Split, indices: np.ndarray) -> Split:
    """The images of those numbers (M,), in that order; what is too big for memory goes to the disk."""
    images = allocate((len(indices), *split.images.shape[1:]))
    for start in range(0, len(indices), CHUNK):
        images[start : start + CHUNK] = split.images[indices[start : start + CHUNK]]
    names = None if split.names is None else tuple(split.names[i] for i in indices)
    return Split(images, split.labels[indices], names)


def _slice(split: Split, start: int, stop: int) -> Split:
    """The images from start to stop, without a copy."""
    names = None if split.names is None else split.names[start:stop]
    return Split(split.images[start:stop], split.labels[start:stop], names)
