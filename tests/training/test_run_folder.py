"""Run folders: numbered, never overwritten, locked, with atomically written files."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlpconv.errors import Interrupted, RunFolderError
from mlpconv.training.progress import COLUMNS
from mlpconv.training.run_folder import RunFolder, require_empty, require_usable


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resumed(out: Path | None, name: str) -> Path:
    folder = RunFolder.find(out, name)
    assert folder is not None
    return folder.path


# --- names


def test_folders_are_numbered_per_name(here: Path):
    made = [RunFolder.create(None, name).path for name in ("digits", "digits", "cats", "digits")]
    assert [str(path) for path in made] == ["runs/digits-001", "runs/digits-002", "runs/cats-001", "runs/digits-003"]
    assert all((here / path).is_dir() for path in made)


def test_the_next_number_follows_the_largest(here: Path):
    for name in ("digits-007", "digits-1²", "digits-old", "digits-x-099", "digits-12-old", "digit-055"):
        (here / "runs" / name).mkdir(parents=True)
    assert str(RunFolder.create(None, "digits").path) == "runs/digits-008"
    (here / "runs" / "digits-1000").mkdir()
    assert str(RunFolder.create(None, "digits").path) == "runs/digits-1001"


@pytest.mark.parametrize("name", ["cats [1]", "a*b", "?", "[!a]", "två katter"])
def test_a_name_is_not_a_glob_pattern(here: Path, name: str):
    for number in ("001", "002"):
        folder = RunFolder.create(None, name)
        assert folder.path.name == f"{name}-{number}"
        folder.write_json("recipe.json", {})
    (here / "runs" / "cats 1-009").mkdir()
    (here / "runs" / "axb-009").mkdir()
    assert resumed(None, name).name == f"{name}-002"


def test_concurrent_threads_get_separate_folders(here: Path):
    for _ in range(5):
        gate = threading.Barrier(8)

        def start(_number: int, gate: threading.Barrier = gate) -> Path:
            gate.wait()
            return RunFolder.create(None, "digits").path

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(start, range(8)))) == 8
    assert len(list((here / "runs").iterdir())) == 40


def test_the_newest_run_is_resumed(here: Path):
    for number in (2, 10, 999, 1000):
        folder = here / "runs" / f"digits-{number:03d}"
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text("{}")
    (here / "runs" / "digits-2000-copy").mkdir()
    assert resumed(None, "digits") == Path("runs/digits-1000")


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", "data.json", ".recipe.json.0badcafe.part")])
def test_a_folder_without_a_started_run_is_reused(here: Path, left: tuple[str, ...]):
    assert RunFolder.find(None, "digits") is None
    assert RunFolder.find(here / "missing", "digits") is None
    for out in (here / "mine", here / "runs" / "digits-007"):
        out.mkdir(parents=True)
        for name in left:
            (out / name).write_text("")
    assert RunFolder.find(here / "mine", "digits") is None
    assert RunFolder.create(here / "mine", "digits", reuse=True).path == here / "mine"
    assert RunFolder.find(None, "digits") is None
    assert RunFolder.create(None, "digits", reuse=True).path == Path("runs/digits-007")
    assert RunFolder.create(None, "digits").path == Path("runs/digits-008")


@pytest.mark.parametrize("content", ["notes.txt", "checkpoints", ".hidden", "metrics.csv"])
def test_a_folder_with_other_content_is_refused(here: Path, content: str):
    out = here / "mine"
    out.mkdir()
    (out / content).write_text("precious")
    told = rf"mine contains no run \(no recipe.json\); it contains {content}: choose another folder, out=FOLDER\."
    with pytest.raises(RunFolderError, match=told):
        RunFolder.find(out, "digits")
    with pytest.raises(RunFolderError, match=r"contains no run .*; it is a file: choose another folder"):
        RunFolder.find(out / content, "digits")
    assert (out / content).read_text() == "precious"


def test_a_folder_that_cannot_be_read_is_not_resumed(here: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (here / "mine").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(RunFolderError, match=r"mine cannot be read \(Permission denied\): choose another folder"):
        RunFolder.find(here / "mine", "digits")


# --- content


def test_a_new_or_empty_folder_is_used(here: Path):
    assert RunFolder.create(here / "a" / "b", "digits").path.is_dir()
    assert RunFolder.create(here / "a" / "b", "digits").path.is_dir()


@pytest.mark.parametrize("content", ["notes.txt", "recipe.json", "checkpoints", ".hidden"])
def test_a_folder_with_content_is_refused_and_unchanged(here: Path, content: str):
    out = here / "mine"
    out.mkdir()
    (out / content).write_text("precious")
    advice = ", or resume the run in it, resume=True." if content == "recipe.json" else "."
    with pytest.raises(RunFolderError, match=f"mine is not empty: choose another folder, out=FOLDER{advice}$"):
        RunFolder.create(out, "digits")
    with pytest.raises(RunFolderError, match="is not empty"):
        require_empty(out)
    assert [path.name for path in out.iterdir()] == [content]
    assert (out / content).read_text() == "precious"


def test_a_file_instead_of_the_folder_is_refused(here: Path):
    (here / "mine").write_text("precious")
    for out in (here / "mine", here / "mine" / "below"):
        with pytest.raises(RunFolderError, match=r"is not empty|cannot be created"):
            RunFolder.create(out, "digits")
    assert (here / "mine").read_text() == "precious"


def test_leftovers_of_a_run_killed_before_its_start_are_ignored(here: Path):
    out = here / "mine"
    folder = RunFolder.create(out, "digits")
    with folder.lock():
        folder.write_json("data.json", {})
    assert RunFolder.create(out, "digits").path == out


@pytest.mark.parametrize("out", [None, Path("deep/down")])
def test_a_folder_that_cannot_be_created_is_explained(here: Path, monkeypatch: pytest.MonkeyPatch, out: Path | None):
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunFolderError, match="cannot be created .Read-only file system.: choose another folder, out="):
        RunFolder.create(out, "digits")


@pytest.mark.parametrize("out", [None, Path("deep/down"), Path()])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, out: Path | None
):
    require_usable(out)
    asked: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path))
    with pytest.raises(RunFolderError, match="cannot be written: choose another folder, out=FOLDER"):
        require_usable(out)
    assert asked == [here]
    assert not list(here.iterdir())


# --- the lock

HOLDER = """
import sys
from pathlib import Path
from mlpconv.training.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("in", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_with_the_id_of_the_holder(here: Path):
    folder = RunFolder.create(here / "run", "digits")
    command = [sys.executable, "-c", HOLDER, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(RunFolderError, match=f"is in use by process {holder.pid}: wait for it"), folder.lock():
            pytest.fail("two are in")
        holder.kill()  # the kernel lets go of the lock of a process that dies
        holder.wait()
        with folder.lock():
            assert (folder.path / ".lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_is_released_after_an_error(here: Path):
    folder = RunFolder.create(here / "run", "digits")
    with pytest.raises(ZeroDivisionError), folder.lock():
        raise ZeroDivisionError
    with folder.lock(), pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"), folder.lock():
        pytest.fail("two are in")


@pytest.mark.parametrize(
    ("stop", "number"), [(KeyboardInterrupt(), 2), (Interrupted("terminated.", 15), 15)], ids=["ctrl-c", "sigterm"]
)
def test_an_interruption_says_how_to_resume(here: Path, stop: KeyboardInterrupt, number: int):
    with (
        pytest.raises(Interrupted, match=r"interrupted. To resume the run, pass out=") as caught,
        RunFolder(here).lock(),
    ):
        raise stop
    assert (caught.value.signal_number, caught.value.folder) == (number, here)


def test_an_interruption_that_says_so_is_left_alone(here: Path):
    stop = Interrupted("stopped after step 3.", 2, here)
    with pytest.raises(Interrupted) as caught, RunFolder(here).lock():
        raise stop
    assert caught.value is stop


def test_a_symbolic_link_as_lock_is_not_followed(here: Path):
    folder = RunFolder.create(here / "run", "digits")
    target = here / "precious"
    target.write_text("precious")
    (folder.path / ".lock").symlink_to(target)
    with pytest.raises(RunFolderError, match="cannot be written"), folder.lock():
        pytest.fail("it was followed")
    assert target.read_text() == "precious"
    (folder.path / ".lock").unlink()
    (folder.path / ".lock").symlink_to(here / "new")
    with pytest.raises(RunFolderError, match="cannot be written"), folder.lock():
        pytest.fail("it was followed")
    assert not (here / "new").exists()


def test_an_unwritable_folder_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch):
    folder = RunFolder.create(here / "run", "digits")

    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with (
        pytest.raises(RunFolderError, match="cannot be written .Permission denied.: choose another folder"),
        folder.lock(),
    ):
        pytest.fail("it was opened")


def test_only_partial_files_of_a_killed_run_are_removed(here: Path):
    folder = RunFolder.create(here / "run", "digits")
    folder.figures.mkdir()
    litter = [folder.path / ".recipe.json.0badcafe.part", folder.figures / ".curves.png.0badcafe.part"]
    kept = [folder.path / "notes.part", folder.figures / "curves.png", here / ".other.part"]
    for path in (*litter, *kept):
        path.write_text("")
    with folder.lock():
        assert [path.exists() for path in litter] == [False, False]
        assert all(path.exists() for path in kept)


# --- files


def test_json_is_written_and_read(here: Path):
    folder = RunFolder.create(here / "run", "digits")
    value = {"lr": 0.1, "sizes": [7, 11], "name": "två", "none": None}
    folder.write_json("recipe.json", value)
    assert folder.read_json("recipe.json") == value == json.loads((here / "run" / "recipe.json").read_bytes())
    assert os.listdir(here / "run") == ["recipe.json"]


BROKEN = {
    "cut": b'{"lr": 0.',
    "list": b"[1]",
    "null": b"null",
    "deep": b"[" * 10**5,
    "not utf-8": b"\xff\xff",
    "long number": b'{"lr": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_file_of_the_run_is_named(here: Path, kind: str):
    folder = RunFolder.create(here / "run", "digits")
    (here / "run" / "recipe.json").write_bytes(BROKEN[kind])
    with pytest.raises(RunFolderError, match=r"recipe\.json .*this run cannot be resumed"):
        folder.read_json("recipe.json")


def test_a_pipe_does_not_block(here: Path):
    folder = RunFolder.create(here / "run", "digits")
    os.mkfifo(here / "run" / "recipe.json")
    (here / "run" / "data.json").mkdir()
    for name in ("recipe.json", "data.json", "missing.json"):
        with pytest.raises(RunFolderError, match=f"{name} .*this run cannot be resumed"):
            folder.read_json(name)


def test_a_full_disk_is_reported_and_keeps_the_old_file(here: Path, monkeypatch: pytest.MonkeyPatch):
    folder = RunFolder.create(here / "run", "digits")
    folder.write_json("recipe.json", {"lr": 1})

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        RunFolderError, match=r"recipe\.json cannot be written \(No space left on device\): free disk space"
    ):
        folder.write_json("recipe.json", {"lr": 2})
    assert folder.read_json("recipe.json") == {"lr": 1}
    assert os.listdir(here / "run") == ["recipe.json"]


def test_metrics_have_a_row_per_epoch_and_exact_numbers(here: Path):
    folder = RunFolder.create(here / "run", "digits")
    first = dict(zip(COLUMNS, [1, 7, 2.302585092994046, 0.1, None, None, 0.1, 99.5, 1.25, 1.5], strict=True))
    second = first | {"epoch": 2, "step": 14, "val_loss": 1 / 3, "val_accuracy": 0.9}
    folder.write_history([first])
    folder.write_history([first, second])
    with open(here / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    settled = "epoch,step,train_loss,train_accuracy,val_loss,val_accuracy,lr,images_per_second,seconds"
    assert ",".join(rows[0]).startswith(settled)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert (rows[0]["val_loss"], rows[0]["val_accuracy"]) == ("", "")
    assert float(rows[0]["train_loss"]) == first["train_loss"]
    assert float(rows[1]["val_loss"]) == 1 / 3
