"""Ours end to end, as `mlpconv.fit` runs it: crop, flip, optimiser, average of the weights, metrics, checkpoints."""

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
from mlpconv.data.sampler import Batch
from mlpconv.training import Progress, Recipe, find_recipe
from mlpconv.training.step import BatchLoader

__all__ = ["recipe_of", "train"]

STEPS = 8  # in an epoch: short, to time its end, of which each step is then charged a share as in 50,000 images
PAPER: dict[str, Any] = {
    "norm": "none", "dropout": 0.5, "last_relu": True, "init": "he", "weight_decay": 1e-4, "lr": 0.01, "nesterov": False
}  # fmt: skip
NORM: dict[str, Any] = {"norm": "batch", "dropout": 0.0, "last_relu": False, "init": "identity", "pool_first": True}
COMMON: dict[str, Any] = {"crop": 4, "crop_mode": "zero", "flip": "random", "ema": 0.99, "ema_every": 5}


def recipe_of(kind: str, precision: str, settings: Settings) -> Recipe:
    """What is trained: the paper's network with dropout, with batch norm instead, or the recipe `fast` at one size."""
    if kind == "fast":
        chosen = find_recipe("fast", "cifar10")
    else:
        chosen = Recipe(model="nin_cifar10", on_collapse="repair", **COMMON, **(PAPER if kind == "dropout" else NORM))
    return chosen.with_settings(
        batch_size=settings.batch, epochs=100_000, min_steps=0, sizes=(), freeze=(), precision=precision,
        val_fraction=0, schedule="constant", device="cpu",
    )  # fmt: skip


class Watch(Progress):
    """Hands each step to the clock; holding still in here holds the whole trainer still."""

    def __init__(self, rounds: Rounds, batch: int) -> None:
        self.rounds, self.batch, self.last = rounds, batch, 0

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:  # noqa: ARG002
        done, self.last = step - self.last, step
        self.rounds.lap(done * self.batch)

    def epoch(self, row: dict[str, Any], epochs: int) -> None:  # noqa: ARG002
        self.rounds.aside()

    def note(self, text: str) -> None:
        self.rounds.facts.setdefault("notes", []).append(text)


def train(rounds: Rounds, settings: Settings, *, kind: str, precision: str) -> None:
    """Train in a folder that is thrown away, for as long as rounds are asked for."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    rounds.facts["threads"] = torch.get_num_threads()
    rounds.ready_after = STEPS + 2  # the end of an epoch has been seen
    _watch_input(rounds)
    pixels, labels = images(STEPS * settings.batch, settings.side)
    names = [f"class {number}" for number in range(CLASSES)]
    data = make_dataset("noise", names, {"train": Split(pixels, labels.astype("int64"))})
    with tempfile.TemporaryDirectory() as folder:
        mlpconv.fit(
            data, recipe_of(kind, precision, settings), out=Path(folder) / "run", progress=Watch(rounds, settings.batch)
        )


def _watch_input(rounds: Rounds) -> None:
    """Time the making of each batch where the trainer makes it."""
    make = BatchLoader.__call__

    def timed(pipeline: BatchLoader, step: int) -> Batch:
        with rounds.input():
            return make(pipeline, step)

    BatchLoader.__call__ = timed
