"""Choose the size, fit and bit depth for a folder of images from their headers."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mlpconv.data.bit_depth import bits_needed
from mlpconv.data.decode import Header, header, largest_value
from mlpconv.data.decode_threads import in_threads
from mlpconv.data.duplicates import PixelHash
from mlpconv.decode_options import DEPTHS
from mlpconv.errors import ImageError

__all__ = ["SplitFiles", "choose_bits", "choose_fit", "choose_size", "map_files", "read_headers", "resize_note"]

MAX_NATIVE_SIZE = 96  # images of one size up to this keep it
SIZES = (32, 48, 64)  # otherwise the one nearest to the median of the shorter sides
MAX_CROPPED = 0.4  # images are stretched if cropping would lose more of the median image
CHUNK = 256  # files decoded at a time
FULL_DEPTH = 1 << DEPTHS[-2]  # a sample of at least this value needs all sixteen bits

T = TypeVar("T")


@dataclass
class SplitFiles:
    """The image files of one split with their labels; unreadable files are replaced by an entry in `errors`."""

    paths: list[Path]
    labels: list[int]
    errors: list[ImageError] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)  # a digest of the bytes of each decoded file
    hashes: list[PixelHash] = field(default_factory=list)  # of each decoded file

    def keep(self, indices: Sequence[int]) -> None:
        """Drop all other files."""
        self.paths = [self.paths[i] for i in indices]
        self.labels = [self.labels[i] for i in indices]


def map_files(function: Callable[[Path], T], files: SplitFiles) -> Iterator[tuple[int, T]]:
    """Yield (index, result) of every readable file in order; append the other errors to `errors`."""

    def attempt(path: Path) -> T | ImageError:
        try:
            return function(path)
        except ImageError as error:
            return error

    for start in range(0, len(files.paths), CHUNK):
        for index, result in enumerate(in_threads(attempt, files.paths[start : start + CHUNK]), start):
            if isinstance(result, ImageError):
                files.errors.append(result)
            else:
                yield index, result


def read_headers(files: SplitFiles) -> list[Header]:
    """Return the header of every readable image and drop the other files."""
    headers = list(map_files(header, files))
    files.keep([index for index, _ in headers])
    return [image for _, image in headers]


def choose_size(headers: Sequence[Header]) -> int:
    """Return the side of the square to which all images are resized."""
    sides = [(min(image.height, image.width), max(image.height, image.width)) for image in headers]
    if len(set(sides)) == 1 and sides[0][1] <= MAX_NATIVE_SIZE:
        return sides[0][0]
    median = statistics.median(shorter for shorter, _ in sides)
    return min(SIZES, key=lambda candidate: abs(candidate - median))


def choose_fit(headers: Sequence[Header]) -> str:
    """Return "crop", or "stretch" if cropping would lose too much of the median image."""
    return "stretch" if statistics.median(map(_cropped, headers)) > MAX_CROPPED else "crop"


def resize_note(headers: Sequence[Header], size: int, fit: str) -> Iterator[str]:
    """Yield a note if images are resized, with how much of them is lost."""
    sides = [side for image in headers for side in (image.height, image.width)]
    if set(sides) == {size}:
        return
    median, largest = statistics.median(map(_cropped, headers)), max(map(_cropped, headers))
    how = {
        "crop": "the shorter side is resized and the centre is kept",
        "pad": "the longer side is resized and bars of the mean colour are added",
        "stretch": "both sides are resized and the aspect ratio changes",
    }[fit]
    if largest:
        effect = {"crop": "cuts off", "pad": "leaves empty", "stretch": "avoids cutting off"}[fit]
        how += f", which {effect} {median:.0%} of the median image and {largest:.0%} of the longest (setting: fit)"
    lengths = f"{min(sides)}" if min(sides) == max(sides) else f"{min(sides)} to {max(sides)}"
    yield f"images with sides of {lengths} pixels are resized to {size} x {size}: {how}."


def _cropped(image: Header) -> float:
    """Return the fraction of an image outside its central square."""
    return 1 - min(image.height, image.width) / max(image.height, image.width)


def choose_bits(files: Mapping[str, SplitFiles], headers: Mapping[str, Sequence[Header]], notes: list[str]) -> int:
    """Return how many bits the 16-bit training images use (all images if there is no train); note if fewer than 16."""
    splits = ["train"] if "train" in files else list(files)
    paths = [
        path
        for split in splits
        for path, image in zip(files[split].paths, headers[split], strict=True)
        if image.sixteen_bits
    ]
    full = threading.Event()

    def largest_unless_full(path: Path) -> int:
        value = 0 if full.is_set() else largest_value(path)
        if value >= FULL_DEPTH:
            full.set()
        return value

    values = map_files(largest_unless_full, SplitFiles(paths, [0] * len(paths)))
    largest = max((value for _, value in values), default=FULL_DEPTH)
    bits = bits_needed(largest)
    if bits < DEPTHS[-1]:
        notes.append(
            f"{len(paths):,} images have 16 bits per sample but use only {bits} (the largest value is {largest:,}): "
            f"{(1 << bits) - 1:,} becomes white."
        )
    return bits
