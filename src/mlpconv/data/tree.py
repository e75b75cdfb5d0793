"""A folder's entries as the readers of data see them, and the folders among them that this program wrote."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from mlpconv.errors import DataError

__all__ = ["EXTENSIONS", "entries", "folders", "has_images", "is_image", "is_ours", "kind"]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm")
SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")  # in no case a class
RUN_FILES = frozenset({"data.json", "recipe.json"})  # what `mlpconv train` writes first
MAPS_SHEET = "sheet.png"
MAPS_PICTURE = re.compile(r"sheet(-\d+)?\.png|.*-maps\.png", re.DOTALL)  # what `mlpconv maps` writes


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, hidden entries and the system's own folders apart, in the order of the bytes of the names.

    Raises DataError where it cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            kept = [entry for entry in found if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM]
    except OSError as error:
        raise DataError(f"{str(folder)!r} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    return sorted(kept, key=lambda entry: os.fsencode(entry.name))


def kind(entry: os.DirEntry[str]) -> int:
    """The type of what an entry leads to, links followed; 0 for a link that leads nowhere or in a circle."""
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return 0


def folders(folder: Path) -> list[Path]:
    """The folders in a folder."""
    return [Path(entry.path) for entry in entries(folder) if kind(entry) == stat.S_IFDIR]


def is_image(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a regular file with the name of an image."""
    return entry.name.lower().endswith(EXTENSIONS) and kind(entry) == stat.S_IFREG


def has_images(folder: Path) -> bool:
    """Whether images lie directly in a folder."""
    return any(is_image(entry) for entry in entries(folder))


def is_ours(folder: Path) -> bool:
    """Whether a folder is the output of `mlpconv train` or `maps`, or holds nothing but such folders."""
    try:
        inside = entries(folder)
        if _is_output(inside):
            return True
        if not inside or any(entry.is_file(follow_symlinks=False) for entry in inside):
            return False
        return all(kind(entry) == stat.S_IFDIR and _is_output(entries(Path(entry.path))) for entry in inside)
    except DataError:  # whoever reads it will say so
        return False


def _is_output(inside: list[os.DirEntry[str]]) -> bool:
    """Whether these are the contents of a run folder or of a folder of map pictures."""
    names = {entry.name for entry in inside}
    if names >= RUN_FILES:
        return True
    return MAPS_SHEET in names and all(MAPS_PICTURE.fullmatch(name) for name in names)
