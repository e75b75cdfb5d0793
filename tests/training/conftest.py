"""Trainers that can be killed, file calls that fail, and a data set small enough for a hundred runs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

SUPPORT = Path(__file__).parents[1] / "support"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
EVERYTHING = {  # all sources of randomness and all parts of the state
    "width": 0.125,
    "norm": "batch",
    "dropout": 0.3,
    "crop": 1,
    "flip": "alternate",
    "cutout": 3,
    "mixup": 0.4,
    "label_smoothing": 0.1,
    "balance": True,
    "ema": 0.9,
    "workers": 2,
    "checkpoint_minutes": 0,
    "precision": "fp32",
}
KINDS = {
    "sgd": {"optimizer": "sgd", "lr": 0.1, "preprocessing": ["gcn", "zca"]},
    "muon": {"optimizer": "muon", "lr": 0.06, "sizes": [6, 8], "ema_every": 2, "freeze": [0.3, 0.6]},
}
CLOCKS = {"images_per_second", "seconds", "cpu_seconds"}  # the columns that differ between runs


class Trainers:
    """A process that forks a trainer per request; see support/training_driver.py."""

    def __init__(self) -> None:
        command = [sys.executable, str(SUPPORT / "training_driver.py")]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=os.environ | ONE_THREAD, **pipes)

    def __call__(self, *argv: object, **request: Any) -> SimpleNamespace:
        """Run `mlpconv ARGV` and return code, output and seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"argv": [str(word) for word in argv], **request}) + "\n")
        self.process.stdin.flush()
        return SimpleNamespace(**json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="session")
def trainers() -> Iterator[Trainers]:
    server = Trainers()
    yield server
    server.process.communicate(timeout=300)
    assert server.process.returncode == 0


@pytest.fixture(scope="session")
def faults() -> ModuleType:
    """Return the module support/training_faults.py."""
    spec = importlib.util.spec_from_file_location("training_faults", SUPPORT / "training_faults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a recipe with all settings: `recipe_file("sgd", epochs=3)`."""

    def write(kind: str, **settings: Any) -> Path:
        path = tmp_path_factory.mktemp("recipes") / f"{kind}.json"
        path.write_text(json.dumps({"settings": EVERYTHING | KINDS[kind] | settings}))
        return path

    return write


@pytest.fixture(scope="session")
def tiny() -> Any:
    """Return two separable classes of 8 x 8 images: 37 training and 9 validation images."""
    from mlpconv.data import Dataset, Split

    def split(length: int, seed: int) -> Split:
        labels = np.arange(length, dtype=np.int64) % 2
        images = np.random.default_rng(seed).integers(0, 256, (length, 1, 8, 8), dtype=np.uint8)
        images[labels == 1, :, :4] //= 8
        return Split(images, labels)

    return Dataset("tiny", ("even", "odd"), {"train": split(37, 0), "val": split(9, 1)}, (), "f" * 64)


@pytest.fixture
def fit_tiny(tiny: Any) -> Iterator[Callable[..., Any]]:
    """Train on `tiny` in this process, without a report: four steps in two epochs, a checkpoint at each."""
    import torch

    import mlpconv.fitting

    def fit(out: Path, kind: str = "sgd", **options: Any) -> Any:
        settings = EVERYTHING | KINDS[kind] | {"width": 0.1, "epochs": 2, "batch_size": 19, "workers": 0}
        if options.get("resume") and "recipe" not in options:
            return mlpconv.fitting.fit(tiny, out=out, report=False, **options)
        return mlpconv.fitting.fit(
            tiny, out=out, report=False, **({"recipe": mlpconv.fitting.Recipe()} | settings | options)
        )

    yield fit
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def results() -> Callable[[Path], dict[str, Any]]:
    """Return what must be bit-identical in two runs: weights, last checkpoint, and metrics.csv without the clocks."""
    import csv

    import safetensors.numpy

    def read(folder: Path) -> dict[str, Any]:
        last = max((folder / "checkpoints").glob("step-*"))
        content: dict[str, Any] = {"last": last.name.rstrip("+")}
        for path in [folder / "model.safetensors", *sorted(last.glob("*.safetensors"))]:
            for name, value in safetensors.numpy.load(path.read_bytes()).items():
                place = "last" if path.parent == last else "kept"
                content[f"{place}/{path.stem}/{name}"] = (value.dtype.str, value.shape, value.tobytes())
        state = json.loads((last / "state.json").read_text())
        content["history"] = [without_clocks(row) for row in state.pop("history")]
        content["state"] = without_clocks(state)
        with open(folder / "metrics.csv", newline="") as file:
            table = list(csv.DictReader(file))
        content["columns"] = list(table[0])
        content["metrics"] = [without_clocks(row) for row in table]
        return content

    return read


def without_clocks(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in CLOCKS}
