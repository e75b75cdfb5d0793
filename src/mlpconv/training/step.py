"""Batch loading and the training step, both pure functions of the state and the step number."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpconv.data import Split
from mlpconv.data.augment import Augmentation, augment, flips, generator, mixup, resize
from mlpconv.data.sampler import Batch, Sampler
from mlpconv.data.shard_images import is_streamed
from mlpconv.models.base import Network
from mlpconv.models.googlenet import GoogLeNet
from mlpconv.preprocessing import Preprocessing
from mlpconv.training.loss import losses
from mlpconv.training.optim import Optimizers
from mlpconv.training.recipe import Recipe
from mlpconv.training.seeding import seed_torch

if TYPE_CHECKING:
    from mlpconv.training.frozen_outputs import FrozenOutputs

__all__ = [
    "BatchLoader", "Forward", "Inputs", "Logits", "Outcome", "autocast", "forward_pass", "logits_of", "mixed",
    "prepare", "train_step", "update",
]  # fmt: skip

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Outcome:
    """The result of a step: loss of the labels (scalar), correct predictions (scalar), logits (N, K)."""

    loss: Tensor
    correct: Tensor
    logits: Tensor


class BatchLoader:
    """Load the batch of any step: images, preprocessing, augmentation, progressive resizing.

    `soft` are the soft targets (V, N, K) of a teacher, of which a batch has the view that its images show. With
    `frozen`, a batch has the outputs of the frozen layers in place of its images.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        recipe: Recipe,
        sampler: Sampler,
        steps: int,
        device: torch.device = CPU,
        soft: Tensor | None = None,
    ) -> None:
        self.images: np.ndarray | Tensor = split.images
        self.labels = torch.from_numpy(np.array(split.labels))
        self.preprocessing, self.recipe, self.sampler, self.steps = preprocessing, recipe, sampler, steps
        self.augmentation = Augmentation(recipe.crop, recipe.crop_mode, recipe.flip, recipe.cutout)
        self.device, self.soft = device, None if soft is None else soft.to(device)
        self.frozen: FrozenOutputs | None = None
        self.streamed = is_streamed(split.images)
        if device.type != "cpu" and self.streamed:
            self.labels = self.labels.to(device)
        elif device.type != "cpu":
            self.images, self.labels = torch.from_numpy(np.array(split.images)).to(device), self.labels.to(device)

    def __call__(self, step: int) -> Batch:
        index = self.sampler.indices(step)
        place: dict[str, Any] = {"seed": self.recipe.seed, "step": step, "epoch": self.sampler.epoch(step)}
        soft: Tensor | None = None
        if self.frozen is not None or self.soft is not None:
            view = flips(self.augmentation, **place, index=index).long()
        images = self.augmented(step, index, place) if self.frozen is None else self.frozen.views(view, index)
        if self.soft is not None:
            soft = self.soft[view.to(self.device, non_blocking=True), index.to(self.device, non_blocking=True)]
        return Batch(images, self.labels[index.to(self.labels.device, non_blocking=True)], soft)

    @torch.no_grad()
    def augmented(self, step: int, index: Tensor, place: dict[str, Any]) -> Tensor:
        """Return the images with these numbers (N,), preprocessed and augmented, channels last."""
        images = augment(self.preprocessing(self.gather(index)), self.augmentation, **place, index=index)
        if side := self.side(step):
            images = resize(images, side)
        return images.contiguous(memory_format=torch.channels_last)

    @property
    def workers(self) -> int:
        """The threads that load batches ahead: at least two for images that are decoded for each batch."""
        return max(self.recipe.workers, 2) if self.streamed else self.recipe.workers

    def gather(self, index: Tensor) -> Tensor:
        """Return the raw images with these indices (N,), on the device."""
        if isinstance(self.images, Tensor):
            return self.images[index.to(self.images.device, non_blocking=True)]
        return torch.from_numpy(self.images[index.numpy()]).to(self.device)

    def side(self, step: int) -> int | None:
        """Return the image side at a step with progressive resizing, else None."""
        sizes = self.recipe.sizes
        return sizes[min(step * len(sizes) // self.steps, len(sizes) - 1)] if sizes else None


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return the autocast context for "bf16", or a null context for "fp32"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


class Inputs(NamedTuple):
    """What a step computes with: images (N, C, H, W), labels (N,), targets (N,) or, with mixup, (N, K).

    `soft` are the soft targets (N, K) of a teacher, mixed like the targets.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    soft: Tensor | None

    def map(self, action: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with `action` of each tensor in its place."""
        images, labels, targets, soft = self
        return Inputs(action(images), action(labels), action(targets), None if soft is None else action(soft))


Forward = Callable[[Network, Tensor], tuple[Tensor, list[tuple[float, Tensor]]]]
Logits = Callable[[Network, Tensor], Tensor]


def train_step(
    model: Network, optimizers: Optimizers, batch: Batch, recipe: Recipe, step: int, precision: str
) -> Outcome:
    """Update the weights once; dropout is seeded by (seed, step)."""
    return update(model, optimizers, prepare(batch, recipe, step, model.num_classes), recipe, precision)


def prepare(batch: Batch, recipe: Recipe, step: int, num_classes: int) -> Inputs:
    """Return the inputs of a step after mixup, and seed dropout: all that depends on the step number."""
    seed_torch(generator(recipe.seed, "dropout", step).initial_seed(), batch.images.device)
    return mixed(batch, recipe, step, num_classes)


def mixed(batch: Batch, recipe: Recipe, step: int, num_classes: int) -> Inputs:
    """Return a batch after mixup: images, labels and soft targets are mixed with those of the same partner."""
    images, labels, soft = batch
    if not recipe.mixup:
        return Inputs(images, labels, labels, soft)
    targets = F.one_hot(labels, num_classes).float()
    both = targets if soft is None else torch.cat([targets, soft], 1)
    images, both = mixup(images, both, recipe.mixup, seed=recipe.seed, step=step)
    return Inputs(images, labels, both[:, :num_classes], None if soft is None else both[:, num_classes:])


def update(
    model: Network,
    optimizers: Optimizers,
    inputs: Inputs,
    recipe: Recipe,
    precision: str,
    forward: Forward | None = None,
) -> Outcome:
    """Update the weights once. Nothing here waits for the device or copies to it, so a CUDA graph can replay it."""
    images, labels, targets, soft = inputs
    optimizers.zero_grad()
    with autocast(precision, images.device):
        logits, auxiliary = (forward or forward_pass)(model, images)
    logits = logits.float()
    loss, total = losses(logits, auxiliary, targets, soft, recipe)
    total.backward()
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizers.step()
    with torch.no_grad():
        correct = (logits.argmax(1) == labels).sum()
    return Outcome(loss.detach(), correct, logits.detach())


def logits_of(model: Network, images: Tensor) -> Tensor:
    """Return the logits (N, K) of images (N, C, H, W)."""
    logits: Tensor = model(images)
    return logits


AUXILIARY_WEIGHT = 0.3  # of the loss of each auxiliary classifier (Szegedy et al. 2014, section 5)


def forward_pass(model: Network, images: Tensor) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """Return the logits, and a list of loss weights and logits of auxiliary heads."""
    if not isinstance(model, GoogLeNet):
        return model(images), []
    outputs = model.outputs(images)
    return outputs.logits, [(AUXILIARY_WEIGHT, aux) for aux in (outputs.aux1, outputs.aux2) if aux is not None]
