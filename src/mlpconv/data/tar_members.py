"""Read the member list of an uncompressed tar file, from its headers alone and within limits.

Nothing is extracted. Only regular files count; links, devices and sparse files are named and left out. The standard
library's `tarfile` reads extended headers of any length into memory, so headers are parsed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mlpconv.data.storage import open_data_file
from mlpconv.errors import DataError
from mlpconv.text import printable

__all__ = ["BLOCK", "TarMember", "members"]

BLOCK = 512
MAX_TAR = BLOCK << 32  # bytes: the number of a block has 32 bits
MAX_EXTENDED = 1 << 16  # bytes of an extended header: a long name
REGULAR = (b"0", b"\0", b"7")
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL, FOLDER = b"L", b"K", b"x", b"g", b"5"
KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


class TarMember(NamedTuple):
    """A regular file in a tar: its name, and the offset and length of its content in bytes.

    Any other member has the length -1 and its kind as `name`.
    """

    name: str
    offset: int
    length: int


def members(path: Path) -> Iterator[TarMember]:
    """Yield the members of a tar in order, without folders; raises DataError for a file that is no intact tar."""
    try:
        with open_data_file(path) as file:
            yield from parse(file, os.fstat(file.fileno()).st_size, repr(str(path)))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {(error.strerror or str(error)).lower()}.") from error


def parse(file: BinaryIO, end: int, name: str) -> Iterator[TarMember]:
    """Yield the members of an open tar of `end` bytes."""
    if end > MAX_TAR:
        raise DataError(f"{name} has {end:,} bytes; accepted: up to {MAX_TAR:,}. Write more, smaller shards.")
    position, long_name, long_size = 0, "", -1
    while position + BLOCK <= end:
        file.seek(position)
        header = file.read(BLOCK)
        if not header.strip(b"\0"):
            return  # the end of the archive
        check(header, name, position)
        kind, length = header[156:157], number(header[124:136], name)
        if long_size >= 0 and kind in REGULAR:
            length = long_size
        start = position + BLOCK
        if start + length > end:
            raise DataError(f"{name} is truncated: it ends inside the member {printable(member_name(header))!r}.")
        position = start + -(-length // BLOCK) * BLOCK
        if kind in (LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL):
            if length > MAX_EXTENDED:
                raise DataError(f"{name} has an extended header of {length:,} bytes; accepted: {MAX_EXTENDED:,}.")
            if kind in (LONG_NAME, PAX):
                long_name, long_size = extended(file.read(length), kind, long_name, long_size)
            continue
        full = long_name or member_name(header)
        if kind in REGULAR:
            yield TarMember(full, start, length)
        elif kind != FOLDER:
            yield TarMember(f"{full} ({KINDS.get(kind, 'of an unknown type')})", start, -1)
        long_name, long_size = "", -1
    raise DataError(f"{name} is truncated: it has no end marker. Copy or write it again.")


def check(header: bytes, name: str, position: int) -> None:
    """Raise DataError if the checksum of a header is wrong."""
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    digits = header[148:156].strip(b" \0")
    if not digits or not digits.isdigit() or int(digits, 8) != total:
        reason = "is not an uncompressed tar file" if position == 0 else f"is damaged at byte {position:,}"
        raise DataError(f"{name} {reason}: write it again, for example with `mlpconv data pack FOLDER --out SHARDS`.")


def number(field: bytes, name: str) -> int:
    """Parse a size: octal digits, or base 256 for large files."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << 8 * len(field) - 1) - 1)
    digits = field.strip(b" \0")
    if digits and (not digits.isdigit() or b"8" in digits or b"9" in digits):
        raise DataError(f"{name} has a member with an invalid length: write the file again.")
    return int(digits or b"0", 8)


def member_name(header: bytes) -> str:
    """Return the name in a header, with its prefix."""
    name, prefix = (header[start:stop].split(b"\0")[0] for start, stop in ((0, 100), (345, 500)))
    ustar = header[257:263] == b"ustar\0"
    return (prefix + b"/" + name if ustar and prefix else name).decode("utf-8", "surrogateescape")


def extended(content: bytes, kind: bytes, name: str, size: int) -> tuple[str, int]:
    """Return the name and size that an extended header gives to the next member."""
    if kind == LONG_NAME:
        return content.split(b"\0")[0].decode("utf-8", "surrogateescape"), size
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(content):
            break
        key, _, value = content[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key in (b"size", b"GNU.sparse.size") and value.isdigit():
            size = int(value)
        content = content[int(length) :]
    return name, size
