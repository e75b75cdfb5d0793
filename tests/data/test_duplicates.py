"""Exact copies and blank images are found by their pixels, named and counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlpconv.cli import main
from mlpconv.data import Split, make_dataset, open_data
from mlpconv.data.duplicates import with_duplicate_notes

COPIES = ("cat/2.png", "dog/twice.png")


def put(top: Path, *folders: str, count: int = 5) -> Path:
    for name in folders:
        (top / name).mkdir(parents=True)
        rng = np.random.RandomState(sum(map(ord, name)))
        for i in range(count):
            Image.fromarray(rng.randint(0, 256, (7, 7, 3)).astype(np.uint8)).save(top / name / f"{i}.png")
    return top


def test_validation_images_in_train_are_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "train/cat", "train/dog")
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    first = open_data(tmp_path).notes[0]
    assert first.startswith("WARNING: 10 of 10 images of val are also in train (identical pixels)")
    assert "val/cat/0.png = train/cat/0.png, val/cat/1.png = train/cat/1.png" in first


def test_identical_pixels_in_another_format_are_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")
    Image.open(tmp_path / "train/dog/3.png").save(tmp_path / "test/dog/other.bmp")
    notes = open_data(tmp_path).notes
    assert notes[0].startswith("WARNING: 1 of 11 images of test are also in train")
    assert "test/dog/other.bmp = train/dog/3.png" in notes[0]


def test_an_image_in_two_classes_is_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "cat", "dog", "emu")
    shutil.copy(tmp_path / "cat/2.png", tmp_path / "dog/twice.png")
    data = open_data(tmp_path)
    assert data.notes[0].startswith("WARNING: 2 images are in more than one class (cat, dog) with identical pixels")
    assert "cat/2.png = dog/twice.png" in data.notes[0]
    sides = [name for name, part in data.splits.items() for file in part.names or () if file in COPIES]
    assert len(sides) == 2
    assert len(set(sides)) == 1


def test_copies_in_a_class_and_blank_images_are_counted(tmp_path: Path) -> None:
    put(tmp_path, "cat", "dog")
    for i in range(3):
        shutil.copy(tmp_path / "cat/2.png", tmp_path / f"cat/copy{i}.png")
    for name in ("cat/black.png", "cat/also black.png", "dog/black.png"):
        Image.new("RGB", (7, 7)).save(tmp_path / name)
    notes = open_data(tmp_path).notes
    assert "3 images are exact copies of others of the same class: cat/2.png = cat/copy0.png." in notes
    assert "3 images are blank (a single colour): cat/also black.png, cat/black.png, dog/black.png." in notes
    assert not any("WARNING" in note for note in notes)


def test_distinct_images_give_no_note(tmp_path: Path) -> None:
    notes = open_data(put(tmp_path, "cat", "dog")).notes
    assert not any("copies of" in note or "blank" in note or "WARNING" in note for note in notes)


def test_arrays_are_checked_for_duplicates() -> None:
    images = np.random.RandomState(0).randint(0, 256, (6, 1, 5, 5)).astype(np.uint8)
    labels = np.array([0, 1, 0, 1, 0, 1])
    data = make_dataset("x", ["a", "b"], {"train": Split(images, labels), "val": Split(images[2:4], labels[2:4])})
    (note,) = with_duplicate_notes(data).notes
    assert note.startswith("WARNING: 2 of 2 images of val are also in train")
    assert "number 0 of val = number 2 of train" in note
    assert with_duplicate_notes(with_duplicate_notes(data)).notes == (note,)


def test_the_warning_is_in_the_log_and_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "pets", "train/cat", "train/dog")
    shutil.copytree(tmp_path / "pets/train", tmp_path / "pets/val")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "pets", "--set", "epochs=1", "--set", "min_steps=0", "--out", "run"]) == 0
    warning = "WARNING: 10 of 10 images of val are also in train"
    assert warning in capsys.readouterr().out
    assert any(note.startswith(warning) for note in json.loads(Path("run/data.json").read_text())["notes"])
    assert warning in Path("run/report.html").read_text()
