"""Folder layouts found in practice: other split names, outputs of mlpconv, archives of other systems."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlpconv.cli import main
from mlpconv.data import open_data
from mlpconv.errors import DataError


def put(top: Path, *folders: str, count: int = 5) -> Path:
    """Fill folders with distinct images."""
    for name in folders:
        folder = top / name
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.RandomState(sum(map(ord, name)))
        for i in range(count):
            Image.fromarray(rng.randint(0, 256, (7, 7, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return top


def counts(top: Path) -> dict[str, int]:
    return {name: len(split) for name, split in open_data(top).splits.items()}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", "Validation", "Testing"),
        ("training_set", "valid", "test_set"),
        ("seg_train", "dev", "seg_test"),
        ("TrainImages", "ValImages", "TestImages"),
        ("train", "validation", "testing"),
        ("2021-train", "2021-val", "2021-test"),
    ],
)
def test_many_names_of_splits_are_recognised(tmp_path: Path, train: str, val: str, test: str) -> None:
    put(tmp_path, f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog")
    assert open_data(tmp_path).classes == ("cat", "dog")
    assert counts(tmp_path) == {"train": 8, "val": 2, "test": 10}
    put(tmp_path, f"{val}/cat", f"{val}/dog", count=3)
    assert counts(tmp_path) == {"train": 10, "val": 6, "test": 10}


def test_a_class_may_be_named_like_a_split(tmp_path: Path) -> None:
    put(tmp_path, "train", "bus")
    assert open_data(tmp_path).classes == ("bus", "train")
    put(tmp_path / "more", "steam train/a", "steam train/b", "test tube/a", "bus")
    assert open_data(tmp_path / "more").classes == ("bus", "steam train", "test tube")


@pytest.mark.parametrize("names", [("2021", "2022"), ("fold1", "fold2", "fold3"), ("train_1", "train_2")])
def test_splits_with_unknown_names_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{name}/{label}" for name in names for label in ("Cats", "dogs")))
    put(tmp_path, f"{names[0]}/emus")
    with pytest.raises(
        DataError, match=rf"{', '.join(names)} have no images but contain the same folders \(Cats, dogs\)"
    ) as error:
        open_data(tmp_path)
    assert f"rename {names[0]} to train, val or test" in str(error.value)
    assert open_data(tmp_path / names[0]).classes == ("Cats", "dogs", "emus")


def test_splits_inside_the_classes_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "cat/train", "cat/test", "dog/train", "dog/test")
    with pytest.raises(DataError, match="put the splits on top, as in .*/test/cat/1.png"):
        open_data(tmp_path)


def test_other_folders_inside_classes_are_not_splits(tmp_path: Path) -> None:
    put(tmp_path / "one", "cat/images", "dog/images")
    put(tmp_path / "other", "cat/indoor", "cat/street", "dog/field", "dog/street")
    put(tmp_path / "loose", "cat/indoor", "cat/street", "dog", "dog/indoor", "dog/street")
    for name in ("one", "other", "loose"):
        assert open_data(tmp_path / name).classes == ("cat", "dog")


def test_a_test_folder_without_classes_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "train/cat", "train/dog", "test")
    assert counts(tmp_path) == {"train": 8, "val": 2}
    assert any("left out test/: it has no class folders" in note for note in open_data(tmp_path).notes)


def test_the_extra_level_of_an_archive_is_suggested(tmp_path: Path) -> None:
    put(tmp_path, "PetImages/Cat", "PetImages/Dog")
    (tmp_path / "__MACOSX" / "PetImages").mkdir(parents=True)
    with pytest.raises(DataError, match=r"or give '.*/PetImages', which contains Cat, Dog\."):
        open_data(tmp_path)


def test_folders_of_operating_systems_are_not_classes(tmp_path: Path) -> None:
    put(tmp_path, "cat", "dog", "__MACOSX/cat", "@eaDir/cat", "cat/@eaDir")
    assert open_data(tmp_path).classes == ("cat", "dog")
    assert counts(tmp_path) == {"train": 8, "val": 2}


def test_outputs_of_mlpconv_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and drawing maps inside a data folder does not change the data."""
    put(tmp_path, "cat", "dog")
    monkeypatch.chdir(tmp_path)
    before = open_data(".")
    settings = ["--set", "epochs=1", "--set", "min_steps=0", "--set", "model=nin_tiny"]
    assert main(["train", ".", *settings]) == 0
    run = next(Path("runs").iterdir())
    assert main(["maps", str(run), "cat/0.png"]) == 0
    shutil.copytree(run, "cat/first")  # as with --out
    shutil.copytree("maps-001", "dog/drawn")
    after = open_data(".")
    assert after.fingerprint == before.fingerprint
    assert "left out, written by mlpconv: maps-001, runs." in after.notes
    assert "left out, written by mlpconv: cat/first, dog/drawn." in after.notes


def test_outputs_of_mlpconv_beside_splits_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "seg_train/cat", "seg_train/dog", "seg_test/cat", "seg_test/dog")
    (tmp_path / "runs" / "x-001").mkdir(parents=True)
    for name in ("data.json", "recipe.json"):
        (tmp_path / "runs" / "x-001" / name).write_text("{}")
    put(tmp_path, "runs/x-001/figures")
    assert counts(tmp_path) == {"train": 8, "val": 2, "test": 10}
    assert "left out, written by mlpconv: runs." in open_data(tmp_path).notes


def test_an_accent_has_one_spelling(tmp_path: Path) -> None:
    """macOS decomposes an accented letter, other systems do not."""
    one, two = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    assert one != two
    put(tmp_path, f"train/{one}", "train/bar", f"val/{two}", "val/bar")
    data = open_data(tmp_path)
    assert data.classes == ("bar", one)
    assert data.split("val").labels.tolist() == [0] * 5 + [1] * 5
    assert open_data(tmp_path, classes=[two, "bar"]).split("val").labels.tolist() == [1] * 5 + [0] * 5


def test_classes_are_in_natural_order(tmp_path: Path) -> None:
    put(tmp_path, "10", "9", "2", "b10", "b9", "a", count=2)
    data = open_data(tmp_path, val_fraction=0)
    assert data.classes == ("2", "9", "10", "a", "b9", "b10")
    assert data.split("train").labels.tolist() == sorted(data.split("train").labels.tolist())
    assert all(
        name.startswith(f"{data.classes[label]}/")
        for name, label in zip(data.split("train").names or (), data.split("train").labels, strict=True)
    )
