"""Run folders: created once, never overwritten, and locked by one training process at a time."""

from __future__ import annotations

import csv
import fcntl
import glob
import io
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlpconv.errors import Interrupted, RunFolderError
from mlpconv.files import MODEL_FILE, json_bytes, write_atomic
from mlpconv.text import option, printable, resume_hint
from mlpconv.training import checkpoint
from mlpconv.training.progress import COLUMNS, EpochMetrics

__all__ = ["RunFolder", "require_empty", "require_usable"]

RUNS = Path("runs")
MAX_RUNS = 100_000
MAX_JSON_BYTES = 64 << 20
LOCK, RECIPE = ".lock", "recipe.json"


class RunFolder:
    """The folder of a run; every file is written atomically."""

    writes = True
    """Whether this process writes the files (see `shared_folder`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self.model = path / MODEL_FILE

    @classmethod
    def create(cls, out: Path | None, name: str, reuse: bool = False) -> RunFolder:
        """Create an empty folder, `out` or the next free runs/NAME-001; raises RunFolderError if `out` is not empty.

        With `reuse`, use the newest runs/NAME-* instead of a new one if no run has started there.
        """
        try:
            if out is None and reuse:
                out = newest_run(name)
            if out is None:
                return cls(create_next(name))
            require_empty(out)
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"the run folder {out or RUNS} cannot be created ({error.strerror}): {other_folder_hint()}."
            ) from error
        return cls(out)

    @classmethod
    def find(cls, out: Path | None, name: str) -> RunFolder | None:
        """Return the folder of a run to resume, `out` or the newest runs/NAME-*; None if no run has started there.

        Raises RunFolderError if `out` is a file, or holds something other than a run.
        """
        path = newest_run(name) if out is None else out
        if path is None:
            return None
        if (path / RECIPE).is_file():
            return cls(path)
        try:
            content = foreign_content(path)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read ({error.strerror}): {other_folder_hint()}.") from error
        if content:
            raise RunFolderError(f"{path} contains no run (no {RECIPE}); it {content}: {other_folder_hint()}.")
        return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder; raises RunFolderError that names the process holding the lock.

        An interruption inside becomes Interrupted, which says how to resume.
        """
        path = self.path / LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written ({error.strerror}): {other_folder_hint()}.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise RunFolderError(
                f"{self.path} is in use by process {holder}: wait for it to finish, or choose another folder."
            ) from error
        try:
            with suppress(OSError):  # the lock is valid on a full disk too
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
            self.remove_partial_files()
            yield
        except KeyboardInterrupt as stop:
            if isinstance(stop, Interrupted) and stop.folder is not None:
                raise
            number = stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT
            raise Interrupted(f"interrupted. {resume_hint(self.path)}", number, self.path) from stop
        finally:
            os.close(descriptor)  # the kernel releases the lock, also when the process is killed

    def remove_partial_files(self) -> None:
        """Remove the incomplete files of a killed run."""
        for folder in (self.path, self.figures):
            for path in folder.glob(".*.part"):
                with suppress(OSError):
                    path.unlink()

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run atomically; raises RunFolderError."""
        self.write(name, json_bytes(value))

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the run atomically; raises RunFolderError."""
        try:
            write_atomic(self.path / name, content)
        except OSError as error:
            raise RunFolderError(
                f"{self.path / name} cannot be written ({error.strerror}): free disk space, or {other_folder_hint()}."
            ) from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object of the run; raises RunFolderError."""
        path = self.path / name
        try:
            value = json.loads(path.read_bytes()) if path.is_file() and path.stat().st_size <= MAX_JSON_BYTES else None
        except (OSError, ValueError, RecursionError) as error:
            raise RunFolderError(
                f"{path} cannot be read ({type(error).__name__}): this run cannot be resumed."
            ) from error
        if not isinstance(value, dict):
            raise RunFolderError(f"{path} is missing or invalid: this run cannot be resumed.")
        return value

    def latest(self) -> tuple[checkpoint.Checkpoint | None, list[str]]:
        """Return the newest intact checkpoint (None if there is none), and messages about newer, damaged ones."""
        return checkpoint.latest(self.checkpoints)

    @contextmanager
    def local(self, path: Path) -> Iterator[Path]:
        """Yield the path of a file of the run that this process can read."""
        yield path

    def write_history(self, rows: Sequence[EpochMetrics]) -> None:
        """Write metrics.csv: one row per epoch, with empty cells if there was no validation."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("metrics.csv", text.getvalue().encode())


def require_usable(path: Path | None) -> None:
    """Raise RunFolderError, before any work, if no run can start in `path` or, for None, in the default folder."""
    if path is not None:
        require_empty(path)
    target = (path or RUNS).absolute()
    existing = next(folder for folder in (target, *target.parents) if os.path.lexists(folder))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunFolderError(f"the run folder {path or RUNS} cannot be written: {other_folder_hint()}.")


def require_empty(path: Path) -> None:
    """Raise RunFolderError if `path` has content, other than what a run leaves that was killed before it started."""
    if foreign_content(path):
        resumable = f", or resume the run in it, {option('resume', True)}" if (path / RECIPE).is_file() else ""
        raise RunFolderError(f"{path} is not empty: {other_folder_hint()}{resumable}.")


def foreign_content(path: Path) -> str:
    """Describe the content of `path`, other than what a run leaves that was killed before it started; "" if empty."""
    if not path.is_dir():
        return "is a file" if os.path.lexists(path) else ""
    names = sorted(entry.name for entry in path.iterdir() if not is_leftover(entry.name))
    return f"contains {printable(names[0])}" if names else ""


def other_folder_hint() -> str:
    """Return the advice to choose another folder, in the syntax of the caller."""
    return f"choose another folder, {option('out', 'FOLDER')}"


def newest_run(name: str) -> Path | None:
    """Return the folder runs/NAME-NUMBER with the largest number, None if there is none."""
    runs = numbered_runs(name)
    return runs[max(runs)] if runs else None


def numbered_runs(name: str) -> dict[int, Path]:
    """Return the folders runs/NAME-NUMBER by number."""
    suffixes = [(path.name.removeprefix(f"{name}-"), path) for path in RUNS.glob(f"{glob.escape(name)}-[0-9]*")]
    return {int(suffix): path for suffix, path in suffixes if suffix.isascii() and suffix.isdigit()}


def is_leftover(name: str) -> bool:
    """Return whether a run that was killed before it wrote recipe.json leaves a file of this name."""
    return name in (LOCK, "data.json") or (name.startswith(".") and name.endswith(".part"))


def create_next(name: str) -> Path:
    """Create the folder after the last one."""
    RUNS.mkdir(exist_ok=True)
    for number in range(max(numbered_runs(name), default=0) + 1, MAX_RUNS):
        path = RUNS / f"{name}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:  # created by another process
            continue
        return path
    raise RunFolderError(f"{RUNS} contains {MAX_RUNS} runs of {name}: {other_folder_hint()}.")
