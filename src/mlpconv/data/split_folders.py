"""Which folders of a data folder are splits, which are classes, and which layouts are neither."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mlpconv.data.tree import folders, has_images, is_ours
from mlpconv.errors import DataError
from mlpconv.text import composed, printable

__all__ = ["NAMED", "class_folders", "few", "find_splits", "no_classes"]

NAMED = 5
_WORDS = {
    "train": ("train", "training", "trainset", "trainingset"),
    "val": ("val", "valid", "validation", "valset", "validset", "validationset", "dev", "devset"),
    "test": ("test", "testing", "testset", "testingset"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}


def find_splits(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of each split, and notes; a folder without split folders is all `train`.

    Raises DataError for a folder without any folder in it, and for two folders of one split.
    """
    inside, ours = _parted(folder)
    notes = [f"left out, as mlpconv wrote {'them' if len(ours) > 1 else 'it'}: {few(_names(ours))}."] if ours else []
    splits = _by_name(folder, inside) or _by_words(inside)
    if not splits:
        return {"train": folder}, notes
    others = [path for path in inside if path not in splits.values()]
    if others:
        beside = printable(splits["train"].name)
        notes.append(f"left out, as they lie beside {beside}/: {few(_names(others))}.")
    if "train" in splits:
        flat = [split for split, path in splits.items() if split != "train" and not folders(path)]
        for split in flat:
            name = printable(splits.pop(split).name)
            notes.append(f"{name}/ is left out: it has no class folders, so nothing says what its images show.")
    return splits, notes


def class_folders(folder: Path) -> list[Path]:
    """The class folders of one split; raises DataError where there are none, or where they are splits by content."""
    classes, _ = _parted(folder)
    if not classes:
        raise DataError(no_classes(folder))
    _refuse_splits(folder, classes)
    return classes


def no_classes(folder: Path) -> str:
    """What to say of a folder without class folders."""
    return (
        f"{str(folder)!r} has no class folders: put the images of each class into a folder of its own, "
        f"as in {folder.name}/cat/1.png and {folder.name}/dog/1.png."
    )


def few(names: Sequence[str], most: int = NAMED) -> str:
    """The first of some names, and how many there are of many."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def _parted(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders in a folder: those of the user, and those that this program wrote."""
    inside = folders(folder)
    ours = [path for path in inside if is_ours(path)]
    return [path for path in inside if path not in ours], ours


def _names(paths: Sequence[Path]) -> list[str]:
    return [printable(path.name) for path in paths]


def _by_name(folder: Path, inside: list[Path]) -> dict[str, Path]:
    """The splits among folders by names such as train or Testing; none where they may as well be classes."""
    splits: dict[str, Path] = {}
    for path in inside:
        split = _SPLIT_OF.get(path.name.lower())
        if split in splits:
            raise DataError(f"{str(folder)!r} has both {splits[split].name}/ and {path.name}/: leave one of them.")
        if split is not None:
            splits[split] = path
    alone = len(splits) == len(inside)
    return splits if alone or ("train" in splits and folders(splits["train"])) else {}


def _by_words(inside: list[Path]) -> dict[str, Path]:
    """The splits among folders by a word of their names, as in seg_train and test_set, if they hold only folders."""
    splits: dict[str, Path] = {}
    for path in inside:
        words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.name).lower())
        meant = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
        if len(meant) != 1 or has_images(path) or not folders(path):
            continue
        if not meant.isdisjoint(splits):
            return {}
        splits[meant.pop()] = path
    rest = [path for path in inside if path not in splits.values()]
    return splits if "train" in splits and len(splits) > 1 and not any(map(_full, rest)) else {}


def _full(folder: Path) -> bool:
    """Whether a folder has images in it or in a folder in it."""
    return has_images(folder) or any(map(has_images, folders(folder)))


def _refuse_splits(folder: Path, classes: list[Path]) -> None:
    """Raise DataError where the class folders hold the same folders and no image of their own: splits, or subjects."""
    if len(classes) < 2 or any(map(has_images, classes)):
        return
    below = [{composed(path.name).casefold(): path.name for path in folders(each)} for each in classes]
    below = [names for names in below if names]
    shared = set.intersection(*map(set, below)) if len(below) > 1 else set()
    if len(shared) < 2:
        return
    inner = sorted(printable(below[0][name]) for name in shared)
    top, first = few(_names(classes)), printable(classes[0].name)
    found = f"in {str(folder)!r}, {top} hold no image but the same folders ({few(inner)})"
    if any(name in _SPLIT_OF for name in shared):
        raise DataError(f"{found}: put the splits on top, as in {folder.name}/{inner[0]}/{first}/1.png.")
    raise DataError(
        f"{found}, so either may be the classes. If {few(inner, 2)} are, and {first} is a split, rename {first} to "
        f"train, val or test, or give {str(classes[0])!r} alone. If {first} is a class, move its images up into it."
    )
