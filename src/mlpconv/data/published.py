"""Open the named data sets: find their files, read the available splits and note what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlpconv.data.catalog import CATALOG, Published
from mlpconv.data.dataset import Dataset, Split, make_dataset
from mlpconv.data.digits import read_digits
from mlpconv.data.formats import CIFAR10_RECORD, CIFAR100_RECORD, read_cifar, read_cifar_archive, read_idx_pair
from mlpconv.data.storage import cache_folder
from mlpconv.data.svhn import read_svhn
from mlpconv.errors import DataError

__all__ = ["file_locations", "open_named", "refuse_pickles"]

_IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# The unpacked files of each split.
SPLIT_FILES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "mnist": _IDX,
    "fashion_mnist": _IDX,
    "cifar10": {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    "cifar100": {"train": ("train.bin",), "test": ("test.bin",)},
    "svhn": {"train": ("train_32x32.mat",), "test": ("test_32x32.mat",), "extra": ("extra_32x32.mat",)},
}
# The Python versions of CIFAR, as torchvision unpacks them: the folder, a file in it, the data set.
PICKLES = (("cifar-10-batches-py", "data_batch_1", "cifar10"), ("cifar-100-python", "train", "cifar100"))


def open_named(name: str, root: Path | None = None) -> Dataset:
    """Read a named data set from its files; raise DataError if no files are found or one is damaged."""
    entry = CATALOG[name]
    if name == "digits":
        return make_dataset(name, entry.classes, read_digits(), published=True)
    root = root if root is not None else cache_folder()
    files, archive = file_locations(entry, root)
    splits = {split: _read_split(entry, split, files) for split in files if split != "extra"}
    if archive is not None:
        splits |= _read_archive(entry, archive, splits)
    if not splits:
        refuse_pickles(root, name)
        raise DataError(_not_found(entry, root))
    return make_dataset(name, entry.classes, splits, _notes(entry, splits, "extra" in files), published=True)


def refuse_pickles(folder: Path, name: str | None = None) -> None:
    """Raise DataError if a folder is or contains the Python version of a data set (None: of any data set)."""
    for subfolder, file, data in [row for row in PICKLES if name in (None, row[2])]:
        pickles = [path for path in (folder, folder / subfolder) if path.name == subfolder and (path / file).is_file()]
        pickles += [path for path in (folder / f"{data.replace('cifar', 'cifar-')}-python.tar.gz",) if path.is_file()]
        if pickles:
            raise DataError(
                f"{str(pickles[0])!r} is the Python version of {data}, as used by torchvision: its files are pickles, "
                f"which can run code and are never opened. Fetch the binary version with `mlpconv data prepare "
                f"{data}`, or point --data DIR at a folder that has it."
            )


def file_locations(entry: Published, root: Path) -> tuple[dict[str, tuple[Path, ...]], Path | None]:
    """Return the files of each complete split, and the official archive if it is needed for the other splits.

    Raises DataError if only some files of a split exist.
    """
    complete: dict[str, tuple[Path, ...]] = {}
    for folder in (root / entry.folder, root / entry.name, root):
        files = {split: _existing_files(folder, names) for split, names in SPLIT_FILES.get(entry.name, {}).items()}
        complete = {split: paths for split, paths in files.items() if paths}
        if complete:
            break
    archive = root / entry.archive if entry.archive else None
    needed = archive is not None and archive.exists() and len(complete) < len(entry.counts)
    return complete, archive if needed else None


def _existing_files(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the files of a split in a folder, or none; raise DataError if only some of them exist."""
    paths = [next((path for path in _alternatives(folder, name) if path.exists()), None) for name in names]
    present = tuple(path for path in paths if path is not None)
    if present and len(present) < len(names):
        missing = ", ".join(name for name, path in zip(names, paths, strict=True) if path is None)
        raise DataError(f"in {str(folder)!r}, {missing} is missing beside {present[0].name}: add it, or remove both.")
    return present


def _alternatives(folder: Path, name: str) -> tuple[Path, ...]:
    """Return the paths under which a file is distributed: plain, gzip, and with a dot in place of the IDX dash."""
    dotted = name.replace("-idx", ".idx")
    return tuple(folder / spelling for spelling in (name, f"{name}.gz", dotted, f"{dotted}.gz"))


def _read_split(entry: Published, split: str, files: Mapping[str, tuple[Path, ...]]) -> Split:
    """Read one split in the format of its data set."""
    paths = files[split]
    if entry.name in ("mnist", "fashion_mnist"):
        return read_idx_pair(paths[0], paths[1], entry.size, entry.counts[split], len(entry.classes))
    if entry.name == "svhn":
        sources = ["train", "extra"] if split == "train" and "extra" in files else [split]
        return read_svhn([files[source][0] for source in sources], [entry.counts[source] for source in sources])
    return read_cifar(paths, CIFAR10_RECORD if entry.name == "cifar10" else CIFAR100_RECORD)


def _read_archive(entry: Published, archive: Path, available: Mapping[str, Split]) -> dict[str, Split]:
    """Read the splits that are not available yet from the official archive."""
    record = CIFAR10_RECORD if entry.name == "cifar10" else CIFAR100_RECORD
    missing = {split: files for split, files in SPLIT_FILES[entry.name].items() if split not in available}
    splits = read_cifar_archive(archive, entry.folder, missing, record)
    if not splits and not available:
        raise DataError(f"the archive {str(archive)!r} has no images of {entry.name}: run mlpconv data prepare.")
    return splits


def _notes(entry: Published, splits: Mapping[str, Split], with_extra: bool) -> list[str]:
    """Return notes about missing splits, splits of unexpected length, and extra images."""
    notes: list[str] = []
    for name in ("train", "test"):
        if name not in splits:
            files = " and ".join(SPLIT_FILES[entry.name][name])
            notes.append(f"{entry.name} has no {name} split here ({files} not found).")
    if with_extra and "train" in splits:
        notes.append("the train split of svhn includes the extra images, after its own.")
    for name, split in splits.items():
        published = entry.counts[name] + (entry.counts["extra"] if name == "train" and with_extra else 0)
        if len(split) != published:
            notes.append(f"{entry.name}, {name}: {len(split):,} images here, {published:,} in the published set.")
    return notes


def _not_found(entry: Published, root: Path) -> str:
    """Return a message with the expected files, the folders searched, and how to get them."""
    first = [names[0] for split, names in SPLIT_FILES[entry.name].items() if split != "extra"]
    expected = " or ".join(first) + (f" (or {entry.archive})" if entry.archive else "")
    state = "" if root.is_dir() else ", which is not a folder"
    return (
        f"{entry.name} not found: looked for {expected} in {str(root)!r} and its {entry.folder}{state}. "
        f"Fetch it with `mlpconv data prepare {entry.name}`, or pass its folder: --data DIR, or from Python "
        "data_root= (fit) or root= (open_data)."
    )
