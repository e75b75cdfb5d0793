"""Training on the meta device, which fails when a value is read back or mixed with CPU tensors.

PyTorch's `meta` device stands for a GPU here, and refuses what a GPU would have to stop and wait for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.device import META, Copies

from mlpconv.data import Split
from mlpconv.data.sampler import Sampler
from mlpconv.models import create_model
from mlpconv.preprocessing import Preprocessing
from mlpconv.training import Progress, Recipe
from mlpconv.training.loop import Trainer
from mlpconv.training.session import initial_state
from mlpconv.training.step import BatchLoader

K, N, SIDE = 7, 53, 13


def trainer(tmp_path: Path, **settings: Any) -> Trainer:
    """Return a trainer of 7 steps on META."""
    recipe = Recipe(epochs=1, batch_size=8, precision="fp32", **settings)
    draw = np.random.default_rng(0)
    split = Split(draw.integers(0, 256, (N, 3, SIDE, SIDE), dtype=np.uint8), np.arange(N) % K)
    preprocessing = Preprocessing.create(recipe.preprocessing, 3, (SIDE, SIDE)).fit(split.images).to(META)
    order = Sampler(N, recipe.batch_size, recipe.seed)
    soft = torch.zeros(2, N, K) if recipe.teacher else None
    loader = BatchLoader(split, preprocessing, recipe, order, order.steps_per_epoch, META, soft)
    norm = "batch" if recipe.norm == "batch" else None
    model = create_model("nin_tiny", num_classes=K, in_channels=3, width=0.25, norm=norm, dropout=recipe.dropout)
    state = initial_state(model.to(META), loader, recipe, None, Progress())
    for part in state.optimizers.optimizers:
        part.param_groups[:] = [group | {"fused": False} for group in part.param_groups]  # no such kernels for META

    def ignore(*_: object) -> None:
        pass

    labels, loader.labels = loader.labels, torch.from_numpy(split.labels)  # META cannot count them, once, here
    training = Trainer(state, loader, None, recipe, tmp_path, ignore, ignore, Progress())
    loader.labels = labels
    return training


MANY = {"crop": 2, "flip": "alternate", "cutout": 3, "norm": "batch", "ema": 0.9}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(MANY | {"optimizer": "muon", "sizes": (11, 13), "freeze": (0.3, 0.6)}, id="muon"),
        pytest.param(MANY | {"optimizer": "adamw", "mixup": 0.4, "dropout": 0.5, "teacher": "any"}, id="adamw"),
        pytest.param({"optimizer": "sgd", "preprocessing": ("gcn",), "dropout": 0.5, "clip": 1.0}, id="paper"),
    ],
)
def test_steps_do_not_synchronise_the_device(tmp_path: Path, settings: dict[str, Any]):
    training = trainer(tmp_path, **settings)
    with Copies() as copies:
        for step in range(training.steps - 1):  # the last one looks at the loss
            training.advance(training.loader(step))
    assert training.state.step == 6
    assert all(parameter.device == META for parameter in training.state.model.parameters())
    assert copies.waiting and not any(copies.waiting)


def test_the_last_step_of_an_epoch_synchronises(tmp_path: Path):
    training = trainer(tmp_path)
    training.state.step = training.steps - 1
    with pytest.raises(RuntimeError, match="meta"):
        training.advance(training.loader(training.steps - 1))
