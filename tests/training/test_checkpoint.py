"""Checkpoints are atomic and verified: failing calls, killed processes, truncated and inconsistent files."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mlpconv.errors import CheckpointError
from mlpconv.files import write_atomic
from mlpconv.training import checkpoint
from mlpconv.training.checkpoint import MANIFEST

ERRNOS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EACCES": errno.EACCES}
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", MANIFEST)


def content(step: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    draw = torch.Generator().manual_seed(step)
    model = {"weight": torch.randn(7, 5, generator=draw), "count": torch.tensor(step)}
    optimizer = {"0.0.momentum_buffer": torch.randn(7, 5, generator=draw)}
    return {"model": model, "optimizer": optimizer}, {"step": step, "totals": [math.pi / (step + 1), 1e-310]}


def save(folder: Path, step: int) -> Path:
    return checkpoint.save(folder, step, *content(step))


def is_step(found: checkpoint.Checkpoint | None, step: int) -> bool:
    """Return whether a checkpoint is bit-identical to that of a step."""
    tensors, state = content(step)
    return (
        found is not None
        and state == found[1]
        and all(
            set(group) == set(found[0][name])
            and all(torch.equal(value, found[0][name][key]) for key, value in group.items())
            for name, group in tensors.items()
        )
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable fsync: no test stops the machine."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the checkpoints of steps 1 and 2."""
    made = tmp_path / "checkpoints"
    save(made, 1)
    save(made, 2)
    return made


def litter(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith("step-")]


def test_the_newest_is_restored_bit_for_bit_and_three_are_kept(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) == (None, [])
    for step in (9, 10, 11, 100):
        assert save(tmp_path, step).is_dir()
    found, notes = checkpoint.latest(tmp_path)
    assert is_step(found, 100)
    assert notes == []
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == [
        "step-000000100",
        "step-000000011",
        "step-000000010",
    ]
    assert litter(tmp_path) == []


def test_memory_layouts_and_empty_groups_survive(tmp_path: Path) -> None:
    weight = torch.randn(5, 3, 2, 2).to(memory_format=torch.channels_last)
    checkpoint.save(tmp_path, 1, {"model": {"weight": weight}, "optimizer": {}}, {})
    found, _ = checkpoint.latest(tmp_path)
    assert found is not None
    assert torch.equal(found[0]["model"]["weight"], weight)
    assert found[0]["optimizer"] == {}


def test_saving_a_step_again_replaces_a_damaged_checkpoint(folder: Path) -> None:
    (folder / "step-000000002" / "state.json").write_text("{}")
    assert is_step(checkpoint.latest(folder)[0], 1)
    save(folder, 2)
    found, notes = checkpoint.latest(folder)
    assert is_step(found, 2)
    assert notes == []
    assert [path.name for path in checkpoint.list_checkpoints(folder)] == ["step-000000002+", "step-000000001"]
    save(folder, 3)
    assert is_step(checkpoint.latest(folder)[0], 3)
    assert len(checkpoint.list_checkpoints(folder)) == 3


def test_damaged_newer_checkpoints_do_not_displace_intact_ones(folder: Path) -> None:
    for step in (50, 60):
        save(folder, step)
        (folder / f"step-{step:09d}" / MANIFEST).unlink()
    for step in (3, 4, 5):
        save(folder, step)
    assert [int(path.name[5:]) for path in checkpoint.list_checkpoints(folder)] == [60, 50, 5, 4, 3]
    found, notes = checkpoint.latest(folder)
    assert is_step(found, 5)
    assert len(notes) == 2
    for step in (60, 70):
        save(folder, step)
    assert [path.name[-3:] for path in checkpoint.list_checkpoints(folder)] == ["070", "60+", "050"]
    assert is_step(checkpoint.latest(folder)[0], 70)


# What fails or dies

Install = Callable[..., Any]


@pytest.fixture
def acting(faults: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`acting(act, work)`: run `work` with `act(number)` before each of its file calls; return their names."""

    def install(act: Callable[[int], None], work: Callable[[], object]) -> list[str]:
        with monkeypatch.context() as patch:
            calls = faults.FileCalls(act)
            calls.install(lambda owner, name, value: patch.setattr(owner, name, value, raising=False))
            work()
        return calls.names

    return install


def attempts(source: Path, count: int) -> Iterator[tuple[int, Path]]:
    """Yield the number of each attempt and a copy of a folder."""
    for number in range(1, count + 1):
        copy = source.with_name(f"{source.name}-{number}")
        shutil.copytree(source, copy)
        yield number, copy


def count_calls(acting: Install, source: Path, work: Callable[[Path], object]) -> list[str]:
    """Return the names of the file calls of undisturbed work."""
    copy = source.with_name("undisturbed")
    shutil.copytree(source, copy)
    return acting(lambda _: None, lambda: work(copy))


def test_files_are_synced_before_the_rename_and_the_folder_after(folder: Path, acting: Install) -> None:
    names = count_calls(acting, folder, lambda copy: save(copy, 3))
    each_file, the_folder = ["open", "write", "fsync"], ["open", "fsync"]
    assert names == ["mkdir", "mkdir", *each_file * len(FILES), *the_folder, "rename", *the_folder]


@pytest.mark.parametrize("step", [3, 2], ids=["a new step", "a damaged one again"])
@pytest.mark.parametrize("name", ERRNOS)
def test_a_failing_save_keeps_the_previous_checkpoint(
    folder: Path, faults: ModuleType, acting: Install, name: str, step: int
) -> None:
    for old in (0, 1):  # one too many, so that a save also removes
        save(folder, old)
    (folder / "step-000000002" / "state.json").write_text("torn")
    whole = 2 if step == 3 else 1
    if step == 3:
        save(folder, 2)
    names = count_calls(acting, folder, lambda copy: save(copy, step))
    assert set(names) == {"open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir"}
    failed = 0
    for number, copy in attempts(folder, len(names)):
        try:
            acting(faults.fail_at(number, ERRNOS[name]), lambda copy=copy: save(copy, step))
        except CheckpointError as error:
            failed += 1
            assert os.strerror(ERRNOS[name]) in str(error)
            assert f"step {step}" in str(error)
            assert "resume=True" in str(error)
        found, notes = checkpoint.latest(copy)
        assert (is_step(found, step) and notes == []) or is_step(found, whole)
        save(copy, 4)
        assert is_step(checkpoint.latest(copy)[0], 4)
        assert litter(copy) == []
    assert failed >= names.index("rename") >= 15


@pytest.mark.parametrize("step", [3, 2], ids=["a new step", "a damaged one again"])
def test_a_save_that_dies_leaves_the_old_or_the_new_checkpoint(
    folder: Path, faults: ModuleType, acting: Install, step: int
) -> None:
    for old in (0, 1):
        save(folder, old)
    if step == 2:
        (folder / "step-000000002" / "state.json").write_text("torn")
    names = count_calls(acting, folder, lambda copy: save(copy, step))
    states = []
    for number, copy in attempts(folder, len(names)):
        with pytest.raises(faults.Killed):
            acting(faults.die_at(number), lambda copy=copy: save(copy, step))
        found, notes = checkpoint.latest(copy)
        states.append("new" if is_step(found, step) else "old" if is_step(found, 2 if step == 3 else 1) else "neither")
        assert step == 2 or notes == []
        save(copy, 4)
        assert is_step(checkpoint.latest(copy)[0], 4)
        assert litter(copy) == []
    renamed = names.index("rename") + 1
    assert states == ["old"] * renamed + ["new"] * (len(names) - renamed)


def test_an_intact_checkpoint_stays_until_its_replacement_is_complete(
    folder: Path, faults: ModuleType, acting: Install
) -> None:
    def again(copy: Path) -> Path:
        return checkpoint.save(copy, 2, content(2)[0], {"step": 2, "again": True})

    names = count_calls(acting, folder, again)
    for number, copy in attempts(folder, len(names)):
        with pytest.raises(faults.Killed):
            acting(faults.die_at(number), lambda copy=copy: again(copy))
        found, notes = checkpoint.latest(copy)
        assert found is not None
        assert found[1].get("again", False) == (number > names.index("rename") + 1)
        assert notes == [] if "again" in found[1] else is_step(found, 2)


@pytest.mark.parametrize("there", [b"the old content", None], ids=["replaced", "new"])
def test_a_file_is_replaced_atomically(
    tmp_path: Path, faults: ModuleType, acting: Install, there: bytes | None
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if there is not None:
        (source / "model").write_bytes(there)
    names = count_calls(acting, source, lambda copy: write_atomic(copy / "model", b"the new content"))
    assert names == ["open", "write", "fsync", "replace", "open", "fsync"]
    for number in range(1, len(names) + 1):
        for act, error in ((faults.fail_at(number, errno.ENOSPC), OSError), (faults.die_at(number), faults.Killed)):
            copy = tmp_path / f"{number}-{error.__name__}"
            shutil.copytree(source, copy)
            with pytest.raises(error):
                acting(act, lambda copy=copy: write_atomic(copy / "model", b"the new content"))
            now = (copy / "model").read_bytes() if (copy / "model").exists() else None
            assert now == (there if number <= 4 else b"the new content")
            parts = [path for path in copy.iterdir() if path.suffix == ".part"]
            assert len(parts) == (error is not OSError and 1 < number <= 4)  # a failure cleans up, the dead cannot


# What is torn, flipped or missing


def lengths(path: Path) -> set[int]:
    """Return where to truncate a file: at its ends, after its header, in the middle."""
    size = len(path.read_bytes().rstrip())  # without the last newline, JSON is whole
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little") if path.suffix == ".safetensors" else 8
    cuts = {0, 1, 7, 8, 9, header - 1, header, header + 1, size // 2, size - 1}
    return {cut for cut in cuts if cut < size}


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_and_the_older_checkpoint_loaded(folder: Path, name: str) -> None:
    path = folder / "step-000000002" / name
    whole = path.read_bytes()
    for length in sorted(lengths(path)):
        path.write_bytes(whole[:length])
        found, (note,) = checkpoint.latest(folder)
        assert is_step(found, 1)
        assert str(path.parent) in note
        assert name in note
    path.write_bytes(whole + b"\0")
    assert is_step(checkpoint.latest(folder)[0], 1)
    path.unlink()
    found, (note,) = checkpoint.latest(folder)
    assert is_step(found, 1)
    assert name in note
    path.write_bytes(whole)
    assert is_step(checkpoint.latest(folder)[0], 2)


def test_every_flipped_bit_is_detected(folder: Path) -> None:
    draw = random.Random(2013)
    for _ in range(300):
        path = folder / "step-000000002" / draw.choice(FILES)
        whole = path.read_bytes()
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        found, (note,) = checkpoint.latest(folder)
        assert is_step(found, 1), (path.name, place)
        assert str(path.parent) in note
        assert path.name in note or path.name == MANIFEST
        path.write_bytes(whole)


def test_if_all_are_damaged_none_is_loaded_and_each_is_named(folder: Path) -> None:
    for step in (1, 2):
        (folder / f"step-{step:09d}" / "model.safetensors").write_bytes(b"")
    found, notes = checkpoint.latest(folder)
    assert found is None
    assert [f"step-{step:09d}/model.safetensors" in note for step, note in zip((2, 1), notes, strict=True)] == [
        True
    ] * 2


# What lies


def forge(folder: Path, files: dict[str, bytes], manifest: bytes | None = None) -> None:
    """Write step 3 with these files and a matching manifest."""
    path = folder / "step-000000003"
    path.mkdir()
    for name, value in files.items():
        (path / name).write_bytes(value)
    sums = {name: {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()} for name, value in files.items()}
    (path / MANIFEST).write_bytes(json.dumps(sums).encode() if manifest is None else manifest)


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def test_a_pickle_is_never_read(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = pickle.dumps(Bomb(canary))
    forge(folder, {"model.safetensors": bomb, "optimizer.safetensors": bomb, "state.json": b"{}"})
    found, (note,) = checkpoint.latest(folder)
    assert is_step(found, 2)
    assert "step-000000003 is damaged" in note
    shutil.rmtree(folder / "step-000000003")
    forge(folder, {}, manifest=bomb)
    assert is_step(checkpoint.latest(folder)[0], 2)
    assert not canary.exists()
    pickle.loads(bomb)
    assert canary.exists()  # the bomb was a live one


def entry(name: str, **changes: Any) -> bytes:
    right = {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    return json.dumps({"state.json": right, name: right | changes}).encode()


LIES = {
    "a path out of the folder": entry("../../secret.json"),
    "the folder above": entry(".."),
    "no name": entry(""),
    "an absolute path": entry("/etc/passwd"),
    "a NUL": entry("state.json\0"),
    "half a letter": entry("\ud800.json"),
    "a long name": entry("a" * 100_000 + ".json"),
    "a huge size": entry("state.json", bytes=2**62),
    "a size without end": entry("state.json").replace(b": 2,", b": 1" + b"0" * 100_000 + b","),
    "a negative size": entry("state.json", bytes=-2),
    "a size that is no number": entry("state.json", bytes="2"),
    "a size of true": entry("state.json", bytes=True),
    "a size with a point": entry("state.json", bytes=2.0),
    "no digest": entry("state.json", sha256=None),
    "a list": b"[]",
    "a list of lists": b'{"state.json": []}',
    "null": b"null",
    "nothing": b"{}",
    "a deep nest": b"[" * 100_000,
    "a deep nest, closed": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "other letters": b"\xff\xfe",
    "megabytes": b" " * (checkpoint.MAX_MANIFEST_BYTES + 1),
}


@pytest.mark.parametrize("manifest", LIES.values(), ids=LIES.keys())
def test_an_inconsistent_manifest_is_refused(folder: Path, manifest: bytes) -> None:
    secret = folder.parent / "secret.json"
    secret.write_bytes(b"{}")
    forge(folder, {"state.json": b"{}"}, manifest)
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.parent.rglob("*"))
    found, (note,) = checkpoint.latest(folder)
    assert is_step(found, 2)
    assert "step-000000003" in note
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.parent.rglob("*")) == before


SAFETENSORS = {
    "a header longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "a header beyond all numbers": b"\xff" * 8 + b"{}",
    "a shape beyond memory": b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}',
    "offsets beyond the end": b'{"w":{"dtype":"F32","shape":[1024],"data_offsets":[0,4096]}}',
    "an unknown kind of number": b'{"w":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}',
    "a deep nest": b'{"w":' * 50_000,
    "no header": b"",
}


@pytest.mark.parametrize("header", SAFETENSORS.values(), ids=SAFETENSORS.keys())
def test_an_inconsistent_tensor_file_is_refused(folder: Path, header: bytes) -> None:
    value = header if header[8:] == b"{}" else len(header).to_bytes(8, "little") + header + b"\0" * 4
    forge(folder, {"model.safetensors": value, "state.json": b"{}"})
    found, (note,) = checkpoint.latest(folder)
    assert is_step(found, 2)
    assert "step-000000003 is damaged" in note


@pytest.mark.parametrize("state", [b"[" * 100_000, b"{", b"\xff", b'{"a": 1e999'], ids=range(4))
def test_an_invalid_json_state_is_refused(folder: Path, state: bytes) -> None:
    forge(folder, {"state.json": state})
    assert is_step(checkpoint.latest(folder)[0], 2)


@pytest.mark.parametrize("name", FILES)
def test_pipes_links_and_folders_instead_of_files_do_not_block(folder: Path, name: str) -> None:
    path = folder / "step-000000002" / name
    elsewhere = path.rename(folder.parent / "elsewhere")
    for make in (os.mkfifo, lambda here: here.symlink_to(elsewhere), os.mkdir):
        make(path)
        found, (note,) = checkpoint.latest(folder)
        assert is_step(found, 1)
        assert "not a regular file" in note
        assert name in note
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
