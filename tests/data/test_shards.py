"""Tar shards: their index, labels, splits and images, packed by mlpconv or by others, intact, changed and hostile."""

from __future__ import annotations

import errno
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlpconv
from mlpconv.cli import main
from mlpconv.data import open_data, shard_index
from mlpconv.data.pack import pack, write_shard
from mlpconv.data.shard_images import ShardImages, fitting_sample, is_streamed
from mlpconv.data.shards import find_shards, memory_limit
from mlpconv.errors import DataError, RunFolderError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for name, low in {"dark": 0, "light": 90}.items():
        (folder / name).mkdir(parents=True)
        for index in range(29):
            pixels = rng.integers(low, low + 160, (9, 11, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def shards(photos: Path, tmp_path: Path) -> Path:
    pack(photos, tmp_path / "shards", per_shard=13)
    return tmp_path / "shards"


def png(value: int = 0, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes | None]) -> Path:
    """Write members in order; None is a symbolic link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def test_packed_images_are_those_of_the_folder(photos: Path, shards: Path) -> None:
    assert [path.name for path in sorted(shards.iterdir())] == [f"train-{n:06d}.tar" for n in range(5)]
    folder, packed = open_data(photos, val_fraction=0), open_data(shards, val_fraction=0)
    assert packed.classes == folder.classes
    assert (packed.channels, packed.size) == (folder.channels, folder.size)

    def as_set(dataset: Any) -> set[tuple[bytes, int]]:
        split = dataset.split("train")
        return {(image.tobytes(), int(label)) for image, label in zip(split.images[:], split.labels, strict=True)}

    assert len(as_set(folder)) == 58
    assert as_set(packed) == as_set(folder)


def test_the_same_images_are_held_out_as_in_the_folder(photos: Path, shards: Path) -> None:
    held = [{image.tobytes() for image in open_data(data).split("val").images[:]} for data in (photos, shards)]
    assert held[0] == held[1]
    assert len(held[0]) == 12


def test_shards_are_not_written_into_the_data(photos: Path) -> None:
    for inside in (photos / "shards", photos / "dark" / ".." / "shards"):
        with pytest.raises(UsageError, match="lies in the data, as one of its classes: choose one outside"):
            pack(photos, inside)
    assert sorted(path.name for path in photos.iterdir()) == ["dark", "light"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
@pytest.mark.parametrize("existed", [False, True])
def test_packing_that_stops_leaves_no_shards(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, existed: bool
) -> None:
    out, count = tmp_path / "shards", []

    def stopping(*words: Any) -> int:
        count.append(1)
        if len(count) == 3:
            raise stop
        return write_shard(*words)

    if existed:
        out.mkdir()
    monkeypatch.setattr("mlpconv.data.pack.write_shard", stopping)
    with pytest.raises((KeyboardInterrupt, DataError)):
        pack(photos, out, per_shard=2)
    assert out.exists() == existed
    assert not existed or not list(out.iterdir())


def test_packing_is_reproducible_and_mixes_classes(photos: Path, shards: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "again", per_shard=13)
    for path in shards.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    with tarfile.open(shards / "train-000000.tar") as tar:
        classes = {tar.extractfile(m).read() for m in tar if m.name.endswith(".cls")}  # type: ignore[union-attr]
    assert classes == {b"0", b"1"}


@pytest.mark.parametrize("key", [3, slice(2, 31, 3), np.array([5, 1, 57, 1]), slice(0, 0)])
def test_streamed_images_are_those_in_memory(shards: Path, key: Any) -> None:
    loaded = open_data(shards, val_fraction=0).split("train").images
    with memory_limit(0):
        streamed = open_data(shards, val_fraction=0).split("train").images
    assert not is_streamed(loaded)
    assert is_streamed(streamed)
    assert (streamed[key] == loaded[key]).all()
    assert streamed[key].shape == loaded[key].shape


def test_training_gives_the_same_bits_streamed_and_in_memory(shards: Path, tmp_path: Path, results: Any) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 16, "precision": "fp32", "width": 0.25, "report": False}
    mlpconv.fit(shards, out=tmp_path / "memory", progress=None, **settings)
    with memory_limit(0):
        mlpconv.fit(str(shards / "*.tar"), out=tmp_path / "streamed", progress=None, workers=3, **settings)
    assert results(tmp_path / "memory") == results(tmp_path / "streamed")


@pytest.fixture(scope="session")
def results() -> Any:
    import safetensors.numpy

    def read(folder: Path) -> dict[str, Any]:
        weights = safetensors.numpy.load((folder / "model.safetensors").read_bytes())
        rows = [line.split(",")[:7] for line in (folder / "metrics.csv").read_text().splitlines()]
        return {name: value.tobytes() for name, value in weights.items()} | {"rows": rows}

    return read


def test_labels_of_other_writers(tmp_path: Path) -> None:
    files: dict[str, bytes | None] = {}
    for index in range(4):
        files[f"{index}.png"], files[f"{index}.cls"] = png(index), b"10\n" if index % 2 else b"9"
    write_tar(tmp_path / "s" / "a.tar", files)
    dataset = open_data(tmp_path / "s", val_fraction=0)
    assert dataset.classes == ("9", "10")
    assert dataset.split("train").labels.tolist() == [0, 1, 0, 1]
    files = {"x/cat/1.jpg.png": png(1), "x/dog/2.png": png(2), "3.json": b'{"label": "cat"}', "3.png": png(3)}
    write_tar(tmp_path / "t" / "a.tar", files)
    dataset = open_data(tmp_path / "t", val_fraction=0)
    assert dataset.classes == ("cat", "dog")
    assert dataset.split("train").labels.tolist() == [0, 1, 0]


def test_splits_are_named_by_the_files(tmp_path: Path) -> None:
    for name, count in {"train-0.tar": 4, "val-0.tar": 2, "test_0.tar": 3}.items():
        files: dict[str, bytes | None] = {
            f"{c}/{name}{i}.png": png(hash(name) % 99 + i) for i in range(count) for c in "ab"
        }
        write_tar(tmp_path / "s" / name, files)
    dataset = open_data(tmp_path / "s")
    assert {key: len(split) for key, split in dataset.splits.items()} == {"train": 8, "val": 4, "test": 6}


def test_bad_samples_are_counted_and_named(tmp_path: Path) -> None:
    files: dict[str, bytes | None] = {f"{c}/{i}.png": png(i) for i in range(20) for c in "ab"}
    files |= {"c/torn.png": png(77)[:90], "nolabel.png": png(78), "c/link.png": None, "c/text.png": b"no image"}
    write_tar(tmp_path / "s" / "a.tar", files)
    dataset = open_data(tmp_path / "s", val_fraction=0)
    assert len(dataset.split("train")) == 40
    assert dataset.classes == ("a", "b")
    (note,) = [note for note in dataset.notes if note.startswith("skipped")]
    assert note.startswith("skipped 4 samples that cannot be used. a.tar, c/torn: ")
    assert "no label" in note
    with pytest.raises(DataError, match="4 of 44 samples in 1 shards cannot be used"):
        open_data(tmp_path / "s", max_bad=0.05)


def test_an_image_larger_than_the_limit_is_skipped_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[str, bytes | None] = {f"{c}/{i}.png": png(i) for i in range(20) for c in "ab"}
    write_tar(tmp_path / "s" / "a.tar", files | {"a/huge.png": bytes(5000)})
    monkeypatch.setattr(shard_index.read, "__defaults__", (2000,))
    (note,) = [note for note in open_data(tmp_path / "s").notes if note.startswith("skipped")]
    assert "'a/huge.png' has 5,000 bytes." in note


def test_a_truncated_shard_is_refused_by_name(shards: Path) -> None:
    path = shards / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"train-000002.tar' is truncated"):
        open_data(shards)


def test_the_index_is_made_once_and_again_for_a_changed_shard(
    shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    build = shard_index.build

    def counted(path: Path) -> Any:
        built.append(path)
        return build(path)

    monkeypatch.setattr(shard_index, "build", counted)
    first = open_data(shards)
    assert len(built) == 5
    assert open_data(shards).fingerprint == first.fingerprint
    assert len(built) == 5
    stored = min((cache / "shards").iterdir())
    stored.write_bytes(stored.read_bytes()[:-1] + b"\x77")  # damaged
    open_data(shards)
    assert len(built) == 6
    write_tar(shards / "train-000001.tar", {f"dark/{i}.png": png(i) for i in range(3)})
    assert open_data(shards).fingerprint != first.fingerprint
    assert len(built) == 7


def test_a_shard_that_changes_during_a_run_is_noticed(shards: Path) -> None:
    with memory_limit(0):
        images = open_data(shards, val_fraction=0).split("train").images
    path = shards / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-000000.tar' has changed since it was indexed"):
        images[:]


def test_a_run_is_not_resumed_with_other_shards(shards: Path, photos: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"out": tmp_path / "run", "report": False, "progress": None}
    mlpconv.fit(shards, epochs=1, width=0.1, precision="fp32", **settings)
    (shards / "train-000004.tar").unlink()
    with pytest.raises(RunFolderError, match="other images"):
        mlpconv.fit(shards, resume=True, **settings)


def test_names_of_shards(tmp_path: Path) -> None:
    for number in (0, 2, 10):
        write_tar(tmp_path / f"a-{number}.tar", {})
    names = lambda spec: [path.name for path in find_shards(spec) or []]  # noqa: E731
    assert names(tmp_path) == ["a-0.tar", "a-2.tar", "a-10.tar"]  # natural order
    assert names(f"{tmp_path}/a-[02].tar") == ["a-0.tar", "a-2.tar"]
    assert names(f"{tmp_path}/a-{{0,10}}.tar") == ["a-0.tar", "a-10.tar"]
    assert names(tmp_path / "a-2.tar") == ["a-2.tar"]
    assert find_shards(tmp_path / "absent") is None
    assert find_shards("digits") is None
    with pytest.raises(DataError, match=r"a-1.tar' is not a file .1 of 3 shards are missing"):
        find_shards(f"{tmp_path}/a-{{0..2}}.tar")
    with pytest.raises(UsageError, match="accepted: 1 to 100,000, ascending"):
        find_shards("a-{9..0}.tar")
    (tmp_path / "cat").mkdir()
    assert find_shards(tmp_path) is None  # class folders with a stray tar


def test_the_fitting_sample_is_the_same_in_memory_and_streamed(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpconv.data.shard_images.SAMPLE", 17)
    loaded = open_data(shards, val_fraction=0).split("train").images
    with memory_limit(0):
        streamed: Any = open_data(shards, val_fraction=0).split("train").images
    assert isinstance(streamed, ShardImages)
    assert (fitting_sample(streamed) == fitting_sample(loaded)).all()
    assert len(fitting_sample(streamed)) == 17
    assert fitting_sample(np.zeros(30)).shape == (30,)


def test_the_command_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "pack", str(photos), "--out", "shards", "--per-shard", "40", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 58
    words = ["train", "shards", "--epochs", "1", "--set", "width=0.1", "precision=fp32", "--memory", "1k"]
    assert main([*words, "--out", "run"]) == 0
    assert "are decoded again in every epoch" in capsys.readouterr().out
    assert main(["evaluate", "run", "shards"]) == 0
    assert main([*words[:-1], "much", "--out", "other"]) == 2
    assert "expected a size such as 500M or 4G" in capsys.readouterr().err
    assert main(["data", "pack", str(photos), "--out", "shards"]) == 2
    assert "is not empty" in capsys.readouterr().err
    (tmp_path / "void" / "a").mkdir(parents=True)
    assert main(["data", "pack", "void", "--out", "other"]) == 1
    assert "nothing to pack" in capsys.readouterr().err
