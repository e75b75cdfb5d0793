"""Find exact duplicates across splits, across classes and within them, and blank images, by hashes of the pixels."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mlpconv.data.dataset import SPLITS, Dataset, Split

__all__ = ["PixelHash", "duplicate_notes", "pixel_hash", "with_duplicate_notes"]

DIGEST_BYTES = 16
MAX_NAMED = 3  # groups that a note names
Position = tuple[str, int]  # a split and the index of an image in it


class PixelHash(NamedTuple):
    """The digest of an image's pixels, and whether they all have one colour."""

    digest: bytes
    blank: bool


def pixel_hash(image: np.ndarray) -> PixelHash:
    """Hash the pixels of an image (C, H, W) uint8."""
    digest = hashlib.blake2b(image.tobytes(), digest_size=DIGEST_BYTES).digest()
    return PixelHash(digest, bool((image == image[:, :1, :1]).all()))


def with_duplicate_notes(dataset: Dataset) -> Dataset:
    """Return the data set with notes about duplicate and blank images."""
    hashes = {name: [pixel_hash(image) for image in split.images] for name, split in dataset.splits.items()}
    notes = dict.fromkeys([*duplicate_notes(dataset.splits, hashes, dataset.classes), *dataset.notes])
    return replace(dataset, notes=tuple(notes))


def duplicate_notes(
    splits: Mapping[str, Split], hashes: Mapping[str, Sequence[PixelHash]], classes: Sequence[str]
) -> Iterator[str]:
    """Yield notes about images with identical pixels, the most serious first, and about blank images."""
    positions: dict[bytes, list[Position]] = defaultdict(list)
    blank: list[Position] = []
    for split in [name for name in SPLITS if name in splits]:
        for index, (digest, is_blank) in enumerate(hashes[split]):
            (blank if is_blank else positions[digest]).append((split, index))
    groups = [group for group in positions.values() if len(group) > 1]
    yield from _across_splits(splits, groups)
    yield from _across_classes(splits, groups, classes)
    within = [group for group in groups if len({(split, splits[split].labels[i]) for split, i in group}) == 1]
    if within:
        count = sum(len(group) - 1 for group in within)
        copy = "an exact copy of another" if count == 1 else "exact copies of others"
        yield f"{_images(count)} {copy} of the same class: {_first_pairs(splits, within)}."
    if blank:
        named = ", ".join(_name(splits, position) for position in blank[:MAX_NAMED])
        yield f"{_images(len(blank))} blank (a single colour): {named}{', ...' if len(blank) > MAX_NAMED else ''}."


def _across_splits(splits: Mapping[str, Split], groups: list[list[Position]]) -> Iterator[str]:
    """Yield a warning for each split that shares images with an earlier one (train, val, test)."""
    order = [name for name in SPLITS if name in splits]
    for later in order:
        for earlier in order[: order.index(later)]:
            common = [group for group in groups if {earlier, later} <= {split for split, _ in group}]
            pairs = [[next(p for p in group if p[0] == name) for name in (later, earlier)] for group in common]
            count = sum(split == later for group in common for split, _ in group)
            if count:
                yield (
                    f"WARNING: {count:,} of {len(splits[later]):,} images of {later} are also in {earlier} (identical "
                    f"pixels), so scores on {later} say little about new images: {_first_pairs(splits, pairs)}. Remove "
                    f"them from one of the two."
                )


def _across_classes(splits: Mapping[str, Split], groups: list[list[Position]], classes: Sequence[str]) -> Iterator[str]:
    mixed = [group for group in groups if len({splits[split].labels[i] for split, i in group}) > 1]
    if mixed:
        count = sum(map(len, mixed))
        named = sorted({classes[splits[split].labels[i]] for group in mixed for split, i in group})
        pairs = [[group[0], next(p for p in group if _label(splits, p) != _label(splits, group[0]))] for group in mixed]
        yield (
            f"WARNING: {_images(count)} in more than one class ({', '.join(named[: 2 * MAX_NAMED])}"
            f"{', ...' if len(named) > 2 * MAX_NAMED else ''}) with identical pixels: {_first_pairs(splits, pairs)}. "
            "Keep each in the correct class only."
        )


def _label(splits: Mapping[str, Split], position: Position) -> int:
    return int(splits[position[0]].labels[position[1]])


def _images(count: int) -> str:
    return "1 image is" if count == 1 else f"{count:,} images are"


def _first_pairs(splits: Mapping[str, Split], groups: Sequence[Sequence[Position]]) -> str:
    """Name the first two images of the first groups."""
    named = [" = ".join(_name(splits, position) for position in group[:2]) for group in groups[:MAX_NAMED]]
    return ", ".join(named) + (", ..." if len(groups) > MAX_NAMED else "")


def _name(splits: Mapping[str, Split], position: Position) -> str:
    """Return an image's file name, or its index in its split."""
    names = splits[position[0]].names
    return f"number {position[1]} of {position[0]}" if names is None else names[position[1]]
