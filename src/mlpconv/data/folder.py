"""Open a folder of class folders as a data set, infer what is not given, and report problems as notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlpconv.data.dataset import Dataset, Split, make_dataset, select
from mlpconv.data.decode import FORMATS, decode_hashed
from mlpconv.data.decode_threads import without_warnings
from mlpconv.data.duplicates import duplicate_notes, pixel_hash
from mlpconv.data.folder_layout import MAX_NAMED, ScannedSplit, abbreviated, has_images, scan_folder, subfolders
from mlpconv.data.open_options import OpenOptions
from mlpconv.data.storage import allocate
from mlpconv.data.survey import (
    SplitFiles,
    choose_bits,
    choose_fit,
    choose_size,
    map_files,
    read_headers,
    resize_note,
)
from mlpconv.data.validation import HoldOutRule
from mlpconv.decode_options import DecodeOptions
from mlpconv.errors import DataError, ImageError
from mlpconv.text import composed, counted, natural, printable

__all__ = ["open_folder"]

IMBALANCE = 3  # class imbalance is reported from this ratio of the largest to the smallest class


def open_folder(folder: Path, options: OpenOptions) -> Dataset:
    """Read FOLDER/class/* or FOLDER/train|val|test/class/* and infer the options that are None (see `open_data`)."""
    size, channels, fit, bits, membership = (
        options.size, options.channels, options.fit, options.bits, options.membership
    )  # fmt: skip
    scanned, notes = scan_folder(folder)
    names = _class_names(folder, scanned, options.classes, notes)
    files = {key: _labelled(split, names) for key, split in scanned.items()}
    with without_warnings():
        if size is None or channels is None or fit is None or bits is None:
            headers = {key: read_headers(split_files) for key, split_files in files.items()}
            _check_unreadable(folder, files, options.max_bad)
            all_headers = [header for split_headers in headers.values() for header in split_headers]
            size = choose_size(all_headers) if size is None else size
            channels = max(header.channels for header in all_headers) if channels is None else channels
            fit = choose_fit(all_headers) if fit is None else fit
            notes += resize_note(all_headers, size, fit)
            if bits is None:
                bits = choose_bits(files, headers, notes)
        decode_options = DecodeOptions(fit, bits)
        splits = {key: _read(split_files, folder, channels, size, decode_options) for key, split_files in files.items()}
    _check_unreadable(folder, files, options.max_bad)
    _note_unreadable(files, notes)
    if options.classes is None:
        names, splits = _without_empty_classes(names, splits, notes)
    _check_classes(folder, names, splits, options.classes)
    notes[:0] = duplicate_notes(splits, {key: split_files.hashes for key, split_files in files.items()}, names)
    if "train" in splits:
        _note_imbalance(splits["train"], names, notes)
        if "val" in splits or options.val_fraction == 0:
            membership = None
        elif membership is None:
            membership = _draw_validation(splits["train"], files["train"], names, options, notes)
        if membership is not None:
            splits = _with_validation(splits, membership.held_out(files["train"].contents))
    dataset = make_dataset(printable(folder.resolve().name), names, splits, notes)
    return replace(dataset, membership=membership, decode_options=decode_options)


def _class_names(
    folder: Path, scanned: dict[str, ScannedSplit], classes: Sequence[str] | None, notes: list[str]
) -> tuple[str, ...]:
    """Return `classes`, or the sorted classes of train (of all splits if there is no train)."""
    for key, split in scanned.items():
        empty = [name for name, images in split.images.items() if not images]
        if empty:
            notes.append(f"left out in {key}, as they have no images: {', '.join(empty)}.")
    source = [scanned["train"]] if "train" in scanned else list(scanned.values())
    inferred = sorted({name for split in source for name, images in split.images.items() if images}, key=natural)
    known = tuple(inferred if classes is None else classes)
    accepted = {composed(name) for name in known}
    for key, split in scanned.items():
        unknown = [name for name, images in split.images.items() if images and name not in accepted]
        if unknown:
            owner = "the model's" if classes is not None else "those of train"
            raise DataError(
                f"{str(folder)!r}, {key}: classes that are not among {owner}: {abbreviated(unknown, 2 * MAX_NAMED)}. "
                f"Accepted: {abbreviated(known, 2 * MAX_NAMED)}. Rename or remove those folders."
            )
    if not known or not any(images for split in scanned.values() for images in split.images.values()):
        raise DataError(f"{str(folder)!r} has class folders but no supported images in them; accepted: {FORMATS}.")
    return known


def _labelled(split: ScannedSplit, names: tuple[str, ...]) -> SplitFiles:
    label_of = {composed(name): label for label, name in enumerate(names)}
    pairs = [(path, label_of[name]) for name in sorted(split.images, key=natural) for path in split.images[name]]
    return SplitFiles([path for path, _ in pairs], [label for _, label in pairs])


def _read(files: SplitFiles, folder: Path, channels: int, size: int, decode_options: DecodeOptions) -> Split:
    """Decode all images of a split; move unreadable files to `errors`."""
    images = allocate((len(files.paths), channels, size, size))

    def read(path: Path) -> tuple[np.ndarray, bytes]:
        return decode_hashed(path, channels=channels, size=(size, size), decode_options=decode_options)

    readable: list[int] = []
    for index, (pixels, content) in map_files(read, files):
        images[len(readable)] = pixels
        readable.append(index)
        files.contents.append(content)
        files.hashes.append(pixel_hash(pixels))
    files.keep(readable)
    names = tuple(printable(str(path.relative_to(folder))) for path in files.paths)
    return Split(images[: len(readable)], np.array(files.labels, np.int64), names)


def _check_unreadable(folder: Path, files: dict[str, SplitFiles], max_bad: float) -> None:
    """Raise DataError if too many files cannot be read, and name the first."""
    errors = _all_errors(files)
    total = len(errors) + sum(len(split_files.paths) for split_files in files.values())
    if len(errors) > max_bad * total or len(errors) == total:
        raise DataError(
            f"{len(errors):,} of {total:,} image files in {str(folder)!r} cannot be read (accepted: up to "
            f"{max_bad:.0%}). {_reasons(errors)} Repair or remove them."
        )


def _note_unreadable(files: dict[str, SplitFiles], notes: list[str]) -> None:
    errors = _all_errors(files)
    if errors:
        count = counted(len(errors), "image file")
        notes.append(f"skipped {count} that cannot be read. {_reasons(errors)}")


def _all_errors(files: dict[str, SplitFiles]) -> list[ImageError]:
    return [error for split_files in files.values() for error in split_files.errors]


def _reasons(errors: list[ImageError]) -> str:
    """Return one short sentence about each of the first errors."""
    first = [printable(str(error)).split("; ")[0].rstrip(".") + "." for error in errors[:MAX_NAMED]]
    return " ".join(first) + (" ..." if len(errors) > MAX_NAMED else "")


def _without_empty_classes(
    names: tuple[str, ...], splits: dict[str, Split], notes: list[str]
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Drop classes without a readable image and renumber the others."""
    present = np.unique(np.concatenate([split.labels for split in splits.values()]))
    if len(present) == len(names):
        return names, splits
    dropped = [name for label, name in enumerate(names) if label not in present]
    notes.append(f"left out, because none of its images can be read: {', '.join(dropped)}.")
    renumbered = {
        key: Split(split.images, np.searchsorted(present, split.labels).astype(np.int64), split.names)
        for key, split in splits.items()
    }
    return tuple(names[label] for label in present), renumbered


def _check_classes(
    folder: Path, names: tuple[str, ...], splits: dict[str, Split], classes: Sequence[str] | None
) -> None:
    if classes is None and len(names) < 2:
        raise DataError(
            f"{str(folder)!r} has only one class ({', '.join(names)}): give at least two folders of images"
            f"{_suggest_subfolder(folder)}."
        )
    for key in [key for key, split in splits.items() if not len(split)]:
        raise DataError(f"{str(folder)!r} has no readable image in {key}: add some, or remove {key}/.")


def _suggest_subfolder(folder: Path) -> str:
    """Suggest the only subfolder if it contains the class folders, as in some archives."""
    inside = subfolders(folder)
    classes = subfolders(inside[0]) if len(inside) == 1 and not has_images(inside[0]) else []
    if len(classes) < 2:
        return ""
    return f", or give {str(inside[0])!r}, which contains {abbreviated([printable(path.name) for path in classes])}"


def _note_imbalance(train: Split, names: tuple[str, ...], notes: list[str]) -> None:
    """Note class imbalance among the training images."""
    counts = np.bincount(train.labels, minlength=len(names))
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    if counts[order[0]] >= IMBALANCE * counts[order[-1]]:
        shown = order if len(order) <= 2 * MAX_NAMED else [*order[:MAX_NAMED], *order[-MAX_NAMED:]]
        listed = ", ".join(f"{names[i]} {counts[i]:,}" for i in shown)
        notes.append(
            f"class imbalance of {counts[order[0]] / counts[order[-1]]:.1f} to 1 in training images: {listed}"
            f"{' (the largest and the smallest)' if len(shown) < len(order) else ''}."
        )


def _draw_validation(
    train: Split, files: SplitFiles, names: tuple[str, ...], options: OpenOptions, notes: list[str]
) -> HoldOutRule:
    """Hold out a fraction of every class of the training images, and note how many."""
    fraction, seed = options.val_fraction, options.seed
    membership = HoldOutRule.draw(files.contents, [h.digest for h in files.hashes], train.labels, fraction, seed)
    held = membership.held_out(files.contents)
    totals, held_counts = (np.bincount(labels, minlength=len(names)) for labels in (train.labels, train.labels[held]))
    kept = [names[i] for i in np.flatnonzero((totals > 0) & (held_counts == 0))]
    if kept:
        notes.append(
            f"no image of {abbreviated(kept, 2 * MAX_NAMED)} is held out: a class with a single image (copies count "
            "once) stays in train."
        )
    if held.any():
        notes.append(
            f"no val split found: {held.sum():,} of {len(held):,} images, {fraction:.0%} of each class, are held "
            f"out with seed {seed}; the content of a file decides, not its name or the other files."
        )
    return membership


def _with_validation(splits: dict[str, Split], held: np.ndarray) -> dict[str, Split]:
    """Move the images in the mask (N,) from train to val; omit an empty split."""
    indices = {"train": np.flatnonzero(~held), "val": np.flatnonzero(held)}
    divided = {key: select(splits["train"], chosen) for key, chosen in indices.items() if len(chosen)}
    return divided | {key: split for key, split in splits.items() if key != "train"}
