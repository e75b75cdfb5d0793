"""The named data sets: where their files are looked for, which splits are there, and what to say about the rest."""

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
# The files of each split, by the names that they have when they are unpacked.
PARTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "mnist": _IDX,
    "fashion_mnist": _IDX,
    "cifar10": {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    "cifar100": {"train": ("train.bin",), "test": ("test.bin",)},
    "svhn": {"train": ("train_32x32.mat",), "test": ("test_32x32.mat",), "extra": ("extra_32x32.mat",)},
}


# The Python versions of CIFAR, as torchvision unpacks them: the folder, a file in it, the data set.
PICKLES = (("cifar-10-batches-py", "data_batch_1", "cifar10"), ("cifar-100-python", "train", "cifar100"))


def open_named(name: str, root: Path | None = None) -> Dataset:
    """Read a data set of the catalogue from its files; raises DataError where none is found or one is damaged."""
    entry = CATALOG[name]
    if name == "digits":
        return make_dataset(name, entry.classes, read_digits())
    where = root if root is not None else cache_folder()
    found, archive = file_locations(entry, where)
    splits = {split: _read(entry, split, files, found) for split, files in found.items() if split != "extra"}
    if archive is not None:
        splits |= _read_archive(entry, archive, splits)
    if not splits:
        refuse_pickles(where, name)
        raise DataError(_not_found(entry, where))
    return make_dataset(name, entry.classes, splits, _notes(entry, splits, found))


def refuse_pickles(folder: Path, wanted: str | None = None) -> None:
    """Raise DataError where a folder is, or holds, the Python version of the data set wanted (None: of any)."""
    for name, file, data in [row for row in PICKLES if wanted in (None, row[2])]:
        there = [path for path in (folder, folder / name) if path.name == name and (path / file).is_file()]
        there += [path for path in (folder / f"{data.replace('cifar', 'cifar-')}-python.tar.gz",) if path.is_file()]
        if there:
            raise DataError(
                f"{str(there[0])!r} is the Python version of {data}, as torchvision keeps it: its files are pickles, "
                f"which can run code and are never opened here. Fetch the binary version with `mlpconv data prepare "
                f"{data}`, or point --data DIR at a folder that has it."
            )


def file_locations(entry: Published, root: Path) -> tuple[dict[str, tuple[Path, ...]], Path | None]:
    """The files of each whole split under a folder and, where they are not all there, the official archive if it is.

    Raises DataError where a split is there in part.
    """
    whole: dict[str, tuple[Path, ...]] = {}
    for folder in (root / entry.folder, root / entry.name, root):
        found = {split: _files(folder, names) for split, names in PARTS.get(entry.name, {}).items()}
        whole = {split: files for split, files in found.items() if files}
        if whole:
            break
    archive = root / entry.archive if entry.archive else None
    needed = archive is not None and archive.exists() and len(whole) < len(entry.counts)
    return whole, archive if needed else None


def _files(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """The files of a split in a folder; none where none is there; raises DataError where some are."""
    found = [next((path for path in _spellings(folder, name) if path.exists()), None) for name in names]
    present = tuple(path for path in found if path is not None)
    if present and len(present) < len(names):
        missing = ", ".join(name for name, path in zip(names, found, strict=True) if path is None)
        raise DataError(f"in {str(folder)!r}, {missing} is missing beside {present[0].name}: add it, or remove both.")
    return present


def _spellings(folder: Path, name: str) -> tuple[Path, ...]:
    """The names under which a file is passed around: plain, gzip, and with a dot where IDX has a dash."""
    dotted = name.replace("-idx", ".idx")
    return tuple(folder / spelling for spelling in (name, f"{name}.gz", dotted, f"{dotted}.gz"))


def _read(entry: Published, split: str, files: tuple[Path, ...], found: Mapping[str, tuple[Path, ...]]) -> Split:
    """Read one split by the format of its data set."""
    if entry.name in ("mnist", "fashion_mnist"):
        return read_idx_pair(files[0], files[1], entry.size, entry.counts[split], len(entry.classes))
    if entry.name == "svhn":
        parts = ["train", "extra"] if split == "train" and "extra" in found else [split]
        return read_svhn([found[part][0] for part in parts], [entry.counts[part] for part in parts])
    return read_cifar(files, CIFAR10_RECORD if entry.name == "cifar10" else CIFAR100_RECORD)


def _read_archive(entry: Published, archive: Path, there: Mapping[str, Split]) -> dict[str, Split]:
    """The splits that are not there yet, from the official archive."""
    record = CIFAR10_RECORD if entry.name == "cifar10" else CIFAR100_RECORD
    wanted = {split: files for split, files in PARTS[entry.name].items() if split not in there}
    splits = read_cifar_archive(archive, entry.folder, wanted, record)
    if not splits and not there:
        raise DataError(f"the archive {str(archive)!r} has no images of {entry.name}: run mlpconv data prepare.")
    return splits


def _notes(entry: Published, splits: Mapping[str, Split], found: Mapping[str, tuple[Path, ...]]) -> list[str]:
    """What the user should know: absent splits, splits of another length, extra images."""
    notes: list[str] = []
    for split in ("train", "test"):
        if split not in splits:
            files = " and ".join(PARTS[entry.name][split])
            notes.append(f"{entry.name} has no {split} split here ({files} not found); all else works without it.")
    if "extra" in found and "train" in splits:
        notes.append("the extra images of svhn are part of the train split, after its own.")
    for split, part in splits.items():
        published = entry.counts[split] + (entry.counts["extra"] if split == "train" and "extra" in found else 0)
        if len(part) != published:
            notes.append(f"{entry.name}, {split}: {len(part):,} images here, {published:,} in the published set.")
    return notes


def _not_found(entry: Published, root: Path) -> str:
    """Which files were looked for, where, and how to get them."""
    first = [names[0] for split, names in PARTS[entry.name].items() if split != "extra"]
    looked = " or ".join(first) + (f" (or {entry.archive})" if entry.archive else "")
    state = "" if root.is_dir() else ", which is not a folder"
    return (
        f"{entry.name} is not here: looked for {looked} in {str(root)!r} and its {entry.folder}{state}. "
        f"Fetch it with `mlpconv data prepare {entry.name}`, or say where it lies: --data DIR, or from Python "
        "data_root= (fit) or root= (open_data)."
    )
