"""Pack images into tar shards: a folder of class folders, in a random order, or Parquet files, in theirs."""

from __future__ import annotations

import io
import json
import os
import secrets
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from mlpconv.data.decode import FORMATS
from mlpconv.data.folder_layout import ScannedSplit, scan_folder, split_word
from mlpconv.data.parquet import ParquetImages, find_parquet
from mlpconv.data.storage import open_data_file
from mlpconv.data.validation import shuffled
from mlpconv.errors import DataError, UsageError
from mlpconv.files import fsync_folder
from mlpconv.text import natural, printable

__all__ = ["Packed", "pack"]

MAX_BYTES = 64 << 20
SIGNATURES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"BM": ".bmp"}


class Packed(NamedTuple):
    """The result of packing: the shards, the number of images, and notes about what was left out."""

    shards: list[Path]
    images: int
    notes: list[str]


class Sample(NamedTuple):
    """The bytes of an image file with its extension, its class, and where it came from."""

    content: bytes
    extension: str
    label: str
    origin: str


class Source(NamedTuple):
    """The samples of each split, their number, and the class names."""

    splits: Mapping[str, Iterable[Sample]]
    total: int
    classes: list[str]
    notes: list[str]


def pack(
    source: Path,
    out: Path,
    *,
    per_shard: int = 10_000,
    seed: int = 0,
    progress: Callable[[int, int], object] = lambda done, total: None,  # noqa: ARG005
) -> Packed:
    """Write the images of a folder or of Parquet files as tars of at most `per_shard` samples.

    `source` is FOLDER/class/*, FOLDER/train|val|test/class/*, a Parquet file or a folder of them. A sample is
    000000017.jpg (the original bytes), 000000017.cls (the number of its class) and 000000017.json (class, file name).
    The order of a folder is random, so that each part of a shard has all classes. Raises UsageError if `out` has
    content, DataError if a file cannot be read.
    """
    if per_shard < 1:
        raise UsageError(f"per_shard is {per_shard}; give at least 1.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{str(out)!r} is not empty: choose another folder for the shards.")
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{str(out)!r} lies in the data, as one of its classes: choose one outside {str(source)!r}.")
    files = find_parquet(source)
    found = parquet_source(files) if files else folder_source(source, seed)
    if not found.total:
        raise DataError(f"{str(source)!r} has no images in class folders or Parquet files: there is nothing to pack.")
    numbers = {name: number for number, name in enumerate(found.classes)}
    names: list[str] = []
    done = 0
    try:
        with staging(out) as stage:
            for key, samples in found.splits.items():
                for index, group in enumerate(groups(samples, per_shard)):
                    names.append(f"{key}-{index:06d}.tar")
                    done += write_shard(stage / names[-1], group, index * per_shard, numbers)
                    progress(done, found.total)
            for name in names:
                os.replace(stage / name, out / name)
    except OSError as error:
        raise DataError(
            f"{str(out)!r} cannot be written ({error.strerror}): free disk space, or choose another folder."
        ) from error
    return Packed([out / name for name in names], done, found.notes)


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Create a folder and yield a temporary one in it: some of the shards, without the others, would pass for all.

    After an error only what was there before is left.
    """
    existed = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix=".pack-") as stage:
            yield Path(stage)
    except BaseException:
        if not existed:
            with suppress(OSError):
                out.rmdir()
        raise
    fsync_folder(out)


def groups(samples: Iterable[Sample], length: int) -> Iterator[Iterator[Sample]]:
    """Yield the samples in groups of `length`; each group must be read before the next."""
    rest = iter(samples)
    for first in rest:
        yield chain([first], islice(rest, length - 1))


def folder_source(folder: Path, seed: int) -> Source:
    """Return the images of class folders."""
    scanned, notes = scan_folder(folder)
    images = [item for split in scanned.values() for item in split.images.items()]
    classes = sorted({name for name, paths in images if paths}, key=natural)
    splits = {key: folder_samples(split, folder, seed) for key, split in scanned.items()}
    return Source(splits, sum(len(paths) for _, paths in images), classes, notes)


def folder_samples(split: ScannedSplit, folder: Path, seed: int) -> Iterator[Sample]:
    """Yield the image files of a split in a random order."""
    files = [(path, name) for name in sorted(split.images, key=natural) for path in split.images[name]]
    for index in shuffled(len(files), seed).tolist():
        path, name = files[index]
        yield Sample(content_of(path), path.suffix.lower(), name, printable(str(path.relative_to(folder))))


def content_of(path: Path) -> bytes:
    """Return the bytes of an image file; raises DataError if it cannot be read or is too long."""
    try:
        with open_data_file(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{str(path)!r} has more than {MAX_BYTES:,} bytes: save it smaller.")
    return content


def parquet_source(paths: Sequence[Path]) -> Source:
    """Return the images of Parquet files; the first word of a name says the split, as in test-00000.parquet."""
    tables = [ParquetImages(path) for path in paths]
    classes = sorted(set().union(*(table.classes() for table in tables)), key=natural)
    notes: list[str] = []
    splits: dict[str, list[ParquetImages]] = {}
    for table in tables:
        splits.setdefault(split_word(table.path.stem) or "train", []).append(table)
    samples = {key: chain.from_iterable(parquet_samples(table, notes) for table in own) for key, own in splits.items()}
    return Source(samples, sum(map(len, tables)), classes, notes)


def parquet_samples(table: ParquetImages, notes: list[str]) -> Iterator[Sample]:
    """Yield the rows that hold an image of a supported format; note how many do not."""
    left_out = 0
    for row, (content, name) in enumerate(table.rows()):
        extension = next((end for start, end in SIGNATURES.items() if content and content.startswith(start)), "")
        if content is None or not extension or len(content) > MAX_BYTES:
            left_out += 1
        else:
            yield Sample(content, extension, name, f"{printable(table.path.name)}, row {row}")
    if left_out:
        notes.append(f"left out {left_out:,} rows of {table.path.name} that hold no image; accepted: {FORMATS}.")


def write_shard(shard: Path, samples: Iterable[Sample], first: int, numbers: dict[str, int]) -> int:
    """Write one tar atomically; return the number of samples."""
    staged = shard.with_name(f".{shard.name}.{secrets.token_hex(4)}.part")
    number = first
    try:
        with open(staged, "xb") as target:
            with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for number, sample in enumerate(samples, first):
                    facts = {"class": sample.label, "file": sample.origin}
                    add(tar, f"{number:09d}{sample.extension}", sample.content)
                    add(tar, f"{number:09d}.cls", f"{numbers[sample.label]}".encode())
                    add(tar, f"{number:09d}.json", json.dumps(facts).encode())
            target.flush()
            os.fsync(target.fileno())
        os.replace(staged, shard)
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)
    fsync_folder(shard.parent)
    return number - first + 1


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member without times and owners, so that equal images give equal shards."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
