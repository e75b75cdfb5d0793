"""Writing files so that nothing is ever lost or half-written: beside, fsync, rename."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["fsync_folder", "json_bytes", "sha256", "write_atomic", "write_synced"]

CHUNK = 1 << 20


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
