"""What the frozen layers give for the images of a run, computed once instead of in every epoch.

With tune=last, the first two thirds of the layers stay the same, and a training image is seen as it is or flipped
horizontally. So their outputs for both views are kept in memory, and a step runs the layers that are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mlpconv.data import Split
from mlpconv.models.base import Network, Stage, run_stages
from mlpconv.preprocessing import Preprocessing
from mlpconv.training.freeze import train_mode
from mlpconv.training.recipe import Recipe
from mlpconv.training.step import autocast

__all__ = ["FrozenOutputs", "count_images", "fits_in_memory", "frozen_stages", "logits_after"]

MAX_BYTES = 1 << 29
"""Of the outputs; those of more images are computed in every step."""
BATCH = 32
CPU = torch.device("cpu")


@dataclass(frozen=True)
class FrozenOutputs:
    """The outputs of the first `stages` stages of a network, channels last."""

    stages: int
    train: Tensor
    """(V, N, h, w, C): the views of the training images, as they are and flipped."""
    val: Tensor | None
    """(M, h, w, C): the validation images as they are."""

    @property
    def nbytes(self) -> int:
        """The memory that the outputs take."""
        return self.train.nbytes + (self.val.nbytes if self.val is not None else 0)

    def views(self, view: Tensor, index: Tensor) -> Tensor:
        """Return the outputs (n, C, h, w) for training images of these numbers (n,), each in its view (n,)."""
        return self.train[view, index].permute(0, 3, 1, 2)

    def validation(self, part: slice) -> Tensor:
        """Return the outputs (n, C, h, w) for a part of the validation images."""
        if self.val is None:
            raise ValueError("the run has no validation images")
        return self.val[part].permute(0, 3, 1, 2)

    def logits(self, model: Network, outputs: Tensor) -> Tensor:
        """Return the logits (N, K) of outputs (N, C, h, w)."""
        return logits_after(model, self.stages, outputs)

    def forward(self, model: Network, outputs: Tensor) -> tuple[Tensor, list[tuple[float, Tensor]]]:
        """Return what `forward_pass` does, for outputs (N, C, h, w)."""
        return self.logits(model, outputs), []

    @classmethod
    def compute(
        cls,
        model: Network,
        preprocessing: Preprocessing,
        train: Split,
        validation: Split | None,
        recipe: Recipe,
        precision: str,
        report: Callable[[int, int], None] | None = None,
    ) -> FrozenOutputs | None:
        """Return the outputs for the images of a run; None if no stage is frozen or they take too much memory.

        `report` receives the number of images done, and the total.
        """
        count, views = frozen_stages(model, recipe), count_views(recipe)
        if not count:
            return None
        train_mode(model, recipe)
        run = partial(_run, model.stages[:count], preprocessing, precision)
        one = run(train.images[:1])
        if not fits_in_memory(one, train, validation, recipe):
            return None
        seen = one.new_empty(views, len(train), *one.shape[1:])
        unseen = None if validation is None else one.new_empty(len(validation), *one.shape[1:])
        parts = [(seen[view], train.images, partial(run, flip=bool(view))) for view in range(views)]
        if validation is not None and unseen is not None:
            parts.append((unseen, validation.images, run))
        done, total = 0, count_images(train, validation, recipe)
        for outputs, images, computed in parts:
            for start in range(0, len(images), BATCH):
                part = slice(start, start + BATCH)
                outputs[part] = computed(images[part])
                if report is not None:
                    report(done + min(part.stop, len(images)), total)
            done += len(images)
        return cls(count, seen, unseen)


def logits_after(model: Network, stages: int, outputs: Tensor) -> Tensor:
    """Return the logits (N, K) of the outputs (N, C, h, w) of a network's first stages."""
    x = outputs if torch.is_autocast_enabled("cpu") else outputs.float()
    return model.forward_head(run_stages(model.stages[stages:], x))


def fits_in_memory(one: Tensor, train: Split, validation: Split | None, recipe: Recipe) -> bool:
    """Return whether outputs like those of one image, for all images of a run, take little enough memory."""
    return one.nbytes * count_images(train, validation, recipe) <= MAX_BYTES


def count_images(train: Split, validation: Split | None, recipe: Recipe) -> int:
    """Return the number of views of training images, and validation images."""
    return count_views(recipe) * len(train) + (0 if validation is None else len(validation))


def count_views(recipe: Recipe) -> int:
    """Return how many views of a training image a recipe without crops shows: the image, and its flip."""
    return 1 if recipe.flip == "none" else 2


def frozen_stages(model: Network, recipe: Recipe) -> int:
    """Return the number of first stages that give the same outputs for a view of an image in every step; 0 for none."""
    changes = recipe.crop or recipe.cutout or recipe.sizes or recipe.mixup
    other = recipe.virtual_shards > 1 or recipe.engine == "compile" or recipe.on_collapse == "repair"
    if recipe.tune != "last" or changes or other or next(model.parameters()).device.type != "cpu":
        return 0
    return next((number for number, stage in enumerate(model.stages) if not _frozen(stage)), len(model.stages))


def _frozen(stage: Stage) -> bool:
    """Return whether a stage has no trained weight and no dropout; norms keep their statistics with tune=last."""
    layers = [layer for module in stage.modules for layer in module.modules()]
    trained = any(parameter.requires_grad for layer in layers for parameter in layer.parameters(recurse=False))
    return not trained and not any(isinstance(layer, nn.Dropout) for layer in layers)


@torch.no_grad()
def _run(
    stages: Sequence[Stage], preprocessing: Preprocessing, precision: str, images: np.ndarray, *, flip: bool = False
) -> Tensor:
    """Return the outputs (N, h, w, C) of stages for raw images (N, C, H, W)."""
    x = preprocessing(torch.from_numpy(np.array(images)))
    x = (x.flip(3) if flip else x).contiguous(memory_format=torch.channels_last)
    with autocast(precision, CPU):
        return run_stages(stages, x).permute(0, 2, 3, 1)
