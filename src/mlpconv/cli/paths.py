"""Find the image files that command-line arguments name: files, folders and patterns."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from mlpconv.data.folder_layout import EXTENSIONS
from mlpconv.errors import DataError, UsageError
from mlpconv.files import is_stream

__all__ = ["ImageFiles", "check_target", "expand", "find_images"]

MAGIC = frozenset("*?[")
MAX_FOLDERS = 1_000_000  # per argument: links between folders multiply


@dataclass
class ImageFiles:
    """Image files in the order of the arguments, and what the folders hold besides."""

    files: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """One sentence for each unreadable folder, and each entry with an image extension that is not a file."""
    foreign: Counter[str] = field(default_factory=Counter)
    """Number of files with other extensions in the folders, by extension."""


def expand(arguments: Sequence[str | Path], recursive: bool = True) -> list[Path]:
    """Return the image files that files, folders and glob patterns name (see `find_images`).

    Raises UsageError for an argument that names no image, DataError for a folder that cannot be read.
    """
    images = find_images(arguments, recursive)
    if images.unreadable:
        raise DataError(images.unreadable[0])
    return images.files


def find_images(arguments: Sequence[str | Path], recursive: bool = True) -> ImageFiles:
    """Return the image files that files, folders and glob patterns name, in the order of the arguments.

    Folders and patterns contribute their files with an image extension, sorted by name; `recursive` includes
    subfolders, also linked ones, as in training. Hidden files and folders are skipped; a file given by name is
    included whatever its extension. Duplicates are kept. Raises UsageError for an argument that names no image.
    """
    if not arguments:
        raise UsageError("No images given: give files, folders or patterns such as 'photos/*.jpg'.")
    images = ImageFiles()
    for argument in arguments:
        problems = len(images.unreadable)
        paths = _Search(images, recursive).paths(Path(argument))
        if not paths and len(images.unreadable) == problems:
            raise UsageError(_explain_no_image(Path(argument)))
        images.files += paths
    return images


def check_target(path: Path, option: str) -> None:
    """Raise UsageError for an output file that cannot be written, before any work is done."""
    folder = path.parent
    if is_stream(path):
        return
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder: give {option} a file.")
    if not folder.is_dir():
        raise UsageError(f"The folder {str(folder)!r} does not exist: create it, or give {option} another file.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"The folder {str(folder)!r} is not writable: give {option} another file.")


class _Search:
    """The search for the images of one argument; what it leaves out goes to `images`."""

    def __init__(self, images: ImageFiles, recursive: bool) -> None:
        self.images, self.recursive, self.folders = images, recursive, 0

    def paths(self, argument: Path) -> list[Path]:
        """Return the image files, sorted; an existing path is never read as a pattern."""
        if argument.is_file():
            return [argument]
        if argument.is_dir():
            return sorted(self._below(argument, ()))
        if os.path.lexists(argument) or not MAGIC & set(str(argument)):
            return []
        first, *rest = argument.parts
        start, parts = (Path(first), rest) if argument.is_absolute() else (Path(), [first, *rest])
        files = {path for match in self._matches(start, parts) for path in self._image_files(match)}
        return sorted(files)

    def _matches(self, base: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Yield the paths that match a pattern; a part that exists is a name, and `**` does not follow links."""
        if not parts:
            yield base
            return
        part, rest = parts[0], parts[1:]
        if os.path.lexists(base / part):
            yield from self._matches(base / part, rest)
        elif part == "**":
            for folder, _, _ in os.walk(base, onerror=self._report_unreadable):
                if not any(name.startswith(".") for name in Path(folder).relative_to(base).parts):
                    yield from self._matches(Path(folder), rest)
        elif "**" in part:
            raise UsageError(f"{part!r} is not a valid pattern: ** must stand alone, as in 'folder/**/*.png'.")
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
        """Yield the image files of a folder; `above` are the real paths of its parents, which end a loop of links."""
        real = os.path.realpath(folder)
        if real in above:
            return
        self.folders += 1
        if self.folders > MAX_FOLDERS:
            raise UsageError(f"Links lead to more than {MAX_FOLDERS:,} folders, the last {str(folder)!r}: give fewer.")
        for entry in self._entries(folder):
            path = folder / entry.name
            if path.is_dir():
                if self.recursive:
                    yield from self._below(path, (*above, real))
            elif path.suffix.lower() not in EXTENSIONS:
                self.images.foreign[path.suffix.lower() or "no extension"] += 1
            elif self._is_regular(path):
                yield path

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Return the visible entries of a folder; report an unreadable folder and return none."""
        try:
            with os.scandir(folder) as entries:
                return [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            self._report_unreadable(error)
            return []

    def _report_unreadable(self, error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        self.images.unreadable.append(f"The folder {os.fsdecode(error.filename)!r} cannot be read: {reason}.")

    def _is_regular(self, path: Path) -> bool:
        """Return whether an entry with an image extension is a file; report a pipe or a broken link."""
        if path.is_file():
            return True
        self.images.unreadable.append(f"{str(path)!r} is not a regular file.")
        return False


def _explain_no_image(argument: Path) -> str:
    """Return why an argument names no image, and what is accepted."""
    extensions = ", ".join(EXTENSIONS)
    if argument.is_dir():
        return f"The folder {str(argument)!r} holds no image file. Accepted extensions: {extensions}."
    if os.path.lexists(argument):
        return f"{str(argument)!r} is not a regular file: give an image file, a folder or a pattern."
    if MAGIC & set(str(argument)):
        return f"The pattern {str(argument)!r} matches no image file. Accepted extensions: {extensions}."
    return f"{str(argument)!r} does not exist: give an image file, a folder or a pattern such as 'photos/*.jpg'."
