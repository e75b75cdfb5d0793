"""Find the splits, classes and image files of a data folder without opening any file.

Layouts that could mean two things are refused. Outputs of mlpconv inside the folder are skipped.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlpconv.errors import DataError
from mlpconv.text import composed, printable

__all__ = [
    "EXTENSIONS", "MAX_NAMED", "ScannedSplit", "abbreviated", "has_images", "scan_folder", "split_word", "subfolders",
]  # fmt: skip

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm")
SYSTEM_FOLDERS = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")  # never a class
SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # skipped without a note
RUN_FILES = frozenset({"data.json", "recipe.json"})  # the first files that `mlpconv train` writes
MAPS_SHEET = "sheet.png"
MAPS_IMAGE = re.compile(r"sheet(-\d+)?\.png|.*-maps\.png", re.DOTALL)  # the files that `mlpconv maps` writes
MAX_NAMED = 5
_WORDS = {
    "train": ("train", "training", "trainset", "trainingset"),
    "val": ("val", "valid", "validation", "valset", "validset", "validationset", "dev", "devset"),
    "test": ("test", "testing", "testset", "testingset"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}


@dataclass
class ScannedSplit:
    """The image files of one split by class, in a fixed order, and the files and folders that were left out."""

    images: dict[str, list[Path]] = field(default_factory=dict)
    other_files: list[Path] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)


def scan_folder(folder: Path) -> tuple[dict[str, ScannedSplit], list[str]]:
    """Return the splits of a folder of class folders (or of train/, val/ and test/ with class folders), and notes.

    A class is named after its folder, in Unicode's composed form (NFC). Hidden files and folders and outputs of mlpconv
    are skipped. Links are followed, but no folder is entered twice. No file is opened.
    Raises DataError if there are no class folders or a folder cannot be read.
    """
    split_folders, notes = _find_splits(folder)
    splits: dict[str, ScannedSplit] = {}
    for name, path in split_folders.items():
        split = splits[name] = ScannedSplit()
        for class_folder in _class_folders(path):
            images = _walk(class_folder, {folder.resolve(), path.resolve()}, split)
            split.images.setdefault(composed(printable(class_folder.name)), []).extend(images)
    other_files = [path for split in splits.values() for path in split.other_files]
    if other_files:
        notes.append(_other_files_note(other_files, folder))
    broken = [path for top in dict.fromkeys((folder, *split_folders.values())) for path in _broken_links(top)]
    if broken:
        notes.append(f"left out, as they are links that lead nowhere: {_first_paths(broken, folder)}.")
    outputs = [path for split in splits.values() for path in split.outputs]
    if outputs:
        notes.append(f"left out, written by mlpconv: {_first_paths(outputs, folder)}.")
    return splits, notes


def split_word(name: str) -> str | None:
    """Return the split that the first word of a file name says, as in val-000, None if it says none."""
    words = re.findall(r"[a-z]+", name.lower())
    return _SPLIT_OF.get(words[0]) if words else None


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders directly inside a folder, sorted by name."""
    return [Path(entry.path) for entry in _entries(folder) if _file_type(entry) == stat.S_IFDIR]


def _broken_links(folder: Path) -> list[Path]:
    """Return the broken and circular links directly inside a folder, where a class may be missing."""
    return [Path(entry.path) for entry in _entries(folder) if entry.is_symlink() and not _file_type(entry)]


def has_images(folder: Path) -> bool:
    """Return whether a folder directly contains image files."""
    return any(_is_image(entry) for entry in _entries(folder))


def abbreviated(names: Sequence[str], limit: int = MAX_NAMED) -> str:
    """Join the first names with commas; append the total if there are more."""
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


# Splits and classes


def _find_splits(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each split, and notes; a folder without split folders is all `train`.

    Raises DataError if two folders name the same split.
    """
    inside, outputs = _separate_outputs(folder)
    notes = [f"left out, written by mlpconv: {abbreviated(_names(outputs))}."] if outputs else []
    splits = _splits_by_name(folder, inside) or _splits_by_word(inside)
    if not splits:
        return {"train": folder}, notes
    rest = [path for path in inside if path not in splits.values()]
    if rest:
        beside = printable(splits["train"].name)
        notes.append(f"left out, beside {beside}/: {abbreviated(_names(rest))}.")
    if "train" in splits:
        flat = [split for split, path in splits.items() if split != "train" and not subfolders(path)]
        for split in flat:
            name = printable(splits.pop(split).name)
            notes.append(f"left out {name}/: it has no class folders, so its images have no labels.")
    return splits, notes


def _class_folders(folder: Path) -> list[Path]:
    """Return the class folders of one split; raise DataError if there are none, or if they hold splits."""
    classes, _ = _separate_outputs(folder)
    if not classes:
        raise DataError(
            f"{str(folder)!r} has no class folders: put the images of each class into a folder of its own, "
            f"as in {folder.name}/cat/1.png and {folder.name}/dog/1.png."
        )
    _refuse_ambiguous(folder, classes)
    return classes


def _separate_outputs(folder: Path) -> tuple[list[Path], list[Path]]:
    """Separate the folders inside a folder into the user's and those that mlpconv wrote."""
    inside = subfolders(folder)
    outputs = [path for path in inside if _is_mlpconv_output(path)]
    return [path for path in inside if path not in outputs], outputs


def _splits_by_name(folder: Path, inside: list[Path]) -> dict[str, Path]:
    """Find splits by folder names such as train or Testing; return none if the folders may as well be classes."""
    splits: dict[str, Path] = {}
    for path in inside:
        split = _SPLIT_OF.get(path.name.lower())
        if split in splits:
            raise DataError(f"{str(folder)!r} has both {splits[split].name}/ and {path.name}/: remove one of them.")
        if split is not None:
            splits[split] = path
    alone = len(splits) == len(inside)
    return splits if alone or ("train" in splits and subfolders(splits["train"])) else {}


def _splits_by_word(inside: list[Path]) -> dict[str, Path]:
    """Find splits by a word in folder names, as in seg_train and test_set, if these contain only folders."""
    splits: dict[str, Path] = {}
    for path in inside:
        words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.name).lower())
        matches = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
        if len(matches) != 1 or has_images(path) or not subfolders(path):
            continue
        if not matches.isdisjoint(splits):
            return {}
        splits[matches.pop()] = path
    rest = [path for path in inside if path not in splits.values()]
    return splits if "train" in splits and len(splits) > 1 and not any(map(_may_be_class, rest)) else {}


def _may_be_class(folder: Path) -> bool:
    """Return whether a folder has images directly inside it or one level below."""
    return has_images(folder) or any(map(has_images, subfolders(folder)))


def _refuse_ambiguous(folder: Path, classes: list[Path]) -> None:
    """Raise DataError if the class folders have no images but share folder names, which may be the real classes."""
    if len(classes) < 2 or any(map(has_images, classes)):
        return
    below = [{composed(path.name).casefold(): path.name for path in subfolders(class_)} for class_ in classes]
    below = [names for names in below if names]
    shared = set.intersection(*map(set, below)) if len(below) > 1 else set()
    if len(shared) < 2:
        return
    inner = sorted(printable(below[0][name]) for name in shared)
    top, first = abbreviated(_names(classes)), printable(classes[0].name)
    problem = f"in {str(folder)!r}, {top} have no images but contain the same folders ({abbreviated(inner)})"
    if any(name in _SPLIT_OF for name in shared):
        raise DataError(f"{problem}: put the splits on top, as in {folder.name}/{inner[0]}/{first}/1.png.")
    raise DataError(
        f"{problem}, so either level may be the classes. If {abbreviated(inner, 2)} are the classes and {first} is a "
        f"split, rename {first} to train, val or test, or pass {str(classes[0])!r}. If {first} is a class, move its "
        "images up into it."
    )


# Files


def _walk(top: Path, visited: set[Path], split: ScannedSplit) -> list[Path]:
    """Return all image files below a class folder; record other files and outputs of mlpconv in the split."""
    images: list[Path] = []
    stack = [top]
    while stack:
        folder = stack.pop()
        real = folder.resolve()
        if real in visited:
            continue
        visited.add(real)
        inner: list[Path] = []
        for entry in _entries(folder):
            path = Path(entry.path)
            if _file_type(entry) == stat.S_IFDIR:
                (split.outputs if _is_mlpconv_output(path) else inner).append(path)
            elif _is_image(entry):
                images.append(path)
            elif entry.name.lower() not in SYSTEM_FILES:
                split.other_files.append(path)
        stack.extend(reversed(inner))
    return images


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder without hidden entries and system folders, sorted by the bytes of the names.

    Raises DataError if the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in SYSTEM_FOLDERS]
    except OSError as error:
        raise DataError(f"{str(folder)!r} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    return sorted(visible, key=lambda entry: os.fsencode(entry.name))


def _file_type(entry: os.DirEntry[str]) -> int:
    """Return the file type after following links; 0 for a broken or circular link."""
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return 0


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a regular file with an image extension."""
    return entry.name.lower().endswith(EXTENSIONS) and _file_type(entry) == stat.S_IFREG


def _is_mlpconv_output(folder: Path) -> bool:
    """Return whether a folder is an output of `mlpconv train` or `maps`, or contains only such folders."""
    try:
        inside = _entries(folder)
        if _looks_like_output(inside):
            return True
        if not inside or any(entry.is_file(follow_symlinks=False) for entry in inside):
            return False
        return all(
            _file_type(entry) == stat.S_IFDIR and _looks_like_output(_entries(Path(entry.path))) for entry in inside
        )
    except DataError:  # reported when the folder is read
        return False


def _looks_like_output(inside: list[os.DirEntry[str]]) -> bool:
    """Return whether these are the entries of a run folder or of a folder of map images."""
    names = {entry.name for entry in inside}
    if names >= RUN_FILES:
        return True
    return MAPS_SHEET in names and all(MAPS_IMAGE.fullmatch(name) for name in names)


# Notes


def _other_files_note(paths: list[Path], folder: Path) -> str:
    """Return one sentence about the files that are not images."""
    extensions = Counter(path.suffix.lower() or "no extension" for path in paths)
    counted = ", ".join(f"{printable(suffix)} {count}" for suffix, count in extensions.most_common(MAX_NAMED))
    files = "1 file that is not an image" if len(paths) == 1 else f"{len(paths):,} files that are not images"
    return f"left out {files} of a supported type ({counted}): {_first_paths(paths, folder)}."


def _first_paths(paths: list[Path], folder: Path) -> str:
    named = ", ".join(printable(str(path.relative_to(folder))) for path in paths[:MAX_NAMED])
    return named + (", ..." if len(paths) > MAX_NAMED else "")


def _names(paths: Sequence[Path]) -> list[str]:
    return [printable(path.name) for path in paths]
