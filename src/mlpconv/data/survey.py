"""What the headers of a folder's images say: the size, the fit and the depth that suit them."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mlpconv.data.bit_depth import depth_for
from mlpconv.data.decode import Header, header, largest_value
from mlpconv.data.duplicates import Mark
from mlpconv.decode_options import DEPTHS
from mlpconv.errors import ImageError

__all__ = ["Files", "choose_bits", "choose_fit", "choose_size", "in_pieces", "note_size", "survey"]

SAME_SIZE = 96  # images that are all alike and no larger than this stay as they are
SIZES = (32, 48, 64)  # else the one nearest to the median of the shorter sides
MOST_CUT = 0.4  # share of the median image above which its centre is no longer enough
THREADS = 4
PIECE = 256  # files under way at a time
FULL = 1 << DEPTHS[-2]  # from this value on, all sixteen bits are used

T = TypeVar("T")


@dataclass
class Files:
    """The image files of one split with their class numbers; those that cannot be read move to `bad`."""

    paths: list[Path]
    labels: list[int]
    bad: list[ImageError] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)  # of the files that were read: a digest of the bytes, and marks
    marks: list[Mark] = field(default_factory=list)

    def keep(self, positions: Sequence[int]) -> None:
        """Drop the files at all other positions."""
        self.paths = [self.paths[i] for i in positions]
        self.labels = [self.labels[i] for i in positions]


def in_pieces(work: Callable[[Path], T], files: Files) -> Iterator[tuple[int, T]]:
    """(position, result) of every file that can be read, in order, on some threads; the others move to `bad`."""

    def attempt(path: Path) -> T | ImageError:
        try:
            return work(path)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="decode") as pool:
        for start in range(0, len(files.paths), PIECE):
            for position, result in enumerate(pool.map(attempt, files.paths[start : start + PIECE]), start):
                if isinstance(result, ImageError):
                    files.bad.append(result)
                else:
                    yield position, result


def survey(files: Files) -> list[Header]:
    """The header of every image; files without a good one move to `bad`."""
    seen = list(in_pieces(header, files))
    files.keep([position for position, _ in seen])
    return [found for _, found in seen]


def choose_size(headers: Sequence[Header]) -> int:
    """The side of the square to which all images are brought."""
    sides = [(min(image.height, image.width), max(image.height, image.width)) for image in headers]
    if len(set(sides)) == 1 and sides[0][1] <= SAME_SIZE:
        return sides[0][0]
    median = statistics.median(shorter for shorter, _ in sides)
    return min(SIZES, key=lambda candidate: abs(candidate - median))


def choose_fit(headers: Sequence[Header]) -> str:
    """How images become squares: cropped, but stretched where the median image would lose too much."""
    return "stretch" if statistics.median(map(_cut, headers)) > MOST_CUT else "crop"


def note_size(headers: Sequence[Header], size: int, fit: str) -> Iterator[str]:
    """A sentence where images are brought to another size, with what is lost of them."""
    sides = [side for image in headers for side in (image.height, image.width)]
    if set(sides) == {size}:
        return
    median, most = statistics.median(map(_cut, headers)), max(map(_cut, headers))
    how = {
        "crop": "the shorter side is resized and the centre is kept",
        "pad": "the longer side is resized, and bars of the mean colour fill the rest",
        "stretch": "both sides are resized, and proportions change",
    }[fit]
    if most:
        share = {"crop": "cuts off", "pad": "leaves empty", "stretch": "avoids cutting off"}[fit]
        how += f", which {share} {median:.0%} of the median image and {most:.0%} of the longest (setting: fit)"
    yield f"images of {min(sides)} to {max(sides)} pixels a side are brought to {size} x {size}: {how}."


def _cut(image: Header) -> float:
    """The share of an image outside its central square."""
    return 1 - min(image.height, image.width) / max(image.height, image.width)


def choose_bits(files: Mapping[str, Files], headers: Mapping[str, Sequence[Header]], notes: list[str]) -> int:
    """The bits that are used in the training images (in all, where there are none) of 16 bits, and a note of fewer."""
    splits = ["train"] if "train" in files else list(files)
    paths = [
        path
        for split in splits
        for path, image in zip(files[split].paths, headers[split], strict=True)
        if image.sixteen_bits
    ]
    full = threading.Event()

    def look(path: Path) -> int:
        value = 0 if full.is_set() else largest_value(path)
        if value >= FULL:
            full.set()
        return value

    most = max((value for _, value in in_pieces(look, Files(paths, [0] * len(paths)))), default=FULL)
    bits = depth_for(most)
    if bits < DEPTHS[-1]:
        notes.append(
            f"{len(paths):,} images have 16 bits a sample and use {bits} of them (the largest value is {most:,}): "
            f"{(1 << bits) - 1:,} becomes white."
        )
    return bits
