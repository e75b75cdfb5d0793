"""File calls that fail, or at which a process dies, by number."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import mlpconv.files

OS_CALLS = ("open", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir", "write", "ftruncate")


class Killed(BaseException):
    """Simulates SIGKILL within a process: once raised, every later file call raises it too."""


class FileCalls:
    """Count the calls that change files; `act(number)` can fail or kill the process before each of them."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act, self.count = act, 0
        self.names: list[str] = []

    def install(self, put: Callable[[Any, str, Any], None]) -> FileCalls:
        """Replace the real calls by counting ones, with `put(object, name, value)`."""
        for name in OS_CALLS:
            real = getattr(os, name) if name != "fsync" else (lambda _: None)  # the machine does not die
            put(os, name, self.counted(name, real))
        put(mlpconv.files, "open", self.opened)
        return self

    def tick(self, name: str) -> None:
        self.count += 1
        self.names.append(name)
        self.act(self.count)

    def counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.tick(name)
            return real(*args, **options)

        return call

    def opened(self, path: Path, mode: str) -> Any:
        self.tick("open")
        return TornFile(path.open(mode), self)


class TornFile:
    """A file whose write, if it fails or dies, has already written half."""

    def __init__(self, file: Any, calls: FileCalls) -> None:
        self.file, self.calls = file, calls

    def write(self, content: bytes) -> int:
        try:
            self.calls.tick("write")
        except BaseException:
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            raise
        written: int = self.file.write(content)
        return written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def fail_at(number: int, code: int) -> Callable[[int], None]:
    """Make the call of this number fail with an errno; later calls work."""

    def act(count: int) -> None:
        if count == number:
            raise OSError(code, os.strerror(code))

    return act


def die_at(number: int) -> Callable[[int], None]:
    """From the call of this number on, nothing reaches the disk."""

    def act(count: int) -> None:
        if count >= number:
            raise Killed

    return act
