"""Pixel arrays in memory and on disk, and paths that are not regular files."""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.work import within

from mlpconv.cli import main
from mlpconv.data import Split, holdout, storage
from mlpconv.errors import DataError


def test_large_arrays_are_in_an_unnamed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "MAX_IN_MEMORY", 1000)
    assert type(storage.allocate((10, 1, 10, 10))) is np.ndarray
    assert not (tmp_path / "cache").exists()
    room = storage.allocate((11, 1, 10, 10))
    assert isinstance(room, np.memmap)
    room[:] = 7
    assert int(room.sum()) == 7 * 1100
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_split_on_disk_is_divided_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path))
    monkeypatch.setattr(storage, "MAX_IN_MEMORY", 100)
    images = storage.allocate((50, 1, 3, 3))
    images[:] = np.arange(50)[:, None, None, None]
    rest, held = holdout(Split(images, np.arange(50) % 2), 0.5, 1, how="stratified")
    assert isinstance(rest.images, np.memmap)
    assert isinstance(held.images, np.memmap)
    assert sorted([*rest.images[:, 0, 0, 0], *held.images[:, 0, 0, 0]]) == list(range(50))


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path))
    monkeypatch.setattr(storage, "MAX_IN_MEMORY", 100)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"not enough space for .* GB of pixels .*No space left.*MLPCONV_DATA=FOLDER"):
        storage.allocate((200, 1, 1, 1))
    assert list(tmp_path.iterdir()) == []


def test_without_fallocate_the_space_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path))
    monkeypatch.setattr(storage, "MAX_IN_MEMORY", 100)
    monkeypatch.setattr(storage, "CHUNK", 64)
    monkeypatch.delattr(os, "posix_fallocate")
    assert storage.allocate((131, 1, 1, 1)).sum() == 0


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe, door = tmp_path / "pipe", tmp_path / "door"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(door))
        for path in (pipe, door, tmp_path, Path("/dev/zero")):
            with pytest.raises(DataError, match="not a regular file"):
                within(partial(storage.open_data_file, path), calls=200)
    with pytest.raises(DataError, match="not a file name"):
        storage.open_data_file(Path("a\0b"))
    with pytest.raises(FileNotFoundError):
        storage.open_data_file(tmp_path / "absent")


def test_a_file_replaced_by_a_pipe_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, plain = tmp_path / "pipe", tmp_path / "plain"
    os.mkfifo(pipe)
    plain.touch()
    before = plain.stat()
    monkeypatch.setattr(Path, "stat", lambda self, **_: before)
    with pytest.raises(DataError, match="not a regular file"):
        storage.open_data_file(pipe)


def test_the_environment_variable_sets_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path))
    assert storage.cache_folder() == tmp_path
    monkeypatch.delenv("MLPCONV_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.cache_folder() == tmp_path / "home" / ".cache" / "mlpconv"


def test_without_a_home_the_cache_is_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(f"uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("MLPCONV_DATA", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError):
        Path.home()
    expected = tmp_path / f"mlpconv-{os.getuid()}"
    assert storage.cache_folder() == expected
    assert main(["data", "list"]) == 0
    assert f"searched in {expected}" in " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    assert main(["train", "mnist", "--out", str(tmp_path / "run")]) == 1
    assert "this is a bug" not in capsys.readouterr().err
