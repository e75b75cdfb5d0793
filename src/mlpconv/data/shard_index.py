"""The index of a tar of samples: the byte offset, label and digest of every image, made once and kept in the cache.

A sample is a run of members with one key, the name up to the first dot: 000017.jpg, 000017.cls, 000017.json. The class
is `class`, `label` or `cls` of the JSON file, or the text of the .cls file, or else the folder in the key.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as arrays_in
from safetensors.numpy import save as arrays_out

from mlpconv.data.decode import DIGEST_BYTES, MAX_BYTES, decode, header
from mlpconv.data.folder_layout import EXTENSIONS
from mlpconv.data.storage import cache_folder, open_data_file
from mlpconv.data.tar_members import BLOCK, TarMember, members
from mlpconv.errors import DataError, ImageError
from mlpconv.files import write_atomic
from mlpconv.text import composed, printable

__all__ = ["ShardIndex", "digest", "index_shard"]

VERSION = "1"
MAX_LABEL_BYTES = 1 << 16
MAX_INDEX_BYTES = 1 << 30
MAX_NAMED = 3
CLASS_KEYS = ("class", "label", "cls")


@dataclass(frozen=True)
class ShardIndex:
    """The readable images of one tar, and what was left out of it.

    Arrays have one row per image: `blocks` uint32 (offset in blocks of 512 bytes), `lengths` int32 (bytes), `labels`
    int32 (into `classes`), `digests` uint8 (16 bytes), `sides` int32 (height, width), `channels` uint8.
    """

    classes: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    skipped: int
    problems: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.arrays["blocks"])


def digest(content: bytes) -> bytes:
    """Return the digest of an image file, as `decode_hashed` does."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def index_shard(path: Path) -> ShardIndex:
    """Return the index of a tar: the stored one if the tar has not changed, else a new one.

    Raises DataError if the tar cannot be read, is truncated, damaged or compressed.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    stamp = f"{VERSION} {path.resolve()} {status.st_size} {status.st_mtime_ns}"
    name = hashlib.blake2b(stamp.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    place = cache_folder() / "shards" / f"{name}.safetensors"
    return stored(place) or store(place, build(path))


def stored(place: Path) -> ShardIndex | None:
    """Return a stored index; None if there is none or it is damaged."""
    try:
        with open_data_file(place) as file:
            if os.fstat(file.fileno()).st_size > MAX_INDEX_BYTES:
                return None
            arrays = arrays_in(file.read())
        facts = json.loads(arrays.pop("facts").tobytes())
        check = hashlib.blake2b(digest_size=16)
        for key in sorted(arrays):
            check.update(arrays[key].tobytes())
        if facts["check"] != check.hexdigest():
            return None
        return ShardIndex(tuple(facts["classes"]), arrays, facts["skipped"], tuple(facts["problems"]))
    except (OSError, DataError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None


def store(place: Path, index: ShardIndex) -> ShardIndex:
    """Write an index to the cache, if that can be written; return it."""
    check = hashlib.blake2b(digest_size=16)
    for key in sorted(index.arrays):
        check.update(index.arrays[key].tobytes())
    facts = {"classes": index.classes, "skipped": index.skipped, "problems": index.problems, "check": check.hexdigest()}
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, arrays_out({**index.arrays, "facts": text}))
    except OSError:  # a read-only cache: the index is made again next time
        return index
    return index


def build(path: Path) -> ShardIndex:
    """Read every sample of a tar once: check its image, and note its place, label and digest."""
    rows: list[tuple[int, int, int, bytes, int, int, int]] = []
    classes: dict[str, int] = {}
    problems: list[str] = []
    skipped = 0
    with open_data_file(path) as file:
        for key, group in samples(path):
            try:
                image = image_of(key, group)
                content = read(file, image)
                label = class_of(key, group, file)
                found = header(content)
                decode(content)
            except (DataError, ImageError) as error:
                skipped += 1
                problems += [f"{printable(key)}: {error}"] if len(problems) < MAX_NAMED else []
                continue
            number = classes.setdefault(label, len(classes))
            rows.append((image.offset // BLOCK, image.length, number, digest(content), *found[:3]))
    columns: Any = list(zip(*rows, strict=True)) or [()] * 7
    arrays: dict[str, np.ndarray] = {
        "blocks": np.array(columns[0], np.uint32),
        "lengths": np.array(columns[1], np.int32),
        "labels": np.array(columns[2], np.int32),
        "digests": np.frombuffer(b"".join(columns[3]), np.uint8).reshape(-1, DIGEST_BYTES),
        "sides": np.array([columns[4], columns[5]], np.int32).T.copy().reshape(-1, 2),
        "channels": np.array(columns[6], np.uint8),
    }
    return ShardIndex(tuple(classes), arrays, skipped, tuple(problems))


def samples(path: Path) -> Iterator[tuple[str, list[TarMember]]]:
    """Yield the key and members of every sample; a member that is no regular file is a sample of its own."""
    key, group = "", list[TarMember]()
    for member in members(path):
        folder, _, base = member.name.rpartition("/")
        if base.startswith("."):
            continue
        stem = base.partition(".")[0]
        own = f"{folder}/{stem}" if folder else stem
        if group and (own != key or member.length < 0 or group[-1].length < 0):
            yield key, group
            group = []
        key = own
        group.append(member)
    if group:
        yield key, group


def image_of(key: str, group: list[TarMember]) -> TarMember:
    """Return the image of a sample; raises DataError if it has none, or more than one."""
    if group[0].length < 0:
        raise DataError(f"{printable(group[0].name)} is not a regular file.")
    images = [member for member in group if member.name.lower().endswith(EXTENSIONS)]
    if len(images) != 1:
        raise DataError(f"{printable(key)!r} has {len(images)} images; one is accepted.")
    return images[0]


def class_of(key: str, group: list[TarMember], file: BinaryIO) -> str:
    """Return the class name of a sample; raises DataError if it has none."""
    by_extension = {member.name.rpartition(".")[2].lower(): member for member in group}
    if "json" in by_extension:
        try:
            value = json.loads(read(file, by_extension["json"], MAX_LABEL_BYTES))
        except (ValueError, RecursionError) as error:
            raise DataError(f"the JSON file of {printable(key)!r} cannot be read.") from error
        names = [value[name] for name in CLASS_KEYS if name in value] if isinstance(value, dict) else []
        if names and isinstance(names[0], str | int) and not isinstance(names[0], bool):
            return clean(str(names[0]))
    if "cls" in by_extension:
        text = read(file, by_extension["cls"], MAX_LABEL_BYTES).decode("utf-8", "replace").strip()
        if text:
            return clean(text)
    folder = key.rpartition("/")[0].rpartition("/")[2]
    if folder:
        return clean(folder)
    raise DataError(f"{printable(key)!r} has no label: give a .cls or .json file, or a folder.")


def clean(name: str) -> str:
    """Return a class name in one spelling, without control characters."""
    return composed(printable(name))[:200]


def read(file: BinaryIO, member: TarMember, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a member; raises DataError if it is longer than `limit`."""
    if member.length > limit:
        raise DataError(f"{printable(member.name)!r} has {member.length:,} bytes; accepted: up to {limit:,}.")
    file.seek(member.offset)
    return file.read(member.length)
