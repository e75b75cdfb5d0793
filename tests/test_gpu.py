"""The GPU script in its smallest size on the CPU, with nothing but torch, numpy, pillow and safetensors to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu
import gpu_data
import numpy as np
import pytest
import torch
from gpu_phases import accuracy, distill
from gpu_phases.page import page

import mlpconv

TOP = Path(__file__).resolve().parents[1]
PRESENT = (
    "torch", "torchgen", "functorch", "numpy", "numpy.libs", "PIL", "pillow.libs", "safetensors",
    "filelock", "typing_extensions.py", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec",
)  # fmt: skip
"""What a GPU machine is sure to have: four packages, and what torch itself needs."""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subprocesses see the packages that are PRESENT and no other."""
    packages, links = Path(torch.__file__).parents[1], tmp_path / "packages"
    links.mkdir()
    for name in PRESENT:
        if (packages / name).exists():
            (links / name).symlink_to(packages / name)
    for info in packages.glob("*.dist-info"):
        if info.name.partition("-")[0] in ("torch", "numpy", "pillow", "safetensors"):
            (links / info.name).symlink_to(info)
    keep = f"import sys\nsys.path[:] = [path for path in sys.path if 'site-packages' not in path] + [{str(links)!r}]\n"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(keep)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


@pytest.mark.parametrize("phase", gpu.PHASES)
@pytest.mark.usefixtures("bare")
def test_each_phase_runs_in_its_smallest_size(phase: str) -> None:
    result = gpu.run(phase, "cpu", small=True, seconds=300, earlier={})
    assert "failed" not in result, result
    if phase == "correctness":
        assert len(result["checks"]) == 12
        assert all(check is True for check in result["checks"].values()), result
    if phase == "distill":
        assert len(result["recipes"]["nin_tiny, taught"]["runs"]) == 1
        assert result["teacher"]["accuracy"] > 0.1


def test_a_phase_that_fails_is_recorded_with_its_reason() -> None:
    assert gpu.run("machine", "cuda", small=True, seconds=60, earlier={})["failed"] == "torch finds no GPU here"


def test_a_phase_out_of_time_keeps_what_it_has() -> None:
    assert gpu.run("machine", "cpu", small=True, seconds=0.01, earlier={})["failed"].startswith("took more than")


def test_what_is_recorded_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(
        gpu, "run", lambda phase, *_, **__: ran.append(phase) or {"number": 1, "sources": gpu.source_hash()}
    )
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--out", str(tmp_path)])
    assert gpu.main() == gpu.main() == 0
    assert ran == list(gpu.PHASES)
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["machine"]["sources"] == gpu.source_hash()


def trained(data: Any, device: Any, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Stand for a training run: its accuracy depends on the seed, its seconds on the settings."""
    reached = settings.get("lr", 0.01) * 100
    return {
        "seed": seed,
        "accuracy": 0.25 * seed,
        "all_seconds": 1.0,
        "seconds_to_91.2%": reached,
        "lr": settings.get("lr"),
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the plans and the training of the phase; return its arguments."""
    plans = {
        accuracy.SWEEP: accuracy.Plan(1, 1, {}),
        "fast": accuracy.Plan(3, 1, {}),
        "paper": accuracy.Plan(2, float("inf"), {}),
        "paper, MNIST": accuracy.Plan(1, 1, {}, "mnist"),
    }
    monkeypatch.setattr(accuracy, "PLANS", plans)
    monkeypatch.setattr(accuracy, "CANDIDATES", ({"lr": 0.3}, {"lr": 0.1}, {"lr": 0.2}))
    monkeypatch.setattr(accuracy, "one", trained)
    monkeypatch.setattr(
        accuracy.gpu_data, "load", lambda name: None if name == "mnist" else mlpconv.open_data("digits")
    )
    return {"small": False, "deadline": 1e18, "say": lambda _: None, "sources": "now"}


def test_accuracy_keeps_the_runs_of_earlier_calls(quick: dict[str, Any]) -> None:
    earlier = {"data": "cifar10", "recipes": {"fast": {"runs": [{"seed": 1, "accuracy": 0.5, "all_seconds": 1.0}]}}}
    result = accuracy.run(torch.device("cpu"), earlier=earlier, **quick)
    runs = result["recipes"]["fast"]["runs"]
    assert [row["seed"] for row in runs] == [1, 0, 2]
    assert [row.get("sources") for row in runs] == [None, "now", "now"]
    assert result["recipes"]["fast"]["mean"] == pytest.approx(1 / 3, abs=1e-4)
    assert result["left_out"] == ["paper, from seed 0", "paper, MNIST: its images were not carried"]
    other = accuracy.run(torch.device("cpu"), earlier=earlier | {"data": "digits"}, **quick)
    assert [row["seed"] for row in other["recipes"]["fast"]["runs"]] == [0, 1, 2]


def test_the_sweep_chooses_the_recipe_that_is_soonest_there(quick: dict[str, Any]) -> None:
    result = accuracy.run(torch.device("cpu"), earlier={}, **quick)
    assert [row["settings"]["lr"] for row in result["sweep"]] == [0.3, 0.1, 0.2]
    assert [row["lr"] for row in result["recipes"][accuracy.SWEEP]["runs"]] == [0.1]
    again = accuracy.run(torch.device("cpu"), earlier=result, **quick)
    assert again["sweep"] == result["sweep"]


def test_distill_trains_the_teacher_on_enlarged_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    draw, labels = np.random.default_rng(0), np.arange(24) % 3
    split = mlpconv.Split(draw.integers(0, 256, (24, 3, 32, 32), np.uint8), labels)
    data = mlpconv.data.make_dataset("cifar10", "abc", {"train": split, "val": split})
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path))
    monkeypatch.setattr(distill.gpu_data, "load", lambda _: data)
    monkeypatch.setattr(distill, "SIDE", 48)
    monkeypatch.setattr(distill, "TEACHER", {"source": "squeezenet", "tune": "all", "epochs": 1, "min_steps": 1})
    monkeypatch.setattr(distill, "STUDENTS", ("nin_tiny",))
    monkeypatch.setattr(distill, "STUDENT", distill.SMALL)
    said: list[dict[str, Any]] = []
    arguments = {"small": False, "deadline": 1e18, "say": said.append, "sources": "now"}
    earlier = {"data": "cifar10", "recipes": {"nin_tiny, taught": {"runs": [dict(trained(0, 0, 2, {}))]}}}
    result = distill.run(torch.device("cpu"), earlier=earlier, **arguments)
    assert (result["teacher"]["network"], result["teacher"]["weights"]) == ("squeezenet", "squeezenet")
    assert {name: [row["seed"] for row in found["runs"]] for name, found in result["recipes"].items()} == {
        "nin_tiny, taught": [2, 0, 1], "nin_tiny, alone": [0, 1, 2],
    }  # fmt: skip
    assert "left_out" in distill.run(torch.device("cpu"), earlier={}, **arguments | {"deadline": 0})


@pytest.mark.parametrize(("name", "channels", "side"), [("cifar10", 3, 32), ("mnist", 1, 28)])
def test_data_survive_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, channels: int, side: int
) -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (2000, channels, side, side), np.uint8)
    labels = draw.integers(0, 10, 2000)
    monkeypatch.setattr(gpu_data, "FOLDER", tmp_path)
    split = mlpconv.Split(pixels, labels)

    class Opened:
        classes = tuple("0123456789")

        def split(self, _: str) -> Any:
            return split

    monkeypatch.setattr(mlpconv, "open_data", lambda *_, **__: Opened())
    monkeypatch.setattr(sys, "argv", ["gpu_data.py", name, "--parts", "2"])
    gpu_data.main()
    assert len(list(gpu_data.folder_of(name).iterdir())) == 2
    loaded = gpu_data.load(name)
    assert loaded is not None
    assert (loaded.name, loaded.classes, loaded.published) == (name, Opened.classes, True)
    again = np.concatenate([loaded.split("train").images, loaded.split("val").images])
    assert np.array_equal(again, pixels)
    assert np.array_equal(np.concatenate([loaded.split("train").labels, loaded.split("val").labels]), labels)
    assert gpu_data.load("cifar100") is None


def test_the_page_says_what_was_measured() -> None:
    assert (TOP / "docs" / "gpu.md").read_text("utf-8") == page(TOP / "benchmarks" / "results")


def test_the_page_of_a_card(tmp_path: Path) -> None:
    results = {
        "machine": {"card": "A Card", "matmul_bf16_tflops": 700.0},
        "correctness": {"checks": {"nin_tiny fp32": True, "dropout": "drops 0.500, mean 1.0"}},
        "throughput": {"nin_cifar10": {"bf16": {
            "training": {"images_per_second": 123456, "share_of_peak": 0.25}, "inference": {"failed": "out of memory"},
        }}},
        "accuracy": {
            "data": "cifar10", "recipes": {"fast": {"mean": 0.9, "sd": None, "runs": [{"training_seconds": 3.0}]}},
        },
        "memory": {"failed": "took more than 60 s"},
        "distill": {
            "data": "cifar10",
            "teacher": {"network": "a_teacher", "weights": "a_source", "accuracy": 0.97, "all_seconds": 99.0},
            "recipes": {"taught": {"mean": 0.945, "sd": 0.001, "runs": [{"training_seconds": 3.0}] * 3}},
        },
    }  # fmt: skip
    (tmp_path / "gpu-a-card.json").write_text(json.dumps(results))
    text = page(tmp_path)
    for part in (
        "## A Card",
        "1 of 2 checks",
        "- dropout: drops 0.500",
        "123,456 | 25.0%",
        "out of memory",
        "90.00%",
        "memory failed",
        "a_teacher with the weights of\na_source, has 97.00%",
        "| taught | 3 | 94.50% ± 0.10% | 3.0 |",
    ):
        assert part in text


def test_an_unknown_phase_is_refused() -> None:
    ran = subprocess.run([sys.executable, str(TOP / "benchmarks" / "gpu.py"), "speed"], capture_output=True, text=True)
    assert ran.returncode == 2 and "there is no phase 'speed'; accepted: machine" in ran.stderr
