"""A streamed run that is killed at random times and resumed: the same images in the same order, the same bits."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlpconv.data.pack import pack


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, low in {"dark": 0, "light": 90}.items():
        (top / "photos" / name).mkdir(parents=True)
        for index in range(60):
            pixels = rng.integers(low, low + 160, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(top / "photos" / name / f"{index}.png")
    pack(top / "photos", top / "shards", per_shard=37)
    return top / "shards"


def check_kills(
    trainers: Any, shards: Path, recipe: Path, results: Any, folder: Path, kills: int, draw: random.Random
) -> None:
    words = ["train", shards, "--recipe", recipe, "--memory", "1k"]
    straight = trainers(*words, "--out", folder / "straight", plain=True)
    assert straight.code == 0, straight.output
    assert "are decoded again in every epoch" in straight.output
    expected, done, count = results(folder / "straight"), 0, 0
    while count < kills:
        ended = trainers(
            *words,
            "--out",
            folder / f"run-{done}",
            "--resume",
            plain=True,
            kill_after=draw.uniform(0, straight.seconds),
        )
        assert ended.code in (0, -signal.SIGKILL), ended.output
        count += ended.code != 0
        if ended.code == 0:
            assert results(folder / f"run-{done}") == expected
            done += 1
    assert trainers(*words, "--out", folder / f"run-{done}", "--resume", plain=True).code == 0
    assert results(folder / f"run-{done}") == expected


def test_five_kills(
    trainers: Any, shards: Path, recipe_file: Callable[..., Path], results: Any, tmp_path: Path
) -> None:
    recipe = recipe_file("sgd", epochs=4, batch_size=16)
    check_kills(trainers, shards, recipe, results, tmp_path, 5, random.Random(0))


@pytest.mark.slow
def test_fifty_kills(
    trainers: Any, shards: Path, recipe_file: Callable[..., Path], results: Any, tmp_path: Path
) -> None:
    recipe = recipe_file("muon", epochs=6, batch_size=16)
    check_kills(trainers, shards, recipe, results, tmp_path, 50, random.Random(1))
