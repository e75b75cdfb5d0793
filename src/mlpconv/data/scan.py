"""What lies in a folder of images: its splits, classes and files, found without opening any of them."""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mlpconv.errors import DataError
from mlpconv.text import printable

__all__ = ["EXTENSIONS", "Found", "scan"]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm")
_SPLIT_OF = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_QUIET = ("thumbs.db", "desktop.ini")
NAMED = 5


@dataclass
class Found:
    """The image files of one split by class, in a fixed order, and the other files beside them."""

    images: dict[str, list[Path]] = field(default_factory=dict)
    foreign: list[Path] = field(default_factory=list)


def scan(folder: Path) -> tuple[dict[str, Found], list[str]]:
    """The splits of a folder of class folders (or of train/, val/ and test/ with class folders), and notes.

    Hidden files and folders are passed over; links are followed, but into no folder twice; nothing is opened.
    Raises DataError where there are no class folders or a folder cannot be read.
    """
    parts, notes = _layout(folder)
    found: dict[str, Found] = {}
    for split, path in parts.items():
        classes = _folders(path)
        if not classes:
            raise DataError(_no_classes(path))
        found[split] = Found()
        for entry in classes:
            images = _walk(entry, {folder.resolve(), path.resolve()}, found[split].foreign)
            found[split].images.setdefault(printable(entry.name), []).extend(images)
    foreign = [path for part in found.values() for path in part.foreign]
    if foreign:
        notes.append(_foreign_note(foreign, folder))
    return found, notes


def _layout(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of each split, and notes; a folder without split folders is all `train`."""
    folders = _folders(folder)
    splits: dict[str, Path] = {}
    others = []
    for path in folders:
        split = _SPLIT_OF.get(path.name.lower())
        if split is None:
            others.append(path.name)
        elif split in splits:
            raise DataError(f"{str(folder)!r} has both {splits[split].name}/ and {path.name}/: leave one of them.")
        else:
            splits[split] = path
    if others and not ("train" in splits and _folders(splits["train"])):
        return {"train": folder}, []
    if not splits:
        raise DataError(_no_classes(folder))
    notes = []
    if others:
        names = ", ".join(map(printable, others[:NAMED]))
        notes.append(f"left out, as they lie beside train/: {names}{', ...' if len(others) > NAMED else ''}.")
    return splits, notes


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, hidden entries apart, in the order of the bytes of the names."""
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{str(folder)!r} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    return sorted(kept, key=lambda entry: os.fsencode(entry.name))


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if _kind(entry) == stat.S_IFDIR]


def _kind(entry: os.DirEntry[str]) -> int:
    """The type of what an entry leads to, links followed; 0 for a link that leads nowhere or in a circle."""
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return 0


def _walk(top: Path, visited: set[Path], foreign: list[Path]) -> list[Path]:
    """All files below a class folder with the name of an image; the others are put into `foreign`."""
    images: list[Path] = []
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        real = folder.resolve()
        if real in visited:
            continue
        visited.add(real)
        inner: list[Path] = []
        for entry in _entries(folder):
            kind, path = _kind(entry), Path(entry.path)
            if kind == stat.S_IFDIR:
                inner.append(path)
            elif kind == stat.S_IFREG and path.suffix.lower() in EXTENSIONS:
                images.append(path)
            elif entry.name.lower() not in _QUIET:
                foreign.append(path)
        waiting.extend(reversed(inner))
    return images


def _foreign_note(foreign: list[Path], folder: Path) -> str:
    """One sentence about the files that are not images."""
    kinds = Counter(path.suffix.lower() or "no extension" for path in foreign)
    counted = ", ".join(f"{printable(kind)} {count}" for kind, count in kinds.most_common(NAMED))
    named = ", ".join(printable(str(path.relative_to(folder))) for path in foreign[:NAMED])
    more = ", ..." if len(foreign) > NAMED else ""
    files = "1 file that is not an image" if len(foreign) == 1 else f"{len(foreign):,} files that are not images"
    return f"left out {files} of a kind read here ({counted}): {named}{more}."


def _no_classes(folder: Path) -> str:
    return (
        f"{str(folder)!r} has no class folders: put the images of each class into a folder of its own, "
        f"as in {folder.name}/cat/1.png and {folder.name}/dog/1.png."
    )
