"""The choice of the dtype: stable, cached, and without side effects on the network."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mlpconv.data.sampler import Batch
from mlpconv.models import create_model
from mlpconv.training import Recipe, precision
from mlpconv.training.precision import choose_precision, count_macs

Timer = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder."""
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "precision"


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> Timer:
    """Time every network, with these milliseconds; record the dtypes in the order of timing."""

    def install(fp32: float, bf16: float) -> list[str]:
        asked: list[str] = []

        def step(_model: nn.Module, _batch: Batch, name: str) -> float:
            asked.append(name)
            first = asked.count(name) == 1
            return 9.0 if first else {"fp32": fp32, "bf16": bf16}[name] / 1000

        monkeypatch.setattr(precision, "time_step", step)
        monkeypatch.setattr(precision, "MIN_MACS", 1)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
        return asked

    return install


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = create_model("nin_tiny", num_classes=7, in_channels=3, **({"width": 0.25, "dropout": 0.5} | options))
    return model.to(memory_format=torch.channels_last).train()


def batch(n: int = 13, side: int = 15) -> Batch:
    return Batch(torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 7)


@pytest.mark.parametrize("name", ["auto", "fp32", "bf16"])
def test_the_choice_does_not_change_the_network(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(precision, "MIN_MACS", 1)
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    choice, sentence = choose_precision(model, batch(), Recipe(precision=name))
    assert choice in ("fp32", "bf16")
    assert name in ("auto", choice)
    assert choice in sentence
    assert set(before) == set(model.state_dict())
    assert any(key.endswith("num_batches_tracked") for key in before)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


@pytest.mark.parametrize(
    ("fp32", "bf16", "wanted", "words"),
    [
        (300.0, 100.0, "bf16", "takes 300 ms in fp32 and 100 ms in bf16"),
        (100.0, 300.0, "fp32", "takes 100 ms in fp32 and 300 ms in bf16"),
        (126.0, 100.0, "bf16", "takes 126 ms in fp32 and 100 ms in bf16"),
        (124.0, 100.0, "fp32", "takes 124 ms in fp32 and 100 ms in bf16; bf16 is selected from 1.25 times the speed"),
    ],
)
def test_bf16_must_be_clearly_faster(timer: Timer, fp32: float, bf16: float, wanted: str, words: str) -> None:
    asked = timer(fp32, bf16)
    choice, sentence = choose_precision(network(), batch(), Recipe())
    assert choice == wanted
    assert sentence == f"precision {wanted}: a step of 13 images {words}"
    assert asked == ["fp32", "bf16"] * 6  # in turn, and the first of each does not count


def test_the_median_decides(monkeypatch: pytest.MonkeyPatch, timer: Timer) -> None:
    timer(100.0, 100.0)
    seconds = {"fp32": iter([9, 0.1, 9, 0.1, 0.1, 9]), "bf16": iter([9, 0.1, 0.001, 0.1, 0.001, 0.1])}
    monkeypatch.setattr(precision, "time_step", lambda _model, _batch, name: next(seconds[name]))
    assert choose_precision(network(), batch(), Recipe())[0] == "fp32"


def test_a_cached_timing_is_used_again(timer: Timer, cache: Path) -> None:
    timer(300.0, 100.0)
    assert choose_precision(network(), batch(), Recipe())[0] == "bf16"
    asked = timer(100.0, 300.0)  # the machine is busy with something else now
    choice, sentence = choose_precision(network(), batch(), Recipe())
    assert choice == "bf16"
    assert sentence.endswith("300 ms in fp32 and 100 ms in bf16 (cached)")
    assert asked == []
    assert len(list(cache.iterdir())) == 1


def test_another_network_shape_torch_or_processor_is_measured_separately(
    timer: Timer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer(300.0, 100.0)
    for model, images in ((network(), batch()), (network(width=0.5), batch()), (network(), batch(side=17))):
        choose_precision(model, images, Recipe())
    monkeypatch.setattr(torch, "__version__", "9.9")
    choose_precision(network(), batch(), Recipe())
    monkeypatch.setattr(precision, "cpu_name", lambda: "another")
    choose_precision(network(), batch(), Recipe())
    assert len(list(cache.iterdir())) == 5
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    asked = timer(100.0, 300.0)
    assert choose_precision(network(), batch(), Recipe())[0] == "bf16"
    assert asked == []


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "cut": lambda _: '{"key": {',
    "no object": lambda _: "[1]",
    "deep": lambda _: "[" * 60_000,
    "no number": lambda content: content | {"fp32_ms": "1"},
    "no time": lambda content: content | {"bf16_ms": 0.0},
    "endless": lambda content: content | {"bf16_ms": float("inf")},
    "missing": lambda content: {"key": content["key"]},
    "of another key": lambda content: content | {"key": content["key"] | {"torch": "0"}},
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_cache_file_is_replaced(timer: Timer, cache: Path, kind: str) -> None:
    timer(300.0, 100.0)
    choose_precision(network(), batch(), Recipe())
    (file,) = cache.iterdir()
    content = json.loads(file.read_text())
    damaged = DAMAGED[kind](content)
    file.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    asked = timer(100.0, 300.0)
    assert choose_precision(network(), batch(), Recipe())[0] == "fp32"
    assert len(asked) == 12
    assert json.loads(file.read_text()) == content | {"fp32_ms": 100.0, "bf16_ms": 300.0}
    assert list(cache.iterdir()) == [file]


def test_a_pipe_instead_of_the_cache_file_does_not_block(timer: Timer, cache: Path) -> None:
    timer(300.0, 100.0)
    choose_precision(network(), batch(), Recipe())
    (file,) = cache.iterdir()
    file.unlink()
    os.mkfifo(file)
    assert choose_precision(network(), batch(), Recipe())[0] == "bf16"


def test_of_two_concurrent_timings_the_first_one_is_used(
    timer: Timer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer(300.0, 100.0)
    real = precision.measure

    def overtaken(model: nn.Module, images: Batch) -> precision.Timing:
        monkeypatch.setattr(precision, "measure", real)
        choose_precision(model, images, Recipe())  # the other process
        return precision.Timing(fp32=100.0, bf16=300.0)

    monkeypatch.setattr(precision, "measure", overtaken)
    assert choose_precision(network(), batch(), Recipe())[0] == "bf16"
    assert len(list(cache.iterdir())) == 1


def test_the_cache_works_without_hard_links(timer: Timer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    timer(300.0, 100.0)
    choose_precision(network(), batch(), Recipe())
    asked = timer(100.0, 300.0)
    assert choose_precision(network(), batch(), Recipe())[0] == "bf16"
    assert asked == []
    assert [file.suffix for file in cache.iterdir()] == [".json"]


def test_an_unwritable_cache_is_reported(timer: Timer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("precious")
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "file"))
    timer(300.0, 100.0)
    choice, sentence = choose_precision(network(), batch(), Recipe())
    assert choice == "bf16"
    assert sentence.endswith("(not cached, so another run may choose differently: Not a directory)")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_small_network_uses_fp32_without_timing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(precision, "time_step", lambda *_: pytest.fail("timed"))
    choice, sentence = choose_precision(network(), batch(), Recipe())
    assert choice == "fp32"
    assert sentence.startswith("precision fp32: a small network (")
    assert not cache.exists()


def test_a_processor_without_bf16_uses_fp32(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timer(300.0, 100.0)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    assert choose_precision(network(), batch(), Recipe()) == ("fp32", "precision fp32: this processor has no fast bf16")
    assert asked == []


def test_a_requested_dtype_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "time_step", lambda *_: pytest.fail("timed"))
    assert choose_precision(network(), batch(), Recipe(precision="bf16")) == ("bf16", "precision bf16, as requested")


def test_a_large_network_is_timed_on_fewer_images(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    timer(100.0, 300.0)
    monkeypatch.setattr(precision, "TIMED_MACS", 5 * count_macs(network(), batch().images))
    assert "a step of 5 images" in choose_precision(network(), batch(), Recipe())[1]


def test_multiply_adds_match_a_count_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(), nn.Conv2d(5, 7, 1), nn.Flatten(), nn.Linear(7 * 36, 11)
    )
    by_hand = 6 * 6 * 5 * 27 + 6 * 6 * 7 * 5 + 7 * 36 * 11  # of 13 x 13 pixels
    assert count_macs(model, torch.zeros(17, 3, 13, 13)) == by_hand
