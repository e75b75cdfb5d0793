"""How many layers are trained is chosen by time, and the run that follows is kept, resumed and reported like others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mlpconv
from mlpconv.cli import main
from mlpconv.data import Dataset, Split, make_dataset
from mlpconv.report.choice import choice_lines
from mlpconv.training import Progress, Recipe
from mlpconv.transfer import depth
from mlpconv.transfer.source import open_source

COUNT, SIDE = 11, 41
HEAD = Recipe(source="squeezenet", tune="head", size=SIDE, flip="random", balance=True, seed=5)


def gratings() -> Dataset:
    rng = np.random.default_rng(0)
    labels = np.arange(23, dtype=np.int64) % 2
    images = rng.integers(0, 256, (23, 3, SIDE, SIDE), np.uint8)
    splits = {"train": Split(images[:17], labels[:17]), "val": Split(images[17:], labels[17:])}
    return make_dataset("gratings", ("a", "b"), splits)


@pytest.mark.parametrize(
    ("seconds", "minutes", "chosen", "said"),
    [
        ({"all": 29.9}, 0.5, "all", "all layers are trained, in about 30 s, since minutes=0.5 allows 30 s"),
        (
            {"all": 31, "last": 12},
            0.5,
            "last",
            "the last layers are trained, in about 12 s, since minutes=0.5 allows 30 s: all",
        ),
        (
            {"all": 310, "last": 61},
            1,
            "head",
            "only the classifier is fitted, since minutes=1 allows 60 s: all layers, usually",
        ),
    ],
)
def test_the_deepest_training_that_fits_the_time_is_chosen(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], minutes: float, chosen: str, said: str
) -> None:
    tried: list[Recipe] = []

    def estimate(source: object, dataset: object, recipe: Recipe, device: object) -> float:
        tried.append(recipe)
        return seconds[recipe.tune]

    monkeypatch.setattr(depth, "estimate_seconds", estimate)
    found = depth.choose_depth(open_source("squeezenet"), gratings(), HEAD, minutes, torch.device("cpu"))
    assert found.tune == chosen
    assert found.reason.startswith(said)
    assert [recipe.tune for recipe in tried] == list(seconds)
    for recipe in tried:  # the rest is the recipe finetune
        assert (recipe.size, recipe.flip, recipe.seed, recipe.balance, recipe.lr) == (SIDE, "random", 5, True, 0.001)
        assert (recipe.epochs, recipe.eval_every) == (150, 12)  # of one step each
    lines = list(choice_lines({"source": "squeezenet", "reason": "x", "candidates": [], "depth": found.to_dict()}))
    assert lines == ["start from squeezenet: x", found.reason]


@pytest.mark.parametrize(("tune", "room"), [("all", True), ("last", True), ("last", False)])
def test_the_estimate_counts_steps_and_validation(tune: str, room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[int] = []

    def step(logits: Any, batch: Any, precision: str) -> float:
        assert (len(batch.labels), precision) == (16, "fp32")
        assert logits(batch.images).shape == (16, 2)
        stepped.append(batch.images.shape[1])
        return 4.0

    def forward(function: Any, x: torch.Tensor, precision: str) -> tuple[float, torch.Tensor]:
        return 0.5, function(x).detach()

    monkeypatch.setattr(depth, "time_step", step)
    monkeypatch.setattr(depth, "time_forward", forward)
    monkeypatch.setattr("mlpconv.training.frozen_outputs.MAX_BYTES", 1 << 29 if room else 0)
    state = torch.get_rng_state()
    tuned = depth.finetune_recipe("squeezenet").with_settings(tune=tune, size=SIDE, epochs=3, min_steps=0)
    seconds = depth.estimate_seconds(
        open_source("squeezenet"), gratings(), tuned.with_settings(precision="fp32"), torch.device("cpu")
    )
    once = tune == "last" and room  # the frozen layers run for 17 images, their flips, and 6 validation images
    assert seconds == (3 * 17 * 4 + 3 * 6 * 0.5 + once * (2 * 17 + 6) * 0.5) / 16
    assert set(stepped) == {384 if once else 3}  # channels that a step reads
    assert torch.equal(torch.get_rng_state(), state)


class Killed(Progress):
    """Stop in the first epoch."""

    def step(self, *_: Any) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def photos(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of noise with a bar, one network to choose, and an epoch of two steps."""
    rng = np.random.default_rng(0)
    for name in ("down", "across"):
        (here / "photos" / name).mkdir(parents=True)
        for index in range(COUNT):
            image = rng.normal(90, 60, (SIDE, SIDE))
            image[:, index : index + 9] += 40
            image = image.T if name == "across" else image
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(here / "photos" / name / f"{index}.png")
    monkeypatch.setattr("mlpconv.transfer.choose.BACKBONES", ("squeezenet",))
    monkeypatch.setattr("mlpconv.transfer.choose.SIZES", ((100, 67),))
    short = depth.finetune_recipe("squeezenet").with_settings(epochs=1, min_steps=0, batch_size=9, checkpoint_minutes=0)
    monkeypatch.setattr(depth, "finetune_recipe", lambda _: short)
    monkeypatch.setattr("mlpconv.fitting.finetune_recipe", lambda _: short)
    return here / "photos"


def test_a_run_that_trains_all_layers_by_itself(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "photos", "--minutes", "60", "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert "all layers are trained, in about " in said
    assert " s, since --minutes 60 allows 3,600 s" in said
    recipe = json.loads(Path("run/recipe.json").read_text())
    assert (recipe["source"], recipe["tune"], recipe["size"], recipe["epochs"]) == ("squeezenet", "all", 67, 1)
    choice = json.loads(Path("run/choice.json").read_text())
    assert choice["depth"]["tune"] == "all"
    assert choice["depth"]["estimates"][0]["seconds"] >= 0  # rounded
    rows = Path("run/metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "0", "1"]
    fitted, kept = choice["candidates"][0], mlpconv.load("run").info["metrics"]
    assert float(rows[1].split(",")[5]) == fitted["correct"] / fitted["images"]  # epoch 0 is the candidate
    assert kept["val_accuracy"] >= fitted["correct"] / fitted["images"]
    assert "highest. All layers are trained, in about" in Path("run/report.html").read_text()


def test_it_resumes_to_the_same_bits(photos: Path) -> None:
    settings: dict[str, Any] = {"minutes": 60, "report": False, "precision": "fp32"}
    whole = mlpconv.fit("photos", out="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        mlpconv.fit("photos", out="part", progress=Killed(), **settings)
    resumed = mlpconv.fit("photos", out="part", resume=True, **settings)
    assert [row["val_loss"] for row in resumed.history] == [row["val_loss"] for row in whole.history]
    last = [max(Path(name, "checkpoints").glob("step-*")) / "model.safetensors" for name in ("whole", "part")]
    assert last[0].read_bytes() == last[1].read_bytes()


def test_without_time_the_classifier_is_all(photos: Path) -> None:
    run = mlpconv.fit("photos", minutes=0, report=False)
    assert [row["epoch"] for row in run.history] == [0]
    assert "depth" not in json.loads((run.folder / "choice.json").read_text())
