"""Image files from what was typed: files, folders and patterns."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from mlpconv.data.folder_layout import EXTENSIONS
from mlpconv.errors import DataError, UsageError

__all__ = ["Found", "check_target", "expand", "find"]

MAGIC = frozenset("*?[")
MOST_FOLDERS = 1_000_000  # of one argument: links between folders multiply


@dataclass
class Found:
    """The image files that arguments stand for, in the order of the arguments, and what was left out of folders."""

    files: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """A sentence for each folder that cannot be read, and each entry that is named like an image and is none."""
    foreign: Counter[str] = field(default_factory=Counter)
    """How many files of other endings lie in the folders, by ending."""


def expand(arguments: Sequence[str | Path], recursive: bool = True) -> list[Path]:
    """The image files that files, folders and glob patterns stand for (see `find`).

    Raises UsageError for an argument that stands for no image, DataError for a folder that cannot be read.
    """
    found = find(arguments, recursive)
    if found.unreadable:
        raise DataError(found.unreadable[0])
    return found.files


def find(arguments: Sequence[str | Path], recursive: bool = True) -> Found:
    """The image files that files, folders and glob patterns stand for, argument after argument, nothing merged.

    Folders and patterns give their files with an image's ending in the order of their names (in all sub-folders if
    recursive, links to folders too, as training reads them; hidden files and folders are left out). A file named
    outright is taken whatever its ending. Raises UsageError for an argument that stands for no image.
    """
    if not arguments:
        raise UsageError("No image was named: give files, folders or patterns such as 'photos/*.jpg'.")
    found = Found()
    for argument in arguments:
        before = len(found.unreadable)
        paths = _Search(found, recursive).paths(Path(argument))
        if not paths and len(found.unreadable) == before:
            raise UsageError(_nothing(Path(argument)))
        found.files += paths
    return found


def check_target(path: Path, option: str) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold; raises UsageError."""
    folder = path.parent
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder: give {option} a file.")
    if not folder.is_dir():
        raise UsageError(f"There is no folder {str(folder)!r}: make it, or give {option} another file.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"The folder {str(folder)!r} cannot be written to: give {option} another file.")


class _Search:
    """What one argument stands for; what is left out goes to `found`."""

    def __init__(self, found: Found, recursive: bool) -> None:
        self.found, self.recursive, self.folders = found, recursive, 0

    def paths(self, given: Path) -> list[Path]:
        """The image files, sorted; a name that exists is never read as a pattern."""
        if given.is_file():
            return [given]
        if given.is_dir():
            return sorted(self._below(given, ()))
        if os.path.lexists(given) or not MAGIC & set(str(given)):
            return []
        first, *rest = given.parts
        start, parts = (Path(first), rest) if given.is_absolute() else (Path(), [first, *rest])
        files = {path for match in self._matches(start, parts) for path in self._image_files(match)}
        return sorted(files)

    def _matches(self, base: Path, parts: Sequence[str]) -> Iterator[Path]:
        """What a pattern matches; a part that exists is a name, and links are not followed below `**`."""
        if not parts:
            yield base
            return
        part, rest = parts[0], parts[1:]
        if os.path.lexists(base / part):
            yield from self._matches(base / part, rest)
        elif part == "**":
            for folder, _, _ in os.walk(base, onerror=self._cannot_be_read):
                if not any(name.startswith(".") for name in Path(folder).relative_to(base).parts):
                    yield from self._matches(Path(folder), rest)
        elif "**" in part:
            raise UsageError(f"{part!r} is not a pattern: ** stands alone. Write it as 'folder/**/*.png'.")
        elif MAGIC & set(part) and base.is_dir():
            for entry in self._entries(base):
                if fnmatchcase(entry.name, part):
                    yield from self._matches(base / entry.name, rest)

    def _image_files(self, match: Path) -> Iterator[Path]:
        if match.is_dir():
            yield from self._below(match, ())
        elif match.suffix.lower() in EXTENSIONS and self._is_regular(match):
            yield match

    def _below(self, folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
        """The image files of a folder; `above` are the real paths of those it lies in, where a loop of links ends."""
        real = os.path.realpath(folder)
        if real in above:
            return
        self.folders += 1
        if self.folders > MOST_FOLDERS:
            raise UsageError(f"Links lead to more than {MOST_FOLDERS:,} folders, at last {str(folder)!r}: name fewer.")
        for entry in self._entries(folder):
            path = folder / entry.name
            if path.is_dir():
                if self.recursive:
                    yield from self._below(path, (*above, real))
            elif path.suffix.lower() not in EXTENSIONS:
                self.found.foreign[path.suffix.lower() or "no ending"] += 1
            elif self._is_regular(path):
                yield path

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """What is visible in a folder; nothing where it cannot be read, which is noted."""
        try:
            with os.scandir(folder) as entries:
                return [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            self._cannot_be_read(error)
            return []

    def _cannot_be_read(self, error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        self.found.unreadable.append(f"The folder {os.fsdecode(error.filename)!r} cannot be read: {reason}.")

    def _is_regular(self, path: Path) -> bool:
        """Whether an entry of an image's ending is a file; a pipe or a broken link is noted."""
        if path.is_file():
            return True
        self.found.unreadable.append(f"{str(path)!r} is not a regular file.")
        return False


def _nothing(given: Path) -> str:
    """Why an argument stands for no image, and what would."""
    endings = ", ".join(EXTENSIONS)
    if given.is_dir():
        return f"The folder {str(given)!r} holds no image file. Accepted endings: {endings}."
    if os.path.lexists(given):
        return f"{str(given)!r} is not a regular file: give an image file, a folder or a pattern."
    if MAGIC & set(str(given)):
        return f"The pattern {str(given)!r} matches no image file. Accepted endings: {endings}."
    return f"{str(given)!r} does not exist: give an image file, a folder or a pattern such as 'photos/*.jpg'."
