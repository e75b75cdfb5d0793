"""Open a set of tar shards as a data set: in memory if it is small, else decoded while training."""

from __future__ import annotations

import ctypes
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import cast, overload

import numpy as np

from mlpconv.data.dataset import SPLITS, Dataset, Split
from mlpconv.data.decode import DIGEST_BYTES, Header
from mlpconv.data.folder_layout import split_word
from mlpconv.data.open_options import OpenOptions
from mlpconv.data.shard_images import CHECKED, Places, ShardImages
from mlpconv.data.shard_index import ShardIndex, index_shard
from mlpconv.data.survey import choose_fit, choose_size, resize_note
from mlpconv.data.validation import HoldOutRule
from mlpconv.decode_options import DEFAULT_DECODING, DecodeOptions
from mlpconv.errors import DataError, UsageError
from mlpconv.text import natural, printable

__all__ = ["find_shards", "memory_limit", "open_shards"]

MAX_SHARDS = 100_000
SURVEYED = 10_000  # headers from which size and fit are inferred
EXACT_HOLDOUT = 100_000  # images up to which every class gets its share of the validation split
FREE_SHARE = 0.25  # of the free memory that images may take
_LIMIT: ContextVar[int | None] = ContextVar("limit", default=None)


@contextmanager
def memory_limit(limit: int | None) -> Iterator[None]:
    """Limit the memory (bytes) that the images of shards may take inside the context; None: a share of what is free."""
    token = _LIMIT.set(limit)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def find_shards(spec: str | Path) -> list[Path] | None:
    """Return the tars that a path names, in natural order; None if it names none.

    Accepted are a tar, a folder that holds tars, a pattern (shards/*.tar) and braces (shards/{000..099}.tar).
    """
    text = str(spec)
    if "\0" in text:
        return None
    names = braces(text)
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if any(letter in name for letter in "*?["):
            found += [match for match in path.parent.glob(path.name) if match.name.endswith(".tar")]
        elif path.is_dir():
            inside = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
            if not any(entry.is_dir() for entry in inside):  # with folders, these are the classes
                found += [entry for entry in inside if entry.name.endswith(".tar") and entry.is_file()]
        elif name.endswith(".tar"):
            found.append(path)
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise DataError(f"{str(missing[0])!r} is not a file ({len(missing)} of {len(found)} shards are missing).")
    return sorted(set(found), key=lambda path: natural(str(path))) or None


def braces(text: str) -> list[str]:
    """Expand {000..099} and {a,b}, the first braces of a text; raises UsageError for too many names."""
    match = re.search(r"\{(\d{1,9})\.\.(\d{1,9})\}|\{([^{}]*,[^{}]*)\}", text)
    if match is None:
        return [text]
    if match[3] is not None:
        words = match[3].split(",")
    else:
        low, high = int(match[1]), int(match[2])
        if not 0 <= high - low < MAX_SHARDS:
            raise UsageError(f"{match[0]} names {high - low + 1:,} shards; accepted: 1 to {MAX_SHARDS:,}, ascending.")
        words = [f"{value:0{len(match[1])}d}" for value in range(low, high + 1)]
    return [name for word in words for name in braces(text[: match.start()] + word + text[match.end() :])]


def open_shards(paths: Sequence[Path], options: OpenOptions) -> Dataset:
    """Index the tars and return their images, with the options of `open_data`.

    A tar belongs to the split that its name says (val-000.tar), else to train. Images are decoded into memory if they
    fit into the limit of `memory_limit`. Raises DataError for damaged tars, and if too many samples cannot be used.
    """
    indexes = [index_shard(path) for path in paths]
    notes = list(skip_notes(paths, indexes, options.max_bad))
    names = class_names(indexes, options.classes, paths[0])
    headers = surveyed(indexes)
    decoding = DecodeOptions(
        choose_fit(headers) if options.fit is None else options.fit,
        DEFAULT_DECODING.bits if options.bits is None else options.bits,
    )
    side = choose_size(headers) if options.size is None else options.size
    channels = max(image.channels for image in headers) if options.channels is None else options.channels
    shape = (channels, side, side)
    notes += resize_note(headers, side, decoding.fit)
    splits: dict[str, Split] = {}
    for key in SPLITS:
        own = [number for number, path in enumerate(paths) if (split_word(path.stem) or "train") == key]
        if any(len(indexes[number]) for number in own):
            splits[key] = joined(paths, indexes, own, names, shape, decoding)
    fingerprint = fingerprint_of(splits, shape, decoding, names)
    rule = None
    if "train" in splits and "val" not in splits and options.val_fraction > 0:
        rule = options.membership or draw_rule(
            splits["train"], all_digests(paths, indexes), options.val_fraction, options.seed
        )
        held = rule.held_out(Digests(all_digests(paths, indexes)))
        splits = divided(splits, held)
        notes.append(
            f"no val split found: {held.sum():,} of {len(held):,} images are held out with seed {options.seed}."
        )
    notes += load_small(splits)
    del indexes
    release_memory()
    dataset = Dataset(printable(data_label(paths)), names, splits, tuple(notes), fingerprint)
    return replace(dataset, membership=rule, decode_options=decoding)


class Digests(Sequence[bytes]):
    """The rows of an array (N, 16) uint8 as bytes, without a list of them."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, key: int) -> bytes: ...

    @overload
    def __getitem__(self, key: slice) -> Digests: ...

    def __getitem__(self, key: int | slice) -> bytes | Digests:
        return Digests(self.rows[key]) if isinstance(key, slice) else self.rows[key].tobytes()


def skip_notes(paths: Sequence[Path], indexes: Sequence[ShardIndex], max_bad: float) -> Iterator[str]:
    """Yield a note about samples that were left out; raises DataError if they are too many."""
    skipped, total = sum(index.skipped for index in indexes), sum(len(index) for index in indexes)
    if not skipped and total:
        return
    named = [
        f"{path.name}, {problem}" for path, index in zip(paths, indexes, strict=True) for problem in index.problems
    ]
    text = " ".join(f"{problem.split('; ')[0].rstrip('.')}." for problem in named[:3])
    if not total or skipped > max_bad * (total + skipped):
        raise DataError(
            f"{skipped:,} of {total + skipped:,} samples in {len(paths):,} shards cannot be used (accepted: up to "
            f"{max_bad:.0%}). {text} Repair or remove them."
        )
    yield f"skipped {skipped:,} sample{'s' * (skipped > 1)} that cannot be used. {text}"


def class_names(indexes: Sequence[ShardIndex], classes: Sequence[str] | None, first: Path) -> tuple[str, ...]:
    """Return the classes of a model, or those of the shards in natural order; raises DataError for unknown ones."""
    found = sorted({name for index in indexes for name in index.classes}, key=natural)
    if classes is not None:
        if unknown := [name for name in found if name not in classes]:
            raise DataError(
                f"{str(first.parent)!r} has classes that are not among the model's: {', '.join(unknown[:10])}."
            )
        return tuple(classes)
    if len(found) < 2:
        raise DataError(
            f"{str(first.parent)!r} has only one class ({', '.join(found)}): give shards with at least two."
        )
    return tuple(found)


def surveyed(indexes: Sequence[ShardIndex]) -> list[Header]:
    """Return the headers of evenly spaced images, and drop those of all others from the indexes."""
    sides = np.concatenate([index.arrays.pop("sides") for index in indexes])
    channels = np.concatenate([index.arrays.pop("channels") for index in indexes])
    rows = np.unique(np.linspace(0, len(sides) - 1, min(len(sides), SURVEYED)).astype(np.int64))
    return [Header(int(sides[r, 0]), int(sides[r, 1]), int(channels[r]), False) for r in rows]


def joined(
    paths: Sequence[Path],
    indexes: Sequence[ShardIndex],
    own: Sequence[int],
    names: tuple[str, ...],
    shape: tuple[int, int, int],
    options: DecodeOptions,
) -> Split:
    """Return the images and labels of some of the shards as one split."""
    position = {name: number for number, name in enumerate(names)}
    labels, parts = [], []
    for number in own:
        index = indexes[number]
        shard = np.full(len(index), number, np.int32)
        digests = index.arrays["digests"][:, :CHECKED]
        parts.append(Places(shard, index.arrays["blocks"], index.arrays["lengths"], digests))
        labels.append(np.array([position[name] for name in index.classes], np.int64)[index.arrays["labels"]])
    places = Places(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return Split(cast("np.ndarray", ShardImages(tuple(paths), places, shape, options)), np.concatenate(labels))


def all_digests(paths: Sequence[Path], indexes: Sequence[ShardIndex]) -> np.ndarray:
    """Return the digests (N, 16) of the training images, in the order of the split."""
    own = [index for path, index in zip(paths, indexes, strict=True) if (split_word(path.stem) or "train") == "train"]
    return np.concatenate([index.arrays["digests"] for index in own])


def draw_rule(train: Split, digests: np.ndarray, fraction: float, seed: int) -> HoldOutRule:
    """Return the rule that holds out images: a share of every class, or of all images if there are many."""
    if len(train) > EXACT_HOLDOUT:
        return HoldOutRule(float(fraction), int(seed))
    contents = Digests(digests)
    return HoldOutRule.draw(contents, contents, train.labels, fraction, seed)


def divided(splits: dict[str, Split], held: np.ndarray) -> dict[str, Split]:
    """Move the images in the mask (N,) from train to val."""
    train = splits["train"]
    parts = {"train": taken(train, ~held), "val": taken(train, held)}
    return {key: split for key, split in parts.items() if len(split)} | {
        key: split for key, split in splits.items() if key != "train"
    }


def taken(split: Split, mask: np.ndarray) -> Split:
    """Return the images in a mask (N,) as a split."""
    return Split(cast("np.ndarray", cast("ShardImages", split.images).take(mask)), split.labels[mask])


def fingerprint_of(
    splits: dict[str, Split], shape: tuple[int, int, int], options: DecodeOptions, names: tuple[str, ...]
) -> str:
    """Return the SHA-256 of the digests and labels of all images, and of how they are decoded."""
    check = hashlib.sha256(f"{shape} {options} {names}\n".encode("utf-8", "surrogateescape"))
    for key, split in splits.items():
        check.update(f"{key} {len(split)} {DIGEST_BYTES}\n".encode())
        check.update(cast("ShardImages", split.images).places.digests.tobytes())
        check.update(split.labels.astype("<i8").tobytes())
    return check.hexdigest()


def load_small(splits: dict[str, Split]) -> Iterator[str]:
    """Decode all images into memory if they fit into the limit; yield a note if they are streamed."""
    images = [cast("ShardImages", split.images) for split in splits.values()]
    total, limit = sum(part.nbytes for part in images), _LIMIT.get()
    limit = int(FREE_SHARE * free_memory()) if limit is None else limit
    if total <= limit:
        for part in images:
            part.load()
        return
    yield (
        f"the {sum(map(len, images)):,} images take {total / 1e9:,.2f} GB and the limit is {limit / 1e9:,.2f} GB: they "
        "are decoded again in every epoch."
    )


def free_memory() -> int:
    """Return the bytes of memory that are available without swapping; 8 GB if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 8 << 30


def release_memory() -> None:
    """Return the freed memory of the indexes to the system, which glibc would keep."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def data_label(paths: Sequence[Path]) -> str:
    """Return the name of the data: that of the folder of the first shard."""
    return paths[0].resolve().parent.name or "shards"
