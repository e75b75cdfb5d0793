"""The loss with a teacher against an independent formula, in a plain and in a sharded step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mlpconv.data import Split
from mlpconv.data.augment import mixup
from mlpconv.data.sampler import Batch, Sampler
from mlpconv.models import create_model
from mlpconv.preprocessing import Preprocessing
from mlpconv.training import Recipe
from mlpconv.training.loss import losses
from mlpconv.training.optim import make_optimizers
from mlpconv.training.sharded_step import ShardedStep
from mlpconv.training.step import BatchLoader, train_step

N, K = 13, 7


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits (N, K), labels (N,) and the probabilities (N, K) of a teacher."""
    rng = torch.Generator().manual_seed(seed)
    soft = torch.softmax(3 * torch.randn(N, K, generator=rng), 1)
    return 4 * torch.randn(N, K, generator=rng), torch.randint(0, K, (N,), generator=rng), soft


def expected(logits: torch.Tensor, labels: torch.Tensor, soft: torch.Tensor, recipe: Recipe) -> float:
    """Compute (1 - w) * cross-entropy + w * T^2 * KL in NumPy, image by image, in float64."""
    total = 0.0
    for row, label, teacher in zip(logits.double().numpy(), labels.numpy(), soft.double().numpy(), strict=True):
        smooth = np.full(K, recipe.label_smoothing / K)
        smooth[label] += 1 - recipe.label_smoothing
        hard = -(smooth * np.log(np.exp(row) / np.exp(row).sum())).sum()
        own = np.exp(row / recipe.teacher_temperature) / np.exp(row / recipe.teacher_temperature).sum()
        divergence = (teacher * np.log(teacher / own)).sum()
        total += (1 - recipe.teacher_weight) * hard + recipe.teacher_weight * recipe.teacher_temperature**2 * divergence
    return total / len(logits)


@pytest.mark.parametrize("settings", [{}, {"teacher_weight": 0.3, "teacher_temperature": 2.5, "label_smoothing": 0.1}])
def test_the_loss_is_that_of_hinton(settings: dict[str, Any]) -> None:
    recipe = Recipe(teacher="any", **settings)
    logits, labels, soft = drawn()
    auxiliary = drawn(1)[0]
    found = losses(logits, [(0.3, auxiliary)], labels, soft, recipe)
    both = expected(logits, labels, soft, recipe) + 0.3 * expected(auxiliary, labels, soft, recipe)
    assert float(found.total) == pytest.approx(both, rel=1e-5)
    plain = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    assert float(found.labels) == pytest.approx(float(plain))  # what is reported does not depend on the teacher


def test_a_network_that_agrees_with_its_teacher_has_no_loss_but_that_of_the_labels() -> None:
    recipe = Recipe(teacher="any", teacher_weight=1.0, teacher_temperature=2.0)
    logits, labels, _ = drawn()
    assert float(losses(logits, [], labels, torch.softmax(logits / 2, 1), recipe).total) == pytest.approx(0, abs=1e-5)


def network() -> Any:
    torch.manual_seed(0)
    return create_model("nin_tiny", num_classes=K, width=0.25, norm=None, dropout=0.0, init="he")


def batch() -> Batch:
    rng = torch.Generator().manual_seed(2)
    return Batch(torch.randn(N, 1, 8, 8, generator=rng), *drawn()[1:])


RECIPE = Recipe(teacher="any", teacher_temperature=3.0, lr=0.1, momentum=0.0, weight_decay=0.0)


def test_mixup_mixes_soft_targets_like_labels() -> None:
    recipe, model, reference = RECIPE.with_settings(mixup=0.4, teacher_weight=0.6, seed=3), network(), network()
    optimizers = make_optimizers(model, recipe)
    optimizers.set_lr(recipe.lr)
    train_step(model, optimizers, batch(), recipe, 5, "fp32")
    images, labels, soft = batch()
    _, soft = mixup(images, soft, 0.4, seed=3, step=5)
    images, targets = mixup(images, F.one_hot(labels, K).float(), 0.4, seed=3, step=5)
    logits = reference(images)
    hard = -(targets * logits.log_softmax(1)).sum(1).mean()
    teacher = (soft * (soft.log() - (logits / 3).log_softmax(1))).sum(1).mean()
    gradients = torch.autograd.grad(0.4 * hard + 0.6 * 9 * teacher, list(reference.parameters()))
    for moved, start, gradient in zip(model.parameters(), reference.parameters(), gradients, strict=True):
        torch.testing.assert_close(moved.detach(), start.detach() - 0.1 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shards", [1, 4])
def test_a_sharded_step_has_the_same_loss(shards: int) -> None:
    recipe = RECIPE.with_settings(virtual_shards=shards, mixup=0.4)
    plain, sharded = network(), network()
    for model in (plain, sharded):
        optimizers = make_optimizers(model, recipe)
        optimizers.set_lr(recipe.lr)
        if model is plain:
            train_step(model, optimizers, batch(), recipe, 7, "fp32")
        else:
            ShardedStep(model, optimizers, recipe, "fp32", None)(batch(), 7)
    for own, other in zip(sharded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4 if shards > 1 else 0, atol=1e-6 if shards > 1 else 0)


@pytest.mark.parametrize("flip", ["none", "random", "alternate"])
def test_soft_targets_are_those_of_the_view_that_an_image_shows(flip: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (N, 3, 5, 5), dtype=np.uint8)
    split, recipe = Split(pixels, np.arange(N) % K), Recipe(teacher="any", flip=flip, batch_size=5, seed=3)
    views = 1 if flip == "none" else 2
    soft = torch.arange(views * N, dtype=torch.float32).view(views, N, 1).expand(views, N, K)
    chain = Preprocessing.create(["scale"], 3, (5, 5)).fit(pixels)
    load = BatchLoader(split, chain, recipe, Sampler(N, 5, 3), 12, soft=soft)
    shown = set()
    for step in range(6):
        images, labels, targets = load(step)
        assert targets is not None
        for image, label, target in zip(images, labels, targets, strict=True):
            view, index = divmod(int(target[0]), N)
            plain = pixels[index][..., ::-1] if view else pixels[index]
            assert np.array_equal((image * 255).round().to(torch.uint8).numpy(), plain)
            assert label == index % K
            shown.add(view)
    assert shown == set(range(views))
