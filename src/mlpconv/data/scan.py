"""What lies in a folder of images: its splits, classes and files, found without opening any of them."""

from __future__ import annotations

import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mlpconv.data.split_folders import NAMED, class_folders, find_splits
from mlpconv.data.tree import EXTENSIONS, entries, is_image, is_ours, kind
from mlpconv.text import composed, printable

__all__ = ["EXTENSIONS", "Found", "scan"]

_QUIET = ("thumbs.db", "desktop.ini")


@dataclass
class Found:
    """The image files of one split by class, in a fixed order, and what else lies beside them."""

    images: dict[str, list[Path]] = field(default_factory=dict)
    foreign: list[Path] = field(default_factory=list)
    ours: list[Path] = field(default_factory=list)


def scan(folder: Path) -> tuple[dict[str, Found], list[str]]:
    """The splits of a folder of class folders (or of train/, val/ and test/ with class folders), and notes.

    A class has the name of its folder in Unicode's composed form (NFC). Hidden files and folders are passed over, and
    so is what this program wrote; links are followed, but into no folder twice; nothing is opened.
    Raises DataError where there are no class folders or a folder cannot be read.
    """
    parts, notes = find_splits(folder)
    found: dict[str, Found] = {}
    for split, path in parts.items():
        part = found[split] = Found()
        for entry in class_folders(path):
            images = _walk(entry, {folder.resolve(), path.resolve()}, part)
            part.images.setdefault(composed(printable(entry.name)), []).extend(images)
    foreign = [path for part in found.values() for path in part.foreign]
    if foreign:
        notes.append(_foreign_note(foreign, folder))
    ours = [path for part in found.values() for path in part.ours]
    if ours:
        notes.append(f"left out, as mlpconv wrote {'them' if len(ours) > 1 else 'it'}: {_some(ours, folder)}.")
    return found, notes


def _walk(top: Path, visited: set[Path], part: Found) -> list[Path]:
    """All files below a class folder with the name of an image; what is none goes to the part's other lists."""
    images: list[Path] = []
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        real = folder.resolve()
        if real in visited:
            continue
        visited.add(real)
        inner: list[Path] = []
        for entry in entries(folder):
            path = Path(entry.path)
            if kind(entry) == stat.S_IFDIR:
                (part.ours if is_ours(path) else inner).append(path)
            elif is_image(entry):
                images.append(path)
            elif entry.name.lower() not in _QUIET:
                part.foreign.append(path)
        waiting.extend(reversed(inner))
    return images


def _foreign_note(foreign: list[Path], folder: Path) -> str:
    """One sentence about the files that are not images."""
    kinds = Counter(path.suffix.lower() or "no extension" for path in foreign)
    counted = ", ".join(f"{printable(suffix)} {count}" for suffix, count in kinds.most_common(NAMED))
    files = "1 file that is not an image" if len(foreign) == 1 else f"{len(foreign):,} files that are not images"
    return f"left out {files} of a kind read here ({counted}): {_some(foreign, folder)}."


def _some(paths: list[Path], folder: Path) -> str:
    named = ", ".join(printable(str(path.relative_to(folder))) for path in paths[:NAMED])
    return named + (", ..." if len(paths) > NAMED else "")
