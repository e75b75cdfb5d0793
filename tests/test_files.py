"""Writes are atomic: they never lose the old content or leave a partial file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from mlpconv import files


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b"old and long", b"new"):
        files.write_atomic(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    files.write_atomic(path, b"old")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "open":
            patch.setattr("builtins.open", refuse)
        else:
            patch.setattr(os, call, refuse)
        with pytest.raises(OSError, match="No space") as caught:
            files.write_atomic(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_content_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("fsync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("replace") or replace(a, b))
    files.write_atomic(tmp_path / "a", b"1")
    assert order == ["fsync", "replace", "fsync"]


def test_a_new_file_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        files.write_synced(tmp_path / "a", b"yours")
    assert (tmp_path / "a").read_bytes() == b"mine"


def test_json_is_canonical_and_refuses_nan() -> None:
    assert files.json_bytes({"b": 1, "a": [None]}) == files.json_bytes({"a": [None], "b": 1})
    assert files.json_bytes({}).endswith(b"\n")
    with pytest.raises(ValueError, match="JSON compliant"):
        files.json_bytes({"loss": float("nan")})


@pytest.mark.parametrize("length", [0, 7, 1 << 18, (1 << 20) + 3])
def test_the_checksum_of_any_length_is_sha256(length: int, tmp_path: Path) -> None:
    content = os.urandom(length)
    (tmp_path / "a").write_bytes(content)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "p.csv", tmp_path / "folder"):
        with pytest.raises(OSError) as caught:
            files.write_atomic(path, b"content")
        assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == ["folder"]


def test_a_pipe_or_device_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("pipe")
    for path in (pipe, link):
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            files.write_atomic(path, b"new")
            assert os.read(reader, 9) == b"new"
        finally:
            os.close(reader)
    assert files.is_stream(pipe)
    assert link.is_symlink()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["link", "pipe"]
    (tmp_path / "null").symlink_to("/dev/null")
    files.write_atomic(tmp_path / "null", b"new")
    assert (tmp_path / "null").is_symlink()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux alone")
def test_a_link_to_an_open_file_is_never_replaced(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        (tmp_path / "stdout").symlink_to(f"/proc/self/fd/{file.fileno()}")  # as /dev/stdout that goes to a file
        files.write_atomic(tmp_path / "stdout", b"new")
    assert (tmp_path / "stdout").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_every_legal_file_name_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "ü" * 127):
        files.write_atomic(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 2
