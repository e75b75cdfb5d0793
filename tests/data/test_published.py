"""The named data sets: where their files are found, their contents, and messages about missing files."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mlpconv.data import open_data
from mlpconv.data.catalog import CATALOG
from mlpconv.data.storage import cache_folder
from mlpconv.errors import DataError, MissingSplit, UsageError

Files = tuple[Path, np.ndarray, np.ndarray]


def test_digits_equal_scikit_learns_digits() -> None:
    data = open_data("digits")
    reference = load_digits()
    ours = {
        (split.images[i].tobytes(), int(split.labels[i])) for split in data.splits.values() for i in range(len(split))
    }
    theirs = {
        ((image * 255 // 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(reference.images, reference.target, strict=True)
    }
    assert ours == theirs
    assert (len(data.split("train")), len(data.split("test"))) == (1438, 359)
    assert data.split("train").images.max() == 255


def test_the_test_split_of_digits_never_changes() -> None:
    first, second = open_data("digits"), open_data("digits", seed=7)
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint.startswith("7ba48961")
    counts = np.bincount(first.split("test").labels)
    assert (counts.min(), counts.max()) == (35, 37)


def test_digits_come_with_their_attribution() -> None:
    from importlib import resources

    text = resources.files("mlpconv.data").joinpath("digits.LICENSE.txt").read_text()
    assert "Alpaydin" in text
    assert "Kaynak" in text
    assert "CC BY 4.0" in text


def test_opening_data_does_not_need_torch() -> None:
    code = "import sys, mlpconv.data as d; d.open_data('digits'); raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_folder_may_be_a_string(mnist_files: Files) -> None:
    root, _, _ = mnist_files
    assert open_data("mnist", root=str(root)).fingerprint == open_data("mnist", root=root).fingerprint


def test_training_files_alone_are_enough(mnist_files: Files) -> None:
    root, images, labels = mnist_files
    data = open_data("mnist", root=root)
    assert np.array_equal(data.split("train").images, images[:, None])
    assert np.array_equal(data.split("train").labels, labels)
    assert any("no test split" in note for note in data.notes)
    with pytest.raises(MissingSplit, match="mnist has no test split"):
        data.split("test")
    assert any("13 images here, 60,000 in the published set" in note for note in data.notes)


@pytest.mark.parametrize("where", [".", "MNIST/raw", "mnist"])
@pytest.mark.parametrize(
    ("images_name", "packed"),
    [
        ("t10k-images-idx3-ubyte", False),
        ("t10k-images-idx3-ubyte.gz", True),
        ("t10k-images.idx3-ubyte", False),
    ],
)
def test_files_are_found_in_the_usual_folders(
    tmp_path: Path, write: SimpleNamespace, where: str, images_name: str, packed: bool
) -> None:
    folder = tmp_path / where
    folder.mkdir(parents=True, exist_ok=True)
    content = write.idx(np.full((3, 28, 28), 7, np.uint8))
    (folder / images_name).write_bytes(gzip.compress(content) if packed else content)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(write.idx(np.array([1, 2, 3], np.uint8)))
    data = open_data("mnist", root=tmp_path)
    assert data.split("test").labels.tolist() == [1, 2, 3]
    assert any("no train split" in note for note in data.notes)


def test_fashion_is_not_taken_for_mnist(mnist_files: Files) -> None:
    root, _, _ = mnist_files
    with pytest.raises(DataError, match=r"fashion_mnist not found.*FashionMNIST/raw.*data prepare fashion_mnist"):
        open_data("fashion_mnist", root=root)
    (root / "MNIST").rename(root / "FashionMNIST")
    assert open_data("fashion_mnist", root=root).classes[9] == "Ankle boot"


@pytest.mark.parametrize("name", [name for name in CATALOG if name != "digits"])
def test_a_missing_data_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=rf"looked for .*nowhere.*not a folder.*mlpconv data prepare {name}"):
        open_data(name)


def test_cifar10_batches_are_read_in_order(cifar10_files: tuple[Path, np.ndarray]) -> None:
    root, records = cifar10_files
    data = open_data("cifar10", root=root)
    train = data.split("train")
    assert train.images.flags["C_CONTIGUOUS"]
    assert train.labels.tolist() == records[:, 0].tolist()
    for i in (0, 6, 7, 34):  # red, green and blue planes, row by row
        assert train.images[i, 2, 5, 31] == records[i, 1 + 2 * 1024 + 5 * 32 + 31]
        assert train.images[i].tobytes() == records[i, 1:].tobytes()


def test_cifar100_uses_the_fine_label(tmp_path: Path, write: SimpleNamespace) -> None:
    records = write.cifar(11, 2, 100, 4)
    (tmp_path / "train.bin").write_bytes(records.tobytes())
    data = open_data("cifar100", root=tmp_path)
    assert data.split("train").labels.tolist() == records[:, 1].tolist()
    assert data.split("train").images[10].tobytes() == records[10, 2:].tobytes()
    assert (len(data.classes), data.classes[0], data.classes[99]) == (100, "apple", "worm")
    assert list(data.classes) == sorted(data.classes)


def archive(write: SimpleNamespace, records: np.ndarray) -> bytes:
    batches = [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in (1, 5, 2, 4, 3)]  # the order of an archive is free
    members = [(name, records[(int(name[-5]) - 1) * 7 :][:7].tobytes()) for name in batches]
    return write.tar(
        [
            ("cifar-10-batches-bin/readme.html", b"<p>"),
            *members,
            ("cifar-10-batches-bin/test_batch.bin", records[:3].tobytes()),
        ]
    )


def test_the_archive_is_read_without_being_unpacked(tmp_path: Path, write: SimpleNamespace) -> None:
    records = write.cifar(35, 1, 10, 9)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(archive(write, records))
    data = open_data("cifar10", root=tmp_path)
    assert data.split("train").images.reshape(35, -1).tobytes() == records[:, 1:].tobytes()
    assert data.split("test").labels.tolist() == records[:3, 0].tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_the_archive_supplies_missing_splits(cifar10_files: tuple[Path, np.ndarray], write: SimpleNamespace) -> None:
    root, records = cifar10_files
    (root / "cifar-10-binary.tar.gz").write_bytes(archive(write, records[::-1].copy()))
    data = open_data("cifar10", root=root)
    assert data.split("train").labels.tolist() == records[:, 0].tolist()
    assert data.split("test").labels.tolist() == records[::-1][:3, 0].tolist()


def test_a_batch_that_is_missing_is_named(cifar10_files: tuple[Path, np.ndarray]) -> None:
    root, _ = cifar10_files
    (root / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin is missing beside data_batch_1\.bin"):
        open_data("cifar10", root=root)


def test_named_sets_are_converted_to_size_channels_and_classes() -> None:
    plain = open_data("digits")
    data = open_data("digits", size=13, channels=3, classes=[*"9876543210", "none"])
    assert data.split("train").images.shape == (1438, 3, 13, 13)
    assert data.split("train").labels.tolist() == [9 - label for label in plain.split("train").labels]
    assert np.array_equal(data.split("test").images[:, 0], data.split("test").images[:, 2])
    assert data.classes == (*"9876543210", "none")
    with pytest.raises(DataError, match="not among the model's: 9"):
        open_data("digits", classes=list("012345678"))


def test_colour_is_converted_to_luma(cifar10_files: tuple[Path, np.ndarray]) -> None:
    root, records = cifar10_files
    data = open_data("cifar10", root=root, channels=1)
    red, green, blue = records[3, 1:].reshape(3, 32, 32).astype(float)
    expected = 0.299 * red + 0.587 * green + 0.114 * blue
    assert np.abs(data.split("train").images[3, 0] - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("spec", "options", "error", "sentence"),
    [
        ("mnits", {}, UsageError, "did you mean 'mnist'"),
        ("no/such/folder", {}, UsageError, "there is no folder or data set"),
        ("digits", {"size": 0}, UsageError, "between 1 and 4096"),
        ("digits", {"channels": 2}, UsageError, "1 \\(grey\\) or 3"),
        ("digits", {"val_fraction": 1.0}, UsageError, "below 1"),
        ("digits", {"max_bad": 2.0}, UsageError, "between 0 and 1"),
        ("a\0b", {}, UsageError, "there is no folder or data set"),
        (__file__, {}, DataError, "is a file: give a folder"),
        ("x" * 5000, {}, DataError, "cannot be read"),
    ],
)
def test_invalid_arguments_are_refused(spec: str, options: dict, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        open_data(spec, **options)


def test_the_catalogue_is_complete() -> None:
    for name, entry in CATALOG.items():
        assert entry.name == name
        assert len(set(entry.classes)) == len(entry.classes) in (10, 100)
        for file in entry.files:
            assert file.url.endswith(file.name)
            assert file.bytes > 1000
            assert len(file.sha256 or "") == 64 or (name == "fashion_mnist" and len(file.md5 or "") == 32)
            assert file.url.startswith("https://") or (name == "svhn" and file.sha256)


@pytest.mark.realdata
def test_the_catalogue_lists_the_published_files() -> None:
    counts = {"mnist": {"train": 60_000, "test": 10_000}, "cifar10": {"train": 50_000}, "cifar100": {"train": 50_000}}
    found = 0
    for name, expected in counts.items():
        try:
            data = open_data(name, root=cache_folder())
        except DataError:
            continue
        found += 1
        for split, count in expected.items():
            assert len(data.split(split)) == count
            per_class = np.bincount(data.split(split).labels, minlength=data.num_classes)
            assert per_class.min() > 0.8 * count / data.num_classes
    if not found:
        pytest.skip("no published files in the cache")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cifar10", ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta"]),
        ("cifar10", ["cifar-10-python.tar.gz"]),
        ("cifar100", ["cifar-100-python/train", "cifar-100-python/meta"]),
    ],
)
def test_the_python_versions_are_named_as_the_reason(tmp_path: Path, name: str, files: list[str]) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"\x80\x04\x95.")
    sentence = f"the Python version of {name}, as used by torchvision: its files are pickles"
    with pytest.raises(DataError, match=sentence):
        open_data(name, root=tmp_path)
    with pytest.raises(DataError, match=sentence):
        open_data(tmp_path)
    with pytest.raises(DataError, match="mnist not found"):
        open_data("mnist", root=tmp_path)
    if "/" in files[0]:
        with pytest.raises(DataError, match=sentence):
            open_data(tmp_path / files[0].split("/")[0])


@pytest.mark.parametrize(
    ("given", "meant"),
    [("CIFAR10", "cifar10"), ("CIFAR-100", "cifar100"), ("Fashion-MNIST", "fashion_mnist"), ("SVHN", "svhn")],
)
def test_misspelt_names_suggest_the_right_one(given: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
        open_data(given)
