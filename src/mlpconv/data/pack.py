"""Pack a folder of class folders into tar shards: the original files in a random order, with their labels."""

from __future__ import annotations

import io
import json
import os
import secrets
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mlpconv.data.folder_layout import scan_folder
from mlpconv.data.storage import open_data_file
from mlpconv.data.validation import shuffled
from mlpconv.errors import DataError, UsageError
from mlpconv.files import fsync_folder
from mlpconv.text import natural, printable

__all__ = ["Packed", "pack"]

MAX_BYTES = 64 << 20


class Packed(NamedTuple):
    """The result of packing: the shards, the number of images, and notes about what was left out."""

    shards: list[Path]
    images: int
    notes: list[str]


def pack(
    folder: Path,
    out: Path,
    *,
    per_shard: int = 10_000,
    seed: int = 0,
    progress: Callable[[int, int], object] = lambda done, total: None,  # noqa: ARG005
) -> Packed:
    """Write the images of FOLDER/class/* or FOLDER/train|val|test/class/* as tars of at most `per_shard` samples.

    A sample is 000000017.jpg (the original bytes), 000000017.cls (the number of its class) and 000000017.json (class,
    file name). The order is random, so that each part of a shard has all classes. Raises UsageError if `out` has
    content, DataError if a file cannot be read.
    """
    if per_shard < 1:
        raise UsageError(f"per_shard is {per_shard}; give at least 1.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{str(out)!r} is not empty: choose another folder for the shards.")
    scanned, notes = scan_folder(folder)
    images = [item for split in scanned.values() for item in split.images.items()]
    classes = sorted({name for name, paths in images if paths}, key=natural)
    numbers = {name: number for number, name in enumerate(classes)}
    total = sum(len(paths) for _, paths in images)
    if not total:
        raise DataError(f"{str(folder)!r} has no images in class folders: there is nothing to pack.")
    shards: list[Path] = []
    done = 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        for key, split in scanned.items():
            files = [(path, name) for name in sorted(split.images, key=natural) for path in split.images[name]]
            order = shuffled(len(files), seed).tolist()
            for start in range(0, len(order), per_shard):
                chosen = [files[index] for index in order[start : start + per_shard]]
                shard = out / f"{key}-{start // per_shard:06d}.tar"
                write_shard(shard, chosen, start, numbers, folder)
                shards.append(shard)
                done += len(chosen)
                progress(done, total)
    except OSError as error:
        raise DataError(f"{str(out)!r} cannot be written ({error.strerror}): free disk space.") from error
    return Packed(shards, done, notes)


def write_shard(shard: Path, files: list[tuple[Path, str]], first: int, numbers: dict[str, int], folder: Path) -> None:
    """Write one tar atomically."""
    staged = shard.with_name(f".{shard.name}.{secrets.token_hex(4)}.part")
    try:
        with open(staged, "xb") as target:
            with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for number, (path, name) in enumerate(files, first):
                    facts = {"class": name, "file": printable(str(path.relative_to(folder)))}
                    add(tar, f"{number:09d}{path.suffix.lower()}", content_of(path))
                    add(tar, f"{number:09d}.cls", f"{numbers[name]}".encode())
                    add(tar, f"{number:09d}.json", json.dumps(facts).encode())
            target.flush()
            os.fsync(target.fileno())
        os.replace(staged, shard)
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)
    fsync_folder(shard.parent)


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


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member without times and owners, so that equal images give equal shards."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
