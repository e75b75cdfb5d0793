"""The training step against a plain reference, in both dtypes, and the batches of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mlpconv.data import Split
from mlpconv.data.augment import mixup
from mlpconv.data.sampler import Batch, Sampler, prefetch
from mlpconv.models import create_model
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.training import Recipe
from mlpconv.training.optim import make_optimizers
from mlpconv.training.step import BatchLoader, Outcome, autocast, train_step

K = 7


def network(**options: Any) -> Network:
    torch.manual_seed(0)
    settings = {"num_classes": K, "in_channels": 3, "width": 0.5, "init": "he"} | options
    return create_model("nin_tiny", **settings).to(memory_format=torch.channels_last)


def batch(n: int = 11, size: int = 13, seed: int = 0, channels: int = 3) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(n, channels, size, size, generator=draw).contiguous(memory_format=torch.channels_last)
    return Batch(images, torch.randint(0, K, (n,), generator=draw))


def one(model: Network, recipe: Recipe, data: Batch, step: int = 5, precision: str = "fp32") -> Outcome:
    optimizers = make_optimizers(model, recipe)
    optimizers.set_lr(recipe.lr)
    return train_step(model.train(), optimizers, data, recipe, step, precision)


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean over the images of -sum(target x log softmax)."""
    powers = (logits - logits.amax(1, keepdim=True)).exp()
    return -(targets * (powers / powers.sum(1, keepdim=True)).log()).sum(1).mean()


def flat(model: Network) -> torch.Tensor:
    """Return all weights as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# --- the loss and the step


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_with_mixup_and_smoothing_matches_a_plain_implementation(alpha: float, smoothing: float):
    recipe = Recipe(mixup=alpha, label_smoothing=smoothing, lr=0.1, momentum=0.0, weight_decay=0.0, seed=3)
    data, model, reference = batch(), network(dropout=0.0), network(dropout=0.0)
    outcome = one(model, recipe, data)

    images, targets = data.images, F.one_hot(data.labels, K).float()
    if alpha:
        images, targets = mixup(images, targets, alpha, seed=3, step=5)
    targets = (1 - smoothing) * targets + smoothing / K
    logits = reference.train()(images)
    loss = soft_cross_entropy(logits, targets)
    gradients = torch.autograd.grad(loss, list(reference.parameters()))

    torch.testing.assert_close(outcome.loss, loss.detach())
    torch.testing.assert_close(outcome.logits, logits.detach())
    assert int(outcome.correct) == int((logits.argmax(1) == data.labels).sum())
    for moved, start, gradient in zip(model.parameters(), reference.parameters(), gradients, strict=True):
        torch.testing.assert_close(moved.detach(), start.detach() - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    assert not outcome.loss.requires_grad
    assert not outcome.logits.requires_grad


def test_gradients_do_not_accumulate_over_steps():
    data, recipe = batch(), Recipe(lr=1e-6, momentum=0.0)
    model = network(dropout=0.0)
    one(model, recipe, data)
    first = model.first_conv.weight.grad.clone()
    one(model, recipe, data)
    torch.testing.assert_close(model.first_conv.weight.grad, first, rtol=1e-3, atol=1e-5)


def test_the_gradient_is_clipped_to_its_norm():
    data = batch()
    free, clipped = network(), network()
    one(free, Recipe(lr=1.0, momentum=0.0, weight_decay=0.0), data)
    one(clipped, Recipe(lr=1.0, momentum=0.0, weight_decay=0.0, clip=0.01), data)

    def moved(model: Network) -> float:
        return float((flat(model) - flat(network())).norm())

    assert moved(free) > 0.1
    assert moved(clipped) == pytest.approx(0.01, rel=1e-3)


def test_dropout_depends_on_the_seed_and_the_step_alone():
    data = batch()

    def logits(seed: int, step: int) -> torch.Tensor:
        model = network(dropout=0.5)
        torch.seed()  # whatever was drawn before
        return one(model, Recipe(seed=seed), data, step).logits

    assert torch.equal(logits(0, 5), logits(0, 5))
    assert not torch.equal(logits(0, 5), logits(0, 6))
    assert not torch.equal(logits(0, 5), logits(1, 5))


def test_bf16_is_near_fp32_and_keeps_its_weights_in_fp32():
    data, recipe = batch(29), Recipe(lr=0.05, norm="batch")
    full, half = network(norm="batch"), network(norm="batch")
    start = flat(network(norm="batch"))
    exact, rounded = one(full, recipe, data), one(half, recipe, data, precision="bf16")
    assert rounded.logits.dtype == rounded.loss.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters())
    assert not torch.equal(exact.logits, rounded.logits)
    assert float(rounded.loss) == pytest.approx(float(exact.loss), rel=0.01)
    assert F.cosine_similarity(flat(full) - start, flat(half) - start, dim=0) > 0.98


def test_autocast_uses_bf16_only_on_request():
    with autocast("bf16", torch.device("cpu")):
        assert F.linear(torch.ones(2, 3), torch.ones(5, 3)).dtype == torch.bfloat16
    with autocast("fp32", torch.device("cpu")):
        assert F.linear(torch.ones(2, 3), torch.ones(5, 3)).dtype == torch.float32


def test_auxiliary_heads_of_googlenet_have_weight_03():
    torch.manual_seed(0)
    options = {"num_classes": K, "width": 0.07, "dropout": 0.0, "size": 96}
    model = create_model("googlenet", aux_heads=True, **options).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    data = batch(2, 96)
    outputs = model.outputs(data.images)
    losses = [F.cross_entropy(logits, data.labels) for logits in (outputs.logits, outputs.aux1, outputs.aux2)]
    total = losses[0] + 0.3 * losses[1] + 0.3 * losses[2]
    wanted = dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(total, list(model.parameters())), strict=True)
    )
    outcome = one(model, Recipe(lr=1e-9, momentum=0.0), data)
    assert float(outcome.loss) == pytest.approx(losses[0].item(), rel=1e-5)  # what is told is the network's own loss
    torch.testing.assert_close(outcome.logits, outputs.logits.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-6)
    assert model.aux["4a"][-1].weight.grad.abs().sum() > 0


def test_a_network_without_auxiliary_heads_has_one_loss():
    torch.manual_seed(0)
    model = create_model("googlenet", num_classes=K, width=0.07, dropout=0.0, aux_heads=False)
    data = batch(2, 64)
    loss = F.cross_entropy(model.train()(data.images), data.labels)
    assert float(one(model, Recipe(), data).loss) == pytest.approx(loss.item(), rel=1e-5)


# --- the batch loader


def images_of(n: int = 23, size: tuple[int, int] = (8, 8)) -> Split:
    draw = np.random.default_rng(0)
    return Split(draw.integers(0, 256, (n, 3, *size), dtype=np.uint8), draw.integers(0, K, n))


def loader(
    recipe: Recipe, names: Sequence[str] = ("standardize",), split: Split | None = None, steps: int = 12
) -> BatchLoader:
    split = split or images_of()
    chain = Preprocessing.create(names, 3, split.images.shape[2:]).fit(split.images)
    return BatchLoader(split, chain, recipe, Sampler(len(split), recipe.batch_size, recipe.seed), steps)


def test_images_and_labels_stay_together():
    split = images_of()
    made = loader(Recipe(batch_size=5), ["scale"], split)
    table = {split.images[i].tobytes(): int(split.labels[i]) for i in range(len(split))}
    seen = []
    for step in range(5):
        images, labels, _ = made(step)
        assert images.is_contiguous(memory_format=torch.channels_last)
        pixels = (images * 255).round().to(torch.uint8).contiguous().numpy()
        assert [table[image.tobytes()] for image in pixels] == labels.tolist()
        seen += [image.tobytes() for image in pixels]
    assert sorted(seen) == sorted(table)


EVERYTHING = {"batch_size": 5, "crop": 2, "flip": "alternate", "cutout": 3, "sizes": (7, 11), "seed": 3}


@pytest.mark.parametrize(("names", "left_out"), [(("gcn", "zca"), ("sizes",)), (("lcn", "standardize"), ())])
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_the_same_bits(names: tuple[str, ...], left_out: tuple[str, ...], workers: int):
    recipe = Recipe(**{key: value for key, value in EVERYTHING.items() if key not in left_out})
    alone = list(prefetch(loader(recipe, names), 0, 12, 0))
    helped = list(prefetch(loader(recipe, names), 0, 12, workers))
    late = list(prefetch(loader(recipe, names), 7, 12, workers))
    for first, second in zip([*alone, *alone[7:]], [*helped, *late], strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)


def test_progressive_resizing_divides_the_steps_equally():
    made = loader(Recipe(batch_size=5, sizes=(5, 7, 11)), steps=12)
    assert [made(step).images.shape[-1] for step in range(13)] == [5] * 4 + [7] * 4 + [11] * 5
    assert [loader(Recipe(batch_size=5))(step).images.shape[-1] for step in (0, 11)] == [8, 8]


def test_read_only_arrays_are_accepted():
    split = images_of()
    for array in (split.images, split.labels):
        array.setflags(write=False)  # as a file mapped into memory
    assert len(loader(Recipe(batch_size=5), split=split)(0).labels) == 5


def test_the_images_are_not_modified():
    split = images_of()
    before = split.images.copy()
    made = loader(Recipe(**EVERYTHING), split=split)
    for step in range(12):
        made(step)
    assert (split.images == before).all()
