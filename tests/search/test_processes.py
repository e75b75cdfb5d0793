"""Many processes on one search, some of them killed: no trial is lost, doubled or changed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

import mlpconv
from mlpconv.search.journal import Journal, try_lock

DRIVER = Path(__file__).parents[1] / "support" / "search_driver.py"


def search(folder: Path, processes: int, kills: int, trials: int, seed: int = 0) -> dict[str, Any]:
    """Run the driver; return its report."""
    words = [sys.executable, str(DRIVER), str(folder), *map(str, (processes, kills, trials, seed))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=300)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def check_search(folder: Path, processes: int, kills: int, trials: int) -> None:
    report = search(folder, processes, kills, trials)
    assert sorted(report["codes"]) == [-9] * kills + [0] * (processes - kills), folder.with_suffix(".log").read_text()
    entries = [json.loads(line) for line in (folder / "journal.log").read_text().splitlines()]
    created = [entry for entry in entries if entry["op_code"] == 4]
    finished = [entry["trial_id"] for entry in entries if entry["op_code"] == 6 and entry["state"] == 1]
    assert len(created) == trials
    assert sorted(finished) == list(range(trials))  # each once
    assert sorted(path.name for path in (folder / "trials").iterdir()) == [f"{n:04d}" for n in range(trials)]
    for number in report["killed"]:
        check_resumed(folder / "trials" / f"{number:04d}", folder.parent / f"straight-{number}")


def check_resumed(run: Path, straight: Path) -> None:
    """A trial that was killed and continued has the weights of an uninterrupted run."""
    sys.path.insert(0, str(DRIVER.parent))
    try:
        from search_driver import tiny
    finally:
        sys.path.pop(0)
    settings = json.loads((run / "recipe.json").read_text())
    mlpconv.fit(tiny(), mlpconv.fitting.Recipe(), out=straight, report=False, progress=None, **settings)
    weights = [safetensors.numpy.load((path / "model.safetensors").read_bytes()) for path in (run, straight)]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_three_processes_one_killed(tmp_path: Path) -> None:
    check_search(tmp_path / "study", processes=3, kills=1, trials=8)


@pytest.mark.slow
def test_sixteen_processes_three_killed(tmp_path: Path) -> None:
    check_search(tmp_path / "study", processes=16, kills=3, trials=40)


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.log")
    journal.append_logs([{"op_code": 1}, {"op_code": 2}])
    with open(journal.path, "ab") as file:
        file.write(b'{"op_code":3,"wor')
    assert [log["op_code"] for log in journal.read_logs(0)] == [1, 2]
    Journal(journal.path).append_logs([{"op_code": 4}])
    assert [log["op_code"] for log in Journal(journal.path).read_logs(0)] == [1, 2, 4]


def test_a_full_disk_leaves_no_part_of_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal.log")
    journal.append_logs([{"op_code": 1}])
    before = journal.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            journal.append_logs([{"op_code": 2}])
    assert journal.path.read_bytes() == before


def test_a_claim_is_held_by_one_process(tmp_path: Path) -> None:
    first = try_lock(tmp_path / "0001.lock")
    assert first is not None
    assert try_lock(tmp_path / "0001.lock") is None
    os.close(first)
    again = try_lock(tmp_path / "0001.lock")
    assert again is not None
    os.close(again)
