"""A run folder: made once, never overwritten, used by one trainer at a time."""

from __future__ import annotations

import csv
import fcntl
import glob
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlpconv.errors import RunFolderError
from mlpconv.files import json_bytes, write_atomic
from mlpconv.text import option, printable
from mlpconv.training.progress import COLUMNS, EpochMetrics

__all__ = ["RunFolder", "require_empty"]

RUNS = Path("runs")
MAX_RUNS = 100_000
MAX_JSON_BYTES = 64 << 20
LOCK, RECIPE = ".lock", "recipe.json"


class RunFolder:
    """Where a run keeps what it makes; every file appears whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self.model = path / "model.safetensors"

    @classmethod
    def create(cls, out: Path | None, name: str, reuse: bool = False) -> RunFolder:
        """Make an empty folder: `out`, or the next free runs/NAME-001; raises RunFolderError if `out` has content.

        With `reuse` the newest runs/NAME-* is taken instead where its run never began.
        """
        try:
            if out is None and reuse:
                out = newest(name)
            if out is None:
                return cls(create_next(name))
            require_empty(out)
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"the run folder {out or RUNS} cannot be made ({error.strerror}): {elsewhere()}."
            ) from error
        return cls(out)

    @classmethod
    def find(cls, out: Path | None, name: str) -> RunFolder | None:
        """The folder of a run to resume, `out` or the newest runs/NAME-*; None where no run has begun there yet.

        Raises RunFolderError where `out` is a file, or holds something else than a run.
        """
        path = newest(name) if out is None else out
        if path is None:
            return None
        if (path / RECIPE).is_file():
            return cls(path)
        try:
            content = foreign_content(path)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read ({error.strerror}): {elsewhere()}.") from error
        if content:
            raise RunFolderError(f"{path} holds no run (no {RECIPE}); it {content}: {elsewhere()}.")
        return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other trainer out; raises RunFolderError naming the process that is in."""
        path = self.path / LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written ({error.strerror}): {elsewhere()}.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise RunFolderError(
                f"{self.path} is in use by process {holder}: wait for it, or train into another folder."
            ) from error
        try:
            with suppress(OSError):  # on a full disk the lock holds all the same
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
            self.sweep()
            yield
        finally:
            os.close(descriptor)  # the kernel drops the lock, also when the process is killed

    def sweep(self) -> None:
        """Remove the half-written files that a killed run left behind."""
        for folder in (self.path, self.figures):
            for litter in folder.glob(".*.part"):
                with suppress(OSError):
                    litter.unlink()

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file of the run; raises RunFolderError."""
        self.write(name, json_bytes(value))

    def write(self, name: str, content: bytes) -> None:
        try:
            write_atomic(self.path / name, content)
        except OSError as error:
            raise RunFolderError(
                f"{self.path / name} cannot be written ({error.strerror}): make room, or {elsewhere()}."
            ) from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one JSON object of the run; raises RunFolderError."""
        path = self.path / name
        try:
            value = json.loads(path.read_bytes()) if path.is_file() and path.stat().st_size <= MAX_JSON_BYTES else None
        except (OSError, ValueError, RecursionError) as error:
            raise RunFolderError(f"{path} cannot be read ({type(error).__name__}): this run cannot go on.") from error
        if not isinstance(value, dict):
            raise RunFolderError(f"{path} is missing or is not what a run writes: this run cannot go on.")
        return value

    def write_history(self, rows: Sequence[EpochMetrics]) -> None:
        """Write metrics.csv: a line an epoch, empty where there is no validation."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("metrics.csv", text.getvalue().encode())


def require_empty(path: Path) -> None:
    """Raise RunFolderError where `path` holds more than a run leaves that was killed before it began."""
    if foreign_content(path):
        resumable = f", or resume the run in it, {option('resume', True)}" if (path / RECIPE).is_file() else ""
        raise RunFolderError(f"{path} has content already: {elsewhere()}{resumable}.")


def foreign_content(path: Path) -> str:
    """Say what is at `path` beside what a run leaves that was killed before it began; empty where there is nothing."""
    if not path.is_dir():
        return "is a file" if os.path.lexists(path) else ""
    names = sorted(entry.name for entry in path.iterdir() if not is_leftover(entry.name))
    return f"holds {printable(names[0])}" if names else ""


def elsewhere() -> str:
    """The advice that always helps, in the words of the caller."""
    return f"choose another folder, {option('out', 'FOLDER')}"


def newest(name: str) -> Path | None:
    """The runs/NAME-NUMBER of the largest number."""
    runs = numbered_runs(name)
    return runs[max(runs)] if runs else None


def numbered_runs(name: str) -> dict[int, Path]:
    """The folders runs/NAME-NUMBER by number."""
    tails = [(path.name.removeprefix(f"{name}-"), path) for path in RUNS.glob(f"{glob.escape(name)}-[0-9]*")]
    return {int(tail): path for tail, path in tails if tail.isascii() and tail.isdigit()}


def is_leftover(name: str) -> bool:
    """Whether a file is of those that a run killed before its recipe.json leaves: it has nothing to go on with."""
    return name in (LOCK, "data.json") or (name.startswith(".") and name.endswith(".part"))


def create_next(name: str) -> Path:
    """Make the folder after the last of them."""
    RUNS.mkdir(exist_ok=True)
    for number in range(max(numbered_runs(name), default=0) + 1, MAX_RUNS):
        path = RUNS / f"{name}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:  # another trainer was quicker
            continue
        return path
    raise RunFolderError(f"{RUNS} holds {MAX_RUNS} runs of {name}: {elsewhere()}.")
