"""Image files from what was typed: files, folders and patterns."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlpconv.data.scan import EXTENSIONS
from mlpconv.errors import UsageError

__all__ = ["expand"]

MAGIC = frozenset("*?[")


def expand(arguments: Sequence[str | Path], recursive: bool = True) -> list[Path]:
    """The image files that files, folders and glob patterns stand for: sorted, each file once.

    Folders and patterns give their regular files with an image's ending (in all sub-folders if recursive; hidden
    files and folders behind symbolic links are left out). A file named outright is taken whatever its ending.
    Raises UsageError for an argument that stands for no image.
    """
    if not arguments:
        raise UsageError("No image was named: give files, folders or patterns such as 'photos/*.jpg'.")
    found: dict[Path, Path] = {}
    for argument in arguments:
        paths = _stand_for(Path(argument), recursive)
        if not paths:
            raise UsageError(_nothing(Path(argument)))
        for path in paths:
            found.setdefault(path.resolve(), path)
    return sorted(found.values())


def _stand_for(given: Path, recursive: bool) -> list[Path]:
    """The image files one argument stands for, in no order; a name that exists is never read as a pattern."""
    if given.is_file():
        return [given]
    if given.is_dir():
        return list(_in_folder(given, recursive))
    if os.path.lexists(given) or not MAGIC & set(str(given)):
        return []
    return [path for match in _matches(given) for path in _image_files(match, recursive)]


def _matches(pattern: Path) -> list[Path]:
    """What a glob pattern matches; symbolic links are not followed below `**`, so a loop of links ends."""
    first = next(i for i, part in enumerate(pattern.parts) if MAGIC & set(part))
    try:
        matches = list(Path(*pattern.parts[:first]).glob(str(Path(*pattern.parts[first:]))))
    except ValueError as error:
        raise UsageError(f"{str(pattern)!r} is not a pattern: {error}. Write it as 'folder/**/*.png'.") from None
    return [path for path in matches if not any(part.startswith(".") for part in path.parts[first:])]


def _image_files(match: Path, recursive: bool) -> Iterator[Path]:
    if match.is_dir():
        yield from _in_folder(match, recursive)
    elif _is_image(match):
        yield match


def _in_folder(folder: Path, recursive: bool) -> Iterator[Path]:
    for where, below, names in os.walk(folder, followlinks=False):
        below[:] = [name for name in below if recursive and not name.startswith(".")]
        yield from (path for path in (Path(where, name) for name in names) if _is_image(path))


def _is_image(path: Path) -> bool:
    """Whether it is a regular, visible file with an image's ending; a pipe or a broken link is not."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()


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
