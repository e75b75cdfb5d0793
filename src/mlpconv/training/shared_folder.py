"""The run folder of several processes: rank 0 reads and writes the files, the others get what it reads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load as tensors_in

from mlpconv.training import checkpoint
from mlpconv.training.process_group import Group, current
from mlpconv.training.run_folder import RunFolder

__all__ = ["SharedFolder", "folder_type"]


def folder_type() -> type[RunFolder]:
    """Return the class of this process's run folder."""
    return RunFolder if current() is None else SharedFolder


class SharedFolder(RunFolder):
    """A run folder that only rank 0 touches; every process must make the same calls in the same order."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.group = joined()
        self.writes = self.group.rank == 0

    @classmethod
    def create(cls, out: Path | None, name: str, reuse: bool = False) -> RunFolder:
        """Create an empty folder on rank 0 (see `RunFolder.create`)."""
        path = joined().from_first(lambda: str(RunFolder.create(out, name, reuse).path).encode())
        return cls(Path(path.decode()))

    @classmethod
    def find(cls, out: Path | None, name: str) -> RunFolder | None:
        """Find the run to resume on rank 0 (see `RunFolder.find`)."""

        def find() -> bytes:
            found = RunFolder.find(out, name)
            return b"" if found is None else str(found.path).encode()

        path = joined().from_first(find)
        return cls(Path(path.decode())) if path else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder on rank 0."""
        if not self.writes:
            yield
            return
        with super().lock():
            yield

    def write(self, name: str, content: bytes) -> None:
        """Write a file on rank 0."""
        if self.writes:
            super().write(name, content)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object on rank 0."""
        read = super().read_json
        value: dict[str, Any] = json.loads(self.group.from_first(lambda: json.dumps(read(name)).encode()))
        return value

    def latest(self) -> tuple[checkpoint.Checkpoint | None, list[str]]:
        """Return the newest intact checkpoint that rank 0 reads."""
        found: list[Any] = []

        def state() -> bytes:
            newest, damaged = checkpoint.latest(self.checkpoints)
            found.append(newest)
            names = [] if newest is None else sorted(newest[0])
            return json.dumps([names, None if newest is None else newest[1], damaged]).encode()

        names, values, damaged = json.loads(self.group.from_first(state))
        if values is None:
            return None, damaged
        newest = found[0] if found else None
        tensors = {name: self.tensors(newest, name) for name in names}
        return (tensors, values), damaged if self.writes else []

    def tensors(self, newest: checkpoint.Checkpoint | None, name: str) -> dict[str, Any]:
        """Return a group of tensors of rank 0's checkpoint."""
        content = self.group.broadcast(None if newest is None else checkpoint.serialise(newest[0][name]))
        return tensors_in(content)

    @contextmanager
    def local(self, path: Path) -> Iterator[Path]:
        """Yield the path of a copy of one of rank 0's files."""
        content = self.group.broadcast(path.read_bytes() if self.writes else None)
        if self.writes:
            yield path
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, path.name)
            copy.write_bytes(content)
            yield copy


def joined() -> Group:
    """Return the group of this process; raises RuntimeError outside one."""
    found = current()
    if found is None:
        raise RuntimeError("this process is in no group")
    return found
