"""Several processes: the same bits for any number of them, and an end within seconds when one dies, hangs or fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

DRIVER = Path(__file__).parents[1] / "support" / "group_driver.py"


@pytest.fixture(scope="module")
def processes() -> Iterator[Callable[..., SimpleNamespace]]:
    """Return a function that runs `mlpconv ARGV` in `size` processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(DRIVER)], env=environment, **pipes) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(size: int, *argv: object, by_rank: list[list[str]] | None = None, **request: Any) -> SimpleNamespace:
            words = by_rank or [[str(word) for word in argv]] * size
            server.stdin.write(json.dumps({"argv": words, **request}) + "\n")  # type: ignore[union-attr]
            server.stdin.flush()  # type: ignore[union-attr]
            return SimpleNamespace(**json.loads(server.stdout.readline()))  # type: ignore[union-attr]

        yield run
        server.stdin.close()
        server.wait(timeout=60)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two classes with 24 grey images each, 8 x 8."""
    return make_photos(tmp_path_factory.mktemp("data") / "photos", seed=0)


def make_photos(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for name, low in {"dark": 0, "light": 90}.items():
        (folder / name).mkdir(parents=True)
        for index in range(24):
            Image.fromarray(rng.integers(low, low + 160, (8, 8), dtype=np.uint8)).save(folder / name / f"{index}.png")
    return folder


@pytest.mark.parametrize("kind", ["sgd", "muon"])
def test_the_bits_do_not_depend_on_the_number_of_processes(
    processes: Any, photos: Path, recipe_file: Any, results: Any, tmp_path: Path, kind: str
) -> None:
    words = ["train", photos, "--recipe", recipe_file(kind, epochs=2, batch_size=20, virtual_shards=4)]
    found = {}
    for size in (1, 2, 4):
        done = processes(size, *words, "--out", tmp_path / f"run-{size}")
        assert done.codes == [0] * size, done.outputs
        found[size] = results(tmp_path / f"run-{size}")
        assert "epoch 2/2" in done.outputs[0]
        assert "".join(done.outputs[1:]) == ""  # rank 0 shows the progress
    assert found[1] == found[2]
    assert found[1] == found[4]


@pytest.mark.slow
def test_a_taught_network_does_not_depend_on_the_number_of_processes(
    processes: Any, photos: Path, recipe_file: Any, results: Any, tmp_path: Path
) -> None:
    assert processes(1, "train", photos, "--epochs", "1", "--set", "size=11", "--out", tmp_path / "big").codes == [0]
    recipe = recipe_file("sgd", epochs=1, batch_size=20, virtual_shards=4)
    words = ["train", photos, "--recipe", recipe, "--teacher", tmp_path / "big"]
    for size in (1, 2):
        done = processes(size, *words, "--out", tmp_path / f"run-{size}")
        assert done.codes == [0] * size, done.outputs
        assert "% on the validation images" in done.outputs[0]
    assert results(tmp_path / "run-1") == results(tmp_path / "run-2")


def test_a_killed_run_resumes_exactly_at_another_size(
    processes: Any, photos: Path, recipe_file: Any, results: Any, tmp_path: Path
) -> None:
    recipe = recipe_file("sgd", epochs=12, batch_size=20, virtual_shards=4)
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert processes(1, "train", photos, "--recipe", recipe, "--out", straight).codes == [0]
    words = ["train", photos, "--recipe", recipe, "--out", run]
    when = run / "checkpoints" / "step-000000004"
    done = processes(2, *words, rank=1, signal=signal.SIGKILL, when=str(when))
    assert done.codes == [1, -9], done.outputs
    assert "rank 0 (" in done.outputs[0]
    assert "stopped: rank 1 (" in done.outputs[0]
    assert "was killed, or has crashed" in done.outputs[0]
    done = processes(4, "train", photos, "--out", run, "--resume")
    assert done.codes == [0] * 4, done.outputs
    assert results(run) == results(straight)


@pytest.mark.parametrize(("stopped", "said"), [(1, "has not answered for"), (0, "does not answer")])
def test_a_stopped_process_ends_the_other(
    processes: Any, photos: Path, tmp_path: Path, stopped: int, said: str
) -> None:
    words = ["train", photos, "--epochs", "2000", "--set", "width=0.1", "precision=fp32", "checkpoint_minutes=0"]
    request = {"rank": stopped, "signal": signal.SIGSTOP, "when": str(tmp_path / "run" / "checkpoints")}
    done = processes(2, *words, "--out", tmp_path / "run", **request)
    assert done.codes[1 - stopped] == 1, done.outputs
    assert said in done.outputs[1 - stopped]
    assert f"rank {1 - stopped} (" in done.outputs[1 - stopped]


def test_a_process_with_other_images_is_named_on_every_rank(processes: Any, photos: Path, tmp_path: Path) -> None:
    other = make_photos(tmp_path / "photos", seed=1)
    words = ["--epochs", "2", "--set", "width=0.1", "precision=fp32", "--out", str(tmp_path / "run")]
    done = processes(2, by_rank=[["train", str(photos), *words], ["train", str(other), *words]])
    assert done.codes == [1, 1], done.outputs
    for output in done.outputs:
        assert "has other images than rank 0" in output


def test_a_failing_process_ends_the_others_with_its_reason(processes: Any, photos: Path, tmp_path: Path) -> None:
    words = ["--epochs", "2", "--set", "width=0.1", "--out", str(tmp_path / "run")]
    done = processes(2, by_rank=[["train", str(photos), *words], ["train", str(tmp_path / "absent"), *words]])
    assert done.codes == [1, 2], done.outputs
    assert "rank 1 (" in done.outputs[1]
    assert "there is no folder or data set named" in done.outputs[1]
    assert "rank 1 (" in done.outputs[0]
    assert "failed: there is no folder or data set named" in done.outputs[0]


def test_a_signal_stops_all_processes_at_the_same_step(
    processes: Any, photos: Path, results: Any, tmp_path: Path
) -> None:
    settings = ["--epochs", "40", "--set", "width=0.1", "precision=fp32", "checkpoint_minutes=0"]
    request = {"rank": 1, "signal": signal.SIGTERM, "when": str(tmp_path / "run" / "checkpoints")}
    done = processes(2, "train", photos, *settings, "--out", tmp_path / "run", **request)
    assert done.codes == [143, 143], done.outputs
    assert "progress up to this step is saved" in done.outputs[0]
    assert processes(2, "train", photos, "--out", tmp_path / "run", "--resume").codes == [0, 0]
    assert processes(2, "train", photos, *settings, "--out", tmp_path / "straight").codes == [0, 0]
    assert results(tmp_path / "run") == results(tmp_path / "straight")


def test_numbers_of_processes_that_do_not_divide_the_shards(processes: Any, photos: Path, tmp_path: Path) -> None:
    done = processes(3, "train", photos, "--epochs", "1", "--out", tmp_path / "run")
    assert done.codes == [2, 2, 2]
    assert "virtual_shards=4 cannot be divided among 3 processes: start 1, 2, 4 of them." in done.outputs[0]
    done = processes(2, "train", photos, "--set", "virtual_shards=1", "--out", tmp_path / "run")
    assert "start 1 of them, or set --set virtual_shards=2" in done.outputs[0]
    assert not (tmp_path / "run").exists()
