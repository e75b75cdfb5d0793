"""Our trainer end to end, with `mlpconv.fit`: crop, flip, optimizer, EMA, metrics, checkpoints."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import mlpconv
from contenders import Settings
from contenders.images import CLASSES, images
from contenders.rounds import Rounds
from mlpconv.data.dataset import Split, make_dataset
from mlpconv.training import Progress, Recipe, find_recipe

__all__ = ["recipe_of", "train"]

STEPS = 8  # per epoch: short, to time the end of an epoch, which is scaled to epochs of 50,000 images
PAPER: dict[str, Any] = {
    "norm": "none", "dropout": 0.5, "last_relu": True, "init": "he", "weight_decay": 1e-4, "lr": 0.01, "nesterov": False
}  # fmt: skip
NORM: dict[str, Any] = {"norm": "batch", "dropout": 0.0, "last_relu": False, "init": "identity", "pool_first": True}
COMMON: dict[str, Any] = {"crop": 4, "crop_mode": "zero", "flip": "random", "ema": 0.99, "ema_every": 5}


def recipe_of(kind: str, precision: str, settings: Settings) -> Recipe:
    """Return the recipe of a kind: the paper's network with dropout, with batch norm, or `fast` at one image size."""
    if kind == "fast":
        recipe = find_recipe("fast", "cifar10")
    else:
        recipe = Recipe(model="nin_cifar10", on_collapse="repair", **COMMON, **(PAPER if kind == "dropout" else NORM))
    return recipe.with_settings(
        batch_size=settings.batch, epochs=100_000, min_steps=0, sizes=(), freeze=(), precision=precision,
        val_fraction=0, schedule="constant", device="cpu",
    )  # fmt: skip


class Timer(Progress):
    """Report every step to the clock of the benchmark, which can pause training."""

    def __init__(self, rounds: Rounds, batch: int) -> None:
        self.rounds, self.batch_size, self.last = rounds, batch, 0

    def batch(self, seconds: float) -> None:
        self.rounds.in_input += seconds

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:  # noqa: ARG002
        steps, self.last = step - self.last, step
        self.rounds.lap(steps * self.batch_size)

    def epoch(self, row: dict[str, Any], epochs: int) -> None:  # noqa: ARG002
        self.rounds.aside()

    def note(self, text: str) -> None:
        self.rounds.facts.setdefault("notes", []).append(text)


def train(rounds: Rounds, settings: Settings, *, kind: str, precision: str) -> None:
    """Train in a temporary folder until no more rounds are requested."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    rounds.facts["threads"] = torch.get_num_threads()
    rounds.ready_after = STEPS + 2  # after the end of an epoch
    pixels, labels = images(STEPS * settings.batch, settings.side)
    names = [f"class {number}" for number in range(CLASSES)]
    data = make_dataset("noise", names, {"train": Split(pixels, labels.astype("int64"))})
    with tempfile.TemporaryDirectory() as folder:
        mlpconv.fit(
            data, recipe_of(kind, precision, settings), out=Path(folder) / "run", progress=Timer(rounds, settings.batch)
        )
