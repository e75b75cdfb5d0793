"""A folder of class folders as a data set: what is there is found out, read under limits, and reported."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlpconv.data.dataset import Dataset, Split, make_dataset, select
from mlpconv.data.decode import decode_hashed
from mlpconv.data.duplicates import copies, mark
from mlpconv.data.held_out import HoldOutRule
from mlpconv.data.scan import Found, scan
from mlpconv.data.split_folders import NAMED, few
from mlpconv.data.storage import allocate
from mlpconv.data.survey import Files, choose_bits, choose_fit, choose_size, in_pieces, note_size, survey
from mlpconv.data.tree import folders, has_images
from mlpconv.decode_options import DecodeOptions
from mlpconv.errors import DataError, ImageError
from mlpconv.text import composed, natural, printable

__all__ = ["open_folder"]

UNEVEN = 3  # classes are uneven when the largest has so many times the images of the smallest


def open_folder(
    folder: Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    val_fraction: float = 0.2,
    max_bad: float = 0.1,
    fit: str | None = None,
    bits: int | None = None,
    membership: HoldOutRule | None = None,
) -> Dataset:
    """Read FOLDER/class/* or FOLDER/train|val|test/class/*; what is not given is found out (see `open_data`)."""
    found, notes = scan(folder)
    names = _class_names(folder, found, classes, notes)
    files = {split: _numbered(part, names) for split, part in found.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks about odd metadata; what matters is in the notes
        if size is None or channels is None or fit is None or bits is None:
            headers = {split: survey(part) for split, part in files.items()}
            _check_bad(folder, files, max_bad)
            shapes = [header for part in headers.values() for header in part]
            size = choose_size(shapes) if size is None else size
            channels = max(header.channels for header in shapes) if channels is None else channels
            fit = choose_fit(shapes) if fit is None else fit
            notes += note_size(shapes, size, fit)
            if bits is None:
                bits = choose_bits(files, headers, notes)
        decode_options = DecodeOptions(fit, bits)
        splits = {split: _read(part, folder, channels, size, decode_options) for split, part in files.items()}
    _check_bad(folder, files, max_bad)
    _note_bad(files, notes)
    if classes is None:
        names, splits = _without_empty(names, splits, notes)
    _check_classes(folder, names, splits, classes)
    notes[:0] = copies(splits, {split: part.marks for split, part in files.items()}, names)
    if "train" in splits:
        _note_uneven(splits["train"], names, notes)
        if "val" in splits or val_fraction == 0:
            membership = None
        elif membership is None:
            membership = _held_out(splits["train"], files["train"], names, val_fraction, seed, notes)
        if membership is not None:
            splits = _with_val(splits, membership.held_out(files["train"].contents))
    dataset = make_dataset(printable(folder.resolve().name), names, splits, notes)
    return replace(dataset, membership=membership, decode_options=decode_options)


def _class_names(
    folder: Path, found: dict[str, Found], classes: Sequence[str] | None, notes: list[str]
) -> tuple[str, ...]:
    """The classes in order: those given, or those of train (of all splits where there is no train), sorted."""
    for split, part in found.items():
        empty = [name for name, images in part.images.items() if not images]
        if empty:
            notes.append(f"without any image, and left out, in {split}: {', '.join(empty)}.")
    first = [found["train"]] if "train" in found else list(found.values())
    there = sorted({name for part in first for name, images in part.images.items() if images}, key=natural)
    known = tuple(there if classes is None else classes)
    spelled = {composed(name) for name in known}
    for split, part in found.items():
        unknown = [name for name, images in part.images.items() if images and name not in spelled]
        if unknown:
            source = "the model's" if classes is not None else "those of train"
            raise DataError(
                f"{str(folder)!r}, {split}: classes that are not among {source}: {few(unknown, 2 * NAMED)}. "
                f"Accepted: {few(known, 2 * NAMED)}. Rename or remove those folders."
            )
    if not known or not any(images for part in found.values() for images in part.images.values()):
        raise DataError(f"{str(folder)!r} has class folders but no image in them that can be read here.")
    return known


def _numbered(found: Found, names: tuple[str, ...]) -> Files:
    number = {composed(name): label for label, name in enumerate(names)}
    pairs = [(path, number[name]) for name in sorted(found.images, key=natural) for path in found.images[name]]
    return Files([path for path, _ in pairs], [label for _, label in pairs])


def _read(files: Files, folder: Path, channels: int, size: int, decode_options: DecodeOptions) -> Split:
    """Decode every image of a split; files that cannot be read move to `bad`."""
    images = allocate((len(files.paths), channels, size, size))

    def read(path: Path) -> tuple[np.ndarray, bytes]:
        return decode_hashed(path, channels=channels, size=(size, size), decode_options=decode_options)

    good: list[int] = []
    for position, (pixels, content) in in_pieces(read, files):
        images[len(good)] = pixels
        good.append(position)
        files.contents.append(content)
        files.marks.append(mark(pixels))
    files.keep(good)
    names = tuple(printable(str(path.relative_to(folder))) for path in files.paths)
    return Split(images[: len(good)], np.array(files.labels, np.int64), names)


def _check_bad(folder: Path, files: dict[str, Files], max_bad: float) -> None:
    """Stop where too many files cannot be read; raises DataError naming some."""
    bad = [error for part in files.values() for error in part.bad]
    total = len(bad) + sum(len(part.paths) for part in files.values())
    if len(bad) > max_bad * total or len(bad) == total:
        raise DataError(
            f"{len(bad):,} of {total:,} image files in {str(folder)!r} cannot be read (accepted: up to {max_bad:.0%}). "
            f"{_reasons(bad)} Repair or remove them."
        )


def _note_bad(files: dict[str, Files], notes: list[str]) -> None:
    bad = [error for part in files.values() for error in part.bad]
    if bad:
        notes.append(f"skipped {len(bad):,} image file{'s' * (len(bad) > 1)} that cannot be read. {_reasons(bad)}")


def _reasons(bad: list[ImageError]) -> str:
    """What is wrong with the first files, one short sentence each."""
    first = [printable(str(error)).split("; ")[0].rstrip(".") + "." for error in bad[:NAMED]]
    return " ".join(first) + (" ..." if len(bad) > NAMED else "")


def _without_empty(
    names: tuple[str, ...], splits: dict[str, Split], notes: list[str]
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Drop the classes none of whose images could be read, and number the others anew."""
    there = np.unique(np.concatenate([split.labels for split in splits.values()]))
    if len(there) == len(names):
        return names, splits
    gone = [name for label, name in enumerate(names) if label not in there]
    notes.append(f"left out, because none of its images can be read: {', '.join(gone)}.")
    renumbered = {
        key: Split(split.images, np.searchsorted(there, split.labels).astype(np.int64), split.names)
        for key, split in splits.items()
    }
    return tuple(names[label] for label in there), renumbered


def _check_classes(
    folder: Path, names: tuple[str, ...], splits: dict[str, Split], classes: Sequence[str] | None
) -> None:
    if classes is None and len(names) < 2:
        raise DataError(
            f"{str(folder)!r} has one class only ({', '.join(names)}): give at least two folders of images"
            f"{_level_below(folder)}."
        )
    for key in [key for key, split in splits.items() if not len(split)]:
        raise DataError(f"{str(folder)!r} has no image in {key} that can be read: add some, or remove {key}/.")


def _level_below(folder: Path) -> str:
    """The folder to give instead, where the class folders lie one level further down, as in some archives."""
    inside = folders(folder)
    classes = folders(inside[0]) if len(inside) == 1 and not has_images(inside[0]) else []
    if len(classes) < 2:
        return ""
    return f", or give {str(inside[0])!r}, which holds {few([printable(path.name) for path in classes])}"


def _note_uneven(train: Split, names: tuple[str, ...], notes: list[str]) -> None:
    """Say so where some classes have many more training images than others."""
    counts = np.bincount(train.labels, minlength=len(names))
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    if counts[order[0]] >= UNEVEN * counts[order[-1]]:
        shown = order if len(order) <= 2 * NAMED else [*order[:NAMED], *order[-NAMED:]]
        listed = ", ".join(f"{names[i]} {counts[i]:,}" for i in shown)
        notes.append(
            f"classes are uneven, {counts[order[0]] / counts[order[-1]]:.1f} to 1 in training images: {listed}"
            f"{' (the largest and the smallest)' if len(shown) < len(order) else ''}."
        )


def _held_out(
    train: Split, files: Files, names: tuple[str, ...], fraction: float, seed: int, notes: list[str]
) -> HoldOutRule:
    """Draw the fraction of every class from the training images, and say which images are held out."""
    membership = HoldOutRule.draw(files.contents, [mark.pixels for mark in files.marks], train.labels, fraction, seed)
    held = membership.held_out(files.contents)
    there, taken = (np.bincount(labels, minlength=len(names)) for labels in (train.labels, train.labels[held]))
    whole = [names[i] for i in np.flatnonzero((there > 0) & (taken == 0))]
    if whole:
        notes.append(
            f"no image is held out of {few(whole, 2 * NAMED)}: a class with a single image (copies count once) stays "
            "in train."
        )
    if held.any():
        notes.append(
            f"no val split is given: {held.sum():,} of {len(held):,} images, {fraction:.0%} of each class, are held "
            f"out by seed {seed}; the content of a file decides, not its name or the other files."
        )
    return membership


def _with_val(splits: dict[str, Split], held: np.ndarray) -> dict[str, Split]:
    """Part the marked (N,) bool images from train as val; an empty split is left out."""
    numbers = {"train": np.flatnonzero(~held), "val": np.flatnonzero(held)}
    parts = {name: select(splits["train"], some) for name, some in numbers.items() if len(some)}
    return parts | {name: split for name, split in splits.items() if name != "train"}
