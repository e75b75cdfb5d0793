"""Optuna's journal in a file: a lock that a killed process cannot keep, and no torn lines."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages.journal import JournalFileBackend

__all__ = ["Journal", "file_lock", "try_lock"]

TAIL = 1 << 20  # bytes; a line of the journal is shorter


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, created if it does not exist; the kernel releases it when a process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Return the descriptor of a locked file, to be closed by the caller; None if another process holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


class Journal(JournalFileBackend):
    """The journal of a study: one JSON object per line, appended and synced under a lock.

    Optuna's own lock is a link that a killed process leaves behind, and others wait 30 seconds for it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries; on an error, such as a full disk, no part of them stays."""
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with file_lock(self.path.with_name(f"{self.path.name}.lock")), open(self.path, "r+b") as file:
            end = whole_lines(file)
            file.truncate(end)  # half a line of a killed process
            file.seek(end)
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise


def whole_lines(file: BinaryIO) -> int:
    """Return the length of a file up to the end of its last whole line."""
    end = file.seek(0, os.SEEK_END)
    start = max(0, end - TAIL)
    file.seek(start)
    return start + file.read().rfind(b"\n") + 1
