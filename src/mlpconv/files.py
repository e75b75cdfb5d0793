"""Open regular files safely, and write files atomically: a temporary file, fsync, rename."""

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

__all__ = [
    "EXPORTED", "MODEL_FILE", "NotRegularError", "fsync_folder", "is_stream", "json_bytes", "open_regular", "sha256",
    "write_atomic", "write_synced",
]  # fmt: skip

MODEL_FILE = "model.safetensors"
"""The name of the model file in a run folder."""
EXPORTED = (".onnx", ".xml")
"""The endings of files from `mlpconv export`."""
LONGEST = 240
"""Bytes of a file name that leave room for what a temporary file has besides, of the 255 that systems allow."""


class NotRegularError(OSError):
    """A path is not a regular file."""


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading, without blocking on a pipe or device.

    Raises NotRegularError for a pipe, socket, device, folder or invalid name, OSError if it cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        regular = stat.S_ISREG(Path(path).stat().st_mode)  # before opening: opening a device can have effects
        descriptor = os.open(path, flags) if regular else -1
    except ValueError as error:  # a NUL in the name
        raise NotRegularError(errno.EINVAL, "not a file name") from error
    if descriptor >= 0 and not stat.S_ISREG(os.fstat(descriptor).st_mode):  # replaced meanwhile
        os.close(descriptor)
        descriptor = -1
    if descriptor < 0:
        raise NotRegularError(errno.EINVAL, "not a regular file (a folder, pipe, socket or device)")
    return os.fdopen(descriptor, "rb")


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on disk; raise OSError if that fails."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Wait until the entries of a folder are on disk; raise OSError if that fails."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_stream(path: Path) -> bool:
    """Return whether a path leads to a device or pipe, such as /dev/null, or to this process's standard output."""
    try:
        mode = path.stat().st_mode
        link = str(path.readlink()) if path.is_symlink() else ""
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or link.startswith("/proc/")


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file atomically: readers see either the old or the new content; raise OSError if that fails.

    A device or pipe is written to and stays what it is.
    """
    stream = is_stream(path)
    name = path.name if len(os.fsencode(path.name)) <= LONGEST else "file"
    staged = path.with_name(f".{name}.{secrets.token_hex(4)}.part")
    try:
        if stream:
            path.write_bytes(content)
            return
        write_synced(staged, content)
        os.replace(staged, path)
    except BaseException as error:
        with suppress(OSError):
            staged.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # instead of the temporary file, or none for a full disk
        raise
    fsync_folder(path.parent)


def json_bytes(value: Any) -> bytes:
    """Encode a value as JSON with sorted keys and a final newline; raise ValueError for NaN and infinity."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; raise OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
