"""Folders of images: what is inferred, skipped, reported and refused."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.work import counted

from mlpconv.data import open_data, storage, survey
from mlpconv.data.decode import decode
from mlpconv.data.validation import with_validation
from mlpconv.errors import DataError, UsageError

Pictures = Callable[..., Path]


def notes_of(path: Path, **options: object) -> str:
    return "\n".join(open_data(path, **options).notes)  # type: ignore[arg-type]


def test_a_folder_of_class_folders(pictures: Pictures) -> None:
    top = pictures(cat=11, dog=7)
    data = open_data(top, seed=5)
    assert (data.name, data.classes, data.channels, data.size) == ("animals", ("cat", "dog"), 3, (19, 19))
    train, val = data.split("train"), data.split("val")
    assert np.bincount(train.labels).tolist() == [9, 6]
    assert np.bincount(val.labels).tolist() == [2, 1]
    for split in (train, val):
        for image, label, name in zip(split.images, split.labels, split.names or (), strict=True):
            assert name.startswith(data.classes[label])
            assert np.array_equal(image, decode(top / name, size=(19, 19)))
    assert not set(train.names or ()) & set(val.names or ())
    assert any("3 of 18 images, 20% of each class, are held out with seed 5" in note for note in data.notes)


def test_a_note_names_the_side_of_images_that_are_resized(pictures: Pictures) -> None:
    top = pictures(size=(19, 19), cat=3, dog=3)
    assert "images with sides of 19 pixels are resized to 23 x 23" in notes_of(top, size=23)


@pytest.mark.parametrize("options", [{"size": (19, 19)}, {"size": 2.5}, {"val_fraction": "0.2"}, {"max_bad": None}])
def test_an_option_of_another_type_is_refused(pictures: Pictures, options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"whole number|must"):
        notes_of(pictures(cat=3, dog=3), **options)


def test_the_split_depends_on_the_seed_alone(pictures: Pictures) -> None:
    top = pictures(cat=23, dog=17)
    parts = [open_data(top, seed=seed) for seed in (1, 1, 2)]
    names = [data.split("val").names for data in parts]
    assert names[0] == names[1] != names[2]
    assert parts[0].fingerprint == parts[1].fingerprint != parts[2].fingerprint
    assert "val" not in open_data(top, val_fraction=0).splits


def test_existing_splits_are_used(pictures: Pictures) -> None:
    for below, counts in (("train", (5, 6)), ("valid", (2, 1)), ("test", (1, 3))):
        top = pictures(below=below, cat=counts[0], dog=counts[1])
    data = open_data(top)
    assert {key: np.bincount(split.labels).tolist() for key, split in data.splits.items()} == {
        "train": [5, 6],
        "val": [2, 1],
        "test": [1, 3],
    }
    assert not any("held out" in note for note in data.notes)


def test_a_val_split_is_held_out_if_only_train_and_test_exist(pictures: Pictures) -> None:
    pictures(below="train", cat=10, dog=10)
    data = open_data(pictures(below="test", cat=3))
    assert {key: len(split) for key, split in data.splits.items()} == {"train": 16, "val": 4, "test": 3}


def test_a_folder_with_only_a_test_split_opens(pictures: Pictures) -> None:
    top = pictures(below="test", cat=3, dog=2)
    data = open_data(top, classes=["bird", "cat", "dog"])
    assert list(data.splits) == ["test"]
    assert data.split("test").labels.tolist() == [1, 1, 1, 2, 2]


def test_folders_beside_train_are_left_out_and_named(pictures: Pictures) -> None:
    pictures(below="train", cat=5, dog=5)
    top = pictures(below="old", cat=1)
    assert "left out, beside train/: old." in notes_of(top)


def test_a_class_missing_from_train_is_refused(pictures: Pictures) -> None:
    pictures(below="train", cat=4, dog=4)
    top = pictures(below="val", cat=2, emu=1)
    with pytest.raises(DataError, match=r"val: classes that are not among those of train: emu\. Accepted: cat, dog"):
        open_data(top)


def test_classes_of_a_model_give_the_labels(pictures: Pictures) -> None:
    top = pictures(dog=3)
    assert open_data(top, classes=["cat", "dog"], val_fraction=0).split("train").labels.tolist() == [1, 1, 1]
    with pytest.raises(DataError, match="not among the model's: dog"):
        open_data(top, classes=["cat"])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(11, 11)] * 2, 11),
        ([(96, 41), (41, 96)], 41),
        ([(97, 97)] * 2, 64),
        ([(30, 50), (35, 35), (90, 33)], 32),
        ([(47, 300), (50, 50), (500, 46)], 48),
        ([(300, 400), (700, 500)], 64),
        ([(8, 8), (9, 9)], 32),
    ],
)
def test_the_size_is_inferred(tmp_path: Path, sizes: list[tuple[int, int]], expected: int) -> None:
    for i, (height, width) in enumerate(sizes):
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (width, height)).save(tmp_path / name / f"{i}.png")
    data = open_data(tmp_path)
    assert data.size == (expected, expected)
    assert any(f"resized to {expected} x {expected}" in note for note in data.notes) == (sizes != [(11, 11)] * 2)
    assert open_data(tmp_path, size=13).size == (13, 13)


def test_grey_is_inferred(pictures: Pictures) -> None:
    top = pictures(mode="L", cat=3, dog=3)
    assert open_data(top).channels == 1
    assert open_data(top, channels=3).channels == 3
    Image.new("RGB", (5, 5)).save(top / "cat" / "colour.jpg")
    assert open_data(top).channels == 3


def damage(top: Path, how: str, name: str) -> None:
    whole = (top / "cat" / "00.png").read_bytes()
    content = {"pickle": b"\x80\x04\x95.", "empty": b"", "truncated": whole[: len(whole) // 2], "text": b"hello"}[how]
    (top / "cat" / name).write_bytes(content)


@pytest.mark.parametrize("how", ["pickle", "empty", "truncated", "text"])
def test_a_file_that_cannot_be_read_is_named_and_skipped(pictures: Pictures, how: str) -> None:
    top = pictures(cat=17, dog=13)
    damage(top, how, "broken.png")
    data = open_data(top)
    assert sum(len(split) for split in data.splits.values()) == 30
    note = next(note for note in data.notes if "skipped" in note)
    assert note.startswith("skipped 1 image file that cannot be read. ")
    assert "cat/broken.png" in note


def test_too_many_unreadable_files_are_refused(pictures: Pictures) -> None:
    top = pictures(cat=17, dog=13)
    for i, how in enumerate(["pickle", "empty", "truncated", "text"]):
        damage(top, how, f"x{i}.png")
    with pytest.raises(DataError, match=r"4 of 34 image files .* cannot be read \(accepted: up to 10%\).*x0\.png"):
        open_data(top)
    data = open_data(top, max_bad=0.2)
    assert any("skipped 4 image files" in note for note in data.notes)
    assert len(data.split("train")) + len(data.split("val")) == 30


def test_unreadable_files_are_counted_and_five_are_named(pictures: Pictures) -> None:
    top = pictures(cat=60, dog=60)
    for i in range(7):
        damage(top, "text", f"x{i}.png")
    note = next(note for note in open_data(top).notes if "skipped" in note)
    assert note.startswith("skipped 7")
    assert [f"x{i}.png" in note for i in range(7)] == [True] * 5 + [False] * 2
    assert note.endswith("...")


def test_a_class_without_readable_images_is_dropped(pictures: Pictures) -> None:
    top = pictures(ant=20, dog=20)
    (top / "bee").mkdir()
    (top / "bee" / "only.png").write_bytes((top / "ant" / "00.png").read_bytes()[:300])
    data = open_data(top)
    assert data.classes == ("ant", "dog")
    assert sorted(np.unique(data.split("train").labels)) == [0, 1]
    assert all(
        str(name).startswith(data.classes[label])
        for name, label in zip(data.split("val").names or (), data.split("val").labels, strict=True)
    )
    assert any("none of its images can be read: bee" in note for note in data.notes)


def test_other_files_are_noted_and_hidden_files_are_not(pictures: Pictures) -> None:
    top = pictures(cat=5, dog=5)
    for name in ("notes.txt", "clip.gif", "Thumbs.db", ".DS_Store", ".hidden.png"):
        (top / "cat" / name).write_bytes(b"x")
    (top / ".git").mkdir()
    data = open_data(top)
    assert data.classes == ("cat", "dog")
    assert sum("left out 2 files" in note and "cat/clip.gif, cat/notes.txt" in note for note in data.notes) == 1


def test_links_are_followed_without_loops_and_pipes_are_skipped(pictures: Pictures) -> None:
    top = pictures(cat=6, dog=5)
    (top / "cat" / "round").symlink_to(top, target_is_directory=True)
    (top / "cat" / "itself").symlink_to(top / "cat", target_is_directory=True)
    (top / "cat" / "self.png").symlink_to(top / "cat" / "self.png")
    (top / "cat" / "gone.png").symlink_to(top / "nowhere.png")
    (top / "cat" / "zero.png").symlink_to("/dev/zero")
    (top / "cat" / "linked.png").symlink_to(top / "dog" / "01.png")
    os.mkfifo(top / "cat" / "pipe.png")
    (top / "cat" / "deep" / "er").mkdir(parents=True)
    shutil.copy(top / "dog" / "02.png", top / "cat" / "deep" / "er")
    open_data(top / "cat" / "..", val_fraction=0)  # imports are not counted
    with counted() as work:
        data = open_data(top, val_fraction=0)
    assert work.calls < 20_000
    names = set(data.split("train").names or ())
    assert {"cat/linked.png", "cat/deep/er/02.png"} <= names
    assert len(names) == 6 + 2 + 5
    assert any("left out 4 files" in note for note in data.notes)


def test_a_class_behind_a_broken_link_is_said_to_be_left_out(pictures: Pictures, tmp_path: Path) -> None:
    top = pictures(cat=6, dog=5)
    (top / "bird").symlink_to(tmp_path / "not mounted")
    (top / "round").symlink_to("round")
    data = open_data(top)
    assert data.classes == ("cat", "dog")
    assert any("left out, as they are links that lead nowhere: bird, round." in note for note in data.notes)
    for link in (top / "bird", top / "round"):
        with pytest.raises(DataError, match="is a link that leads nowhere: give the folder itself"):
            open_data(link)


def test_unprintable_file_names_are_escaped(pictures: Pictures) -> None:
    top = pictures(cat=3, dog=3)
    source = (top / "cat" / "00.png").read_bytes()
    for name in (b"new\nline.png", b"\xff\xfe.png", "\U0001f408.png".encode()):
        (top / "cat" / os.fsdecode(name)).write_bytes(source)
    os.rename(os.fsencode(top / "dog"), os.fsencode(top) + b"/\xe9t\xe9")
    data = open_data(top, val_fraction=0)
    text = "\n".join([*data.classes, *(data.split("train").names or ())])
    assert len(text.encode("utf-8").splitlines()) == 2 + 9
    assert "cat/new\\nline.png" in text
    assert "cat/\U0001f408.png" in text
    assert data.classes == ("\\xe9t\\xe9", "cat")


def test_class_imbalance_is_reported(pictures: Pictures) -> None:
    top = pictures(cat=12, dog=4, emu=30)
    assert "class imbalance of 7.5 to 1 in training images: emu 30, cat 12, dog 4." in notes_of(top, val_fraction=0)
    shutil.rmtree(top / "emu")
    (top / "dog" / "more.png").write_bytes((top / "dog" / "00.png").read_bytes())
    assert "imbalance" not in notes_of(top, val_fraction=0)  # 12 to 5


def test_a_class_with_one_image_stays_in_train(pictures: Pictures) -> None:
    data_folder = pictures(cat=9, dog=1)
    data = open_data(data_folder, val_fraction=0.9)
    assert np.bincount(data.split("train").labels).tolist() == [1, 1]
    assert any("no image of dog is held out: a class with a single image" in note for note in data.notes)
    shutil.rmtree(data_folder)
    alone = open_data(pictures(cat=1, dog=1))
    assert {key: len(split) for key, split in alone.splits.items()} == {"train": 2}


def test_a_class_of_copies_of_one_image_stays_in_train(pictures: Pictures) -> None:
    top = pictures(cat=9, dog=1)
    for name in ("twice.png", "thrice.png"):
        shutil.copy(top / "dog" / "00.png", top / "dog" / name)
    data = open_data(top)
    assert np.bincount(data.split("val").labels, minlength=2).tolist() == [2, 0]
    shutil.rmtree(top / "cat")
    alone = with_validation(open_data(pictures(cat=1)), 0, 0)
    assert list(alone.splits) == ["train"]
    with pytest.raises(DataError, match=r"a single image \(copies count once\): give at least two of some class"):
        with_validation(open_data(top), 0.2, 0)


def test_an_empty_class_is_left_out(pictures: Pictures) -> None:
    top = pictures(cat=3, dog=3)
    (top / "emu").mkdir()
    data = open_data(top)
    assert data.classes == ("cat", "dog")
    assert any("left out in train, as they have no images: emu" in note for note in data.notes)


def test_folders_that_are_not_a_data_set_are_refused(pictures: Pictures, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="has no class folders: put the images of each class into a folder"):
        open_data(empty)
    (empty / "a").mkdir()
    with pytest.raises(DataError, match="no supported images in them"):
        open_data(empty)
    with pytest.raises(DataError, match=r"has only one class \(cat\)"):
        open_data(pictures(cat=3))
    with pytest.raises(DataError, match="no class folders"):
        open_data(tmp_path / "animals" / "cat")
    (tmp_path / "both" / "val").mkdir(parents=True)
    (tmp_path / "both" / "valid").mkdir()
    with pytest.raises(DataError, match="both val/ and valid/"):
        open_data(tmp_path / "both")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    Image.new("L", (3, 3)).save(tmp_path / "bare" / "train" / "1.png")
    with pytest.raises(DataError, match="train' has no class folders"):
        open_data(tmp_path / "bare")


def test_a_split_without_readable_images_is_refused(pictures: Pictures) -> None:
    pictures(below="train", cat=30, dog=30)
    top = pictures(below="test", cat=1)
    (top / "test" / "cat" / "00.png").write_bytes(b"")
    with pytest.raises(DataError, match="no readable image in test"):
        open_data(top)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_refused(pictures: Pictures) -> None:
    top = pictures(cat=3, dog=3)
    (top / "cat").chmod(0)
    try:
        with pytest.raises(DataError, match="permission denied"):
            open_data(top)
    finally:
        (top / "cat").chmod(0o755)


def test_an_unreadable_folder_gives_one_sentence(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    top = pictures(cat=3, dog=3)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot be read: permission denied"):
        open_data(top)


def test_a_large_folder_is_stored_on_disk(pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = pictures(cat=11, dog=7)
    (top / "cat" / "03.png").write_bytes((top / "cat" / "03.png").read_bytes()[:500])
    plain = open_data(top)
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "MAX_IN_MEMORY", 1000)
    monkeypatch.setattr(survey, "CHUNK", 5)
    data = open_data(top)
    assert isinstance(data.split("train").images, np.memmap)
    assert data.fingerprint == plain.fingerprint
    assert list((tmp_path / "cache").iterdir()) == []


def test_pillow_warnings_are_hidden(pictures: Pictures, recwarn: pytest.WarningsRecorder) -> None:
    """Pillow warns about truncated EXIF data but reads the image."""
    top = pictures(cat=3, dog=3)
    out = io.BytesIO()
    short = b"Exif\0\0II*\0\x08\0\0\0\x09\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\0\0"
    Image.new("RGB", (19, 19)).save(out, "JPEG", exif=short)
    content = out.getvalue()
    assert content[2:4] == b"\xff\xe0"  # without this segment Pillow looks for the resolution in the EXIF data
    content = content[:2] + content[4 + int.from_bytes(content[4:6], "big") :]
    (top / "cat" / "odd.jpg").write_bytes(content)
    with pytest.warns(UserWarning, match="Truncated File Read|Corrupt EXIF"):
        Image.open(io.BytesIO(content)).load()
    assert decode(top / "cat" / "odd.jpg").shape == (3, 19, 19)
    data = open_data(top, max_bad=0)
    assert len(data.split("train")) + len(data.split("val")) == 7
    assert len(recwarn) == 0
