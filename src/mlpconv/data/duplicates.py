"""What is told of images by hashes: exact copies across splits, across classes and within them, and blank ones."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mlpconv.data.dataset import SPLITS, Dataset, Split

__all__ = ["Mark", "copies", "mark", "with_copies_noted"]

DIGEST_BYTES = 16
SHOWN = 3  # pairs that a note names
Place = tuple[str, int]  # a split and the number of an image in it


class Mark(NamedTuple):
    """One image: a digest of its pixels, and whether all of them have one colour."""

    pixels: bytes
    blank: bool


def mark(image: np.ndarray) -> Mark:
    """The mark of an image (C, H, W) uint8."""
    digest = hashlib.blake2b(image.tobytes(), digest_size=DIGEST_BYTES).digest()
    return Mark(digest, bool((image == image[:, :1, :1]).all()))


def with_copies_noted(dataset: Dataset) -> Dataset:
    """The data set with notes about the copies and blank images in its splits."""
    marks = {name: [mark(image) for image in split.images] for name, split in dataset.splits.items()}
    notes = dict.fromkeys([*copies(dataset.splits, marks, dataset.classes), *dataset.notes])
    return replace(dataset, notes=tuple(notes))


def copies(splits: Mapping[str, Split], marks: Mapping[str, Sequence[Mark]], classes: Sequence[str]) -> Iterator[str]:
    """Sentences about images with exactly the same pixels, the worst first, and about blank ones."""
    places: dict[bytes, list[Place]] = defaultdict(list)
    blank: list[Place] = []
    for split in [name for name in SPLITS if name in splits]:
        for number, (digest, plain) in enumerate(marks[split]):
            (blank if plain else places[digest]).append((split, number))
    groups = [group for group in places.values() if len(group) > 1]
    yield from _across_splits(splits, groups)
    yield from _across_classes(splits, groups, classes)
    within = [group for group in groups if len({(split, splits[split].labels[i]) for split, i in group}) == 1]
    if within:
        count = sum(len(group) - 1 for group in within)
        copy = "an exact copy of another" if count == 1 else "exact copies of others"
        yield f"{_images(count)} {copy} of the same class: {_pairs(splits, within)}."
    if blank:
        named = ", ".join(_name(splits, place) for place in blank[:SHOWN])
        yield f"{_images(len(blank))} blank (one colour all over): {named}{', ...' if len(blank) > SHOWN else ''}."


def _across_splits(splits: Mapping[str, Split], groups: list[list[Place]]) -> Iterator[str]:
    """A warning for each split that holds images of an earlier one (train, val, test)."""
    order = [name for name in SPLITS if name in splits]
    for later in order:
        for earlier in order[: order.index(later)]:
            common = [group for group in groups if {earlier, later} <= {split for split, _ in group}]
            pairs = [[next(p for p in group if p[0] == name) for name in (later, earlier)] for group in common]
            count = sum(split == later for group in common for split, _ in group)
            if count:
                yield (
                    f"WARNING: {count:,} of {len(splits[later]):,} images of {later} are also in {earlier} (the same "
                    f"pixels), so figures on {later} say little about new images: {_pairs(splits, pairs)}. Remove them "
                    f"from one of the two."
                )


def _across_classes(splits: Mapping[str, Split], groups: list[list[Place]], classes: Sequence[str]) -> Iterator[str]:
    mixed = [group for group in groups if len({splits[split].labels[i] for split, i in group}) > 1]
    if mixed:
        count = sum(map(len, mixed))
        named = sorted({classes[splits[split].labels[i]] for group in mixed for split, i in group})
        first = [[group[0], next(p for p in group if _label(splits, p) != _label(splits, group[0]))] for group in mixed]
        yield (
            f"WARNING: {_images(count)} in more than one class ({', '.join(named[: 2 * SHOWN])}"
            f"{', ...' if len(named) > 2 * SHOWN else ''}) with the same pixels: {_pairs(splits, first)}. "
            "Leave each in the class that it shows."
        )


def _label(splits: Mapping[str, Split], place: Place) -> int:
    return int(splits[place[0]].labels[place[1]])


def _images(count: int) -> str:
    return "1 image is" if count == 1 else f"{count:,} images are"


def _pairs(splits: Mapping[str, Split], groups: Sequence[Sequence[Place]]) -> str:
    """The first two of some groups, by name."""
    named = [" = ".join(_name(splits, place) for place in group[:2]) for group in groups[:SHOWN]]
    return ", ".join(named) + (", ..." if len(groups) > SHOWN else "")


def _name(splits: Mapping[str, Split], place: Place) -> str:
    """An image's file, or where there is none its number in its split."""
    names = splits[place[0]].names
    return f"number {place[1]} of {place[0]}" if names is None else names[place[1]]
