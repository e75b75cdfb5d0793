"""Writing files so that nothing is ever lost or half-written: beside, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["NotRegularError", "fsync_folder", "json_bytes", "open_regular", "sha256", "write_atomic", "write_synced"]

CHUNK = 1 << 20


class NotRegularError(OSError):
    """What a path leads to is no regular file."""


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; refuse a pipe, socket, device or folder at once, without waiting for it.

    Raises NotRegularError for these and for a name that no file can have, OSError where the system refuses.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        regular = stat.S_ISREG(Path(path).stat().st_mode)  # before it is opened: to open a device may do something
        descriptor = os.open(path, flags) if regular else -1
    except ValueError as error:  # a NUL in the name
        raise NotRegularError(errno.EINVAL, "not a file name") from error
    if descriptor >= 0 and not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged meanwhile
        os.close(descriptor)
        descriptor = -1
    if descriptor < 0:
        raise NotRegularError(errno.EINVAL, "not a regular file (a folder, pipe, socket or device)")
    return os.fdopen(descriptor, "rb")


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on the disk; raises OSError."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file so that a reader sees the old one or the new one, never a part; raises OSError."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        write_synced(staged, content)
        os.replace(staged, path)
    except BaseException as error:
        with suppress(OSError):
            staged.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is not None:
            error.filename = str(path)  # nobody knows the staged one
        raise
    fsync_folder(path.parent)


def json_bytes(value: Any) -> bytes:
    """JSON with sorted keys and a final newline; NaN and infinity are refused with ValueError."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces; raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()
